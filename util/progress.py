"""The progress of a long piece of work, and how long the rest of it takes."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from util.errors import log, rank

EVERY = 180  # seconds between two lines where stderr is no terminal


def progress(
    items: Iterable[Any],
    title: str,
    total: int,
    unit: str,
    size: Callable[[Any], int] = lambda item: 1,
    note: Callable[[], str] = lambda: '',
) -> Iterator[Any]:
    """Yields `items` and shows the progress on stderr.

    That is a bar on a terminal, and elsewhere a line every few minutes.

    Args:
        total: the sum of the sizes of all items.
        unit: of the sizes.
        size: returns an item's size.
        note: returns further text for a line.
    """
    # With None tqdm shows a bar on terminals only; ranks other than the first never show one.
    disable = True if rank() else None
    started = time.monotonic()
    reported = started
    done = 0
    with tqdm(total=total, desc=title, unit=f' {unit}', leave=False, disable=disable) as bar:
        for item in items:
            yield item
            done += size(item)
            bar.update(size(item))

            now = time.monotonic()
            if bar.disable and now - reported > EVERY:
                reported = now
                rate = done / (now - started)
                left = duration((total - done) / rate)
                log(f'{title}: {done} of {total} {unit}, {rate:.3g} {unit}/s{note()}, {left} left')


def duration(seconds: float) -> str:
    """'40 s', '12 min' or '3 h 05 min'."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    if minutes < 100:
        return f'{minutes} min'
    return f'{minutes // 60} h {minutes % 60:02d} min'
