"""What several test files share."""

import csv
import os
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import databases
import torch

from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver

PROJECT = Path(__file__).parent.parent

QUICK = (
    *('--weights', 'none', '--device', 'cpu', '--epochs', 2, '--train_test_num', 1),
    *('--train_patch_num', 1, '--test_patch_num', 1, '--batch_size', 4),
)
LIVEC = ('--dataset', 'livec', '--data_root', 'livec', *QUICK)
TINY = (*LIVEC, '--train_test_num', 2)


def command(name, *options):
    return [sys.executable, str(PROJECT / name), *map(str, options)]


def open_database(name, root, cache=None):
    return OpenDatabase(name, root).open_frames(224, cache)


def make_solver(
    root, train=(0, 1, 2, 3), test=(4, 5), *, val=(), round_index=0, kind=HyperIQASolver, **options
):
    """A solver with small parts of a LIVE Challenge in `root`: a training is one step an epoch.

    Args:
        train, test, val: positions of the images in each part.
        kind: the class, or what else is called in its place.
        options: the script's options that differ from those here.
    """
    config = {
        'dataset': 'livec',
        'weights': 'none',
        'device': 'cpu',
        'epochs': 3,
        'train_patch_num': 1,
        'test_patch_num': 1,
    }
    parts = {'val_idx': list(val), 'round_index': round_index}
    config = SimpleNamespace(**{**config, **options})
    return kind(config, root, list(train), list(test), **parts)


def own_table(
    root,
    text,
    encoding='utf-8',
    images=('a.png', 'b.png', 'deep/c.png'),
    name='mine.csv',
    **options,
):
    """Write a user's table `name` with the content `text`, and pictures named `images` next to it.

    Args:
        options: of each picture (see `databases.picture`).

    Returns:
        the path of the table.
    """
    databases.pictures(root, images, **options)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def own_images(root, count=10, score='score', **columns):
    """`count` pictures with scores 10, 20 ... and further columns in root/mine/labels.csv."""
    lines = [','.join(['image', score, *columns])]
    for k in range(count):
        cells = [f'{k}.png', str(10 * (k + 1)), *(values[k] for values in columns.values())]
        lines.append(','.join(cells))
    names = [f'{k}.png' for k in range(count)]
    text = '\n'.join(lines)
    return own_table(root / 'mine', text, images=names, name='labels.csv', size=(230, 240))


def wait_until(condition, process):
    """Look so often that even the write of a checkpoint is still going on when this returns."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def read_table(path):
    """The rows of a CSV file as dicts of strings."""
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def history(run, round_number=1):
    return read_table(run / f'round_{round_number:02d}' / 'history.csv')


def best_row(rows):
    """The first row of a history.csv with the highest SRCC that chooses, else the last row."""
    column = 'val_srcc' if 'val_srcc' in rows[0] else 'test_srcc'
    finite = [row for row in rows if row[column] != 'nan']
    return max(finite, key=lambda row: float(row[column])) if finite else rows[-1]


def without_times(output):
    """The output without the last two columns of its tables."""
    return re.sub(r'( +\d+ s){1,2}$', '', output, flags=re.MULTILINE)


def tensors(path):
    """Every tensor in a checkpoint by its place, as bytes."""

    def walk(content, place):
        if isinstance(content, torch.Tensor):
            yield place, content.contiguous().numpy().tobytes()
        elif isinstance(content, (dict, list)):
            for key, value in content.items() if isinstance(content, dict) else enumerate(content):
                yield from walk(value, (*place, key))

    return dict(walk(torch.load(path, map_location='cpu', weights_only=True), ()))


def link_run(run, copy, ignore=None):
    """Copy a run folder, its checkpoints as hard links: replace them whole, as the programs do."""

    def copy_or_link(source, target):
        (os.link if source.endswith('.pth') else shutil.copy2)(source, target)

    return shutil.copytree(run, copy, ignore=ignore, copy_function=copy_or_link)


def assert_same_run(run, reference, rounds=(1, 2)):
    """That the `rounds` are the same to the byte, and what is said of all where they are all."""
    for round_number in rounds:
        strip = [
            [{**row, 'seconds': ''} for row in history(folder, round_number)]
            for folder in (run, reference)
        ]
        assert strip[0] == strip[1] and len(strip[0]) == 2
        for name in ('best.pth', 'last.pth'):
            path = f'round_{round_number:02d}/{name}'
            assert tensors(run / path) == tensors(reference / path)
        for name in ('split.json', 'predictions.csv', 'result.json'):
            path = f'round_{round_number:02d}/{name}'
            assert (run / path).read_bytes() == (reference / path).read_bytes()
    if len(rounds) == 2:
        assert (run / 'results.json').read_bytes() == (reference / 'results.json').read_bytes()
