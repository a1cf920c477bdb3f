"""The rule by which a name finds an image, for label tables, split lists and lists of photos.

1. The exact name wins, then a name in other letter case or Unicode form. A name without an ending,
   as an id, means the picture that has it with an ending.
2. If the whole name finds nothing, the longest end of it that does counts, for the names of
   another machine. A folder in the name is dropped only if no folder of that name exists.

A name that fits several images equally well is ambiguous and finds none of them.
"""

import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from util import excel
from util.errors import InputError
from util.tables import (
    BLANK,
    cells_of,
    index_of_name,
    is_header,
    lines_of,
    normalized_name,
)

# Pillow registers endings of documents, videos and data too (.pdf, .mpg, .h5), which are no photos.
FORMATS = {
    'AVIF',
    'BMP',
    'DIB',
    'GIF',
    'JPEG',
    'JPEG2000',
    'MPO',
    'PCX',
    'PNG',
    'PPM',
    'SGI',
    'TGA',
    'TIFF',
    'WEBP',
}
# Photos whether or not Pillow can read them: one that it cannot read is reported, not passed over.
NEW_ENDINGS = {'.avif', '.heic', '.heif', '.hif', '.jxl'}
# Raw files of cameras. Pillow reads the small picture that many of them begin with.
# fmt: off
RAW_ENDINGS = {
    '.3fr', '.ari', '.arw', '.bay', '.bmq', '.cap', '.cine', '.cr2', '.cr3', '.crw', '.cs1', '.dc2',
    '.dcr', '.dcs', '.dng', '.drf', '.eip', '.erf', '.fff', '.gpr', '.iiq', '.k25', '.kc2', '.kdc',
    '.mdc', '.mef', '.mfw', '.mos', '.mrw', '.nef', '.nrw', '.orf', '.ori', '.pef', '.ptx', '.pxn',
    '.qtk', '.raf', '.raw', '.rdc', '.rw1', '.rw2', '.rwl', '.rwz', '.sr2', '.srf', '.srw', '.sti',
    '.x3f',
}
# fmt: on


