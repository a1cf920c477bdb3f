"""Train and test HyperIQA.

python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
torchrun --nproc_per_node 4 train_test_IQA.py --dataset koniq  # on four GPUs
"""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import folders
from experiment.check_database import check_images
from experiment.command_line import parse_options
from experiment.record import read_record, record_of, refuse_other_pixels
from experiment.report import print_medians
from experiment.results import PREDICTION_COLUMNS, gather_results
from experiment.run_folder import (
    check_run,
    refuse_other_images,
    round_index_of,
    starts_from_weights,
)
from experiment.splits import Job, Split, draw_splits, read_split, sizes_of, split_record
from folders import OpenDatabase
from util.errors import NO_RESULT, InputError, boundary, log, rank, read_ranks, told_once
from util.files import check_input, check_output
from util.labels import Sample, Settings
from util.meaning import Meaning


def main(argv: list[str] | None = None) -> None:
    with boundary() as remedies:
        read_ranks()
        # Only the first rank prints. Files are guarded where they are written.
        if rank() > 0:
            sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115
        with told_once():
            config = parse_options(argv)
        if config.list_datasets:
            list_datasets(config.list_datasets)
        elif config.summarize:
            print_summary(config.summarize)
        elif config.check:
            check(config)
        elif config.evaluate:
            with told_once():
                job = prepare_test(config)
            # Here and not at the top, since torch takes seconds to import: --help, a typo and a
            # missing file answer at once.
            import rounds

            rounds.evaluate(config, job)
        else:
            with told_once():
                job = prepare_run(config)
            import rounds

            remedies.append(
                'the same command with --resume continues after the last finished epoch'
            )
            rounds.run(config, job)


def list_datasets(key: str) -> None:
    """Print a table of all databases, or the facts of one."""
    if key == 'all':
        print(folders.dataset_table())
    else:
        print(folders.dataset_facts(folders.database_key(key)))


def print_summary(run: str) -> None:
    """Print the medians of the finished rounds; exit with 3 if there is no result."""
    results = gather_results(run)
    print_medians(results)
    if not results['rounds']:
        log(f'no result: no round in {run} is finished')
        sys.exit(NO_RESULT)


def check(config: Namespace) -> None:
    """Check the database; exit with 2 if it cannot be trained on."""
    database = open_database(config)
    splits = draw_splits(config, database)
    database.warn_of_count()
    if not check_images(database, splits, config.patch_size):
        sys.exit(2)


def prepare_run(config: Namespace) -> Job:
    """Open the databases, draw the splits and check the run folder.

    All faults that show without torch and without decoding an image are found here.
    """
    database = open_database(config)
    database.warn_of_count()
    # Now and not at the end of the first round, so that a fault in them shows before the training.
    others = open_others(config)
    warn_of_trained(config, others, database.samples)
    splits = draw_splits(config, database)
    records = [split_record(split, database) for split in splits]

    meaning = database.meaning(config.normalize_scores)
    old_record = check_run(config, meaning._asdict(), records)
    text = f'Run folder: {config.output}'
    if old_record is None:
        text += f' (--resume {shlex.quote(config.output)} continues it)'
    log(text)
    log(f'{database.entry.title}: {sizes_of(splits, len(database.samples))}')

    # Runs of the first versions converted no image to sRGB, and are continued as they began.
    if old_record is not None and 'srgb' not in old_record['model']:
        meaning = meaning._replace(srgb=False)
        for opened in (database, *others.values()):
            opened.srgb = False
    if old_record is not None:
        refuse_other_pixels(old_record, [database, *others.values()])
    if config.weights != 'imagenet' and starts_from_weights(config):
        try:
            check_input(config.weights, 'a checkpoint')
        except InputError as error:
            # Named, since a run that is continued took the file's name from its record.
            raise InputError(f'--weights: {error}')
    return Job(database, others, splits, meaning)


def prepare_test(config: Namespace) -> Job:
    """Return the job of --evaluate.

    With --test_on that is a test on the other databases, else the test of the checkpoint's round.
    """
    checkpoint = Path(os.path.abspath(config.evaluate))
    record = record_of(checkpoint)
    if record is None:
        meaning = meaning_of_option(config, checkpoint)
        round_index = 0
    else:
        meaning = Meaning.of_record(read_record(record)['model'])
        checkpoint = inside_run(checkpoint, record)
        round_index = round_index_of_checkpoint(checkpoint, record)
    check_input(config.weights, 'a checkpoint')

    if config.test_on:
        check_predictions(config, [f'predictions_{name}' for name, _, _ in config.test_on])
        others = open_others(config)
        warn_of_trained(config, others, trained=[])
        # Nothing is trained or tested on the first one only; the solver needs an open database.
        first = next(iter(others.values()))
        return Job(first, others, [], meaning, round_index)

    check_predictions(config, ['predictions'])
    database = open_database(config)
    # The images are converted as they were for the training.
    database.srgb = meaning.srgb
    if record is not None:
        refuse_other_pixels(read_record(record), [database])
    split = read_tested_split(checkpoint, database)
    return Job(database, {}, [split], meaning, round_index)


