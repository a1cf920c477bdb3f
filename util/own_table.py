"""A table of the user's own images and scores.

The columns that are used are logged, with warnings of possible mistakes.
"""

import os
import re
import shlex
from typing import Any

from util import excel
from util.errors import InputError, log
from util.labels import Labels, known_set
from util.names import is_picture
from util.tables import BLANK, Row, Table, find_columns, is_number, normalized_name, read_rows

# Columns of these names look like a reference, but are used only if --columns names them.
REFERENCES = {'ref', 'ref_image', 'reference_image', 'refnames_all', 'source', 'prompt'}
# A number in which commas may separate thousands: 1,012 or 1,012,000.5, but not 0,512 or 1,5.
THOUSANDS = re.compile(r'[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?')
# A content column may be an attribute, such as a camera, if it has at most FEW_CONTENTS values, or
# more than MANY_IMAGES images for each on average.
FEW_CONTENTS = 10
MANY_IMAGES = 200


def read_own_table(labels: Labels) -> None:
    """Read the user's own table; its columns are found by their names or by `--columns`."""
    table = find_columns(
        labels.file,
        read_rows(labels.file),
        chosen=labels.settings.columns,
        needed=('image', 'score'),
        optional=('content', 'set', 'type'),
    )
    refuse_thousands(labels, table)
    # The names of the images start at --image_root, or at the table's own folder.
    folder = labels.settings.images or os.path.dirname(labels.file)
    labels.has_contents = 'content' in table.columns
    for row in table.rows:
        cells = cells_by_role(labels, table, row)
        labels.add(
            folder,
            cells['image'],
            cells['score'],
            row.where,
            # without a content column, each image is a content of its own
            content=cells.get('content', cells['image']),
            in_set=known_set(cells.get('set', '')),
            kind=cells.get('type', ''),
        )
    # `labels.add` notes which paths of another machine fit an image only by their ends.
    if labels.found_by_end:
        name, path = next(iter(labels.found_by_end.items()))
        log(
            f'{labels.file}: {len(labels.found_by_end)} images are found by the ends of their '
            f'names, the first of them {name} as {path}'
        )

    lower_is_better = labels.settings.lower_is_better
    if lower_is_better is None:
        lower_is_better = score_name(table) == 'dmos'
    labels.higher_is_better = not lower_is_better
    describe_table(labels, table)

    # The warnings compare each sample with its row, so the rows of further votes for an image are
    # left out. The samples are in the order of the rows.
    rows_of_samples = {sample.where for sample in labels.samples}
    table = table._replace(rows=[row for row in table.rows if row.where in rows_of_samples])
    if 'content' in table.columns:
        warn_of_contents(labels, table)
    else:
        warn_of_references(labels, table)


def refuse_thousands(labels: Labels, table: Table) -> None:
    """Refuse scores in which a comma separates thousands, as in 987 and 1,012.

    If every score has such a comma, as in 1,012 and 1,234, they are read as decimals.
    """
    scores = [(row.where, cell) for row, cell in zip(table.rows, table.cells('score'))]
    with_comma = [(where, cell) for where, cell in scores if ',' in cell]
    if not with_comma or not all(THOUSANDS.fullmatch(cell) for _, cell in with_comma):
        return
    for where, cell in scores:
        if ',' in cell or not is_number(cell):
            continue
        # If another score has a decimal point, or is 100 or more, the comma is no decimal mark.
        if '.' in cell or abs(float(cell)) >= 100:
            where_comma, thousands = with_comma[0]
            raise InputError(
                f'{labels.file}, {where_comma}: the comma in the score {thousands!r} seems to '
                f'separate thousands, since {where} has {cell!r}; write numbers without such '
                'commas, and decimals with a point'
            )


