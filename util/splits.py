"""What each round trains and tests on. A split gives the positions of the images in its `train`, `val` and `test` part.

A split of other people is a file or a folder of files. An image's name in it is the longest end of a path that fits exactly one
image of the database, in any letter case; a number in it is a row of the label file.
"""

import csv
import io
import json
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from folders import CSV_COLUMNS, OpenDatabase
from util.distributed import say
from util.errors import InputError
from util.labels import AS_DOCUMENTED, PARTS, Labels, plain, read_bytes, read_text, table_text

TRAIN_SHARE = 0.8
LEFT_OUT = -1  # the position of an image that --skip_missing left out
SEVERAL = -2
Split = dict[str, list[int]]


def draw_splits(config: Namespace | SimpleNamespace, database: OpenDatabase) -> list[Split]:
    """The split of every round that the options `config` ask for.

    Raises:
        InputError: there are too few images, or the asked sets or file do not fit the database.
    """
    rounds = range(config.train_test_num)
    if config.train_on_all:
        return [{'train': list(range(len(database.samples))), 'val': [], 'test': []} for _ in rounds]
    fixed = config.split != 'random' or (database.key == 'csv' and any(sample.part for sample in database.samples))
    if not fixed:
        drawn = [draw_split(len(database.units), config.seed, round_index, config.val_ratio) for round_index in rounds]
        return [{part: database.images(split[part]) for part in split} for split in drawn]
    if config.val_ratio:
        raise InputError(f'--val_ratio: the sets in {database.path} say already which images choose the epoch')
    if config.split in ('random', 'official'):
        splits = [official_split(database)] * len(rounds)
        what = f'the sets in {database.path}'
    else:
        what = f'--split {config.split if isinstance(config.split, str) else " ".join(config.split)}'
        splits = [read_split(config.split, database, k + 1, (config.columns or {}).get('set', '')) for k in rounds]
    for number, split in enumerate(splits, start=1):
        if not split['train'] or not split['test']:
            raise InputError(f'{what}: there must be images to train on and to test on, in round {number} too')
    if len(splits) > 1 and all(split == splits[0] for split in splits):
        say(f'{what}: one split for all {len(splits)} rounds, which differ in initial weights and patches alone')
    warn_of_shared_contents(splits[0], database)
    return splits


def warn_of_shared_contents(split: Split, database: OpenDatabase) -> None:
    """Say on stderr if images of one content are trained on and tested on."""
    trained, tested = ({database.samples[k].content for k in split[part]} for part in ('train', 'test'))
    shared = sorted(trained & tested)
    if shared:
        say(
            f'warning: {len(shared)} contents have images in train and in test, the first of them {shared[0]!r}: '
            f'this inflates every score'
        )


def draw_split(units: int, seed: int, round_index: int, val_ratio: float) -> Split:
    """Draw the parts of a round, the same on every machine.

    Args:
        units: how many there are to draw from.
        val_ratio: share of the training units that choose the best epoch instead of being trained on.

    Returns:
        positions of the `train`, `val` and `test` units.
    """
    order = np.random.RandomState(seed_words(seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_SHARE * units)
    held_out = round(val_ratio * cut)
    split = {'train': order[held_out:cut], 'val': order[:held_out], 'test': order[cut:]}
    if not split['train'] or not split['test'] or bool(split['val']) != bool(val_ratio):
        raise InputError(
            f'{units} images or contents are too few to split into '
            f'{"training, validation and test" if val_ratio else "training and test"} parts'
        )
    return split


def seed_words(seed: int, *others: int) -> tuple[int, ...]:
    """(seed, *others) as the 32-bit words that NumPy takes; what a larger seed has beyond them follows at the end."""
    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(32, seed.bit_length()), 32)]
    return (words[0], *others, *words[1:])


def official_split(database: OpenDatabase) -> Split:
    """The images of each official set."""
    without = [sample.path for sample in database.samples if not sample.part]
    if without:
        raise InputError(
            f'--split official: the labels of {database.entry.title} put {len(without)} images '
            f'into no set, the first of them {without[0]}; use --split random'
        )
    return {part: [k for k, sample in enumerate(database.samples) if sample.part == part] for part in ('train', 'val', 'test')}


