"""A look at a whole database before hours of work: its scores, its sizes, and the images that would spoil a run."""

import textwrap
from typing import Any

import numpy as np

from experiment.splits import sizes_of
from util.frames import DEEP, TRANSPARENT, WIDE, on_all_cores, read_picture
from util.labels import Sample

BINS, LONGEST_BAR = 10, 40  # of the histogram
NAMED = 5  # of a longer list
ODDITIES = {
    DEEP: '{}, scaled to 8 bits',
    TRANSPARENT: '{}, shown on white',
    WIDE: '{}: of a table of your own they are converted to sRGB, a published database is read as it is',
}


def check_images(database: Any, splits: list[dict[str, list[int]]], smallest: int) -> bool:
    """Decodes every image and prints to stdout what a user should know before training.

    Args:
        database: a `folders.OpenDatabase`.
        splits: a dict for each round, from 'train', 'test' and perhaps 'val' to positions in its samples.
        smallest: height and width that an image must have at least after the resize.

    Returns:
        whether the database can be trained on: every image can be read and is large enough for a patch.
    """
    samples, resize, exif_rotation = database.samples, database.resize, database.entry.exif_rotation
    report_labels(samples)
    report('Split', sizes_of(splits, len(samples)))
    paths = [sample.path for sample in samples]
    pictures = on_all_cores('check', lambda path: read_picture(path, exif_rotation), paths)
    sizes = [picture.size for picture in pictures]
    for name, lengths in zip(('Height', 'Width'), zip(*filter(None, sizes))):
        report(name, f'{min(lengths)} to {max(lengths)} pixels')
    report('Different sizes', len(set(sizes) - {None}))
    if resize:
        report('Resized to', '{} high, {} wide'.format(*resize))
    unreadable = [
        f'{path}\n    {picture.fault}' for path, picture in zip(paths, pictures) if picture.fault
    ]
    final = [size and (resize or size) for size in sizes]
    small = [
        f'{size[0]:>5} x {size[1]:<5}  {path}'
        for path, size in zip(paths, final)
        if size and min(size) < smallest
    ]
    report_list('Unreadable', unreadable)
    report_list(f'Below {smallest}x{smallest}', small)
    for oddity, text in ODDITIES.items():
        odd = [path for path, picture in zip(paths, pictures) if oddity in picture.oddities]
        if odd:
            report_list(oddity[:1].upper() + oddity[1:], odd, text, most=len(odd))
    groups: dict[bytes, list[int]] = {}
    for k, picture in enumerate(pictures):
        if picture.digest:
            groups.setdefault(picture.digest, []).append(k)
    report_list(
        'Duplicates',
        [describe_group(group, samples) for group in groups.values() if len(group) > 1],
    )
    copies = {
        number: duplicates(groups, paths, split) for number, split in enumerate(splits, start=1)
    }
    if not any(copies.values()):
        report(
            'Test images also in training',
            f'none in {len(splits)} round' + 's' * (len(splits) != 1),
        )
    for number in filter(copies.get, copies):
        report_list(f'Test images also in training, round {number}', copies[number], 'warning: {}')
    faults = (
        f'the database cannot be trained on: {len(unreadable)} unreadable, {len(small)} too small'
    )
    usable = not unreadable and not small
    report('Result', 'the database can be trained on' if usable else faults)
    return usable


def describe_group(group: list[int], samples: list[Sample]) -> str:
    """The lines of samples that decode to the same picture: the first of them with their scores."""
    members = [f'    score {samples[k].score:<10.6g}  {samples[k].path}' for k in group]
    return '\n'.join([f'{len(group)} images', *shortened(members, margin='    ')])


def duplicates(
    groups: dict[bytes, list[int]], paths: list[str], split: dict[str, list[int]]
) -> list[str]:
    """The lines of each test image that has an identical image in train or val: both names."""
    part_of = {k: part for part in ('val', 'train') for k in split.get(part, [])}
    copies = {
        k: [other for other in group if other in part_of]
        for group in groups.values()
        for k in group
    }
    pairs = [(k, copies[k][0]) for k in split['test'] if copies.get(k)]
    return [f'test   {paths[k]}\n{part_of[other]:<5}  {paths[other]}' for k, other in pairs]


def report_labels(samples: list[Sample]) -> None:
    contents = len({sample.content for sample in samples})
    scores = [sample.score for sample in samples]
    report(
        'Images',
        f'{len(samples)} of {contents} contents' if contents < len(samples) else len(samples),
    )
    report('Scores', f'{min(scores):.6g} to {max(scores):.6g}, mean {np.mean(scores):.6g}')
    counts, edges = np.histogram(scores, BINS)
    for low, high, count in zip(edges, edges[1:], counts):
        bar = '#' * -(
            -LONGEST_BAR * count // max(counts)
        )  # rounded up, so that a single image shows
        print(f'    {low:>9.6g} to {high:>9.6g}  {count:>6}  {bar}'.rstrip(), flush=True)


def report_list(name: str, entries: list[str], text: str = '{}', most: int = NAMED) -> None:
    """Print `text` with the number of `entries`, or none, and then the first of them."""
    report(name, text.format(len(entries)) if entries else 'none')
    for entry in shortened(entries, most):
        print(textwrap.indent(entry, '    '))


def shortened(entries: list[str], most: int = NAMED, margin: str = '') -> list[str]:
    """The first entries, and one that counts the others."""
    others = len(entries) - most
    return entries[:most] + [f'{margin}... and {others} more'] * (others > 0)


def report(name: str, text: Any) -> None:
    print(f'{name:<30}{text}')
