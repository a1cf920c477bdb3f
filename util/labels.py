"""Label files: found below a database's folder, read from CSV, text, Excel and MATLAB, each fault named with its row."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from util.errors import InputError

PARTS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}
SHEET_SECONDS = 60
# In a process of its own: a damaged .xls can keep the reader in an endless loop, or make it ask for all memory.
SHEET_READER = """
import io, json, sys
from python_calamine import CalamineWorkbook
book = CalamineWorkbook.from_filelike(io.BytesIO(sys.stdin.buffer.read()))
sheet = book.get_sheet_by_name(sys.argv[1]) if sys.argv[1] else book.get_sheet_by_index(0)
json.dump(sheet.to_python(skip_empty_area=False), sys.stdout, default=str)
"""
HEADER_ROWS = 10  # of an Excel sheet, in which its header is looked for
FOREIGN = {  # how files start that people have in place of label files, in lower case
    b'version https://git-lfs': 'a Git LFS pointer and not the file itself, which `git lfs pull` fetches',
    b'<!doctype': 'a web page and not the file itself; download it again',
    b'<html': 'a web page and not the file itself; download it again',
    b'\x80': 'a pickle, which is never read, since reading it could run anything; have it written as CSV or JSON',
}


class Sample(NamedTuple):
    """One labelled image.

    `content` names what the image shows: images of one content stay on one side of a split. `part` is the official set
    that the labels put it in, 'train', 'val' or 'test', or '' where they name none.
    """

    path: str
    score: float
    content: str
    part: str = ''


class Settings(NamedTuple):
    """How the user wants labels to be read, where that is not as the database's table entry says.

    `columns` names the columns of the user's own table by their roles; `images` is the folder at which the names in it
    start; `lower_is_better` is the direction of its scores. `split_by` is 'image' or 'content'. `skip_missing` leaves out
    listed images that are missing or unreadable.
    """

    columns: Mapping[str, str] = {}
    images: str | None = None
    lower_is_better: bool | None = None
    split_by: str | None = None
    skip_missing: bool = False

    @classmethod
    def of(cls, config: Any) -> 'Settings':
        return cls(
            config.columns or {},
            getattr(config, 'image_root', None),
            config.lower_is_better,
            config.split_by,
            config.skip_missing,
        )


AS_DOCUMENTED = Settings()


class Finder:
    """Finds files whatever the letter case and the Unicode form of their names; every folder is listed once."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, list[str]]] = {}
        self.trees: dict[str, dict[str, list[str]]] = {}

    def listing(self, folder: str) -> dict[str, list[str]]:
        """Names in `folder` by their plain form; none where it cannot be listed."""
        if folder not in self.entries:
            try:
                names = sorted(os.listdir(folder or '.'))
            except (OSError, ValueError):
                names = []
            found = self.entries[folder] = {}
            for name in names:
                found.setdefault(plain(name), []).append(name)
        return self.entries[folder]

    def file(self, folder: Path | str, name: str) -> str | None:
        """Path of the one file that is `name` below `folder`, or None."""
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
        places = [os.sep if os.path.isabs(name) else str(folder)]
        for part in os.path.normpath(name).strip(os.sep).split(os.sep):
            places = [
                os.path.join(place, entry)
                for place in places
                for entry in (['..'] if part == '..' else self.listing(place).get(plain(part), []))
            ]
        return only_one(name, [place for place in places if os.path.isfile(place)])

    def below(self, folder: Path | str, name: str) -> str | None:
        """Path of the file `name` in `folder` or anywhere below it, the one that is nearest to `folder`, or None."""
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
        if str(folder) not in self.trees:
            tree = self.trees[str(folder)] = {}
            for parent, inner, names in os.walk(folder):
                inner[:] = sorted(filter(is_entered, inner))
                for entry in names:
                    tree.setdefault(plain(entry), []).append(os.path.join(parent, entry))
        found = self.trees[str(folder)].get(plain(name), [])
        nearest = min((path.count(os.sep) for path in found), default=0)
        return only_one(name, [path for path in found if path.count(os.sep) == nearest])


