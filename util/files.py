"""Files that are named in every error, files that appear whole or not at all, and the one kind of lock."""

import csv
import errno
import glob
import io
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout  # PyTorch brings it; it works where there is no fcntl

from util.errors import InputError, first_line, log, log_once

REMEDIES = {  # for a file that cannot be read as one of these kinds
    'an image': 'replace the file',
    'a table': 'save it as CSV in UTF-8, or as an Excel file',
    'a MATLAB file': 'download it again',
    'a NumPy array of numbers': 'save it with numpy.save, as integers',
    'JSON': 'put the file back as it was written',
    'a checkpoint': 'get it again',
}
IN_PLACE: dict[
    Any, str
] = {  # how files start that people have in place of the one that they downloaded, in lower case
    b'version https://git-lfs': 'a Git LFS pointer and not the file itself, which `git lfs pull` fetches',
    (b'<!doctype', b'<html'): 'a web page and not the file itself; download it again',
}
# patterns of how an output starts that may be replaced
STARTS = {'.png': rb'\x89PNG', '.pt2': rb'PK', '.onnx': rb'\x08', '.safetensors': rb'.{8}\{'}
ABANDONED = 24 * 3600  # seconds after which a temporary file is nobody's


@contextmanager
def named(name: os.PathLike[str] | str, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises in the body at `name`, one of the kinds in `REMEDIES`, into one `InputError`.

    What the system refuses (an OSError with an errno, a MemoryError) passes as what it is.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f'there is no file {name}')
    except PermissionError as error:
        raise InputError(f'{name} cannot be read: {error.strerror}')
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes its reader raise anything
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # a damaged archive seeks to nowhere
            error.filename = error.filename or str(name)
            raise
        reason = re.sub(r' <_io\.BufferedReader [^>]*>', '', first_line(error)).removeprefix(
            f'{name}: '
        )
        raise InputError(f'{name} cannot be read as {kind}: {reason}; {REMEDIES[kind]}')


@contextmanager
def reading(path: os.PathLike[str] | str, kind: str) -> Iterator[BinaryIO]:
    """Open the file `path` for the body, which reads it as one of the kinds in `REMEDIES`; errors as of `named`.

    Raises:
        InputError: it is missing, no regular file, or what people have in the place of a file that they downloaded.
    """
    with named(path, kind):
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a FIFO would be to wait
            raise InputError(f'{path} is not a regular file')
        with open(path, 'rb') as file:
            head = file.read(200).removeprefix(b'\xef\xbb\xbf').lstrip().lower()
            for start, what in IN_PLACE.items():
                if head.startswith(start):
                    raise InputError(f'{path} is {what}')
            file.seek(0)
            yield file


def check_input(path: Path | str, kind: str) -> None:
    """Refuse a file that `reading` refuses, before the work that it is for."""
    with reading(path, kind):
        pass


def walk(folder: Path | str) -> Iterator[str]:
    """The files in `folder` and below, by name; not hidden ones, nor what a Mac puts beside a zip's files.

    Links to folders are followed, and each folder is entered once.

    Raises:
        OSError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    seen: set[Any] = set()
    for place, inner, names in os.walk(folder, onerror=fail, followlinks=True):
        identity = identity_of(place, os.stat(place))
        inner[:] = sorted(filter(is_entered, inner)) if identity not in seen else []
        if identity not in seen:
            yield from (
                os.path.join(place, name) for name in sorted(names) if not name.startswith('.')
            )
        seen.add(identity)


def identity_of(path: str, status: os.stat_result) -> Any:
    """What is the same for every name of a file or folder; on systems without inodes, its real path."""
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def is_entered(name: str) -> bool:
    """Whether files are looked for in a folder of this name."""
    return not name.startswith('.') and name != '__MACOSX'


def read_json(path: Path | str) -> dict[str, Any]:
    """The dict in the JSON file `path`."""
    with reading(path, 'JSON') as file:
        content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('it holds no JSON object')
    return content


@contextmanager
def writing(path: Path | str) -> Iterator[BinaryIO]:
    """A file whose content takes the place of `path` once the body ends, and never if it fails; a link stays one.

    Raises:
        OSError: the place cannot be written, or the disk is full; what `path` held before is untouched.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, 'it is write-protected')
    beside = target.with_name(f'.{target.name[:50]}.{secrets.token_hex(8)}.tmp')
    try:
        # the name cannot be guessed and must be new, so that nobody's link is followed
        with open(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), 'w+b') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str = '', *, owned: bool = False) -> None:
    """Remove what killed processes left of their writes in `folder`, of the file `name` alone if that is given.

    That is what is older than a day, since another process may still write what is younger; with `owned`, which means that
    this process alone writes there, everything.
    """
    with suppress(OSError):
        for path in folder.glob(f'.{glob.escape(name[:50])}*.tmp'):
            if owned or time.time() - path.lstat().st_mtime > ABANDONED:
                path.unlink()


