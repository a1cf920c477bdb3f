"""How far a long piece of work is, and how long the rest takes."""

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
    note: Callable[[], str] = str,
) -> Iterator[Any]:
    """Yields `items` and shows on stderr how far the work is: a bar on a terminal, elsewhere a line every few minutes.

    Args:
        total: of the sizes of all items, in `unit`.
        note: what else a line reports.
    """
    started = reported = time.monotonic()
    done = 0
    with tqdm(
        total=total, desc=title, unit=f' {unit}', leave=False, disable=True if rank() else None
    ) as bar:
        for item in items:
            yield item
            done += size(item)
            bar.update(size(item))
            now = time.monotonic()
            if bar.disable and now - reported > EVERY:
                reported, rate = now, done / (now - started)
                left = duration((total - done) / rate)
                log(f'{title}: {done} of {total} {unit}, {rate:.3g} {unit}/s{note()}, {left} left')


def duration(seconds: float) -> str:
    """'40 s', '12 min' or '3 h 05 min'."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 100 else f'{minutes // 60} h {minutes % 60:02d} min'