class Names:
    """The rule; a subclass knows the images that exist."""

    def find(self, name: str, by_end: bool = False) -> list[str]:
        """The images that `name` can mean: none, one, or several that fit equally well.

        Args:
            by_end: whether an end of the name counts if the whole name finds nothing: for
                'D:\\data\\a.png', first 'D:/data/a.png', then 'data/a.png', then 'a.png'.
        """
        # A backslash separates folders on another system and can be part of a name on this one.
        for spelling in (name, name.replace('\\', '/')):
            steps = spelling.split('/')
            for k, step in enumerate(steps):
                end = '/'.join(steps[k:])
                found = best_of(posixpath.normpath(end), self.candidates(end))
                if found:
                    return found
                # A folder that exists is not dropped: its name says which of several images of one
                # name is meant.
                if not by_end or (step and self.has_folder(step)):
                    break
        return []

    def candidates(self, name: str) -> Sequence[str]:
        """The images that have this name in any spelling, with or without their ending."""
        raise NotImplementedError

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name in any spelling."""
        raise NotImplementedError


class FilesIn(Names):
    """The files in a folder and below it. A folder is listed once, at its first use.

    Args:
        is_kind: whether a path is of the kind to look for; by default, whether it is a file.
    """

    def __init__(self, folder: Path | str, is_kind: Callable[[str], bool] = os.path.isfile) -> None:
        self.folder = str(folder)
        self.is_kind = is_kind
        # A cache of its own for each object, so that a later one sees the folders as they are then.
        self.names_in = functools.cache(names_in)

    def candidates(self, name: str) -> Sequence[str]:
        if self.is_kind(self.path_of(name)):
            return [name]
        # Several folders can fit a step of the path, so all of them are followed.
        places = ['/' if os.path.isabs(name) else '']
        for step in posixpath.normpath(name).strip('/').split('/'):
            inner = []
            for place in places:
                if step != '..':
                    entries = self.names_in(self.path_of(place)).candidates(step)
                else:
                    entries = ['..']  # a listing of a folder does not have it
                inner += [posixpath.join(place, entry) for entry in entries]
            places = inner
        return [place for place in places if self.is_kind(self.path_of(place))]

    def has_folder(self, name: str) -> bool:
        entries = self.names_in(self.folder).candidates(name)
        return any(os.path.isdir(self.path_of(entry)) for entry in (name, *entries))

    def paths(self, name: str, by_end: bool = False) -> list[str]:
        """The paths of the files that `name` can mean; all of them exist."""
        return [self.path_of(found) for found in self.find(name, by_end)]

    def path(self, name: str) -> str:
        """The path of the file that `name` means, or the path as it is written if there is none.

        Raises:
            InputError: it can mean several files.
        """
        found = self.paths(name)
        return unambiguous(name, found) if found else self.path_of(name)

    def path_of(self, name: str) -> str:
        """The path of `name` as it is written, whether it exists or not."""
        return os.path.join(self.folder, name)


class KnownNames(Names):
    """A list of names, which can be paths. `b.png` also finds `a/b.png` in it."""

    def __init__(self, names: Iterable[str]) -> None:
        self.by_key: dict[str, list[str]] = {}
        self.folders: set[str] = set()
        for name in names:
            # Every end of a path is a key: 'a/b.png' is found as 'a/b.png' and as 'b.png'.
            for key in keys_of(name):
                steps = key.split('/')
                for k in range(len(steps)):
                    end = '/'.join(steps[k:]).strip(BLANK)
                    self.by_key.setdefault(end, []).append(name)
                self.folders.update(steps[:-1])
        self.folders.discard('..')

    def candidates(self, name: str) -> Sequence[str]:
        return self.by_key.get(normalized_name(posixpath.normpath(name)), [])

    def has_folder(self, name: str) -> bool:
        return normalized_name(name) in self.folders


def best_of(name: str, candidates: Sequence[str]) -> list[str]:
    """Those of `candidates` whose spelling is nearest to `name`."""
    distances = [distance(name, candidate) for candidate in candidates]
    nearest = min(distances, default=0)
    return [candidate for candidate, far in zip(candidates, distances) if far == nearest]


def distance(name: str, candidate: str) -> int:
    """How far the spelling of a candidate is from `name`; only the order counts."""
    if candidate == name:
        return 0
    if without_ending(candidate) == name:
        return 1
    # For the name 'a/b.png', 'A/B.png' is nearer than 'x/a/b.png'.
    if normalized_name(name) in keys_of(candidate):
        return 2
    if candidate.endswith(f'/{name}'):
        return 3
    return 4


def keys_of(name: str) -> list[str]:
    """The keys under which an image is looked up: its normalized name, also without its ending."""
    key = normalized_name(name)
    return list(dict.fromkeys([key, without_ending(key).strip(BLANK)]))


def without_ending(name: str) -> str:
    """The name of a picture without its ending.

    a.png.jpg keeps its own, since it is not the picture a.png.
    """
    stem = os.path.splitext(name)[0]
    if is_picture(name) and not is_picture(stem):
        return stem
    return name


def is_picture(name: str) -> bool:
    """Whether a file has the ending of a picture, which Pillow may or may not read."""
    return os.path.splitext(name)[1].lower() in picture_endings()


@functools.cache
def picture_endings() -> set[str]:
    endings = NEW_ENDINGS | RAW_ENDINGS
    for ending, format in Image.registered_extensions().items():
        if format in FORMATS:
            endings.add(ending)
    return endings


def names_on_lines(
    content: bytes,
    is_name: Callable[[str], bool],
    chosen: Mapping[str, str] = {},
    errors: str = 'strict',
) -> list[str] | None:
    """The names in a text with one on each line; None for a table with a header, JSON or Excel.

    A line that is no name as it stands, commas and blanks included, has cells. Its name is then the
    first cell that is not a number.

    Args:
        is_name: whether a name finds an image.
        chosen: columns by role, whose names make the first line a header as known names do.
        errors: what to do with bytes that are not UTF-8.
    """
    if content.startswith(excel.STARTS):
        return None
    text = content.decode('utf-8-sig', errors)
    lines = [line for line in lines_of(text) if line.strip(BLANK)]
    # JSON starts with the key of an object, as in '[{"'. A name can start with a bracket too.
    if re.match(r'\s*\[?\s*\{\s*"', text):
        return None
    if lines and is_header(cells_of(lines[0]), chosen, needed=('image',)):
        return None
    names = []
    for line in lines:
        if is_name(line):
            names.append(line)
        else:
            cells = cells_of(line)
            names.append(cells[index_of_name(cells)].strip(BLANK + '"'))
    return names


def names_in(folder: str) -> KnownNames:
    """The names in `folder`; none if it cannot be listed."""
    with suppress(OSError, ValueError):
        # Sorted, since the order of a listing differs between machines.
        return KnownNames(sorted(os.listdir(folder or '.')))
    return KnownNames([])


def unambiguous(name: str, found: list[str]) -> str:
    """The only path in `found`.

    Raises:
        InputError: there are several.
    """
    if len(found) > 1:
        raise InputError(
            f'{name} can be {" or ".join(found[:3])}, equally near; remove or rename all but one, '
            'or write the whole name'
        )
    return found[0]
