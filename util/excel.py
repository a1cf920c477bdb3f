"""The rows of an Excel file's sheet.

The calamine reader stores every cell up to the last one, gives formulas without a value as empty
cells, and gives whole numbers as 1.0. So the XML of an .xlsx is searched first, for a sheet that is
too large and for formulas without a value.
"""

import io
import posixpath
import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from util.errors import log_once

STARTS = (b'PK\3\4', b'\xd0\xcf\x11\xe0')  # first bytes of .xlsx and .xls
# The name of the stream that an .xlsx with a password consists of.
ENCRYPTED = 'EncryptedPackage'.encode('utf-16-le')
MOST_CELLS = 20_000_000  # of a sheet, at 32 bytes each
NO_VALUE = 'a formula without a stored value'
RELATION = '{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id'
# The column and the row of each cell in a sheet's XML, as in <c r="XFD12" t="n">, but not of a cell
# that has only a colour, as in <c r="XFD12" s="1"/>.
COLUMN = re.compile(rb'\br="([A-Z]+)\d+"[^>/]*>')
ROW = re.compile(rb'\br="[A-Z]+(\d+)"[^>/]*>')
# The attributes of a cell that has a formula and no value or an empty one: r="A2"> of
# <c r="A2"><f>B2*2</f></c> and of <c r="A2"><f>B2*2</f><v/></c>, but nothing of a cell that has its
# value, as <c r="A2"><f>B2*2</f><v>3</v></c>. The last > is included for COLUMN and ROW.
UNCOMPUTED = re.compile(
    rb'<(?:\w+:)?c\s([^>]*>)\s*<(?:\w+:)?f\b[^>]*(?:/>|>[^<]*</(?:\w+:)?f>)\s*'
    rb'(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v\s*></(?:\w+:)?v>)?\s*</(?:\w+:)?c>'
)


def read_sheet(content: bytes, path: Path | str, wanted: str = '') -> list[tuple[int, list[Any]]]:
    """The rows of a sheet that are not blank, each after its number in the sheet.

    Args:
        content: of the file.
        path: of the file, for messages.
        wanted: the name of the sheet; by default it is the first visible one with rows, and is
            logged if there are others.

    Raises:
        ValueError: the file has a password, or no such sheet, or a sheet that is too large.
    """
    if ENCRYPTED in content:
        raise ValueError('it has a password')
    book = CalamineWorkbook.from_filelike(io.BytesIO(content))
    in_xml = sheets_in_xml(content)
    if wanted:
        return rows_of_sheet(book, wanted, in_xml.get(wanted, b''))
    for name in visible_sheets(book):
        rows = rows_of_sheet(book, name, in_xml.get(name, b''))
        if rows:
            others = [repr(other) for other in book.sheet_names if other != name]
            if others:
                log_once(f'{path}: the table is its sheet {name!r}, and not {", ".join(others)}')
            return rows
    raise ValueError('none of its visible sheets has rows')


def rows_of_sheet(book: CalamineWorkbook, name: str, xml: bytes) -> list[tuple[int, list[Any]]]:
    """As `read_sheet`, of the sheet `name`, whose `xml` is b'' if the file is no .xlsx."""
    refuse_too_large(name, xml)
    cells = book.get_sheet_by_name(name).to_python(skip_empty_area=False)
    mark_uncomputed(cells, formulas_without_value(xml))
    rows = []
    # Blank rows are counted, so that the numbers are those that Excel shows.
    for number, row in enumerate(cells, start=1):
        if any(str(cell).strip() for cell in row):
            rows.append((number, [plain(cell) for cell in row]))
    return rows


def visible_sheets(book: CalamineWorkbook) -> list[str]:
    """The names of the sheets that Excel shows, without charts and the like."""
    names = []
    for sheet in book.sheets_metadata:
        if (sheet.visible, sheet.typ) == (SheetVisibleEnum.Visible, SheetTypeEnum.WorkSheet):
            names.append(sheet.name)
    return names


def plain(cell: Any) -> Any:
    """A cell as a user sees it: Excel stores the name or number 1 as 1.0."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return int(cell)
    return cell


def sheets_in_xml(content: bytes) -> dict[str, bytes]:
    """The XML of each sheet of an .xlsx by the sheet's name; none for other Excel files."""
    if not content.startswith(b'PK'):
        return {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = set(archive.namelist())
        if 'xl/workbook.xml' not in files:
            return {}
        relations = ElementTree.fromstring(archive.read('xl/_rels/workbook.xml.rels'))
        targets = {relation.get('Id'): relation.get('Target', '') for relation in relations}
        sheets = {}
        workbook = ElementTree.fromstring(archive.read('xl/workbook.xml'))
        for sheet in workbook.iterfind('.//{*}sheet'):
            # A target starts at the folder xl, or with a slash at the top of the archive.
            file = posixpath.join('xl', targets.get(sheet.get(RELATION), '')).removeprefix('/')
            if file in files:
                sheets[sheet.get('name', '')] = archive.read(file)
        return sheets


def refuse_too_large(name: str, xml: bytes) -> None:
    """Refuse a sheet whose last cell is too far away: the reader would run out of memory."""
    row = max(map(int, ROW.findall(xml)), default=0)
    column = max(map(column_number, set(COLUMN.findall(xml))), default=0)
    if row * column > MOST_CELLS:
        raise ValueError(
            f'its sheet {name!r} has cells up to row {row} and column {column}, perhaps blank '
            'ones; delete the rows and columns behind the table'
        )


def formulas_without_value(xml: bytes) -> list[tuple[int, int]]:
    """The (row, column) from 1 of each formula in a sheet's XML that no program has computed."""
    found = []
    for attributes in UNCOMPUTED.findall(xml):
        column = COLUMN.search(attributes)
        row = ROW.search(attributes)
        # A formula whose value is an empty text (t="str") has been computed.
        if column and row and b't="str"' not in attributes:
            found.append((int(row[1]), column_number(column[1])))
    return found


def mark_uncomputed(cells: list[list[Any]], formulas: list[tuple[int, int]]) -> None:
    """Write NO_VALUE into the cells of a sheet whose (row, column) from 1 are `formulas`."""
    # The reader leaves such cells out, so they can be behind its last row or column.
    height = max((row for row, _ in formulas), default=0)
    cells += [[] for _ in range(height - len(cells))]
    width = max([column for _, column in formulas] + [len(row) for row in cells], default=0)
    for row in cells:
        row += [''] * (width - len(row))
    for row, column in formulas:
        cells[row - 1][column - 1] = NO_VALUE


def column_number(letters: bytes) -> int:
    """b'A' -> 1, b'AA' -> 27."""
    number = 0
    for letter in letters:
        number = 26 * number + letter - ord('A') + 1
    return number