def read_split(asked: Path | str | Sequence[str], database: OpenDatabase, round_number: int = 1, column: str = '') -> Split:
    """The images of each part in a split that somebody wrote down.

    Args:
        asked: a run's split.json, a table with a set column, a folder with a list for each part, or with such a folder for
            each round, or several `part=FILE`. `{round}` in it stands for the round.
        round_number: 1-based.
        column: the name of the table's set column; `{round}` in it too.

    Raises:
        InputError: it cannot be read, or it names images that the database does not have, or names one twice.
    """
    texts = [with_round(text, round_number) for text in ([asked] if isinstance(asked, (str, Path)) else asked)]
    if all('=' in text and text.partition('=')[0] in PARTS for text in texts):
        files = {PARTS[text.partition('=')[0]]: text.partition('=')[2] for text in texts}
    elif len(texts) > 1:
        raise InputError(f'--split {" ".join(texts)}: several files are named as train=FILE test=FILE val=FILE')
    elif os.path.isdir(texts[0]):
        files = files_in(texts[0], round_number)
    else:
        return positions_of(
            read_parts(texts[0], with_round(column, round_number), round_number),
            dict.fromkeys(PARTS.values(), texts[0]),
            database,
        )
    names = {part: read_list(file, round_number) for part, file in files.items()}
    return positions_of(names, files, database)


def with_round(text: Path | str, round_number: int) -> str:
    return re.sub(r'\{round(:0\d+d)?\}', lambda match: match[0].format(round=round_number), str(text))


def files_in(folder: str, round_number: int) -> dict[str, str]:
    """The list of each part in `folder`, or in the folder of the round inside: the files with the part in their names."""
    inner = os.path.join(folder, str(round_number))
    folder = inner if os.path.isdir(inner) else folder
    files: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, kind = os.path.splitext(name.lower())
        words = [PARTS[word] for word in re.split(r'[^a-z]+', stem) if word in PARTS]
        if not words or kind not in ('.txt', '.csv', '.json', '.npy'):
            continue
        if words[-1] in files:
            raise InputError(
                f'{folder}: {files[words[-1]]} and {name} can each be the {words[-1]} part; give train=FILE test=FILE'
            )
        files[words[-1]] = os.path.join(folder, name)
    if not files:
        raise InputError(f'{folder} holds no list with train or test in its name; give train=FILE test=FILE')
    return files


def read_parts(file: str, column: str, round_number: int) -> dict[str, list[Any]]:
    """The names of each part in a run's split.json or in a table with a set column."""
    if file.lower().endswith('.json'):
        content = parsed_json(file)
        lists = {part: content.get(part, []) for part in ('train', 'val', 'test')} if isinstance(content, dict) else {}
        if not any(lists.values()) or not all(isinstance(names, list) for names in lists.values()):
            raise InputError(f'{file} has no lists train and test; it is not the split.json of a run')
        return {part: [name_in(record, file) for record in names] for part, names in lists.items()}
    before, text, delimiter = table_text(file)
    line = next(iter(text.splitlines()), '')
    delimiter = delimiter or max(',;\t', key=line.count)
    header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    images = [name for name in header if plain(name) in CSV_COLUMNS['image']]
    numbered = rf'.*split_0*{round_number}'
    sets = [name for name in header if plain(name) in CSV_COLUMNS['set']]
    sets = [column] if column else sets or [name for name in header if re.fullmatch(numbered, plain(name))]
    if len(images) != 1 or len(sets) != 1:
        raise InputError(
            f'{file}, line {before + 1}: a split is a table with one column of images and one of sets (here: '
            f'{", ".join(images) or "none"} and {", ".join(sets) or "none"}); --columns set=NAME names it'
        )
    labels = Labels(file, 'split', '', AS_DOCUMENTED)
    labels.file = Path(file)
    parts: dict[str, list[Any]] = {'train': [], 'val': [], 'test': []}
    for where, row in labels.csv_rows(images[0], sets[0], delimiter=delimiter, strict=True):
        parts[labels.part(row[sets[0]], where)].append(row[images[0]].strip())
    return parts


