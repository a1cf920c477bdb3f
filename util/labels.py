"""Label files: found below a database's folder, read from CSV, text, Excel and MATLAB, each fault named with its row."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from util.errors import InputError

PARTS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}


class Sample(NamedTuple):
    """One labelled image.

    `content` names what the image shows: images of one content stay on one side of a split. `part` is the official set
    that the labels put it in, 'train', 'val' or 'test', or '' where they name none.
    """

    path: str
    score: float
    content: str
    part: str = ''


class Labels:
    """A database's files while its labels are read: finds them, and names them in every error.

    Args:
        root: the database's folder; the file itself for the user's own CSV.
        title: the database's name in messages.
        advice: a sentence that ends the messages about missing files.
    """

    def __init__(self, root: Path | str, title: str, advice: str) -> None:
        self.root = Path(root)
        self.title = title
        self.advice = advice
        self.file: Path  # set by `open`, or by `read_csv`
        self.samples: list[Sample] = []
        self.places: list[str] = []

    def bases(self) -> list[Path]:
        """The root, then the folders one level below it, by name."""
        if not self.root.is_dir():
            raise InputError(f'{self.title}: there is no folder {self.root}. {self.advice}')
        return with_subfolders(self.root)

    def near(self) -> list[Path]:
        """Where images can lie: the label file's folder, the root, and one folder below either."""
        return with_subfolders(self.file.parent) + self.bases()

    def find(self, *names: str) -> Path | None:
        """Path of the first of the label files `names` that exists, in the root or one folder down, or None."""
        return next((base / name for name in names for base in self.bases() if (base / name).is_file()), None)

    def open(self, *names: str) -> None:
        """Make the first of the label files `names` that exists the file that the other methods read."""
        file = self.find(*names)
        if file is None:
            raise InputError(f'{self.title}: {" or ".join(names)} is not in {self.root}. {self.advice}')
        self.file = file

    def folder(self, *names: str) -> Path:
        """Path of the first image folder of `names` that exists."""
        for name in names:
            for base in self.near():
                if (base / name).is_dir():
                    return base / name
        raise InputError(f'{self.title}: there is no image folder {" or ".join(names)} in {self.root}. {self.advice}')

    def number(self, text: Any, where: str, role: str = 'score') -> float:
        """`text` as a finite float; `where` is its row and `role` its meaning, for the error."""
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f'{self.file}, {where}: the {role} {text!r} is not a number; correct or remove that row')
        return value

    def part(self, text: Any, where: str, parts: dict[str, str] = PARTS) -> str:
        """The `Sample.part` that the cell `text` means."""
        part = parts.get(str(text).strip().lower())
        if part is None:
            raise InputError(f'{self.file}, {where}: the set {text!r} is none of {", ".join(parts)}; correct that row')
        return part

    def add(self, path: Path | str, score: Any, where: str, content: Any = None, part: str = '') -> None:
        """Append a sample; without `content` the image is a content of its own."""
        self.samples.append(Sample(str(path), self.number(score, where), str(content or path), part))
        self.places.append(where)

    def mat(self, *keys: str) -> list[list[Any]]:
        """The arrays `keys` of the open .mat file, each flattened and freed of nested cells."""
        try:
            content = scipy.io.loadmat(self.file)
            return [[unwrap(cell) for cell in content[key].ravel()] for key in keys]
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

    def csv_rows(self, *columns: str, **dialect: Any) -> Iterator[tuple[str, dict[str, str]]]:
        """(row name, dict) of every row of the open CSV file that is not blank; its header must have `columns`."""
        reader = csv.DictReader(io.StringIO(read_text(self.file), newline=''), **dialect)
        try:
            header = reader.fieldnames or []
            missing = [name for name in columns if name not in header]
            if missing:
                raise InputError(
                    f'{self.file}: there is no column {", ".join(missing)}; the header is {",".join(header) or "empty"}'
                )
            for row in reader:
                where = f'line {reader.line_num}'
                beyond = row.pop(None, [])
                if not any(cell and cell.strip() for cell in [*row.values(), *beyond]):
                    continue
                if any(beyond) or any(row[name] is None for name in columns):
                    raise InputError(
                        f'{self.file}, {where}: this line has {"more" if any(beyond) else "fewer"} cells '
                        f'than the header; correct it, or quote the cell with the delimiter inside'
                    )
                yield where, row
        except csv.Error as error:  # line_num is where the last good row ends
            raise InputError(f'{self.file}, line {reader.line_num + 1}: {error}; correct the quotes')

    def sheet_rows(self, *columns: int | str) -> Iterator[tuple[str, list[Any]]]:
        """(row name, cells of `columns`) of every row of the open Excel file that is not blank, below its header.

        Args:
            columns: 0-based positions, or names in the header.
        """
        header, *rows = read_sheet(self.file) or [()]
        names = [str(cell).strip().lower() for cell in header]
        missing = [name for name in columns if isinstance(name, str) and name.lower() not in names]
        if missing:
            raise InputError(
                f'{self.file}: there is no column {", ".join(missing)} in row 1; it is not the file that its authors distribute'
            )
        positions = [names.index(name.lower()) if isinstance(name, str) else name for name in columns]
        for number, cells in enumerate(rows, start=2):
            if any(cell is not None and str(cell).strip() for cell in cells):
                yield f'row {number}', [cells[k] if k < len(cells) else None for k in positions]


def with_subfolders(folder: Path) -> list[Path]:
    return [folder] + sorted(path for path in folder.iterdir() if path.is_dir())


def read_text(path: Path | str) -> str:
    """The text of a label file in UTF-8, with or without a byte order mark."""
    content = Path(path).read_bytes()
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}, line {line}: this is not UTF-8 text; save the file as UTF-8')


def read_sheet(path: Path | str) -> list[Sequence[Any]]:
    """The rows of an Excel file's first sheet, each a sequence of cells; .xls or .xlsx, whatever the name says."""
    import openpyxl
    import xlrd

    try:
        if xlrd.inspect_format(path) == 'xls':
            sheet = xlrd.open_workbook(path, logfile=io.StringIO()).sheet_by_index(0)
            return [['#error' if cell.ctype == xlrd.XL_CELL_ERROR else cell.value for cell in row] for row in sheet.get_rows()]
        with open(path, 'rb') as file:
            sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
            return list(sheet.iter_rows(values_only=True))
    except Exception as error:  # both readers let zip, XML, struct and key errors through
        raise InputError(f'{path} cannot be read as an Excel sheet: {error}; download it again')


def unwrap(cell: Any) -> Any:
    """The number or string inside the nested one-element arrays that MATLAB cells become."""
    while isinstance(cell, np.ndarray) and cell.size:
        cell = cell.ravel()[0]
    return cell.item() if isinstance(cell, np.generic) else cell


def listing(folder: Path) -> dict[str, str]:
    """File paths below `folder`, keyed by their lower-case base name."""
    return {name.lower(): os.path.join(parent, name) for parent, _, names in sorted(os.walk(folder)) for name in sorted(names)}
