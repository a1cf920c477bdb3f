"""The table of demo.py --csv.

It grows as the scores come, unlike every other output of this project, and one process at a time
writes it. Each row says with how many patches and with which weights its score was computed, so
that all scores in a table are comparable, and no table of labels is mistaken for one.
"""

import csv
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from util.errors import InputError
from util.files import as_input_error, check_output, locked

FIRST_COLUMNS = ('image', 'prediction')
# The headers of earlier versions, which a person's labels can have too.
EARLIER_HEADERS = ('image,score', 'image,score,spread')


def table_columns(spread: bool) -> tuple[str, ...]:
    """The columns of a table with or without the deviation over the patches."""
    measured = ('spread',) if spread else ()
    return (*FIRST_COLUMNS, *measured, 'patches', 'weights')


class ScoreTable:
    """The table of scores in the file `path`, which is locked until `close`.

    Args:
        spread: whether it has the deviation over the patches.
        patches: the number of patches of each image.
        resume: whether it continues the table that is there. Without it, there must be none.

    Attributes:
        rows: the rows of earlier calls, each a dict with the columns' names as keys.

    Raises:
        InputError: the file is something else, cannot be written, or has scores of another number
            of patches, or another process writes it.
    """

    def __init__(self, path: str, spread: bool, patches: int, resume: bool) -> None:
        self.path = path
        self.patches = str(patches)
        self.columns = table_columns(spread)
        # First, since its messages say more about such a header than those of `check_output`.
        refuse_other_header(path, spread)
        check_output(path, ['.csv'], header=','.join(self.columns))
        # Not the table itself is locked, since some versions of filelock empty the file they lock.
        target = Path(os.path.realpath(path))
        lock = target.with_name(f'.{target.name}.lock')
        busy = f'{path} is being written by another process; name another file'
        # An error in this block gives the lock back.
        with ExitStack() as stack:
            stack.enter_context(locked(lock, busy))
            # Only now, since the other process may have made the table a moment ago.
            is_there = target.exists() and target.stat().st_size > 0
            if is_there and not resume:
                raise InputError(
                    f'{path} has scores already; --resume continues it, or name another file'
                )
            self.rows = self.read() if is_there else []
            self.refuse_other('patches', self.patches)
            # After it, the lock is kept until `close`.
            self.stack = stack.pop_all()

    def close(self) -> None:
        """Close the file, and let another process write it."""
        self.stack.close()

    def read(self) -> list[dict[str, str]]:
        texts = [line.decode(errors='surrogateescape') for line in self.whole_lines()]
        with as_input_error(self.path, 'a table'):
            return list(csv.DictReader(texts, strict=True))

    def whole_lines(self) -> list[bytes]:
        """The lines of the file, without a last one that a kill left unfinished."""
        with open(self.path, 'rb') as file:
            return [line for line in file if line.endswith(b'\n')]

    def refuse_other(self, column: str, now: str) -> None:
        """Refuse to continue rows that have another value than `now` in `column`."""
        for row in self.rows:
            if row[column] != now:
                raise InputError(
                    f'{self.path} has scores with {column} {row[column]}, not {now}; '
                    'give the same, or name another file'
                )

    def start(self, weights: str) -> None:
        """Open the file for `append`.

        Args:
            weights: the digest of the network's weights.

        Raises:
            InputError: it has scores of other weights.
        """
        self.refuse_other('weights', weights)
        self.weights = weights
        # Written line by line, so that a kill loses one line at most. A name that is not UTF-8
        # keeps its bytes.
        file = open(  # noqa: SIM115, until `close`
            self.path, 'a', buffering=1, encoding='utf-8', errors='surrogateescape', newline=''
        )
        self.stack.enter_context(file)
        # A last line that a kill left unfinished is removed.
        end = sum(map(len, self.whole_lines()))
        file.truncate(end)
        self.writer = csv.writer(file, lineterminator='\n')
        if end == 0:
            self.writer.writerow(self.columns)

    def append(self, image: Path, values: Sequence[float]) -> None:
        """Write the row of an image.

        Args:
            values: its score, and the deviation if the table has it.
        """
        self.writer.writerow([image, *values, self.patches, self.weights])


def refuse_other_header(path: str, spread: bool) -> None:
    """Refuse labels, and scores of an earlier version, or with another choice of --spread.

    Raises:
        InputError: the table has such a header.
    """
    if not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        header = file.readline(100).decode(errors='replace').strip()
    if header in EARLIER_HEADERS:
        raise InputError(
            f'{path} starts with {header}: these are labels, or scores of an earlier version, '
            'which do not say by which weights they are; name another file to score all images'
        )
    if header == ','.join(table_columns(not spread)):
        made = 'without' if spread else 'with'
        raise InputError(f'{path} was made {made} --spread; do the same, or name another file')
