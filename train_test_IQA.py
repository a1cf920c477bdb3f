"""Train and test HyperIQA.

python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
torchrun --nproc_per_node 4 train_test_IQA.py --dataset koniq  # on four GPUs
"""

from util import program  # before the others, see there

# isort: split
import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import folders
from folders import OpenDatabase
from util import distributed, run_folder
from util.distributed import say
from util.errors import InputError
from util.files import write_table
from util.labels import Sample, Settings
from util.options import is_plain_checkpoint, parse_options
from util.splits import Split, draw_splits, read_split

if TYPE_CHECKING:  # imported for real by the functions that train: torch takes seconds to import
    import numpy as np

    from data_loader import DataLoader
    from HyerIQASolver import HyperIQASolver
    from util.metrics import Round


def main(argv: list[str] | None = None) -> None:
    if distributed.rank() > 0:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, until the process ends
    with program.boundary('; the same command with --resume continues after the last finished epoch'):
        config = parse_options(argv)
        if config.list_datasets:
            print(folders.dataset_table())
        elif config.summarize:
            print_medians(run_folder.summarise(config.summarize))
        elif config.check:
            check(config)
        else:
            distributed.start(config.device)
            describe(config)
            evaluate(config) if config.evaluate else run(config)
            distributed.stop()


def run(config: argparse.Namespace) -> None:
    """Train and test the rounds into the run folder and print their medians.

    Whatever can be known without decoding an image is checked before the first one is decoded.
    """
    database = open_database(config)
    database.warn_of_count()
    others = open_others(config)
    warn_of_trained(config, others, database.samples)
    splits = draw_splits(config, database)
    parts = [names_of(split, database) for split in splits]
    facts = model_facts(config, database)
    run_folder.check_run(config, facts, parts)
    check_weights(config.weights)
    open_all_frames(config, database, *others.values())
    if distributed.rank() == 0:
        run_folder.open_run(config, facts, parts)
        if database.left_out:
            write_table(Path(config.output) / 'left_out.csv', ['image', 'row', 'reason'], database.left_out)
    distributed.wait()
    for number in config.rounds or range(1, config.train_test_num + 1):
        train_round(config, number - 1, splits[number - 1], database, others)
    if distributed.rank() == 0:
        results = run_folder.summarise(config.output)
        print_medians(results)
        refuse_no_result(config, results['rounds'])


def refuse_no_result(config: argparse.Namespace, rounds: dict[str, dict[str, Any]]) -> None:
    """End with 3 if a round of this run has no result: none of its epochs had a finite loss and test SRCC."""
    asked = [str(number) for number in config.rounds or range(1, config.train_test_num + 1)]
    without = [
        number for number in asked if number not in rounds or (math.isnan(rounds[number]['SRCC']) and not config.train_on_all)
    ]
    if without:
        say(f'no result: in round {", ".join(without[:5])} no epoch has a finite loss and test SRCC; a lower --lr may help')
        distributed.stop()
        sys.exit(program.NO_RESULT)


def train_round(
    config: argparse.Namespace, round_index: int, split: Split, database: OpenDatabase, others: dict[str, OpenDatabase]
) -> None:
    """Train and test one round, or what is left of it, and write its results."""
    from HyerIQASolver import HyperIQASolver

    train, val, test = (split[part] for part in ('train', 'val', 'test'))
    names = names_of(split, database)
    with closing(run_folder.RoundFolder(config, round_index, names)) as folder:
        print(f'Round {round_index + 1}', flush=True)
        if not folder.finished:
            solver = HyperIQASolver(
                config, config.data_root, train, test, val_idx=val, round_index=round_index, opened=database
            )
            folder.restore(solver.load_state_dict)
            solver.train(folder.save)
            if solver.best:
                finish_round(folder, solver, test, database, others)
    if distributed.rank() == 0:
        print_round(run_folder.summarise(config.output)['rounds'].get(str(round_index + 1)), names)


def finish_round(
    folder: run_folder.RoundFolder,
    solver: 'HyperIQASolver',
    test: list[int],
    database: OpenDatabase,
    others: dict[str, OpenDatabase],
) -> None:
    """Test the best epoch on the other databases too, and write the round's results; `test` are its test images."""
    from util import checkpoints

    best = cast(dict[str, Any], solver.best)
    if others:
        checkpoints.load_weights(solver.model_hyper, folder.path / 'best.pth')
    across = test_on_others(solver, others, database.higher_is_better, folder.path)
    title = f'{database.entry.title}, round {solver.round_index + 1}, epoch {best["epoch"]}'
    tested = tested_images(database, test, solver.test_data, best['scores'].numpy())
    folder.finish(best, tested, lambda k: database.small_picture(test[k]), title, across)


