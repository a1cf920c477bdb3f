"""A look at a whole database before hours of work: its scores, its sizes, and the images that would spoil a run."""

import hashlib
import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from util.errors import InputError
from util.frames import DEEP, TRANSPARENT, UNENDED, decode_image, on_all_cores
from util.labels import Sample

BINS = 10
LONGEST_BAR = 40
NAMED = 5
FLAT, FLAT_ROWS = 'flat to its end', 16
ODDITIES = {
    DEEP: '{}, scaled to 8 bits',
    TRANSPARENT: '{}, shown on white',
    UNENDED: 'warning: {} JPEG without an end marker',
    FLAT: 'warning: {}, whose last rows are one colour, as those of a file that was cut often are',
}


class Picture(NamedTuple):
    """What is kept of a decoded image.

    Attributes:
        size: (height, width) before any resize, or None if it cannot be read.
        digest: hash of size and pixels, the same for every file that decodes to the same picture, or None.
        reason: why it cannot be read, or ''.
        oddities: what of `ODDITIES` it is.
    """

    size: tuple[int, int] | None
    digest: bytes | None
    reason: str = ''
    oddities: Sequence[str] = ()


def check(
    samples: list[Sample],
    splits: list[dict[str, list[int]]],
    *,
    smallest: int,
    exif_rotation: bool = False,
    resize: Sequence[int] | None = None,
) -> bool:
    """Decodes every image and prints to stdout what a user should know before training.

    An image of the test part that is in the train or val part too is a warning.

    Args:
        splits: a dict for each round, from 'train', 'test' and perhaps 'val' to positions in `samples`.
        smallest: height and width that an image must have at least after the resize.
        exif_rotation: turn images as their EXIF orientation says.
        resize: (height, width) that training resizes every image to, or None.

    Returns:
        whether the database can be trained on: every image can be read and is large enough for a patch.
    """
    show_labels(samples)
    pictures = decode([sample.path for sample in samples], exif_rotation)
    unreadable = [f'{sample.path}\n    {picture.reason}' for sample, picture in zip(samples, pictures) if picture.reason]
    show_sizes([picture.size for picture in pictures if picture.size], resize)
    small = too_small(samples, pictures, smallest, resize)
    show('Unreadable', unreadable)
    show(f'Below {smallest}x{smallest}', small)
    for oddity, text in ODDITIES.items():
        paths = [sample.path for sample, picture in zip(samples, pictures) if oddity in picture.oddities]
        if paths:
            line(oddity[:1].upper() + oddity[1:], text.format(len(paths)))
            print(textwrap.indent('\n'.join(paths), '    '))
    show('Identical groups', identical(samples, pictures))
    for number, split in enumerate(splits, start=1):
        show(
            f'Twins, round {number}',
            twins(samples, pictures, split),
            f'warning: {{}} of {len(split["test"])} test images also in train or val',
        )
    usable = not unreadable and not small
    line(
        'Result',
        'the database can be trained on'
        if usable
        else f'the database cannot be trained on: {len(unreadable)} unreadable, {len(small)} too small',
    )
    return usable


def decode(paths: list[str], exif_rotation: bool) -> list[Picture]:
    """The `Picture` of each path; only as many images as there are cores are in memory at a time."""
    return on_all_cores('check', lambda path: read_picture(path, exif_rotation), paths)


def read_picture(path: str, exif_rotation: bool) -> Picture:
    try:
        image, turn, oddities = decode_image(path)
    except InputError as error:
        return Picture(None, None, str(error).removeprefix(path).strip())
    rows = np.asarray(image)[-FLAT_ROWS:]
    if (rows == rows[-1, -1]).all():
        oddities.append(FLAT)
    if turn is not None and exif_rotation:
        image = image.transpose(turn)
    size = image.height, image.width
    return Picture(size, hashlib.sha256(repr(size).encode() + image.tobytes()).digest(), oddities=oddities)


def too_small(samples: list[Sample], pictures: list[Picture], smallest: int, resize: Sequence[int] | None) -> list[str]:
    """A line for each image that has no room for a patch after the resize."""
    sizes = [picture.size and (resize or picture.size) for picture in pictures]
    return [
        f'{size[0]:>5} x {size[1]:<5}  {sample.path}' for sample, size in zip(samples, sizes) if size and min(size) < smallest
    ]


def identical(samples: list[Sample], pictures: list[Picture]) -> list[str]:
    """The lines of each group of samples that decode to the same picture: the first of them with their scores."""
    groups: dict[bytes, list[str]] = {}
    for sample, picture in zip(samples, pictures):
        if picture.digest:
            groups.setdefault(picture.digest, []).append(f'    score {sample.score:<10.6g}  {sample.path}')
    return ['\n'.join([f'{len(group)} images', *first(group, '    ')]) for group in groups.values() if len(group) > 1]


def twins(samples: list[Sample], pictures: list[Picture], split: dict[str, list[int]]) -> list[str]:
    """The lines of each test image that has an identical image in train or val: both names."""
    others: dict[bytes | None, tuple[str, str]] = {}
    for part in ('train', 'val'):
        for k in split.get(part, []):
            others.setdefault(pictures[k].digest, (part, samples[k].path))
    pairs = [
        (samples[k].path, *others[pictures[k].digest])
        for k in split['test']
        if pictures[k].digest and pictures[k].digest in others
    ]
    return [f'test   {path}\n{part:<5}  {other}' for path, part, other in pairs]


def show_labels(samples: list[Sample]) -> None:
    contents = len({sample.content for sample in samples})
    scores = [sample.score for sample in samples]
    line('Images', f'{len(samples)} of {contents} contents' if contents < len(samples) else len(samples))
    line('Scores', f'{min(scores):.6g} to {max(scores):.6g}, mean {np.mean(scores):.6g}')
    print('\n'.join(histogram(scores)), flush=True)


def histogram(scores: list[float]) -> list[str]:
    """A line for each of `BINS` equal ranges of the scores: the range, how many lie in it, and a bar."""
    counts, edges = np.histogram(scores, BINS)
    decimals = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    texts = [f'{edge:.{decimals}f}' for edge in edges]
    width = max(map(len, texts))
    bars = ['#' * -(-LONGEST_BAR * count // max(counts)) for count in counts]
    return [
        f'    {low:>{width}} to {high:>{width}}  {count:>6}  {bar}'.rstrip()
        for low, high, count, bar in zip(texts, texts[1:], counts, bars)
    ]


def show_sizes(sizes: list[tuple[int, int]], resize: Sequence[int] | None) -> None:
    for name, lengths in zip(('Height', 'Width'), zip(*sizes)):
        line(name, f'{min(lengths)} to {max(lengths)} pixels')
    line('Different sizes', len(set(sizes)))
    if resize:
        line('Resized to', '{} high, {} wide'.format(*resize))


def show(name: str, entries: list[str], text: str = '{}') -> None:
    """Print `text` with the number of `entries`, or none, and then the first of them."""
    line(name, text.format(len(entries)) if entries else 'none')
    for entry in first(entries):
        print(textwrap.indent(entry, '    '))


def first(entries: list[str], margin: str = '') -> list[str]:
    """The first `NAMED` entries, and one that counts the others."""
    others = len(entries) - NAMED
    return entries[:NAMED] + [f'{margin}... and {others} more'] * (others > 0)


def line(name: str, text: str | int) -> None:
    print(f'{name:<18}{text}')
