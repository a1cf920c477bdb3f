"""Train and test HyperIQA.

python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
torchrun --nproc_per_node 4 train_test_IQA.py --dataset koniq  # on four GPUs
"""

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

import folders
from data_loader import OpenDatabase, open_database
from HyerIQASolver import HyperIQASolver, patch_loader
from models import PATCH_SIZE
from util import check_database, checkpoints, distributed, run_folder
from util.distributed import say
from util.errors import InputError
from util.files import read_json
from util.frames import folder_of
from util.labels import Sample
from util.metrics import all_metrics
from util.options import parse_options

TRAIN_SHARE = 0.8


def main(argv: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, terminate)
    if distributed.rank() > 0:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, until the process ends
    try:
        act(parse_options(argv))
    except InputError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        say('interrupted; the same command with --resume continues after the last finished epoch')
        sys.exit(interrupt.args[0] if interrupt.args else 130)


def terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends the program as Ctrl-C does, with its own exit code."""
    raise KeyboardInterrupt(128 + signal_number)


def act(config: argparse.Namespace) -> None:
    """Do what the options ask for."""
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
    """Train and test the rounds into the run folder and print their medians."""
    opened = open_database(config.dataset, config.data_root, config.cache, config.resize)
    warn_of_count(config.dataset, opened.samples)
    units, splits = draw_splits(config, opened.samples)
    opened = opened._replace(units=units)
    others = {name: open_database(name, path, config.cache) for name, path in config.test_on or []}
    if distributed.rank() == 0:
        run_folder.open_run(config, model_facts(config, opened.samples))
    distributed.wait()
    for round_number in config.rounds or range(1, config.train_test_num + 1):
        train_round(config, round_number - 1, splits[round_number - 1], opened, others)
    if distributed.rank() == 0:
        print_medians(run_folder.summarise(config.output))


def train_round(
    config: argparse.Namespace,
    round_index: int,
    split: dict[str, list[int]],
    opened: OpenDatabase,
    others: dict[str, OpenDatabase],
) -> None:
    """Train and test one round, or what is left of it, and write its results."""
    names = {
        part: [name_of(opened.samples[k], config.data_root) for k in opened.positions(units)]
        for part, units in split.items()
        if units
    }
    folder = run_folder.RoundFolder(config.output, round_index, names)
    print(f'Round {round_index + 1}', flush=True)
    if not folder.finished:
        solver = HyperIQASolver(
            config,
            config.data_root,
            split['train'],
            split['test'],
            val_idx=split['val'],
            round_index=round_index,
            opened=opened,
        )
        folder.restore(solver.load_state_dict)
        solver.train(folder.save)
        if solver.best:
            if others:
                checkpoints.load_weights(solver.model_hyper, str(folder.path / 'best.pth'))
            polarity = folders.higher_is_better(config.dataset, config.data_root)
            across = test_on_others(config, solver, others, round_index, polarity)
            title = f'{folders.DATABASES[config.dataset].title}, round {round_index + 1}, epoch {solver.best["epoch"]}'
            folder.finish(names.get('test', []), solver.test_data.scores, solver.best['scores'].numpy(), title, across)
    if distributed.rank() == 0:
        print_round(run_folder.summarise(config.output)['rounds'].get(str(round_index + 1)), names)


def test_on_others(
    config: argparse.Namespace,
    solver: HyperIQASolver,
    others: dict[str, OpenDatabase],
    round_index: int,
    higher_is_better: bool,
) -> dict[str, dict[str, float]]:
    """Test the solver's network on whole databases.

    Args:
        others: the open databases by name.
        higher_is_better: whether it is in the database that the network was trained on.

    Returns:
        SRCC, PLCC and KRCC by the database's name. A higher value always means more agreement: where one of the
        two databases has scores that fall with quality, the sign is turned.
    """
    results, paths = {}, dict(config.test_on or [])
    for name, opened in others.items():
        data = patch_loader(config, name, paths[name], range(len(opened.units)), False, round_index, opened)
        sign = 1 if folders.higher_is_better(name, paths[name]) == higher_is_better else -1
        metrics = all_metrics(solver.predict(data), data.scores)
        results[name] = {metric: sign * metrics[metric] for metric in ('SRCC', 'PLCC', 'KRCC')}
    return results


def evaluate(config: argparse.Namespace) -> None:
    """Repeat the test of the round whose folder holds the checkpoint, or test it on other databases."""
    checkpoint = Path(config.evaluate)
    facts = run_folder.read_record(checkpoint.parent.parent / 'config.json')['model']
    round_index = run_folder.round_index_of(checkpoint.parent)
    if config.test_on:
        others = {name: open_database(name, path, config.cache) for name, path in config.test_on}
        name, path = config.test_on[0]
        solver = HyperIQASolver(config, path, [], [], round_index=round_index, opened=others[name])
        solver.score_range = facts['score_range'] or (0, 1)
        print_across(test_on_others(config, solver, others, round_index, facts['higher_is_better']))
        return
    opened = open_database(config.dataset, config.data_root, config.cache, config.resize)
    split = read_split(checkpoint.with_name('split.json'), config.data_root, opened.samples)
    if not split['test']:
        raise InputError(f'{checkpoint} was trained without a test part; --test_on NAME=DIR tests it on a database')
    solver = HyperIQASolver(
        config,
        config.data_root,
        [],
        split['test'],
        round_index=round_index,
        opened=opened._replace(units=folders.single_images(opened.samples)),
    )
    test_srcc, test_plcc = solver.test(solver.test_data)
    print(f'test_srcc {test_srcc}\ntest_plcc {test_plcc}')


def check(config: argparse.Namespace) -> None:
    """Check the database; exit with 2 if it cannot be trained on."""
    samples = folders.read_samples(config.dataset, config.data_root)
    units, splits = draw_splits(config, samples)
    splits = [{part: [k for unit in split[part] for k in units[unit]] for part in split} for split in splits]
    database = folders.DATABASES[config.dataset]
    warn_of_count(config.dataset, samples)
    if not check_database.check(
        samples, splits, smallest=PATCH_SIZE, exif_rotation=database.exif_rotation, resize=config.resize or database.resize
    ):
        sys.exit(2)


def model_facts(config: argparse.Namespace, samples: list[Sample]) -> dict[str, Any]:
    """What an image and a score mean to the network, for config.json: demo.py prepares images and scales scores by it."""
    database = folders.DATABASES[config.dataset]
    return {
        'resize': config.resize or database.resize,
        'exif_rotation': database.exif_rotation,
        'score_range': folders.score_range(config.dataset, samples) if config.normalize_scores else None,
        'higher_is_better': folders.higher_is_better(config.dataset, config.data_root),
    }


def draw_splits(config: argparse.Namespace, samples: list[Sample]) -> tuple[list[list[int]], list[dict[str, list[int]]]]:
    """What each round trains and tests on.

    Returns:
        (units, splits): the positions of the samples of each unit; for each round the positions of the units of its
        `train`, `val` and `test` part. Other splits than the random one name images, so their units are single images.
    """
    rounds = range(config.train_test_num)
    units = folders.split_units(config.dataset, samples)
    fixed = config.split != 'random' or (config.dataset == 'csv' and any(sample.part for sample in samples))
    if config.train_on_all:
        return units, [{'train': list(range(len(units))), 'val': [], 'test': []} for _ in rounds]
    if not fixed:
        return units, [draw_split(len(units), config.seed, round_index, config.val_ratio) for round_index in rounds]
    if config.val_ratio:
        raise InputError(f'--val_ratio: the sets in {config.data_root} say already which images choose the epoch')
    if config.split in ('random', 'official'):
        split = official_split(config.dataset, samples)
    else:
        split = read_split(config.split, config.data_root, samples)
    if not split['train'] or not split['test']:
        raise InputError(f'--split {config.split}: there must be images to train on and to test on')
    return folders.single_images(samples), [split for _ in rounds]


def draw_split(units: int, seed: int, round_index: int, val_ratio: float) -> dict[str, list[int]]:
    """Draw the parts of a round, the same on every machine.

    Args:
        units: how many there are to draw from.
        val_ratio: share of the training units that choose the best epoch instead of being trained on.

    Returns:
        positions of the `train`, `val` and `test` units.
    """
    order = np.random.RandomState((seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_SHARE * units)
    held_out = round(val_ratio * cut)
    split = {'train': order[held_out:cut], 'val': order[:held_out], 'test': order[cut:]}
    if not split['train'] or not split['test'] or bool(split['val']) != bool(val_ratio):
        raise InputError(
            f'{units} images or contents are too few to split into '
            f'{"training, validation and test" if val_ratio else "training and test"} parts'
        )
    return split


def official_split(dataset: str, samples: list[Sample]) -> dict[str, list[int]]:
    """Positions of the images in each official set."""
    without = [sample.path for sample in samples if not sample.part]
    if without:
        raise InputError(
            f'--split official: the labels of {folders.DATABASES[dataset].title} put {len(without)} images '
            f'into no set, the first of them {without[0]}; use --split random'
        )
    return {part: [k for k, sample in enumerate(samples) if sample.part == part] for part in ('train', 'val', 'test')}


def read_split(path: Path | str, data_root: Path | str, samples: list[Sample]) -> dict[str, list[int]]:
    """Positions of the images in each part that a split.json names.

    Raises:
        InputError: it cannot be read, or it names images that the database does not have or names one twice.
    """
    content = read_json(path)
    names = {part: content.get(part, []) for part in ('train', 'val', 'test')}
    position = {name_of(sample, data_root): k for k, sample in enumerate(samples)}
    listed = [name for part in names.values() for name in part]
    unknown = [name for name in listed if name not in position]
    if unknown:
        raise InputError(f'{path} names {len(unknown)} images that are not in {data_root}, the first of them {unknown[0]}')
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise InputError(f'{path} names {twice} twice; an image belongs to one part')
    return {part: [position[name] for name in names[part]] for part in names}


def name_of(sample: Sample, data_root: Path | str) -> str:
    """A sample's name in the files of a run: its path below the database's folder, the same on every machine."""
    return Path(os.path.relpath(sample.path, folder_of(data_root))).as_posix()


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


def warn_of_count(dataset: str, samples: list[Sample]) -> None:
    warning = folders.count_warning(dataset, samples)
    if warning:
        say(f'warning: {warning}')


def print_round(result: dict[str, Any] | None, parts: dict[str, list[str]]) -> None:
    """Print a round's result, None where no epoch had one; `parts` names its parts."""
    if result is None:
        print('Best test SRCC nan, PLCC nan', flush=True)
    elif 'test' not in parts:
        print(f'Trained on all {len(parts["train"])} images; the last epoch, {result["epoch"]}, is kept', flush=True)
    else:
        chosen = 'Best validation epoch: test' if 'val' in parts else 'Best test'
        print(f'{chosen} SRCC {result["SRCC"]:.4f}, PLCC {result["PLCC"]:.4f} (epoch {result["epoch"]})', flush=True)
    print_across((result or {}).get('test_on', {}))


def print_across(results: dict[str, dict[str, float]], word: str = '') -> None:
    for name, metrics in results.items():
        values = ', '.join(f'{word}{metric} {value:.4f}' for metric, value in metrics.items())
        print(f'On {folders.DATABASES[name].title}: {values}', flush=True)


def print_medians(results: dict[str, Any]) -> None:
    median = results['median']
    print(
        f'Testing median SRCC {median.get("SRCC", math.nan):.4f}, median PLCC {median.get("PLCC", math.nan):.4f}'
        + (f' of {len(results["rounds"])} rounds' if len(results['rounds']) > 1 else ''),
        flush=True,
    )
    print_across(median.get('test_on', {}), 'median ')


if __name__ == '__main__':
    main()