def read_list(file: str, round_number: int) -> list[Any]:
    """The images that one file lists: names, or numbers of rows."""
    if file.lower().endswith('.npy'):
        return read_rows(file, round_number)
    if file.lower().endswith('.json'):
        content = parsed_json(file)
        if not isinstance(content, list):
            raise InputError(f'{file} holds no JSON list; each of its records needs an "image"')
        return [name_in(record, file) for record in content]
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    marks = '\t' if any('\t' in line for line in lines) else ','
    cells = [row[0].strip() for row in csv.reader(lines, delimiter=marks)]
    names = [re.sub(r'\s+[+-]?\d+(\.\d+)?$', '', cell) for cell in cells]  # in lines of `name score`
    return names[1:] if names and plain(names[0]) in CSV_COLUMNS['image'] else names


def read_rows(file: str, round_number: int) -> list[int]:
    """The row numbers in an integer .npy file of shape (n,) or (rounds, n), without its padding of -1."""
    content = read_bytes(file)
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # of a header that is anything
        raise InputError(f'{file} cannot be read as a NumPy array of numbers: {error}')
    if array.dtype.kind not in 'iu' or array.ndim not in (1, 2):
        raise InputError(f'{file}: row numbers are integers in the shape (n,) or (rounds, n), not {array.dtype} {array.shape}')
    if array.ndim == 2 and len(array) < round_number:
        raise InputError(f'{file} is for {len(array)} rounds; --train_test_num {len(array)} runs those')
    rows = array if array.ndim == 1 else array[round_number - 1]
    return [int(row) for row in rows if row != -1]


def parsed_json(file: str) -> Any:
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{file} cannot be read as JSON: {error}')


def name_in(record: Any, file: str) -> str:
    """The image's name in a record of a JSON file."""
    if isinstance(record, dict):
        record = record.get('image', record.get('img_path'))
    if not isinstance(record, str):
        raise InputError(f'{file}: a record has no "image" or "img_path" with a name')
    return record


def positions_of(parts: dict[str, list[Any]], files: dict[str, str], database: OpenDatabase) -> Split:
    """The positions of the images that `parts` names in its `files`."""
    ends = ends_of_names(database)
    at_row = {row: k for k, row in enumerate(database.rows)}
    listed = len(database.samples) + len(database.left_out)
    split: Split = {'train': [], 'val': [], 'test': []}
    seen: dict[int, Any] = {}
    faults: dict[tuple[str, str], list[str]] = {}
    for part, names in parts.items():
        for name in names:
            if isinstance(name, int):
                position = at_row.get(name, LEFT_OUT) if 0 <= name < listed else None
            else:
                position = position_of(name, ends)
            if position is None or position == SEVERAL:
                what = 'are not' if position is None else 'fit several images'
                faults.setdefault((files[part], what), []).append(str(name))
            elif position in seen:
                also = f', also as {seen[position]}' if name != seen[position] else ''
                raise InputError(f'{files[part]} names {name} twice{also}; an image belongs to one part')
            elif position != LEFT_OUT:
                seen[position] = name
                split[part].append(position)
    for (source, what), names in faults.items():
        raise InputError(
            f'{source} names {len(names)} images that {what} in {database.path}, the first of them {", ".join(names[:3])}'
        )
    return split


def path_ends(name: str) -> list[str]:
    """The ends of a path, longest first: 'A/b.png' -> ['a/b.png', 'b.png']."""
    steps = [step for step in plain(name.strip()).replace('\\', '/').split('/') if step not in ('', '.', '..')]
    return ['/'.join(steps[k:]) for k in range(len(steps))]


def ends_of_names(database: OpenDatabase) -> dict[str, int]:
    """The position of the image for every end of an image's name, or SEVERAL."""
    ends: dict[str, int] = {}
    images = list(enumerate(database.names(range(len(database.samples)))))
    for k, name in images + [(LEFT_OUT, entry['image']) for entry in database.left_out]:
        for end in path_ends(name):
            ends[end] = k if end not in ends else SEVERAL
    return ends


def position_of(name: str, ends: dict[str, int]) -> int | None:
    """The position of the image whose name has the longest end in common with `name`, SEVERAL, or None."""
    return next((ends[end] for end in path_ends(name) if end in ends), None)