def tested_images(database: OpenDatabase, images: Sequence[int], data: 'DataLoader', predicted: 'np.ndarray') -> 'Round':
    """The images at these positions, which `data` delivers, beside their predictions."""
    from util.metrics import Round

    return Round(database.names(images), database.contents(images), data.scores, predicted)


def test_on_others(
    solver: 'HyperIQASolver', others: dict[str, OpenDatabase], higher_is_better: bool, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Test the solver's network on whole databases.

    Args:
        others: the open databases by name.
        higher_is_better: whether it is in the database that the network was trained on.
        folder: of the round, for a predictions_<name>.csv of each database, or None to write nothing.

    Returns:
        SRCC, PLCC and KRCC by the database's name. A higher value always means more agreement: where one of the
        two databases has scores that fall with quality, the sign is turned.
    """
    from util.metrics import all_metrics

    results = {}
    for name, database in others.items():
        images = range(len(database.samples))
        data = solver.loader(database, images, istrain=False)
        sign = 1 if database.higher_is_better == higher_is_better else -1
        predicted = solver.predict(data)
        metrics = all_metrics(predicted, data.scores)
        if folder and distributed.rank() == 0:
            tested = tested_images(database, images, data, predicted)
            run_folder.write_predictions(folder / f'predictions_{name}.csv', tested)
        results[name] = {metric: sign * metrics[metric] for metric in ('SRCC', 'PLCC', 'KRCC')}
    return results


def evaluate(config: argparse.Namespace) -> None:
    """Repeat the test of the round whose folder holds the checkpoint, or test it on other databases."""
    from HyerIQASolver import HyperIQASolver

    checkpoint = Path(os.path.abspath(config.evaluate))
    if is_plain_checkpoint(config):
        entry = folders.DATABASES[config.dataset]
        facts: dict[str, Any] = {'score_range': None, 'higher_is_better': entry.higher_is_better}
        round_index = 0
        direction = 'higher' if facts['higher_is_better'] else 'lower'
        say(f'{checkpoint} lies in no run folder, so it predicts as --dataset {config.dataset} says: {direction} is better')
    else:
        facts = run_folder.read_record(checkpoint.parent.parent / 'config.json')['model']
        round_index = run_folder.round_index_of(checkpoint.parent)
    check_weights(config.weights)
    if config.test_on:
        others = open_others(config)
        warn_of_trained(config, others)
        open_all_frames(config, *others.values())
        # a trainer without training data, for its network and its way to predict; its scores are in the training's unit
        solver = HyperIQASolver(config, config.data_root, [], [], round_index=round_index, opened=next(iter(others.values())))
        solver.score_range = facts['score_range'] or (0, 1)
        print_across(test_on_others(solver, others, facts['higher_is_better']))
        return
    database = open_database(config)
    split = read_split(checkpoint.with_name('split.json'), database)
    if not split['test']:
        raise InputError(f'{checkpoint} was trained without a test part; --test_on NAME=DIR tests it on a database')
    open_all_frames(config, database)
    solver = HyperIQASolver(config, config.data_root, [], split['test'], round_index=round_index, opened=database)
    test_srcc, test_plcc = solver.test(solver.test_data)
    print(f'test_srcc {test_srcc}\ntest_plcc {test_plcc}')


def open_database(config: argparse.Namespace) -> OpenDatabase:
    return OpenDatabase(config.dataset, config.data_root, config.resize, Settings.of(config))


def open_others(config: argparse.Namespace) -> dict[str, OpenDatabase]:
    """The databases of --test_on by their names; what the user says of a table is of theirs unless there is a --csv."""
    plainly = Settings(skip_missing=config.skip_missing)
    as_said = plainly if config.csv else Settings.of(config)._replace(split_by=None)
    return {
        name: OpenDatabase(key, path, settings=as_said if key == 'csv' else plainly) for name, key, path in config.test_on or []
    }


def open_all_frames(config: argparse.Namespace, *databases: OpenDatabase) -> None:
    with distributed.patiently():
        for database in databases:
            database.open_frames(config.patch_size, config.cache)


def warn_of_trained(config: argparse.Namespace, others: dict[str, OpenDatabase], samples: Sequence[Sample] = ()) -> None:
    """Say on stderr which of the databases of --test_on the network is trained on, as a whole or with some of its images."""
    trained = {os.path.realpath(sample.path) for sample in samples if others}
    for name, database in others.items():
        shared = sum(os.path.realpath(sample.path) in trained for sample in database.samples)
        if shared or database.key == config.dataset != 'csv':
            of_all = f'{shared or "some"} of its {len(database.samples)} images'
            say(f'warning: --test_on {name}: {of_all} are of the training database, so the result is no test on other images')


def check_weights(source: str) -> None:
    """Read the initial weights once for the sake of the errors, before hours of work."""
    import torch

    import models
    from util import checkpoints

    if source != 'none':
        with torch.device('meta'):  # names and shapes are all that is asked of this network
            model = models.hyperiqa()
        checkpoints.initial_weights(model, source)


def check(config: argparse.Namespace) -> None:
    """Check the database; exit with 2 if it cannot be trained on."""
    from util import check_database

    database = open_database(config)
    splits = draw_splits(config, database)
    database.warn_of_count()
    usable = check_database.check(
        database.samples, splits, smallest=config.patch_size, exif_rotation=database.entry.exif_rotation, resize=database.resize
    )
    if not usable:
        sys.exit(2)


def names_of(split: Split, database: OpenDatabase) -> run_folder.Parts:
    """What split.json holds: the names of the images of each part that has some, and a digest of the labels."""
    return {**{part: database.names(images) for part, images in split.items() if images}, 'labels': database.digest}


def model_facts(config: argparse.Namespace, database: OpenDatabase) -> dict[str, Any]:
    """What an image and a score mean to the network, for config.json: demo.py prepares images and scales scores by it."""
    return {
        'resize': database.resize,
        'exif_rotation': database.entry.exif_rotation,
        'score_range': database.score_range if config.normalize_scores else None,
        'higher_is_better': database.higher_is_better,
    }


def describe(config: argparse.Namespace) -> None:
    """Say on stderr what a reader of the numbers must know."""
    own = folders.DATABASES[config.dataset].defaults
    if own:
        values = ' '.join(f'--{name} {getattr(config, name)}' for name in own)
        say(f'{config.dataset} has its own defaults, here: {values}')
    say(
        f'Device: {config.device} ({distributed.device_name(config.device)}); seed: {config.seed}; '
        f'initial weights: {config.weights}'
    )
    if config.amp and not distributed.has_bfloat16(config.device):
        say('--amp: this CPU has no bfloat16 instructions, so training is many times slower with it than without')


def print_round(result: dict[str, Any] | None, parts: dict[str, list[str]]) -> None:
    """Print a round's result, None where no epoch had one; `parts` names its parts."""
    if result is None:
        print('Best test SRCC nan, PLCC nan', flush=True)
    elif 'test' not in parts:
        print(f'Trained on all {len(parts["train"])} images; the last epoch, {result["epoch"]}, is kept', flush=True)
    else:
        chosen = 'Best validation epoch: test' if 'val' in parts else 'Best test'
        print(
            f'{chosen} {with_interval(result, "SRCC")}, {with_interval(result, "PLCC")} (epoch {result["epoch"]})', flush=True
        )
    print_across((result or {}).get('test_on', {}))


def with_interval(result: dict[str, Any], metric: str) -> str:
    """'SRCC 0.8797 [0.831, 0.916]': a metric, and its 95 % interval where there is one."""
    low, high = result.get(f'{metric}_interval', (math.nan, math.nan))
    interval = '' if math.isnan(low) else f' [{low:.3f}, {high:.3f}]'
    return f'{metric} {result.get(metric, math.nan):.4f}{interval}'


def print_across(results: dict[str, dict[str, float]], word: str = '') -> None:
    for name, metrics in results.items():
        values = ', '.join(f'{word}{metric} {value:.4f}' for metric, value in metrics.items())
        title = folders.DATABASES[name].title if name in folders.DATABASES else name
        print(f'On {title}: {values}', flush=True)


def print_medians(results: dict[str, Any]) -> None:
    median = results['median']
    print(
        f'Testing median {with_interval(median, "SRCC")}, median {with_interval(median, "PLCC")}'
        + (f' of {len(results["rounds"])} rounds' if len(results['rounds']) > 1 else ''),
        flush=True,
    )
    print_across(median.get('test_on', {}), 'median ')


if __name__ == '__main__':
    main()