def cells_by_role(labels: Labels, table: Table, row: Row) -> dict[str, str]:
    """The cells of a row by role; its score has a decimal point.

    Raises:
        InputError: a cell other than the set is empty, or one has not been computed.
    """
    cells = {role: str(row.cells[k]).strip(BLANK) for role, k in table.columns.items()}
    for role, cell in cells.items():
        if cell == excel.NO_VALUE:
            raise InputError(
                f'{labels.file}, {row.where}: the {role} is {cell}; open the file in Excel or '
                'LibreOffice and save it, so that it is computed'
            )
        if not cell and role != 'set':
            raise InputError(
                f'{labels.file}, {row.where}: the {role} is empty; fill it in or remove that row'
            )
    # A score that is no number is not changed: the message about it shows it as it is written.
    if is_number(cells['score']):
        cells['score'] = cells['score'].replace(row.decimal, '.')
    return cells


def score_name(table: Table) -> str:
    """The normalized name of the score column; '' if the table has no header."""
    return normalized_name(table.header[table.columns['score']]) if table.has_header else ''


def describe_table(labels: Labels, table: Table) -> None:
    """Log which columns of the user's own table are used, and the direction of its scores."""
    taken = [f'{role} from column {table.header[k]!r}' for role, k in table.columns.items()]
    ignored = []
    for k, name in enumerate(table.header):
        if name and k not in table.columns.values():
            ignored.append(repr(name))

    text = f'{labels.file}: '
    if not table.has_header:
        text += 'no header, so the first line is an image too; '
    text += ', '.join(taken)
    text += f'; {"higher" if labels.higher_is_better else "lower"} is better'
    # Some tables call a score DMOS that rises with quality.
    if labels.settings.lower_is_better is None and 'dmos' in score_name(table):
        text += ', by the name of its column; --higher_is_better or --lower_is_better settles it'
    if ignored:
        text += f'; ignored: {", ".join(ignored)}'
    log(text)


def warn_of_references(labels: Labels, table: Table) -> None:
    """Warn of a column that looks like the reference of each image, if no column is the content.

    Such a column has some of its values several times. Either its name is one of REFERENCES and its
    values are not all numbers, or each image's file name starts with its value.
    """
    names = [stem_of(sample.path) for sample in labels.samples]
    for k, column in enumerate(table.header):
        if k in table.columns.values():
            continue
        stems = [stem_of(row.cells[k]) for row in table.rows]
        if len(set(stems)) == len(stems):
            continue
        has_names = not all(is_number(stem) for stem in stems)
        is_reference = normalized_name(column) in REFERENCES and has_names
        starts_names = all(stem and name.startswith(stem) for stem, name in zip(stems, names))
        if is_reference or starts_names:
            choice = shlex.quote(f'content={column}')
            log(
                f'warning: the column {column!r} of {labels.file} looks like the reference of '
                f'each image; --columns {choice} keeps images of one scene together in a split'
            )


def warn_of_contents(labels: Labels, table: Table) -> None:
    """Warn of a content column whose contents are perhaps not the scenes of the images."""
    contents = {sample.content for sample in labels.samples}
    images = len(labels.samples)
    if len(contents) == images:
        return
    column = f'the column {table.header[table.columns["content"]]!r} of {labels.file}'
    # A database of two parts can have the same references in the folders of both parts.
    files = {file_name(content) for content in contents}
    if len(files) < len(contents) and all(is_picture(content) for content in contents):
        log(
            f'warning: {column} has {len(contents)} contents, but only {len(files)} file names: '
            'equal names in different folders can be one scene on both sides of a split; if they '
            'are, write them without folders'
        )
        return

    # Scenes can be numbered with whole numbers, but not with fractions.
    are_whole = all(content.isdigit() for content in contents)
    are_fractions = all(is_number(content) for content in contents) and not are_whole
    are_few = len(contents) <= FEW_CONTENTS or images > MANY_IMAGES * len(contents)
    if are_fractions or are_few:
        values = f'{len(contents)} values for {images} images'
        if are_fractions:
            values += ', which are numbers'
        log(
            f'warning: {column} has {values}; images of one value stay together in a split; '
            '--split_by image draws single images if it is no scene'
        )


def file_name(path: Any) -> str:
    """The normalized name of a file without its folder."""
    return normalized_name(os.path.basename(str(path).strip().replace('\\', '/')))


def stem_of(path: Any) -> str:
    """The normalized name of a file without its folder and ending."""
    return normalized_name(os.path.splitext(file_name(path))[0])