def write_whole(path: Path | str, content: bytes | memoryview) -> None:
    """Write the bytes `content` to `path`, which holds either its old or its new content whatever happens meanwhile.

    Raises:
        InputError: the disk is full or the place cannot be written; the old content is untouched.
    """
    try:
        with writing(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(
            f'{path} cannot be written: {error.strerror}; what it held before is untouched. Name another place'
        )


def write_json(path: Path | str, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode())


def write_table(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write dicts with the keys `columns` as CSV; floats keep every digit, and a missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(
        path, text.getvalue().encode(errors='surrogateescape')
    )  # a name that is not UTF-8 keeps its bytes


def check_output(path: Path | str, endings: Sequence[str], header: str = '') -> None:
    """Refuse an output before the work that it is for.

    Args:
        endings: of the names that this output can have.
        header: how a table starts; an existing table is replaced only if it starts in the same way.

    Raises:
        InputError: `path` has another ending, cannot be written, is in a run folder, or holds something else than such an
            output.
    """
    target = Path(os.path.realpath(path))
    if target.suffix.lower() not in endings:
        raise InputError(f'{path} must end in {", ".join(endings)}')
    try:
        if target.exists():
            if any((folder / 'config.json').exists() for folder in target.parents[:2]):
                raise InputError(
                    f'{path} is in a run folder, where nothing is replaced; name another file'
                )
            start = re.escape(header.encode()) if header else STARTS[target.suffix.lower()]
            if not target.is_file() or not re.match(
                rb'$|' + start, target.read_bytes()[:200], re.DOTALL
            ):
                raise InputError(
                    f'{path} exists and is of another kind than this output; remove it, or name another file'
                )
        remove_abandoned(target.parent, target.name)
        if not os.access(target.parent, os.W_OK) or (
            target.exists() and not os.access(target, os.W_OK)
        ):
            raise PermissionError(errno.EACCES, 'the folder is missing or write-protected')
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}; name another place')


@contextmanager
def locked(path: Path | str, busy: str = '') -> Iterator[bool]:
    """Hold the lock file `path` in the body; the system frees it when this process ends, however that happens.

    Where the file system has no locks (NFS and Lustre often) or the file is another user's, it warns once and goes on without.

    Args:
        busy: the error to raise while another process holds the lock; without it, log that and wait.

    Yields:
        whether there is a lock to hold.
    """
    # A lock whose existence is the lock would outlive a killed process: rather none than a soft one.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(0)
    except Timeout:
        if busy:
            raise InputError(busy)
        log(f'waiting for another process, which holds {path}')
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if os.access(
            os.path.dirname(path) or '.', os.W_OK
        ):  # otherwise nothing is written there, and the write itself fails
            folder, reason = os.path.dirname(path) or '.', getattr(error, 'strerror', None) or error
            log_once(
                f'warning: files in {folder} cannot be locked ({reason}); let no two processes work on the same round or cache'
            )
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_locked(path: Path | str) -> bool:
    """Whether another process holds the lock file `path`."""
    try:
        with locked(path, busy='yes'):
            return False
    except InputError:
        return True
