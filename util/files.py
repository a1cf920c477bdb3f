"""Files that appear whole or not at all, and locks that the system frees when their holder ends."""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from util.errors import InputError


def write_whole(path: Path | str, content: bytes | memoryview) -> None:
    """Write the bytes `content` to `path`, which holds either its old or its new content whatever happens meanwhile.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old content is untouched.
    """
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(beside, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f'{path} cannot be written: {error.strerror}; what it held before is untouched. '
            f'Make room or name another place, then go on (a run: with --resume)'
        )
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power failure."""
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
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
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
    write_whole(path, text.getvalue().encode())


def read_table(path: Path | str) -> list[dict[str, str]]:
    """The rows of a CSV file as dicts of strings."""
    try:
        with open(path, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}')


def make_folder(folder: Path | str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'the folder {folder} cannot be made: {error.strerror}; --output DIR names another place')


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it if need be."""
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path | str) -> TextIO | None:
    """The open lock file `path`, held until it is closed, or None if another process holds it."""
    file = open(path, 'w')  # noqa: SIM115, the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
