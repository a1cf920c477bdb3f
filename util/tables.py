"""Tables of any kind as rows, and which of their columns is the image, the score, the content and the set.

A table is text in UTF-8, whose cells are separated by commas, semicolons, tabs or the last space of a line, or an Excel file;
what it is shows in its content. It has a header, or its columns are numbered from 1.
"""

import csv
import io
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from python_calamine import CalamineWorkbook

from util.errors import InputError
from util.files import reading

EXCEL = (b'PK\3\4', b'\xd0\xcf\x11\xe0')  # how .xlsx and .xls start
FOREIGN = {b'\x80': 'a pickle, which is never read, since reading it could run anything'}  # how other files start
ROLES = {  # names of columns, found in tables of other people
    'image': (
        *('image', 'image_name', 'img_name', 'image name', 'name_image', 'name', 'filename', 'file_name', 'img_path'),
        *('image_path', 'image path', 'dist_img', 'dist_name', 'dis_img_path'),
    ),
    'score': (
        *('score', 'mos', 'dmos', 'quality_mos', 'mos_quality', 'qmos', 'mos_image', 'elo_score', 'jod', 'gt_score'),
        'human_score',
    ),
    'content': ('content', 'reference', 'ref_name', 'ref_img', 'ref_img_path', 'hq_name', 'scene'),
    'set': ('set', 'split', 'official_split'),
}
KNOWN = {name for names in ROLES.values() for name in names}


class Row(NamedTuple):
    """The cells of a row, what it is called in messages ('line 3' of a text, 'row 3' of a sheet), and its decimal mark."""

    where: str
    cells: list[Any]
    decimal: str = '.'


class Table(NamedTuple):
    """A table whose columns are understood.

    Attributes:
        header: the names of all columns, or their numbers where the table has no header.
        columns: the index of the column of each role in `ROLES` that the table has.
        rows: without the header.
    """

    header: list[str]
    named: bool
    columns: dict[str, int]
    rows: list[Row]


def normalized_name(name: Any) -> str:
    """A name without what differs between systems: letter case, spaces around it, and the Unicode form of accents."""
    return unicodedata.normalize('NFC', str(name)).strip().lower()


def read_rows(path: Path | str, sheet: str = '') -> list[Row]:
    """The rows of a table that are not blank, those of a text with as many cells as its first one.

    Args:
        sheet: of an Excel file; the first one by default.

    Raises:
        InputError: the file is no table, or a row has more or fewer cells than the first one.
    """
    with reading(path, 'a table') as file:
        content = file.read()
        if content.startswith(EXCEL):
            book = CalamineWorkbook.from_filelike(io.BytesIO(content))
            found = book.get_sheet_by_name(sheet) if sheet else book.get_sheet_by_index(0)
            rows = [Row(f'row {k}', cells) for k, cells in enumerate(found.to_python(skip_empty_area=False), start=1)]
            return [row for row in rows if any(str(cell).strip() for cell in row.cells)]
        for start, what in FOREIGN.items():
            if content.startswith(start):
                raise InputError(f'{path} is {what}; save it as CSV')
        rows = rows_of_text(text_of(content, path), path)
    width = len(rows[0].cells) if rows else 0
    for where, cells, _ in rows:
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            which = 'more' if len(cells) > width else 'fewer'
            raise InputError(f'{path}, {where}: this line has {which} cells than the first one; correct it, or quote a cell')
    return [row._replace(cells=row.cells[:width]) for row in rows]


def text_of(content: bytes, path: Path | str) -> str:
    try:
        if b'\0' in content:
            raise UnicodeDecodeError('utf-8', content, content.index(b'\0'), len(content), 'a zero byte')
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}, line {line}: this is not UTF-8 text; save the file as UTF-8')


def rows_of_text(text: str, path: Path | str) -> list[Row]:
    first = next((line for line in text.splitlines() if line.strip()), '')
    # the one that gives most known names; where none does, a tab before a semicolon before a comma, which may be decimal
    known = {mark: sum(normalized_name(cell.strip(' "')) in KNOWN for cell in first.split(mark)) for mark in '\t;,'}
    delimiter = max('\t;,', key=lambda mark: (known[mark], mark in first))
    if delimiter not in first:
        return [Row(f'line {k}', words_of(line)) for k, line in enumerate(text.splitlines(), start=1) if line.strip()]
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    end = 0
    try:
        for cells in reader:
            end = reader.line_num
            if any(cell.strip() for cell in cells):
                rows.append(Row(f'line {end}', cells, '.' if delimiter == ',' else ','))
    except csv.Error as error:
        raise InputError(f'{path}, line {end + 1}: {error}; correct the quotes')
    return rows


def words_of(line: str) -> list[str]:
    """The cells of a line without a delimiter: a name, which may hold spaces, and perhaps a number before or behind it."""
    words = line.split()
    numbers = [is_number(word) for word in words]
    if sum(numbers) >= len(words) - 1:
        return words
    if numbers[-1]:
        return [part.strip(' "') for part in line.strip().rsplit(None, 1)]
    return [line.strip(' "\t')]


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return bool(re.fullmatch(r'[+-]?(\d+[.,]?\d*|[.,]\d+|nan|inf)(e[+-]?\d+)?', str(cell).strip(), re.IGNORECASE))


def find_columns(
    path: Path | str, rows: list[Row], chosen: Mapping[str, str], needed: Sequence[str], optional: Sequence[str] = ()
) -> Table:
    """Find the columns of a table by their names, or by the user's choice.

    The first row is a header if it has a known or chosen name. A table without one is as if its header were 1, 2, 3 ...

    Args:
        chosen: names of columns by role; the exact spelling wins.
        needed, optional: roles that are looked for.

    Raises:
        InputError: a needed or chosen role has no column, or a role could have two.
    """
    where, first, _ = rows[0] if rows else Row('line 1', [])
    wanted = KNOWN | {normalized_name(name) for name in chosen.values()}
    named = any(normalized_name(cell) in wanted for cell in first) or not (needed == ('image',) or any(map(is_number, first)))
    header = [str(cell).strip() for cell in first] if named else [str(k) for k in range(1, len(first) + 1)]
    if not named:
        chosen = {**guessed_columns(first), **chosen}
    columns = {}
    for role in (*needed, *optional):
        own = chosen.get(role)
        accepted = [normalized_name(own)] if own else ROLES[role]
        exact = [k for k, name in enumerate(header) if name == own]
        found = exact or [k for k, name in enumerate(header) if normalized_name(name) in accepted]
        if len(found) > 1:
            both, advice = ' and '.join(header[k] for k in found), shlex.quote(f'{role}={header[found[0]]}')
            raise InputError(f'{path}, {where}: {both} can each be the column of the {role}; --columns {advice} settles it')
        if found:
            columns[role] = found[0]
        elif own or role in needed:
            remedy = (
                f'name it {" or ".join(accepted[:4])}, or give ' * named + f'--columns {role}={"NAME" if named else "NUMBER"}'
            )
            cells = ','.join(map(str, first))[:200]
            what = f'the header is {cells!r}' if named else f'there is no header, and its {len(first)} columns are {cells!r}'
            raise InputError(f'{path}, {where}: no column is the {role}; {remedy}; {what}')
    return Table(header, named, columns, rows[named:])


def guessed_columns(cells: list[Any]) -> dict[str, str]:
    """The numbers, by role, of the columns in a row without names: of a name, and of the one number beside it."""
    image = next((k for k, cell in enumerate(cells, start=1) if not is_number(cell)), 1)
    return {'image': str(image), **({'score': str(3 - image)} if len(cells) == 2 else {})}
