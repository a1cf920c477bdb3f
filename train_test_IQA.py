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
from typing import Any

import folders
from experiment import run_folder
from experiment.check_database import check_images
from experiment.command_line import parse_options
from experiment.record import read_record, record_of
from experiment.report import print_medians
from experiment.results import PREDICTION_COLUMNS, summarise
from experiment.splits import Job, draw_splits, read_split, sizes_of, split_record
from folders import OpenDatabase
from util.errors import NO_RESULT, InputError, boundary, log, rank
from util.files import check_input, check_output
from util.labels import Sample, Settings


def main(argv: list[str] | None = None) -> None:
    if rank() > 0:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, until the process ends
    with boundary() as remedies:
        config = parse_options(argv)
        if config.list_datasets:
            key = config.list_datasets
            print(
                folders.dataset_table()
                if key == 'all'
                else folders.dataset_facts(folders.database_key(key))
            )
        elif config.summarize:
            summarize(config.summarize)
        elif config.check:
            check(config)
        else:
            job = prepare_test(config) if config.evaluate else prepare_run(config)
            # Here and not at the top, since torch takes seconds to import: --help, a typo and a missing file answer at once.
            import rounds

            if config.evaluate:
                rounds.evaluate(config, job)
            else:
                remedies.append(
                    'the same command with --resume continues after the last finished epoch'
                )
                rounds.run(config, job)


def prepare_run(config: Namespace) -> Job:
    """Open the databases and draw the splits; what can be known without torch and without decoding an image is checked."""
    database = open_database(config)
    database.warn_of_count()
    others = open_others(config)
    warn_of_trained(config, others, database.samples)
    splits = draw_splits(config, database)
    model = {
        'title': database.entry.title,
        'label_range': database.score_range,
        'higher_is_better': database.higher_is_better,
    }
    model['score_range'] = (
        database.score_range if config.normalize_scores else None
    )  # that the network's 0..1 stands for
    model |= {
        'resize': database.resize,
        'exif_rotation': database.entry.exif_rotation,
        'srgb': database.srgb,
    }
    before = run_folder.check_run(
        config, model, [split_record(split, database) for split in splits]
    )
    log(
        f'Run folder: {config.output}'
        + f' (--resume {shlex.quote(config.output)} continues it)' * (not before)
    )
    log(f'{database.entry.title}: {sizes_of(splits, len(database.samples))}')
    if before and 'srgb' not in before['model']:  # an earlier version converted no image
        for earlier in (database, *others.values()):
            earlier.srgb = False
    if config.weights not in ('none', 'imagenet'):
        check_input(config.weights, 'a checkpoint')
    return Job(database, others, splits, model)


def prepare_test(config: Namespace) -> Job:
    """As `prepare_run`, for --evaluate: the database and split of the checkpoint's round, or the databases of --test_on."""
    checkpoint = Path(os.path.abspath(config.evaluate))
    record = record_of(checkpoint)
    if record is None:
        entry, round_index = folders.DATABASES[config.dataset], 0
        model: dict[str, Any] = {'score_range': None, 'higher_is_better': entry.higher_is_better}
        log(
            f'{checkpoint} is in no run folder; its scores are taken for those of --dataset {config.dataset}: {entry.scale}'
        )
    else:
        if record.parent not in checkpoint.parents[:2]:  # by a link, from outside the run folder
            checkpoint = Path(os.path.realpath(checkpoint))
        is_copy = record.parent == checkpoint.parent  # with its config.json, of no round
        model, round_index = (
            read_record(record)['model'],
            0 if is_copy else run_folder.round_index_of(checkpoint.parent),
        )
    check_input(config.weights, 'a checkpoint')
    for name in [f'_{name}' for name, _, _ in config.test_on or []] or ['']:
        check_output(
            f'{config.output}/predictions{name}.csv',
            ['.csv'],
            ','.join(PREDICTION_COLUMNS),
        )
    if config.test_on:
        others = open_others(config)
        warn_of_trained(config, others)
        return Job(next(iter(others.values())), others, [], model, round_index)
    database = open_database(config)
    database.srgb = model.get('srgb', False)
    path = checkpoint.with_name('split.json')
    split = read_split(path, database)
    if not split['test']:
        raise InputError(
            f'{checkpoint} was trained without a test part; --test_on NAME=DIR tests it on a database'
        )
    run_folder.refuse_other_images(
        path, split_record(split, database), 'test on other labels with --test_on NAME=DIR'
    )
    return Job(database, {}, [split], model, round_index)


def summarize(run: str) -> None:
    """Print the medians of the finished rounds; exit with 3 where there is no result."""
    results = summarise(run)
    print_medians(results)
    if not results['rounds']:
        log(f'no result: no round in {run} is finished')
        sys.exit(NO_RESULT)


def open_database(config: Namespace) -> OpenDatabase:
    return OpenDatabase(config.dataset, config.data_root, config.resize, Settings.of(config))


def open_others(config: Namespace) -> dict[str, OpenDatabase]:
    """The databases of --test_on by their names; the settings for a table apply to theirs unless there is a --csv."""
    defaults = Settings(skip_missing=config.skip_missing, average_votes=config.average_votes)
    of_table = defaults if config.csv else Settings.of(config)._replace(split_by=None)
    asked = config.test_on or []
    return {
        name: OpenDatabase(key, path, None, of_table if key == 'csv' else defaults)
        for name, key, path in asked
    }


def warn_of_trained(
    config: Namespace, others: dict[str, OpenDatabase], samples: list[Sample] | None = None
) -> None:
    """Warn of the databases of --test_on that the network is trained on, as a whole or with some of their images."""
    trained = {sample.file for sample in samples or []}
    for name, database in others.items():
        shared = sum(sample.file in trained for sample in database.samples)
        is_same = database.key != 'csv' or os.path.realpath(database.path) == os.path.realpath(
            config.csv or ''
        )
        if shared or (database.key == config.dataset and is_same):
            of_all = f'{shared or "some or all"} of its {len(database.samples)} images'
            log(
                f'warning: --test_on {name}: {of_all} are of the training database, so the result is no test on other images'
            )


def check(config: Namespace) -> None:
    """Check the database; exit with 2 if it cannot be trained on."""
    database = open_database(config)
    splits = draw_splits(config, database)
    database.warn_of_count()
    if not check_images(database, splits, config.patch_size):
        sys.exit(2)


if __name__ == '__main__':
    main()
