"""Tables of any kind as rows, and the columns of images, scores, contents and sets in them.

A table is UTF-8 text, an Excel file or JSON objects; its kind is recognised by its content. In a
text, commas, semicolons, tabs or the last space of a line separate the cells. A table has a header,
or its columns are numbered from 1.
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

from util import excel
from util.errors import InputError
from util.files import as_input_error, reading

OTHER_FORMATS = {  # by their first bytes
    b'PAR1': 'a Parquet file',
    b'MATLAB': 'a MATLAB file',
    b'<?xml': 'an XML file',
    b'<table': 'a web page',
}
# White space that is cut off around a cell. Other white space can be part of a file's name, as in
# macOS screenshots.
BLANK = ' \t\r\n'
NUMBER = re.compile(r'[+-]?(\d+[.,]?\d*|[.,]\d+|nan|inf)(e[+-]?\d+)?', re.IGNORECASE)
ROLES = {  # column names in published tables
    'image': (
        'image',
        'image_name',
        'img_name',
        'image name',
        'name_image',
        'name',
        'filename',
        'file_name',
        'img_path',
        'image_path',
        'image path',
        'dist_img',
        'dist_name',
        'dis_img_path',
    ),
    'score': (
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
        'human_score',
    ),
    'content': ('content', 'reference', 'ref_name', 'ref_img', 'ref_img_path', 'hq_name', 'scene'),
    'set': ('set', 'split', 'official_split'),
    # The distortion type is used only if --columns names it: "type" often means something else.
    'type': (),
}
# A further name of an image's column, which is used only if no name above is there: a table can
# have the name and an id.
IMAGE_ID = 'image_id'
KNOWN = {name for names in ROLES.values() for name in names} | {IMAGE_ID}


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: its place in messages: 'line 3' of a text, 'row 3' of a sheet.
        decimal: the decimal mark of its numbers, a point or a comma.
    """

    where: str
    cells: list[Any]
    decimal: str = '.'


class Table(NamedTuple):
    """A table with known columns.

    Attributes:
        header: the names of all columns, or their numbers if the table has no header.
        has_header: whether the table has a header.
        columns: the index of the column of each role in `ROLES` that the table has.
        rows: those below the header.
    """

    header: list[str]
    has_header: bool
    columns: dict[str, int]
    rows: list[Row]

    def cells(self, role: str) -> list[str]:
        """The cells in the column of a role, without blanks around them."""
        column = self.columns[role]
        return [str(row.cells[column]).strip(BLANK) for row in self.rows]


def normalized_name(name: Any) -> str:
    """A name in lower case and one Unicode form, without blanks around it.

    A name that was written on one system is then equal to the same name on another.
    """
    return unicodedata.normalize('NFC', str(name)).strip(BLANK).lower()


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, with a decimal point or comma."""
    return NUMBER.fullmatch(str(cell).strip()) is not None


def read_rows(path: Path | str, sheet: str = '') -> list[Row]:
    """The rows of a table, without blank ones.

    Args:
        path: '-' reads standard input.
        sheet: of an Excel file; the first visible one with rows by default.

    Raises:
        InputError: the file is no table, or a line of text has more or fewer cells than the first.
    """
    content = read_content(path)
    with as_input_error(path, 'a table'):
        return rows_of(content, path, sheet)


def read_content(path: Path | str) -> bytes:
    """The bytes of a table's file; '-' reads standard input."""
    if path == '-':
        return sys.stdin.buffer.read()
    with reading(path, 'a table') as file:
        return file.read()


def rows_of(content: bytes, path: Path | str, sheet: str = '', errors: str = 'strict') -> list[Row]:
    """As `read_rows`, of a file's content; `errors` is what to do with bytes that are not UTF-8."""
    # By the content, since tables come with any ending, and standard input with none.
    if content.startswith(excel.STARTS):
        rows = excel.read_sheet(content, path, sheet)
        return [Row(f'row {number}', cells) for number, cells in rows]
    for start, kind in OTHER_FORMATS.items():
        if content.startswith(start):
            raise ValueError(f'it is {kind}')
    text = content.decode('utf-8-sig', errors)  # Excel saves CSV with a byte-order mark
    if text.lstrip().startswith(('{', '[')):
        return rows_of_json(text)
    return cut_to_width(rows_of_text(text, path), path)


