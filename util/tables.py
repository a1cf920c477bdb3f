"""Tables of any kind as rows, and which of their columns is the image, the score, the content and the set.

A table is text in UTF-8, whose cells are separated by commas, semicolons, tabs or the last space of a line, an Excel file, or
objects in JSON; what it is shows in its content. It has a header, or its columns are numbered from 1.
"""

import csv
import io
import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from python_calamine import CalamineWorkbook

from util.errors import InputError
from util.files import named, reading

EXCEL = (b'PK\3\4', b'\xd0\xcf\x11\xe0')  # how .xlsx and .xls start
BLANK = ' \t\r\n'  # what is cut off around a cell; other white space can be part of a file's name, as in macOS screenshots
ROLES = {  # names of columns, found in tables of other people
    'image': (
        *(
            'image',
            'image_name',
            'img_name',
            'image name',
            'name_image',
            'name',
            'filename',
            'file_name',
            'img_path',
        ),
        *('image_path', 'image path', 'dist_img', 'dist_name', 'dis_img_path'),
    ),
    'score': (
        *(
            'score',
            'mos',
            'dmos',
            'quality_mos',
            'mos_quality',
            'qmos',
            'mos_image',
            'elo_score',
            'jod',
            'gt_score',
        ),
        'human_score',
    ),
    'content': ('content', 'reference', 'ref_name', 'ref_img', 'ref_img_path', 'hq_name', 'scene'),
    'set': ('set', 'split', 'official_split'),
    'type': (),  # of the distortion; where it is asked for alone, since columns of this name hold other things too
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
    return unicodedata.normalize('NFC', str(name)).strip(BLANK).lower()


def read_rows(path: Path | str, sheet: str = '') -> list[Row]:
    """The rows of a table that are not blank, those of a text with as many cells as its first one.

    Args:
        path: '-' reads standard input.
        sheet: of an Excel file; the first one by default.

    Raises:
        InputError: the file is no table, or a row has more or fewer cells than the first one.
    """
    with named(path, 'a table') if path == '-' else reading(path, 'a table') as file:
        content = (file or sys.stdin.buffer).read()
        if content.startswith(EXCEL):
            book = CalamineWorkbook.from_filelike(io.BytesIO(content))
            found = book.get_sheet_by_name(sheet) if sheet else book.get_sheet_by_index(0)
            rows = [
                Row(f'row {k}', cells)
                for k, cells in enumerate(found.to_python(skip_empty_area=False), start=1)
            ]
            return [row for row in rows if any(str(cell).strip() for cell in row.cells)]
        text = content.decode('utf-8-sig')
        if text.lstrip().startswith(('{', '[')):
            return rows_of_json(text)
        rows = rows_of_text(text, path)
    width = len(rows[0].cells) if rows else 0
    for where, cells, _ in rows:
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            which = 'more' if len(cells) > width else 'fewer'
            raise InputError(
                f'{path}, {where}: this line has {which} cells than the first one; correct it, or quote a cell'
            )
    return [row._replace(cells=row.cells[:width]) for row in rows]


def rows_of_json(text: str) -> list[Row]:
    """The rows of JSON lines, or of one list, whose objects have the columns' names as keys; the first row is the header."""
    is_list = text.lstrip().startswith('[')
    records = (
        json.loads(text)
        if is_list
        else [json.loads(line) for line in text.split('\n') if line.strip()]
    )
    if not all(isinstance(record, dict) for record in records):
        raise ValueError('its JSON is not of an object for each image')
    header = list(dict.fromkeys(name for record in records for name in record))
    rows = [[record.get(name, '') for name in header] for record in records]
    return [Row('line 1', header)] + [
        Row(f'record {k}', cells) for k, cells in enumerate(rows, start=1)
    ]


def rows_of_text(text: str, path: Path | str) -> list[Row]:
    lines = re.split(r'\r\n|\r|\n', text)
    first = next((line for line in lines if line.strip()), '')
    # the one that gives most known names; where none does, a tab before a semicolon before a comma, which may be decimal
    known = {
        mark: sum(normalized_name(cell.strip(' "')) in KNOWN for cell in first.split(mark))
        for mark in '\t;,'
    }
    delimiter = max('\t;,', key=lambda mark: (known[mark], mark in first))
    if delimiter not in first:
        return [
            Row(f'line {k}', words_of(line))
            for k, line in enumerate(lines, start=1)
            if line.strip()
        ]
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
    words = re.split(r'[ \t]+', line.strip(BLANK))
    numbers = [is_number(word) for word in words]
    if sum(numbers) >= len(words) - 1:
        return words
    if numbers[-1]:
        return [line.strip(BLANK).removesuffix(words[-1]).strip(f'{BLANK}"'), words[-1].strip('"')]
    return [line.strip(f'{BLANK}"')]


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return bool(
        re.fullmatch(
            r'[+-]?(\d+[.,]?\d*|[.,]\d+|nan|inf)(e[+-]?\d+)?', str(cell).strip(), re.IGNORECASE
        )
    )


def find_columns(
    path: Path | str,
    rows: list[Row],
    chosen: Mapping[str, str],
    needed: Sequence[str],
    optional: Sequence[str] = (),
) -> Table:
    """Find the columns of a table by their names, or by the user's choice.

    The first row is a header if it has a known or chosen name. A table without one is as if its header were 1, 2, 3 ...

    Args:
        chosen: names or numbers of columns by role; the exact spelling wins, and '' means that there is no such column.
        needed, optional: roles that are looked for.

    Raises:
        InputError: a needed or chosen role has no column, or a role could have two.
    """
    where, first, _ = rows[0] if rows else Row('line 1', [])
    wanted = KNOWN | {normalized_name(name) for name in chosen.values() if not name.isdigit()}
    named = any(normalized_name(cell) in wanted for cell in first) or not (
        needed == ('image',) or any(map(is_number, first))
    )
    header = (
        [str(cell).strip() for cell in first]
        if named
        else [str(k) for k in range(1, len(first) + 1)]
    )
    if not named:
        chosen = {**guessed_columns(first), **chosen}
    columns = {}
    for role in (*needed, *optional):
        own = chosen.get(role)
        accepted = [normalized_name(own)] if own else () if own == '' else ROLES[role]
        exact = [k for k, name in enumerate(header) if name == own]
        if not exact and own and own.isdigit() and 1 <= int(own) <= len(header):
            exact = [int(own) - 1]
        found = exact or [k for k, name in enumerate(header) if normalized_name(name) in accepted]
        if len(found) > 1:
            both, advice = (
                ' and '.join(header[k] for k in found),
                shlex.quote(f'{role}={header[found[0]]}'),
            )
            raise InputError(
                f'{path}, {where}: {both} can each be the column of the {role}; --columns {advice} settles it'
            )
        if found:
            columns[role] = found[0]
        elif own or role in needed:
            remedy = f'name it {" or ".join(accepted[:4])}, or give --columns {role}=NAME or {role}=NUMBER'
            cells = ','.join(map(str, first))[:200]
            raise InputError(f'{path}, {where}: no column is the {role} in {cells!r}; {remedy}')
    return Table(header, named, columns, rows[named:])


def guessed_columns(cells: list[Any]) -> dict[str, str]:
    """The numbers, by role, of the columns in a row without names: of a name, and of the one number beside it."""
    image = next((k for k, cell in enumerate(cells, start=1) if not is_number(cell)), 1)
    return {'image': str(image), **({'score': str(3 - image)} if len(cells) == 2 else {})}
