"""What each round trains and tests on. A split gives the positions of the images in its `train`, `val` and `test` part."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from folders import OpenDatabase
from util.errors import InputError
from util.files import read_json

TRAIN_SHARE = 0.8
Split = dict[str, list[int]]


def draw_splits(config: Namespace | SimpleNamespace, database: OpenDatabase) -> list[Split]:
    """The split of every round that the options `config` ask for.

    Raises:
        InputError: there are too few images, or the asked sets or file do not fit the database.
    """
    rounds = range(config.train_test_num)
    if config.train_on_all:
        return [{'train': list(range(len(database.samples))), 'val': [], 'test': []} for _ in rounds]
    fixed = config.split != 'random' or (database.key == 'csv' and any(sample.part for sample in database.samples))
    if not fixed:
        drawn = [draw_split(len(database.units), config.seed, round_index, config.val_ratio) for round_index in rounds]
        return [{part: database.images(split[part]) for part in split} for split in drawn]
    if config.val_ratio:
        raise InputError(f'--val_ratio: the sets in {database.path} say already which images choose the epoch')
    split = official_split(database) if config.split in ('random', 'official') else read_split(config.split, database)
    if not split['train'] or not split['test']:
        raise InputError(f'--split {config.split}: there must be images to train on and to test on')
    return [split for _ in rounds]


def draw_split(units: int, seed: int, round_index: int, val_ratio: float) -> Split:
    """Draw the parts of a round, the same on every machine.

    Args:
        units: how many there are to draw from.
        val_ratio: share of the training units that choose the best epoch instead of being trained on.

    Returns:
        positions of the `train`, `val` and `test` units.
    """
    order = np.random.RandomState(seed_words(seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_SHARE * units)
    held_out = round(val_ratio * cut)
    split = {'train': order[held_out:cut], 'val': order[:held_out], 'test': order[cut:]}
    if not split['train'] or not split['test'] or bool(split['val']) != bool(val_ratio):
        raise InputError(
            f'{units} images or contents are too few to split into '
            f'{"training, validation and test" if val_ratio else "training and test"} parts'
        )
    return split


def seed_words(seed: int, *others: int) -> tuple[int, ...]:
    """(seed, *others) as the 32-bit words that NumPy takes; what a larger seed has beyond them follows at the end."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(32, seed.bit_length()), 32)]
    return (words[0], *others, *words[1:])


def official_split(database: OpenDatabase) -> Split:
    """The images of each official set."""
    without = [sample.path for sample in database.samples if not sample.part]
    if without:
        raise InputError(
            f'--split official: the labels of {database.entry.title} put {len(without)} images '
            f'into no set, the first of them {without[0]}; use --split random'
        )
    return {part: [k for k, sample in enumerate(database.samples) if sample.part == part] for part in ('train', 'val', 'test')}


def read_split(path: Path | str, database: OpenDatabase) -> Split:
    """The images that each part of a split.json names.

    Raises:
        InputError: it cannot be read, or it names images that the database does not have or names one twice.
    """
    content = read_json(path)
    names = {part: content.get(part, []) for part in ('train', 'val', 'test')}
    position = {name: k for k, name in enumerate(database.names(range(len(database.samples))))}
    listed = [name for part in names.values() for name in part]
    unknown = [name for name in listed if name not in position]
    if unknown:
        raise InputError(f'{path} names {len(unknown)} images that are not in {database.path}, the first of them {unknown[0]}')
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise InputError(f'{path} names {twice} twice; an image belongs to one part')
    return {part: [position[name] for name in names[part]] for part in names}