def rows_of_json(text: str) -> list[Row]:
    """The rows of one JSON list of objects, or of an object on each line.

    The keys of the objects are the column names, in a header as the first row.
    """
    if text.lstrip().startswith('['):
        records = json.loads(text)
    else:
        records = [json.loads(line) for line in text.split('\n') if line.strip()]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError('its JSON is not of an object for each image')

    # Records may lack keys, so the header has the keys of all, in the order of their appearance.
    header = list(dict.fromkeys(key for record in records for key in record))
    rows = [Row('line 1', header)]
    for number, record in enumerate(records, start=1):
        cells = [excel.plain(record.get(key, '')) for key in header]
        rows.append(Row(f'record {number}', cells))
    return rows


def rows_of_text(text: str, path: Path | str) -> list[Row]:
    """The rows of a text. The first line that is not blank shows which delimiter it has, if any."""
    lines = lines_of(text)
    delimiter = delimiter_of(next((line for line in lines if line.strip()), ''))
    if delimiter:
        return rows_of_csv(text, delimiter, path)
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(Row(f'line {number}', words_of(line)))
    return rows


def lines_of(text: str) -> list[str]:
    # `splitlines` would also split at characters that can be part of a name.
    return re.split(r'\r\n|\r|\n', text)


def cells_of(line: str) -> list[str]:
    """The cells of a single line of a text."""
    delimiter = delimiter_of(line)
    return next(csv.reader([line], delimiter=delimiter)) if delimiter else words_of(line)


def delimiter_of(first: str) -> str:
    """The delimiter that splits a table's first line into the most known names; '' without one."""

    def known_names(mark: str) -> int:
        return sum(normalized_name(cell.strip(' "')) in KNOWN for cell in first.split(mark))

    # `max` takes the first of equal ones: a tab before a semicolon, and both before a comma, which
    # may be a decimal mark.
    present = [mark for mark in '\t;,' if mark in first]
    return max(present, key=known_names, default='')


def rows_of_csv(text: str, delimiter: str, path: Path | str) -> list[Row]:
    # Where the comma is not the delimiter, it can only be the decimal mark.
    decimal = '.' if delimiter == ',' else ','
    # Without `strict`, a quote that is never closed would make one cell of the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    end = 0
    try:
        for cells in reader:
            end = reader.line_num
            if any(cell.strip() for cell in cells):
                rows.append(Row(f'line {end}', cells, decimal))
    except csv.Error as error:
        raise InputError(f'{path}, line {end + 1}: {error}; correct the quotes')
    return rows


def words_of(line: str) -> list[str]:
    """The cells of a line without a delimiter: a name, perhaps with a number before or after it."""
    line = line.strip(BLANK)
    words = re.split(r'[ \t]+', line)
    names = [word for word in words if not is_number(word)]
    if len(names) <= 1:
        return words
    # 'image score' is a header of two known names. But 'image name' is a single known name, and
    # 'scene 1.png' has only one known word.
    known = [word for word in words if normalized_name(word) in KNOWN]
    if len(known) > 1 and normalized_name(line) not in KNOWN:
        return words
    # Several words that are no numbers are one name with spaces, before the score if there is one.
    if is_number(words[-1]):
        name = line.removesuffix(words[-1])
        return [name.strip(BLANK + '"'), words[-1]]
    return [line.strip(BLANK + '"')]


def cut_to_width(rows: list[Row], path: Path | str) -> list[Row]:
    """The rows of a text, each cut to as many cells as the first.

    Raises:
        InputError: a row has fewer cells, or more that are not empty.
    """
    width = len(rows[0].cells) if rows else 0
    cut = []
    for row in rows:
        # Spreadsheets may write empty cells behind the table.
        surplus = row.cells[width:]
        if len(row.cells) < width or any(cell.strip() for cell in surplus):
            which = 'more' if surplus else 'fewer'
            raise InputError(
                f'{path}, {row.where}: this line has {which} cells than the first one; correct it, '
                'quote a cell, or separate all cells by commas or tabs'
            )
        cut.append(row._replace(cells=row.cells[:width]))
    return cut


def find_columns(
    path: Path | str,
    rows: list[Row],
    chosen: Mapping[str, str],
    needed: Sequence[str],
    optional: Sequence[str] = (),
) -> Table:
    """Find the columns of a table by their names, or by the user's choice.

    Args:
        path: of the table, for messages.
        chosen: names or numbers of columns by role; '' means that the table has no such column.
        needed: roles that the table must have a column for.
        optional: roles that it may have a column for.

    Raises:
        InputError: a needed or chosen role has no column, or a role could have two.
    """
    if not rows:
        raise InputError(f'{path} has no rows')
    first = rows[0]
    has_header = is_header(first.cells, chosen, needed)
    if has_header:
        header = [str(cell).strip() for cell in first.cells]
        body = rows[1:]
    else:
        # As if its header were 1, 2, 3 ...; the user's choice goes before the guess.
        header = [str(number) for number in range(1, len(first.cells) + 1)]
        body = rows
        chosen = {**guessed_columns(first.cells), **chosen}

    columns = {}
    for role in (*needed, *optional):
        choice = chosen.get(role)
        found = columns_of(role, header, choice)
        if len(found) > 1:
            raise InputError(f'{path}, {first.where}: {several_columns(role, header, found)}')
        if found:
            columns[role] = found[0]
        elif choice or role in needed:
            raise InputError(no_column(path, first, role, choice, has_header))
    return Table(header, has_header, columns, body)


