"""Reading and writing of files.

Every error names its file, a file appears whole or not at all, and there is one kind of lock.
"""

import csv
import errno
import glob
import io
import json
import math
import mmap
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

from util.errors import InputError, first_line, log, log_once, machine_fault, visible

REMEDIES = {  # by the kind of a file that cannot be read
    'an image': 'replace the file',
    'a table': 'save it as CSV in UTF-8, or as an Excel file',
    'a MATLAB file': 'download it again',
    'a NumPy array of numbers': 'save it with numpy.save, as integers',
    'JSON': 'put the file back as it was written',
    'a checkpoint': 'get it again',
}
# The first bytes, in lower case, of files that people save by mistake in place of the real one.
IN_PLACE = {
    b'version https://git-lfs': (
        'a Git LFS pointer and not the file itself, which `git lfs pull` fetches'
    ),
    b'<!doctype': 'a web page and not the file itself; download it again',
    b'<html': 'a web page and not the file itself; download it again',
}
# The value of `Software` in the pictures of this project.
SOFTWARE = 'HyperIQA, fixed'
# The marks of this project in a picture and an export, as regexes. An export has its metadata as
# JSON, and .safetensors escapes the quotes once more.
PICTURE_MARK = re.escape(f'tEXtSoftware\0{SOFTWARE}'.encode())
EXPORT_MARK = rb'\{\\?"model\\?": \\?"HyperIQA\\?", '
MARKS = {
    '.png': PICTURE_MARK,
    '.pt2': EXPORT_MARK,
    '.onnx': EXPORT_MARK,
    '.safetensors': EXPORT_MARK,
}
# Errors that are not about the file itself: too many files are open, memory runs out, or the disk
# is full or read-only.
OF_THE_SYSTEM = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
}
# Folders without a person's files, in lower case: thumbnails, deleted files and old copies, as
# network drives, Windows, Mac and Linux keep them.
NOT_ENTERED = {
    '@eadir',
    '#recycle',
    '#snapshot',
    '@recycle',
    '@recently-snapshot',
    '$recycle.bin',
    'recycler',
    'system volume information',
    'lost+found',
    '__macosx',
}
ABANDONED = 24 * 3600  # seconds after which no process still writes a temporary file


@contextmanager
def as_input_error(name: os.PathLike[str] | str, kind: str) -> Iterator[None]:
    """Turn any error of a reader in the body into one `InputError` that names the file.

    Args:
        name: of the file.
        kind: one of those in `REMEDIES`.

    Raises:
        InputError: the file is missing, cannot be read, or is not of this kind.
        OSError, MemoryError, RuntimeError: the system refuses, as when memory runs out or too many
            files are open.
    """
    try:
        yield
    except FileNotFoundError:
        # `visible`, since the name may differ from the right one by an unusual space.
        raise InputError(f'there is no file {visible(name)}')
    except PermissionError as error:
        raise InputError(f'{name} cannot be read: {error.strerror}')
    except InputError:
        raise
    except Exception as error:  # a damaged file makes its reader raise anything
        if machine_fault(error):
            raise
        # An OSError with a number comes from the system, and the file may be intact. One without a
        # number comes from the reader itself. EINVAL is also about the content: a damaged archive
        # makes its reader seek to a negative position.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            if error.errno not in OF_THE_SYSTEM:
                raise InputError(f'{name} cannot be read: {error.strerror}')
            # The message of `boundary` then names the file.
            error.filename = error.filename or str(name)
            raise
        # Some readers name the file, or the object through which they read it.
        reason = re.sub(r' <_io\.BufferedReader [^>]*>', '', first_line(error))
        reason = reason.removeprefix(f'{name}: ')
        raise InputError(f'{name} cannot be read as {kind}: {reason}; {REMEDIES[kind]}')


@contextmanager
def reading(path: os.PathLike[str] | str, kind: str) -> Iterator[BinaryIO]:
    """Open the file `path` for the body, which reads it as one of the kinds in `REMEDIES`.

    Raises:
        InputError: it is missing, no regular file, a web page or the like in place of the real
            download, or not of this kind (see `as_input_error`).
    """
    with as_input_error(path, kind):
        # A FIFO is not opened, since that waits for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f'{path} is not a regular file')
        with open(path, 'rb') as file:
            head = file.read(200).removeprefix(b'\xef\xbb\xbf').lstrip().lower()
            for start, content in IN_PLACE.items():
                if head.startswith(start):
                    raise InputError(f'{path} is {content}')
            file.seek(0)
            yield file


