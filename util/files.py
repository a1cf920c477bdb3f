"""Files that appear whole or not at all, and locks that the system frees when their holder ends."""

import csv
import functools
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # PyTorch brings it; it works where there is no fcntl

from util.errors import InputError
from util.program import tell

RUN_FILES = {
    *('config.json', 'results.json', 'left_out.csv', 'split.json', 'history.csv', 'best.pth', 'last.pth', 'predictions.csv'),
    *('curves.png', 'scatter.png', 'worst.png', 'result.json', '.lock'),
}


def write_whole(path: Path | str, content: bytes | memoryview) -> None:
    """Write the bytes `content` to `path`, which holds either its old or its new content whatever happens meanwhile.

    A link stays and what it names is replaced; a device or a FIFO is written to.

    Raises:
        InputError: the disk is full or the place cannot be written; the old content is untouched.
    """
    try:
        if is_special(path):
            write_to_special(path, content)
            return
        target = replaceable(path)
        beside = temporary(target)
        try:
            # the name cannot be guessed and must be new, so that nobody's link is followed
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise InputError(
            f'{path} cannot be written: {error.strerror}; what it held before is untouched. Make room or name another place'
        )


def temporary(target: Path) -> Path:
    """A new name beside `target`; `remove_abandoned` knows it."""
    return target.with_name(f'.{target.name[:50]}.{secrets.token_hex(8)}.tmp')


def remove_abandoned(folder: Path, name: str = '') -> None:
    """Remove what a killed process left of its writes in `folder`, of the file `name` alone if that is given."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(f'.{name[:50]}') and path.name.endswith('.tmp'):
                path.unlink()


def refuse_unwritable(path: Path | str, *inputs: Path | str, start: bytes = b'') -> None:
    """Try an output before the hours of work that it is for, and remove what an earlier try left.

    Args:
        start: how a file of this output begins; one that begins otherwise is not replaced, as a picture behind `--csv`.

    Raises:
        InputError: `path` cannot be written, or it is one of the `inputs`, a file that a run wrote, or of another kind.
    """
    try:
        for source in inputs:
            if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
                raise InputError(f'{path} is read, so it cannot be the output too; name another file')
        if is_special(path):
            return
        target = replaceable(path)
        if target.exists():
            if is_of_a_run(target):
                raise InputError(f'{path} is a file of a run, and what a run earned is not replaced; name another file')
            with open(target, 'rb') as file:
                if file.read(len(start)) not in (b'', start):
                    raise InputError(f'{path} exists and is of another kind than this output; remove it, or name another file')
        remove_abandoned(target.parent, target.name)
        beside = temporary(target)
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        beside.unlink()
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}; name another place')


def is_of_a_run(path: Path) -> bool:
    """Whether `path` is in a run folder or in a round's, under a name that a run writes."""
    in_run = any((folder / 'config.json').exists() for folder in path.parents[:2])
    return in_run and (path.name in RUN_FILES or path.name.startswith('predictions_'))


def is_special(path: Path | str) -> bool:
    """Whether `path` is a device, a FIFO or this process's own stdout or stderr, which nothing may replace."""
    path = Path(path)
    return path.exists() and not path.is_dir() and (not path.is_file() or own_stream(path) is not None)


def own_stream(path: Path) -> int | None:
    """The number of the stream that `path` is, as /dev/stdout is."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def write_to_special(path: Path | str, content: bytes | memoryview) -> None:
    sys.stdout.flush()
    number = own_stream(Path(path))
    # a FIFO that nobody reads is an error with O_NONBLOCK; without it, opening one would wait for a reader for ever
    descriptor = os.dup(number) if number else os.open(path, os.O_WRONLY | getattr(os, 'O_NONBLOCK', 0))
    with open(descriptor, 'wb') as file:
        if hasattr(os, 'O_NONBLOCK'):
            os.set_blocking(descriptor, True)
        file.write(content)


def replaceable(path: Path | str) -> Path:
    """The file that `path` leads to.

    Raises:
        OSError: it is one that this user may not write.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(0, 'it is a folder')
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(0, 'it is write-protected')
    return target


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power failure, where the system knows how."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path | str, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode())


def read_json(path: Path | str) -> dict[str, Any]:
    """The dict in the JSON file `path`."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} cannot be read: {error}')
    if not isinstance(content, dict):
        raise InputError(f'{path} holds no JSON object; it is not the file of a run')
    return content


def write_table(path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write dicts with the keys `columns` as CSV; floats keep every digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode(errors='surrogateescape'))  # a name that is not UTF-8 keeps its bytes


def read_table(path: Path | str) -> list[dict[str, str]]:
    """The rows of a CSV file as dicts of strings."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline='')))
    except (ValueError, csv.Error) as error:
        raise InputError(f'{path} cannot be read: {error}')
    if any(None in row or None in row.values() for row in rows):
        raise InputError(f'{path} has a row with more or fewer fields than its first line')
    return rows


def read_text(path: Path | str) -> str:
    """The text in a regular file; a FIFO would wait for a writer that never comes.

    Raises:
        InputError: there is no such file, or it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f'{path} cannot be read: it is not a file')
        return Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}')


def make_folder(folder: Path | str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'the folder {folder} cannot be made: {error.strerror}; --output DIR names another place')


def refuse_unmakeable(folder: Path | str) -> None:
    """Try, without making it, whether files can be written into `folder`; errors as of `make_folder`."""
    place = Path(folder).absolute()
    existing = next(place for place in (place, *place.parents) if os.path.exists(place))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f'the folder {folder} cannot be made: {existing} cannot be written; --output DIR names another place')


@contextmanager
def locked(path: Path | str) -> Iterator[bool]:
    """Hold the lock file `path`, waiting for it if need be; whether there is a lock to hold, see `try_lock`."""
    lock = acquire(path, -1)
    with lock or ExitStack():
        yield bool(lock)


def try_lock(path: Path | str) -> ExitStack | None:
    """Hold the lock file `path` until what this returns is closed; None if another process holds it.

    Where the file system has no locks (NFS and Lustre often) or the file is another user's, it is said once, and done without.
    """
    try:
        return acquire(path, 0) or ExitStack()
    except Timeout:
        return None


def acquire(path: Path | str, timeout: float) -> ExitStack | None:
    """The lock, or None where there cannot be one.

    Raises:
        Timeout: another process holds it.
    """
    try:
        # A lock file whose existence is the lock would outlive a killed process: rather none.
        lock = FileLock(path, timeout, fallback_to_soft=False)
        lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        folder = os.path.dirname(path) or '.'
        if os.access(folder, os.W_OK):  # otherwise nothing is written there, and the write itself says so
            say_unlocked(folder, getattr(error, 'strerror', None) or str(error))
        return None
    held = ExitStack()
    held.callback(lock.release)
    return held


@functools.cache
def say_unlocked(folder: str, reason: str) -> None:
    tell(f'warning: files in {folder} cannot be locked ({reason}); let no two processes work on the same round or cache')