class Labels:
    """A database's files while its labels are read: finds them, and names them in every error.

    Args:
        root: the database's folder; the file itself for the user's own CSV.
        title: the database's name in messages.
        advice: a sentence that ends the messages about missing files.
        settings: of the user.

    Attributes:
        samples, places: a `Sample` for every row, and what the row is called.
        higher_is_better: which way the scores run, where the label file tells it.
    """

    def __init__(self, root: Path | str, title: str, advice: str, settings: Settings = AS_DOCUMENTED) -> None:
        self.root = Path(root)
        self.title = title
        self.advice = advice
        self.settings = settings
        self.finder = Finder()
        self.file: Path  # set by `open`, or by `read_csv`
        self.samples: list[Sample] = []
        self.places: list[str] = []
        self.higher_is_better: bool | None = None

    def bases(self) -> list[list[Path]]:
        """The root, then the folders one level below it, by name: a list for each level."""
        if not os.path.isdir(self.root):
            raise InputError(f'{self.title}: there is no folder {self.root}. {self.advice}')
        return [[self.root], subfolders(self.root)]

    def near(self) -> list[list[Path]]:
        """Where images can lie, nearest first: the label file's folder, the root, and one folder below either."""
        here = self.file.parent
        own, inner = self.bases()
        return [[here], own, subfolders(here), inner]

    def find(self, *names: str) -> Path | None:
        """Path of the first of the label files `names` that exists, in the root or one folder down, or None."""
        for name in names:
            for level in self.bases():
                path = only_one(name, [path for base in level if (path := self.finder.file(base, name))])
                if path:
                    return Path(path)
        return None

    def open(self, *names: str) -> None:
        """Make the first of the label files `names` that exists the file that the other methods read."""
        file = self.find(*names)
        if file is None:
            raise InputError(f'{self.title}: {" or ".join(names)} is not in {self.root}. {self.advice}')
        self.file = file

    def folder(self, *names: str, default: Path | None = None) -> Path:
        """Path of the first image folder of `names` that exists, or `default`."""
        for name in names:
            for level in self.near():
                path = only_one(
                    name,
                    [
                        os.path.join(base, entry)
                        for base in level
                        for entry in self.finder.listing(str(base)).get(plain(name), [])
                        if os.path.isdir(os.path.join(base, entry))
                    ],
                )
                if path:
                    return Path(path)
        if default is None:
            raise InputError(f'{self.title}: there is no image folder {" or ".join(names)} in {self.root}. {self.advice}')
        return default

    def number(self, text: Any, where: str, role: str = 'score') -> float:
        """`text` as a finite float; `where` is its row and `role` its meaning, for the error."""
        try:
            value = math.nan if isinstance(text, str) and '_' in text else float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f'{self.file}, {where}: the {role} {text!r} is not a number; correct or remove that row')
        if abs(value) > float(np.finfo(np.float32).max):
            raise InputError(f'{self.file}, {where}: the {role} {text!r} is beyond 32-bit floats; correct or remove that row')
        return value

    def part(self, text: Any, where: str, parts: dict[str, str] = PARTS) -> str:
        """The `Sample.part` that the cell `text` means."""
        part = parts.get(str(text).strip().lower())
        if part is None:
            raise InputError(f'{self.file}, {where}: the set {text!r} is none of {", ".join(parts)}; correct that row')
        return part

    def add(
        self, folder: Path | str, name: str, score: Any, where: str, content: Any = None, part: str = '', deep: bool = False
    ) -> None:
        """Append the sample whose image is `name` in `folder`, or with `deep` in any folder below it.

        Without `content` the image is a content of its own.
        """
        find = self.finder.below if deep else self.finder.file
        path = find(folder, name) or (find(folder, name.replace('\\', '/')) if '\\' in name else None)
        path = path or os.path.join(folder, name)
        self.samples.append(Sample(path, self.number(score, where), str(content or path), part))
        self.places.append(where)

    def refuse_repeated(self) -> None:
        """An image that is listed twice would be trained on and tested on."""
        first: dict[str, str] = {}
        for sample, where in zip(self.samples, self.places):
            before = first.setdefault(os.path.normpath(sample.path), where)
            if before != where:
                raise InputError(f'{self.file}, {where}: {sample.path} is on {before} already; remove one of the two')

    def mat(self, *keys: str) -> list[list[Any]]:
        """The arrays `keys` of the open .mat file, each flattened and freed of nested cells."""
        try:
            content = scipy.io.loadmat(io.BytesIO(read_bytes(self.file)))
            return [[unwrap(cell) for cell in content[key].ravel()] for key in keys]
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f'{self.file} has no variable {error}; it is not the file that its authors distribute')
        except Exception as error:  # the reader lets index, type and zlib errors through
            raise InputError(f'{self.file} cannot be read as a MATLAB file: {error}; download it again')

    def text_rows(self, columns: int) -> Iterator[tuple[str, list[str]]]:
        """(row name, words) of every line of the open text file that is not blank; each has `columns` words."""
        for number, line in enumerate(read_text(self.file).splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != columns:
                raise InputError(f'{self.file}, line {number}: {columns} words are expected, not {line!r}')
            yield f'line {number}', words

    def spaced_rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """As `csv_rows`, of a file without a header whose lines are a name, that may hold spaces, and a score."""
        before, text, _ = table_text(self.file)
        for number, line in enumerate(text.splitlines(), start=before + 1):
            if line.strip():
                name, _, score = line.strip().rpartition(' ')
                yield f'line {number}', {'image': name.strip(' "'), 'score': score}

    def csv_rows(
        self, *columns: str, header: Sequence[str] | None = None, **dialect: Any
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """(row name, dict) of every row of the open CSV file that is not blank; its header must have `columns`.

        The letter case of a column and spaces around it do not matter; the dict has the keys `columns` and the header's own.

        Args:
            header: the columns of a file without a header.
        """
        before, text, _ = table_text(self.file)
        reader = csv.DictReader(io.StringIO(text, newline=''), header, **dialect)
        try:
            names = {plain(name.strip()): name for name in reversed(reader.fieldnames or [])}
            missing = [name for name in columns if plain(name.strip()) not in names]
            if missing:
                raise InputError(
                    f'{self.file}: there is no column {", ".join(missing)}; '
                    f'the header is {",".join(reader.fieldnames or []) or "empty"}'
                )
            for row in reader:
                where = f'line {reader.line_num + before}'
                beyond = row.pop(None, [])
                if not any(cell and cell.strip() for cell in [*row.values(), *beyond]):
                    continue
                cells = {name: row[name if name in row else names[plain(name.strip())]] for name in columns}
                if any(beyond) or None in cells.values():
                    raise InputError(
                        f'{self.file}, {where}: this line has {"more" if any(beyond) else "fewer"} cells '
                        f'than the header; correct it, or quote the cell with the delimiter inside'
                    )
                yield where, {**row, **cells}
        except csv.Error as error:  # line_num is where the last good row ends
            raise InputError(f'{self.file}, line {reader.line_num + before + 1}: {error}; correct the quotes')

    def sheet_rows(self, *columns: int | str, sheet: str = '') -> Iterator[tuple[str, list[Any]]]:
        """(row name, cells of `columns`) of every row of the open Excel file that is not blank, below its header.

        Args:
            columns: 0-based positions, or names in the header, the first row that has them all.
            sheet: its name, or '' for the first one.
        """
        rows = read_sheet(self.file, sheet)
        wanted = [name for name in columns if isinstance(name, str)]
        headers = [[str(cell).strip().lower() for cell in row] for row in rows[:HEADER_ROWS]]
        top = next((k for k, names in enumerate(headers) if all(name.lower() in names for name in wanted)), None)
        if top is None:
            missing = [name for name in wanted if name.lower() not in (headers or [[]])[0]]
            raise InputError(
                f'{self.file}: there is no column {", ".join(missing)} in row 1 to {HEADER_ROWS}; '
                f'it is not the file that its authors distribute'
            )
        positions = [headers[top].index(name.lower()) if isinstance(name, str) else name for name in columns]
        for number, cells in enumerate(rows[top + 1 :], start=top + 2):
            if any(str(cell).strip() for cell in cells):
                yield f'row {number}', [cells[k] if k < len(cells) else None for k in positions]


def plain(name: str) -> str:
    """`name` without what differs between systems: letter case, and whether accents are letters of their own."""
    return unicodedata.normalize('NFC', name).lower()


def only_one(name: str, found: list[str]) -> str | None:
    if len(found) > 1:
        raise InputError(f'{name} can be {" or ".join(found[:3])}, equally near; remove or rename all but one')
    return found[0] if found else None


def is_entered(name: str) -> bool:
    """Whether images or labels are looked for in a folder: not in hidden ones, nor in what a Mac puts beside a zip's files."""
    return not name.startswith('.') and name != '__MACOSX'


def subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_entered(path.name) and os.path.isdir(path))
    except OSError as error:
        raise InputError(f'{folder} cannot be listed: {error.strerror}; let it be read, or name another folder')


def read_bytes(path: Path | str) -> bytes:
    """The content of a label file; what people have in its place is named as what it is."""
    try:
        if not os.path.isfile(path):
            reason = 'it is not a regular file' if os.path.exists(path) else 'there is no such file'
            raise InputError(f'{path} cannot be read: {reason}')
        content = Path(path).read_bytes()
    except (OSError, MemoryError) as error:
        raise InputError(f'{path} cannot be read: {error}')
    opening = content[:200].lstrip().lower()
    for sign, what in FOREIGN.items():
        if opening.startswith(sign):
            raise InputError(f'{path} is {what}')
    return content


def read_text(path: Path | str) -> str:
    """The text of a label file in UTF-8, with or without a byte order mark."""
    content = read_bytes(path)
    if content.startswith((b'PK\3\4', b'\xd0\xcf\x11\xe0')):
        raise InputError(f'{path} is an Excel workbook and not text; save its sheet as CSV UTF-8')
    if content.startswith((b'\xff\xfe', b'\xfe\xff')) or b'\0' in content[:1000]:
        raise InputError(f'{path} is UTF-16 and not UTF-8 text, or no text at all; save the file as UTF-8')
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}, line {line}: this is not UTF-8 text; save the file as UTF-8')