def check_input(path: Path | str, kind: str) -> None:
    """Refuse a file that `reading` refuses, before any work is done."""
    with reading(path, kind):
        pass


def walk(folder: Path | str, unreadable: list[OSError]) -> Iterator[str]:
    """The files in `folder` and below it, sorted by name within each folder.

    Hidden files are left out, and so are folders without a person's files (NOT_ENTERED). Links to
    folders are followed, and each folder is entered once.

    Args:
        unreadable: gets the error of each folder that cannot be listed.

    Raises:
        OSError: the system refuses, as when too many files are open.
    """

    def fail(error: OSError) -> None:
        if error.errno in OF_THE_SYSTEM:
            raise error
        unreadable.append(error)

    seen: set[Any] = set()
    for place, inner, names in os.walk(folder, onerror=fail, followlinks=True):
        identity = identity_of(place, os.stat(place))
        if identity in seen:
            inner.clear()  # so that os.walk does not go on below
            continue
        seen.add(identity)
        inner[:] = sorted(filter(is_entered, inner))
        for name in sorted(names):
            if not name.startswith('.'):
                yield os.path.join(place, name)


def identity_of(path: str, status: os.stat_result) -> Any:
    """A value that is equal for all names of one file or folder."""
    if status.st_ino:
        return status.st_dev, status.st_ino
    # Some systems have no inodes.
    return os.path.realpath(path)


def is_entered(name: str) -> bool:
    """Whether files are looked for in a folder of this name."""
    return not name.startswith('.') and name.lower() not in NOT_ENTERED


