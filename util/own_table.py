"""A table of one's own images and scores: its columns, the direction of its scores, and warnings about its contents."""

import os
import shlex
from typing import Any

from util.errors import InputError, log
from util.labels import Labels, known_set
from util.tables import BLANK, Table, find_columns, is_number, normalized_name, read_rows

# names of columns that no role takes without being asked
REFERENCES = {'ref', 'ref_image', 'reference_image', 'refnames_all', 'source', 'prompt'}
FEW_CONTENTS = 5


def read_csv(labels: Labels) -> None:
    """yours

    --csv FILE with the columns image and score (or dmos: lower is better), optionally content (its images stay together
    in a split) and set (train, val or test); many other names are known
    """
    rows, chosen = read_rows(labels.file), labels.settings.columns
    table = find_columns(labels.file, rows, chosen, ('image', 'score'), ('content', 'set', 'type'))
    start = labels.settings.images or os.path.dirname(labels.file)
    for where, cells, decimal in table.rows:
        row = {role: str(cells[k]).strip(BLANK) for role, k in table.columns.items()}
        for role, cell in row.items():
            if not cell and role != 'set':
                raise InputError(
                    f'{labels.file}, {where}: the {role} is empty; fill it in or remove that row'
                )
        score = row['score'].replace(decimal, '.') if is_number(row['score']) else row['score']
        content, in_set = row.get('content', row['image']), known_set(row.get('set', ''))
        labels.add(start, row['image'], score, where, content, in_set, row.get('type', ''))
    if labels.found_by_end:
        count, (name, path) = len(labels.found_by_end), next(iter(labels.found_by_end.items()))
        log(
            f'{labels.file}: {count} images are found by the ends of their names, the first of them {name} as {path}'
        )
    describe_table(labels, table)
    of_samples = {sample.where for sample in labels.samples}
    table = table._replace(
        rows=[row for row in table.rows if row.where in of_samples]
    )  # without further votes
    if 'content' in table.columns:
        warn_of_attribute(labels, table)
    else:
        warn_of_references(labels, table)


def describe_table(labels: Labels, table: Table) -> None:
    """Set which way the scores run, and log what was taken from a user's own table."""
    name = normalized_name(table.header[table.columns['score']]) if table.named else ''
    lower = labels.settings.lower_is_better
    labels.higher_is_better = name != 'dmos' if lower is None else not lower
    direction = f'{"higher" if labels.higher_is_better else "lower"} is better'
    if lower is None and 'dmos' in name:  # which a column of this name alone makes lower
        direction += (
            ', by the name of its column; --higher_is_better or --lower_is_better settles it'
        )
    no_header = '' if table.named else 'no header, so the first line is an image too; '
    taken = ', '.join(
        f'{role} from column {table.header[k]!r}' for role, k in table.columns.items()
    )
    ignored = ', '.join(
        repr(name)
        for k, name in enumerate(table.header)
        if name and k not in table.columns.values()
    )
    log(f'{labels.file}: {no_header}{taken}; {direction}' + f'; ignored: {ignored}' * bool(ignored))


def warn_of_references(labels: Labels, table: Table) -> None:
    """Warn of what looks like the reference of each image where the table names none.

    That is a column that is called so and holds names several times, or one whose cells, each of several images, are how those
    images' file names start.
    """
    names = [stem_of(sample.path) for sample in labels.samples]
    for k, column in enumerate(table.header):
        stems = (
            [stem_of(row.cells[k]) for row in table.rows] if k not in table.columns.values() else []
        )
        is_called = normalized_name(column) in REFERENCES and not all(map(is_number, stems))
        is_start = all(stem and name.startswith(stem) for stem, name in zip(stems, names))
        if len(set(stems)) < len(stems) and (is_called or is_start):
            remedy = f'--columns {shlex.quote(f"content={column}")} keeps images of one scene together in a split'
            log(
                f'warning: the column {column!r} of {labels.file} looks like the reference of each image; {remedy}'
            )


def warn_of_attribute(labels: Labels, table: Table) -> None:
    """Warn of a content column that may be an attribute of the images and not the scene that they show."""
    contents = {sample.content for sample in labels.samples}
    numeric = all(map(is_number, contents)) and not all(content.isdigit() for content in contents)
    if len(contents) < len(labels.samples) and (numeric or len(contents) <= FEW_CONTENTS):
        column = table.header[table.columns['content']]
        what = (
            f'has {len(contents)} values for {len(labels.samples)} images'
            + ', which are numbers' * numeric
        )
        remedy = '--split_by image draws single images if it is no scene'
        log(
            f'warning: the column {column!r} of {labels.file} {what}; images of one value stay together in a split; {remedy}'
        )


def stem_of(path: Any) -> str:
    """The normalized name of a file without its folder and ending."""
    return normalized_name(
        os.path.splitext(os.path.basename(str(path).strip().replace('\\', '/')))[0]
    )
