"""Train and test HyperIQA.

python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
torchrun --nproc_per_node 4 train_test_IQA.py --dataset koniq  # on four GPUs
"""

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import folders
from experiment.check_database import check_images
from experiment.command_line import parse_options
from experiment.evaluation import check_evaluation_folder
from experiment.record import (
    checkpoint_in_run,
    read_record,
    record_of,
    record_path,
    refuse_other_pixels,
)
from experiment.report import print_medians
from experiment.results import gather_results
from experiment.run_folder import (
    check_run,
    record_to_continue,
    refuse_other_images,
    round_index_of,
    starts_from_weights,
)
from experiment.splits import Job, draw_splits, read_split, sizes_of, split_record
from folders import OpenDatabase
from util.errors import NO_RESULT, InputError, boundary, log, rank, read_ranks, reported_once
from util.files import check_input
from util.labels import Sample, Settings
from util.meaning import Meaning
from util.tables import choices_in, read_rows


def main(argv: list[str] | None = None) -> None:
    # boundary() turns a fault into one line and an exit code. It yields a list; what is appended to
    # it is printed after an interrupt.
    with boundary() as hints_after_interrupt:
        read_ranks()  # from torchrun's variables, for rank()
        # Only the first rank prints. 'backslashreplace', since the name of a file may not be UTF-8.
        if rank() > 0:
            sys.stdout = open(os.devnull, 'w', errors='backslashreplace')  # noqa: SIM115
        # A fault that all ranks have is reported by the first one only.
        with reported_once():
            config = parse_options(argv)
        if config.list_datasets == 'all':
            print(folders.dataset_table())
        elif config.list_datasets:
            print(folders.dataset_facts(folders.database_key(config.list_datasets)))
        elif config.summarize:
            print_summary(config.summarize)
        elif config.check:
            check(config)
        elif config.evaluate:
            with reported_once():
                job = prepare_test(config)
            # Here and not at the top, since torch takes seconds to import: --help, a typo and a
            # missing file answer at once.
            import rounds

            rounds.evaluate(config, job)
        else:
            with reported_once():
                job = prepare_run(config)
            import rounds

            hints_after_interrupt.append(
                'the same command with --resume continues after the last finished epoch'
            )
            rounds.run(config, job)


def print_summary(run: str) -> None:
    """Print the medians of the finished rounds; exit with 3 if there is no result."""
    results = gather_results(run)
    print_medians(results)
    if not results['rounds']:
        log(f'no result: no round in {run} is finished')
        sys.exit(NO_RESULT)


def check(config: Namespace) -> None:
    """Check the databases; exit with 2 if one of them cannot be used."""
    database = open_database(config)
    others = open_others(config)
    splits = draw_splits(config, database)
    database.warn_if_incomplete()
    is_usable = check_images(database, splits, config.patch_size)
    for name, other in others.items():
        print(f'\n--test_on {name}')
        everything = {'train': [], 'test': list(range(len(other.samples)))}
        if not check_images(other, [everything], config.patch_size):
            is_usable = False
    if not is_usable:
        sys.exit(2)


def prepare_run(config: Namespace) -> Job:
    """Open the databases, draw the splits and check the run folder.

    Finds every fault that can be found without importing torch and without decoding an image.

    Returns:
        the databases, the splits of all rounds, and what an image and a score mean.
    """
    # The content of the run folder's config.json; None for a new run.
    record = record_to_continue(config.output)
    srgb = None
    ignores_table_options = False
    if record:
        # A run is continued as it began: False if it converted no image to sRGB, as in the first
        # versions, else None, with which each database decides.
        srgb = Meaning.of_record(record['model']).srgb_of_all
        # Before config.json had a version, --columns and --lower_is_better described only the table
        # of --csv, and not those of --test_on.
        ignores_table_options = 'version' not in record

    database = open_database(config, srgb)
    database.warn_if_incomplete()
    meaning = database.meaning(config.normalize_scores)
    if srgb is False:
        # check_run refuses a meaning that differs from the recorded one, which has null here.
        meaning = meaning._replace(srgb=None)
    # Now and not at the end of the first round, so that a fault in these databases shows before
    # the training.
    others = open_others(config, srgb, ignores_table_options)
    warn_of_training_images(others, meaning, database.digest_in_any_order, database.samples)
    splits = draw_splits(config, database)
    job = Job(database, others, splits, meaning)
    check_run(config, job)
    text = f'Run folder: {config.output}'
    if record is None:
        text += f' (--resume {shlex.quote(config.output)} continues it)'
    log(text)
    log(f'{database.entry.title}: {sizes_of(splits, len(database.samples))}')

    if record:
        refuse_other_pixels(record, [database, *others.values()])
    # With --weights none, no round starts from weights. Those of ImageNet are downloaded.
    if config.weights != 'imagenet' and starts_from_weights(config):
        try:
            check_input(config.weights, 'a checkpoint')
        except InputError as error:
            # Name the option: with --resume RUN, the user did not type this file's name.
            raise InputError(f'--weights: {error}')
    return job