def path_from(folder: Path | str, path: Path | str) -> str:
    """The relative path from `folder` to `path`, or the whole path on another drive of Windows."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return os.path.abspath(path)


def read_json(path: Path | str) -> dict[str, Any]:
    """The dict in the JSON file `path`."""
    with reading(path, 'JSON') as file:
        content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('it is not a JSON object')
    return content


@contextmanager
def writing(path: Path | str) -> Iterator[BinaryIO]:
    """Open a file whose content replaces that of `path` when the body ends, and never if it fails.

    A link at `path` stays a link.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` keeps its content.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, 'it is write-protected')
    temporary = target.with_name(f'.{target.name[:50]}.{secrets.token_hex(8)}.tmp')
    try:
        # The name cannot be guessed and must be new (O_EXCL), so no link that somebody else has put
        # there is followed.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, 'w+b') as file:
            yield file
            # The content has to be on the disk before it gets its name.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def allocate(path: Path, size: int) -> None:
    """Make a file `path` that has `size` bytes on the disk, and not only in its length.

    Raises:
        OSError: the disk is full, or a quota or a limit of this process is below that.
    """
    with open(path, 'wb') as file:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        megabyte = bytes(1 << 20)
        for _ in range(math.ceil(size / len(megabyte))):
            file.write(megabyte)


def remove_abandoned(folder: Path, name: str = '', *, owned: bool = False) -> None:
    """Remove the temporary files that killed processes left in `folder`.

    Args:
        name: of the only file whose temporary files are removed, or '' for those of all files.
        owned: whether no other process writes there. Otherwise only files that are older than a day
            are removed, since another process may still be writing a younger one.
    """
    with suppress(OSError):
        # With the point, so that those of `a.csv2` are not taken for those of `a.csv`.
        pattern = f'.{glob.escape(name[:50])}.*.tmp' if name else '.*.tmp'
        for path in folder.glob(pattern):
            if owned or time.time() - path.lstat().st_mtime > ABANDONED:
                path.unlink()


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """As `writing`, but a fault is one line.

    Raises:
        InputError: the disk is full or the place cannot be written; the old content stays.
    """
    try:
        with writing(path) as file:
            yield file
    except OSError as error:
        raise InputError(
            f'{path} cannot be written: {error.strerror}; its earlier content is untouched. '
            'Name another place'
        )


def write_whole(path: Path | str, content: bytes) -> None:
    """Write `content` to `path`, which has all of its old or its new content at any time.

    Raises:
        InputError: the disk is full or the place cannot be written; the old content stays.
    """
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as JSON."""
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode())


def write_table(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write dicts with the keys `columns` as CSV.

    Floats keep every digit, and a missing value is an empty cell.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    # The name of a file that is not UTF-8 keeps its bytes.
    write_whole(path, text.getvalue().encode(errors='surrogateescape'))


def check_output(path: Path | str, endings: Sequence[str], header: str = '') -> None:
    """Refuse an output before any work is done.

    Args:
        endings: those that the output's name may have.
        header: the first line of a table.

    Raises:
        InputError: `path` has another ending, is in a run folder, cannot be written, or is a file
            that is not such an output of this project.
    """
    target = Path(os.path.realpath(path))
    if target.suffix.lower() not in endings:
        raise InputError(f'{path} must end in {", ".join(endings)}')
    try:
        refuse_in_run(path)
        refuse_other_content(path, header)
        remove_abandoned(target.parent, target.name)
        places = [target.parent, target] if target.exists() else [target.parent]
        for place in places:
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, f'{place} is missing or write-protected')
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}; name another place')


def refuse_in_run(path: Path | str, remedy: str = 'name a place outside of it') -> None:
    """Refuse an output in a run folder, at any depth: a run keeps only its own files there."""
    target = Path(os.path.realpath(path))
    for folder in (target, *target.parents):
        if is_run(folder):
            raise InputError(f'{path} is in the run folder {folder}; {remedy}')


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run's. Its config.json is looked into: other tools write one too."""
    path = folder / 'config.json'
    if not path.is_file():
        return False
    try:
        record = read_json(path)
    except InputError:
        return False
    return all(isinstance(record.get(part), dict) for part in ('options', 'model'))


def refuse_other_content(path: Path | str, header: str = '') -> None:
    """Refuse to replace the file `path`, unless it is an output of this project.

    Args:
        header: as of `check_output`.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not is_own(target, header):
        raise InputError(
            f'{path} exists and is no such output of this project; move it away, or name another '
            'file'
        )


def is_own(path: Path, header: str) -> bool:
    """Whether the file `path` is an output of this project, with a mark or a table's `header`."""
    if not path.is_file():
        return False
    # An empty file may be replaced, and cannot be mapped into memory.
    if path.stat().st_size == 0:
        return True
    if header:
        mark = rb'\A' + re.escape(f'{header}\n'.encode())
    else:
        mark = MARKS[path.suffix.lower()]
    # An export can be large, so it is mapped and not read.
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return re.search(mark, content) is not None


@contextmanager
def locked(path: Path | str, busy: str = '') -> Iterator[bool]:
    """Hold the lock file `path` in the body.

    The system frees the lock when this process ends, even if it is killed. Some file systems (often
    NFS and Lustre) have no locks, and another user's lock file cannot be opened; it then warns once
    and goes on without the lock.

    Args:
        busy: the error to raise if another process holds the lock; if '', log that and wait.

    Yields:
        whether the lock is held.
    """
    # filelock's fallback counts a file's existence as the lock, which would outlive a killed
    # process. No lock is better than that.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(0)
    except Timeout:
        if busy:
            raise InputError(busy)
        log(f'waiting for another process, which holds {path}')
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the second where the file system has no locks
        warn_without_lock(path, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def warn_without_lock(path: Path | str, error: Exception) -> None:
    """Warn once that files in the folder of the lock file `path` cannot be locked."""
    folder = os.path.dirname(path) or '.'
    # In a folder that is write-protected nothing needs a lock, and the write itself fails.
    if os.access(folder, os.W_OK):
        reason = getattr(error, 'strerror', None) or error
        log_once(
            f'warning: files in {folder} cannot be locked ({reason}); let no two processes work on '
            'the same round or cache'
        )


def is_locked(path: Path | str) -> bool:
    """Whether another process holds the lock file `path`."""
    try:
        with locked(path, busy='(not shown)'):
            return False
    except InputError:
        return True