def choices_in(
    rows: list[Row], chosen: Mapping[str, str], kept: Sequence[str] = ()
) -> dict[str, str]:
    """The `chosen` columns, as names by role, that are in the header of a table.

    The choices for the roles `kept` are included in any case.
    """
    header = {normalized_name(cell) for cell in rows[0].cells} if rows else set()
    choices = {}
    for role, name in chosen.items():
        if role in kept or normalized_name(name) in header:
            choices[role] = name
    return choices


def is_header(cells: list[Any], chosen: Mapping[str, str], needed: Sequence[str]) -> bool:
    """Whether a table's first row has the names of its columns.

    It has them if one of its cells is a known or a chosen name. Without such a name, it is data if
    one of its cells is a number, or if the table is a list of images.
    """
    # A choice can also be a number, or '' for no column.
    names = {normalized_name(name) for name in chosen.values() if not name.isdigit()}
    wanted = (KNOWN | names) - {''}
    if any(normalized_name(cell) in wanted for cell in cells):
        return True
    # No row of a list of images has a number, so its first row would always look like a header.
    is_list_of_images = needed == ('image',)
    if is_list_of_images:
        return False
    return not any(is_number(cell) for cell in cells)


def guessed_columns(cells: list[Any]) -> dict[str, str]:
    """The numbers of the columns of a row without names, by role.

    In a row of two cells, the one that is not the image is the score.
    """
    image = index_of_name(cells) + 1
    # Any of several numbers can be the score, so the user has to choose.
    if len(cells) != 2:
        return {'image': str(image)}
    score = 2 if image == 1 else 1
    return {'image': str(image), 'score': str(score)}


def index_of_name(cells: list[Any]) -> int:
    """The index of the image in a row without column names: the first cell that is not a number."""
    for k, cell in enumerate(cells):
        if not is_number(cell):
            return k
    return 0  # an image can have a number as its name


def columns_of(role: str, header: list[str], chosen: str | None) -> list[int]:
    """The indices of the columns that can have a role, by the user's choice or by known names."""
    if chosen == '':
        return []
    if chosen:
        return columns_called(chosen, header)
    names = [normalized_name(name) for name in header]
    found = [k for k, name in enumerate(names) if name in ROLES[role]]
    if role == 'image' and not found:
        found = columns_called(IMAGE_ID, header)
    return found


def columns_called(name: str, header: list[Any]) -> list[int]:
    """The indices of the columns of a name or number.

    The exact spelling of a name comes first, then a column's number, then a name in another letter
    case.
    """
    exact = [k for k, cell in enumerate(header) if cell == name]
    if exact:
        return exact
    if name.isdigit() and 1 <= int(name) <= len(header):
        return [int(name) - 1]
    wanted = normalized_name(name)
    return [k for k, cell in enumerate(header) if normalized_name(cell) == wanted]


def several_columns(role: str, header: list[str], found: list[int]) -> str:
    """The message about a role that several columns can have."""
    names = [header[k] for k in found]
    # Where both have the same name, only a number can choose one of them.
    choice = str(found[0] + 1) if names.count(names[0]) > 1 else names[0]
    advice = shlex.quote(f'{role}={choice}')
    return (
        f'{" and ".join(names)} can each be the column of the {role}; --columns {advice} settles it'
    )


def no_column(path: Path | str, first: Row, role: str, chosen: str | None, has_header: bool) -> str:
    """The message about a role without a column."""
    cells = ','.join(str(cell) for cell in first.cells)[:200]
    numbers = f'columns are numbered from 1 to {len(first.cells)}'
    if chosen:
        return (
            f'{path}, {first.where}: there is no column {chosen!r} for the {role} in {cells!r}; '
            f'give --columns {role}= one of these names or a number: {numbers}'
        )
    if not has_header:
        return (
            f'{path} has no header, and no column is known as the {role}: {first.where} is '
            f'{cells!r}; {numbers}, so give --columns {role}=NUMBER, or add a header'
        )
    names = ' or '.join(ROLES[role][:4])
    return (
        f'{path}, {first.where}: no column is the {role} in {cells!r}; name it {names}, or give '
        f'--columns {role}=NAME or {role}=NUMBER'
    )
