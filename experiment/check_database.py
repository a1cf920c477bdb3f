"""A look at a whole database before hours of work: scores, sizes, and images that spoil a run."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiment.splits import sizes_of
from folders import OpenDatabase
from util.frames import (
    BLANK,
    DEEP,
    PRINTED,
    TRANSPARENT,
    WIDE,
    Picture,
    on_all_cores,
    read_picture,
)
from util.labels import Sample

BINS = 10  # of the histogram
LONGEST_BAR = 40
NAMED = 5  # entries of a list that are printed
CONVERTED = (
    '{}: in a table of your own they are converted to sRGB, a published database is read as it is'
)
ODDITIES = {
    DEEP: '{}, scaled to 8 bits',
    TRANSPARENT: '{}, shown on white',
    BLANK: '{}, an alpha that is 0 everywhere: shown as opaque',
    WIDE: CONVERTED,
    PRINTED: CONVERTED,
}


def check_images(database: OpenDatabase, splits: list[dict[str, list[int]]], smallest: int) -> bool:
    """Decode every image, and print to stdout the facts that matter before training.

    Args:
        splits: for each round the positions of its samples, by 'train', 'test' and perhaps 'val'.
        smallest: the least height and width of an image, after the resize.

    Returns:
        whether the database can be trained on: all images can be read and none is too small.
    """
    samples = database.samples
    print_labels(samples)
    print_line('Split', sizes_of(splits, len(samples)))
    paths = [sample.path for sample in samples]
    exif_rotation = database.entry.exif_rotation
    pictures = on_all_cores('check', lambda path: read_picture(path, exif_rotation), paths)
    print_sizes(pictures, database.resize)

    # Training stops at the first such image, so all are looked for here.
    unreadable = []
    small = []
    for path, picture in zip(paths, pictures):
        if picture.size is None:
            unreadable.append(f'{path}\n    {picture.fault}')
            continue
        # `Picture.size` has the height first, unlike the size of a PIL image.
        height, width = database.resize or picture.size
        if min(height, width) < smallest:
            small.append(f'{height:>5} x {width:<5}  {path}')
    print_list('Unreadable', unreadable)
    print_list(f'Below {smallest}x{smallest}', small)

    for oddity, text in ODDITIES.items():
        odd = [path for path, picture in zip(paths, pictures) if oddity in picture.oddities]
        if odd:
            # All are named, since the user may have to convert them.
            print_list(oddity.capitalize(), odd, text, most=len(odd))
    groups = equal_pictures(pictures)
    print_list('Duplicates', [describe_group(group, samples) for group in groups])
    print_copies(pictures, paths, splits)

    if unreadable or small:
        faults = f'{len(unreadable)} unreadable, {len(small)} too small'
        print_line('Result', f'the database cannot be trained on: {faults}')
        return False
    print_line('Result', 'the database can be trained on')
    return True


def print_labels(samples: list[Sample]) -> None:
    """Print the number of images and contents, and a histogram of the scores."""
    contents = len({sample.content for sample in samples})
    images = f'{len(samples)}'
    if contents < len(samples):
        images += f' of {contents} contents'
    print_line('Images', images)

    scores = [sample.score for sample in samples]
    print_line('Scores', f'{min(scores):.6g} to {max(scores):.6g}, mean {np.mean(scores):.6g}')
    counts, edges = np.histogram(scores, BINS)
    for low, high, count in zip(edges, edges[1:], counts):
        # Rounded up, so that a single image shows.
        bar = '#' * math.ceil(LONGEST_BAR * count / max(counts))
        print(f'    {low:>9.6g} to {high:>9.6g}  {count:>6}  {bar}'.rstrip())


def print_sizes(pictures: list[Picture], resize: Sequence[int] | None) -> None:
    """Print the heights and widths of the pictures that can be read."""
    sizes = {picture.size for picture in pictures if picture.size}
    if sizes:  # at least one image can be read
        heights, widths = zip(*sizes)
        print_line('Height', f'{min(heights)} to {max(heights)} pixels')
        print_line('Width', f'{min(widths)} to {max(widths)} pixels')
    print_line('Different sizes', len(sizes))
    if resize:
        print_line('Resized to', '{} high, {} wide'.format(*resize))


def equal_pictures(pictures: list[Picture]) -> list[list[int]]:
    """The positions of images that decode to the same picture, a list for each such picture."""
    groups: dict[bytes, list[int]] = {}
    for k, picture in enumerate(pictures):
        if picture.digest:
            groups.setdefault(picture.digest, []).append(k)
    return [group for group in groups.values() if len(group) > 1]


def describe_group(group: list[int], samples: list[Sample]) -> str:
    """The number of a group's images, and the first of them with their scores, a line each."""
    # Equal pictures with very different scores are the worst case, so the scores are shown too.
    # The members are indented, so the line that counts the rest is too.
    members = [f'    score {samples[k].score:<10.6g}  {samples[k].path}' for k in group]
    return '\n'.join([f'{len(group)} images', *first_of(members, margin='    ')])


def print_copies(
    pictures: list[Picture], paths: list[str], splits: list[dict[str, list[int]]]
) -> None:
    """Warn of test images in each round that have an identical image in train or val."""
    title = 'Test images also in training'
    has_copies = False
    for number, split in enumerate(splits, start=1):
        copies = copies_in_training(pictures, paths, split)
        if copies:
            print_list(f'{title}, round {number}', copies, 'warning: {}')
            has_copies = True
    if not has_copies:
        rounds = '1 round' if len(splits) == 1 else f'{len(splits)} rounds'
        print_line(title, f'none in {rounds}')


def copies_in_training(
    pictures: list[Picture], paths: list[str], split: dict[str, list[int]]
) -> list[str]:
    """Two lines for each test image with an identical one in train or val: the names of both."""
    # A test image that chooses the best epoch is as bad as one that is trained on. With a copy in
    # both parts, the one in train is named.
    copies = {}
    for part in ('val', 'train'):
        for k in split.get(part, []):
            copies[pictures[k].digest] = f'{part:<5}  {paths[k]}'

    lines = []
    for k in split['test']:
        digest = pictures[k].digest
        # An unreadable image has none.
        if digest and digest in copies:
            lines.append(f'test   {paths[k]}\n{copies[digest]}')
    return lines


def print_list(name: str, entries: list[str], text: str = '{}', most: int = NAMED) -> None:
    """Print `text` with the number of `entries`, or none, and then the first of them."""
    print_line(name, text.format(len(entries)) if entries else 'none')
    for entry in first_of(entries, most):
        print(textwrap.indent(entry, '    '))


def first_of(entries: list[str], most: int = NAMED, margin: str = '') -> list[str]:
    """The first entries; if there are more, a last one counts them, after the indent `margin`."""
    shown = entries[:most]
    if len(entries) > most:
        shown.append(f'{margin}... and {len(entries) - most} more')
    return shown


def print_line(name: str, text: Any) -> None:
    print(f'{name:<30}{text}')