def meaning_of_option(config: Namespace, checkpoint: Path) -> Meaning:
    """Return the meaning of a checkpoint's scores by --dataset, for want of its run's record."""
    entry = folders.DATABASES[config.dataset]
    log(
        f'{checkpoint} is in no run folder; its scores are taken for those of '
        f'--dataset {config.dataset}: {entry.scale}'
    )
    return Meaning(
        title=entry.title,
        label_range=entry.score_range,
        higher_is_better=entry.higher_is_better,
        score_range=None,
        resize=entry.resize,
        exif_rotation=entry.exif_rotation,
        srgb=entry.srgb,
    )


def inside_run(checkpoint: Path, record: Path) -> Path:
    """Return the path of a checkpoint inside the run whose config.json is `record`.

    A link elsewhere that points to a checkpoint of the run stands for that checkpoint.
    """
    folder_and_above = checkpoint.parents[:2]
    if record.parent in folder_and_above:
        return checkpoint
    return Path(os.path.realpath(checkpoint))


def round_index_of_checkpoint(checkpoint: Path, record: Path) -> int:
    """Return the 0-based round of a checkpoint in the run whose config.json is `record`."""
    # A checkpoint that was copied next to a config.json is in no round's folder.
    if checkpoint.parent == record.parent:
        return 0
    return round_index_of(checkpoint.parent)


def check_predictions(config: Namespace, names: list[str]) -> None:
    """Refuse to replace a file of the user's by the predictions that --evaluate writes."""
    header = ','.join(PREDICTION_COLUMNS)
    for name in names:
        check_output(f'{config.output}/{name}.csv', ['.csv'], header)


def read_tested_split(checkpoint: Path, database: OpenDatabase) -> Split:
    """Return the split of a checkpoint's round.

    Raises:
        InputError: it has no test part, or the images or labels have changed since the training.
    """
    path = checkpoint.with_name('split.json')
    split = read_split(path, database)
    if not split['test']:
        raise InputError(
            f'{checkpoint} was trained without a test part; '
            '--test_on NAME=DIR tests it on a database'
        )
    remedy = 'test on other labels with --test_on NAME=DIR'
    refuse_other_images(path, split_record(split, database), remedy)
    return split


def open_database(config: Namespace) -> OpenDatabase:
    return OpenDatabase(config.dataset, config.data_root, config.resize, Settings.of(config))


def open_others(config: Namespace) -> dict[str, OpenDatabase]:
    """Return the databases of --test_on by their names."""
    plain = Settings(skip_missing=config.skip_missing, average_votes=config.average_votes)
    # Without --csv, the options that describe a table describe the tables of --test_on. These are
    # tested as a whole, so nothing splits them.
    if config.csv:
        of_table = plain
    else:
        of_table = Settings.of(config)._replace(split_by=None)

    others = {}
    for name, key, path in config.test_on or []:
        settings = of_table if key == 'csv' else plain
        others[name] = OpenDatabase(key, path, resize=None, settings=settings)
    return others


def warn_of_trained(
    config: Namespace, others: dict[str, OpenDatabase], trained: Iterable[Sample]
) -> None:
    """Warn of databases of --test_on that the network is trained on, as a whole or in part.

    Args:
        trained: the images of the training database, as far as they are known.
    """
    trained_files = {sample.file for sample in trained}
    for name, database in others.items():
        shared = sum(sample.file in trained_files for sample in database.samples)
        if shared:
            count = str(shared)
        elif is_training_database(config, database):
            count = 'some or all'  # its images are not known, or are another copy
        else:
            continue
        log(
            f'warning: --test_on {name}: {count} of its {len(database.samples)} images are of the '
            'training database, so this is no test on new images'
        )


def is_training_database(config: Namespace, database: OpenDatabase) -> bool:
    """Return whether a database of --test_on is the one of --dataset, perhaps in another place."""
    if database.key != config.dataset:
        return False
    if database.key != 'csv':
        return True
    return os.path.realpath(database.path) == os.path.realpath(config.csv or '')


if __name__ == '__main__':
    main()