def table_text(path: Path | str) -> tuple[int, str, str]:
    """(lines before it, the text of a table from its header on, the delimiter that a line sep=; before it names or '')."""
    lines = read_text(path).splitlines(keepends=True)
    before, delimiter = 0, ''
    while before < len(lines) and (not lines[before].strip() or re.fullmatch(r'"?sep=.\s*"?\s*', lines[before].lower())):
        delimiter = lines[before].strip().strip('"')[4:5] or delimiter
        before += 1
    return before, ''.join(lines[before:]), delimiter


def read_sheet(path: Path | str, name: str = '') -> list[list[Any]]:
    """The rows of an Excel file's sheet `name`, or its first, each a list of cells; .xls or .xlsx, whatever the name says.

    An empty cell, and one with an error such as #N/A, is ''.
    """
    content = read_bytes(path)
    try:
        command = [sys.executable, '-c', SHEET_READER, name]
        done = subprocess.run(command, input=content, capture_output=True, timeout=SHEET_SECONDS)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        reason = f'it has no end after {SHEET_SECONDS} s'
    except ValueError:
        reason = (done.stderr.decode(errors='replace').strip() or 'its reader ended').splitlines()[-1]
    raise InputError(f'{path} cannot be read as an Excel sheet: {reason}; download it again')


def unwrap(cell: Any) -> Any:
    """The number or string inside the nested one-element arrays that MATLAB cells become."""
    while isinstance(cell, np.ndarray) and cell.size:
        cell = cell.ravel()[0]
    return cell.item() if isinstance(cell, np.generic) else cell