def prepare_test(config: Namespace) -> Job:
    """Return the job of --evaluate: to repeat the test of a round, or a test on other databases."""
    checkpoint = config.evaluate
    # Its path in the folder of a round, with links followed; None if it is in no such folder.
    path_in_run = checkpoint_in_run(checkpoint)
    if path_in_run is None and not config.test_on:
        raise InputError(
            f'--evaluate: {checkpoint} is not the best.pth or last.pth of a run; '
            '--test_on NAME=DIR tests it on a database'
        )
    check_evaluation_folder(config.output)
    check_input(checkpoint, 'a checkpoint')
    # Here and not at the top, since it imports torch.
    from scoring.trained import load_trained

    # The network is not kept. It is loaded so that a fault of the file shows now.
    _, meaning = load_trained(checkpoint)
    log(f'{checkpoint}: {meaning.scale_line}')
    if path_in_run is None or config.test_on:
        return prepare_test_on_others(config, path_in_run, meaning)
    return prepare_repeated_test(config, path_in_run, meaning)


def prepare_repeated_test(config: Namespace, checkpoint: Path, meaning: Meaning) -> Job:
    """Return the job of repeating the test of the round in whose folder the checkpoint is."""
    record = read_record(record_path(checkpoint.parents[1]))  # above round_01/
    database = open_database(config, meaning.srgb_of_all)
    refuse_other_pixels(record, [database])
    split_path = checkpoint.with_name('split.json')
    split = read_split(split_path, database)
    if not split['test']:
        raise InputError(
            f'{config.evaluate} was trained without a test part; '
            '--test_on NAME=DIR tests it on a database'
        )
    # The same rows in another order are allowed, since nothing is trained.
    refuse_other_images(
        split_path,
        split_record(split, database),
        remedy='test on other labels with --test_on NAME=DIR',
        has_same_rows=record.get('labels') == database.digest_in_any_order,
        trains_nothing=True,
    )
    return Job(database, {}, [split], meaning, round_index_of(checkpoint.parent))


def prepare_test_on_others(config: Namespace, path_in_run: Path | None, meaning: Meaning) -> Job:
    """Return the job of testing a checkpoint on the databases of --test_on.

    Args:
        path_in_run: the checkpoint's path in the folder of a round; None if it is in none.
        meaning: what images and scores mean to its network.
    """
    others = open_others(config, meaning.srgb_of_all)
    record = record_of(config.evaluate)
    # Records of earlier versions have no digest of the labels.
    training_labels = read_record(record).get('labels') if record else None
    # The list of its training images is not read, so databases are compared as a whole.
    warn_of_training_images(others, meaning, training_labels, training_images=[])
    # The patches of a test depend on the round.
    round_index = round_index_of(path_in_run.parent) if path_in_run else 0
    # HyperIQASolver needs a database of its own too, but reads no image of it here, so the first
    # one will do.
    first = next(iter(others.values()))
    return Job(first, others, [], meaning, round_index)


def open_database(config: Namespace, srgb: bool | None = None) -> OpenDatabase:
    settings = Settings.of(config)
    return OpenDatabase(config.dataset, config.data_root, config.resize, settings, srgb)


def open_others(
    config: Namespace, srgb: bool | None = None, ignores_table_options: bool = False
) -> dict[str, OpenDatabase]:
    """Return the databases of --test_on by their names.

    Args:
        srgb: as for `OpenDatabase`.
        ignores_table_options: with --csv, read the tables of --test_on without the options for
            tables, as runs without a version did.
    """
    shared = Settings(skip_missing=config.skip_missing, average_votes=config.average_votes)
    others = {}
    for name, key, path in config.test_on or []:
        if key != 'csv' or (config.csv and ignores_table_options):
            settings = shared
        elif not config.csv:
            # The options describe this table. It is tested as a whole, so nothing splits it.
            settings = Settings.of(config)._replace(split_by=None)
        else:
            # The options describe the table of --csv. This table has the same direction of the
            # scores, and those of the named columns that are in its header.
            columns = choices_in(read_rows(path), config.columns)
            settings = shared._replace(columns=columns, lower_is_better=config.lower_is_better)
        settings = settings._replace(place=f'--test_on {name}=DIR')  # named in messages
        others[name] = OpenDatabase(key, path, resize=None, settings=settings, srgb=srgb)
    return others


def warn_of_training_images(
    others: dict[str, OpenDatabase],
    meaning: Meaning,
    training_labels: str | None,
    training_images: list[Sample],
) -> None:
    """Warn of databases of --test_on that the network is trained on, as a whole or in part.

    Args:
        meaning: of the network's images and scores.
        training_labels: the digest of the labels that the network is trained on, in any order;
            None if it is not known.
        training_images: as far as they are known.
    """
    # `sample.file` is equal for all paths of one file, links among them.
    training_files = {sample.file for sample in training_images}
    for name, database in others.items():
        shared = sum(sample.file in training_files for sample in database.samples)
        if shared:
            count = str(shared)
        elif is_training_database(database, meaning, training_labels):
            # The training images are not known, or are another copy of the database.
            count = 'some or all'
        else:
            continue
        log(
            f'warning: --test_on {name}: {count} of its {len(database.samples)} images are of the '
            'training database, so this is no test on new images'
        )


def is_training_database(
    database: OpenDatabase, meaning: Meaning, training_labels: str | None
) -> bool:
    """Return whether a network is trained on this database, or on another copy of it."""
    if database.entry.title != meaning.title:
        return False
    if database.key == 'csv':
        # All tables of one's own have the same title, so their labels are compared.
        return database.digest_in_any_order == training_labels
    return True


if __name__ == '__main__':
    main()
