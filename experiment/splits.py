"""What each round trains and tests on. A split gives the positions of the images in its `train`, `val` and `test` part.

A split of other people is a file or a folder of files. It names images (see `ImageNames`), or rows of the label file by number.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from folders import OpenDatabase
from util.errors import InputError, log
from util.files import reading
from util.labels import SETS, set_of
from util.meaning import Meaning
from util.tables import BLANK, ROLES, find_columns, normalized_name, read_rows

TRAIN_FRACTION = 0.8
PARTS = ('train', 'val', 'test')
LEFT_OUT = -1  # position of an image that is known and left out
Split = dict[str, list[int]]
SplitRecord = dict[
    str, Any
]  # of a round: the names of the images of each part, and in `labels` a digest of the labels


class Job(NamedTuple):
    """What a run or a test works on.

    Attributes:
        database, others: the one that is trained on, and those of --test_on by their names.
        splits: of every round, or of a test the one that its checkpoint was trained with.
        meaning: what an image and a score mean to the network.
        round_index: of a test, the 0-based round that its checkpoint is of.
    """

    database: OpenDatabase
    others: dict[str, OpenDatabase]
    splits: list[Split]
    meaning: Meaning
    round_index: int = 0


def draw_splits(config: Any, database: OpenDatabase) -> list[Split]:
    """The split of every round that the options `config` ask for.

    Raises:
        InputError: there are too few images, the asked sets or file do not fit the database, or a part has no two scores that
            differ, so that there would be no SRCC.
    """
    what, splits = asked_splits(config, database)
    needed = ('train',) if config.train_on_all else ('train', 'test')
    scores = np.array(
        [sample.score for sample in database.samples], np.float32
    )  # as the network sees them
    for number, split in enumerate(splits, start=1):
        for part in PARTS:
            different = len(np.unique(scores[split[part]]))
            if different < 2 and (split[part] or part in needed):
                where = f'{"--val_ratio" if part == "val" and config.val_ratio else what}: in round {number}, the {part} part'
                few = f'too little for an SRCC (images: {len(split[part])}, different scores: {different})'
                raise InputError(
                    f'{where} has {few}; give another split (--split, --split_by) or more images'
                )
        refuse_links(database, split, f'{what}: in round {number}')
    alone = [
        k
        for k, split in enumerate(splits, 1)
        if database.by_content and len({*database.contents(split['test'])}) == 1
    ]
    if alone:
        log(
            f'warning: {what}: in round {alone[0]}, the test part has one content alone, so its SRCC has no interval'
        )
    if len(splits) > 1 and all(split == splits[0] for split in splits) and not config.train_on_all:
        log(
            f'{what}: one split for all {len(splits)} rounds, which differ in initial weights and patches alone'
        )
    trained, tested = (
        {database.samples[k].content for k in splits[0][part]} for part in ('train', 'test')
    )
    shared = sorted(trained & tested)
    if shared:
        log(
            f'warning: {len(shared)} contents are in train and in test, the first is {shared[0]!r}: this inflates every score'
        )
    return splits


def asked_splits(config: Any, database: OpenDatabase) -> tuple[str, list[Split]]:
    """What the options ask for, in the words of messages, and the split of every round."""
    rounds = range(config.train_test_num)
    if config.train_on_all:
        return '--train_on_all', [
            {'train': list(range(len(database.samples))), 'val': [], 'test': []} for _ in rounds
        ]
    if config.split == 'random' or (config.split is None and not has_usable_sets(database)):
        drawn = [
            draw_split(len(database.units), config.seed, round_index, config.val_ratio)
            for round_index in rounds
        ]
        return '--split random', [
            {part: database.images(split[part]) for part in split} for split in drawn
        ]
    if config.val_ratio:
        raise InputError(
            f'--val_ratio: the sets in {database.path} already name the images that choose the epoch'
        )
    if config.split in (None, 'official'):
        return f'--split official (the sets in {database.path})', [official_split(database)] * len(
            rounds
        )
    what = f'--split {config.split if isinstance(config.split, str) else " ".join(config.split)}'
    return what, [read_split(config.split, database, k + 1, config.columns or {}) for k in rounds]


def has_usable_sets(database: OpenDatabase) -> bool:
    """Whether a table of one's own names sets that split it without being asked to; log it where they do not."""
    sets = {sample.official_set for sample in database.samples if database.key == 'csv'} - {''}
    if sets and 'test' not in sets:
        found = ', '.join(sorted(sets)[:3])
        log(
            f'{database.label_file}: its sets ({found}) name no test images, so splits are random, as with --split random'
        )
    return 'test' in sets


def refuse_links(database: OpenDatabase, split: Split, what: str) -> None:
    """Refuse a split that has one file, under two names, in two parts."""
    part_of: dict[Any, tuple[str, int]] = {}
    for part in PARTS:
        for k in split[part]:
            other, first = part_of.setdefault(database.samples[k].file, (part, k))
            if other != part:
                names = ' and '.join(database.names([first, k]))
                raise InputError(
                    f'{what}, {names} are one file, in {other} and in {part}; leave one of the two out'
                )


def sizes_of(splits: list[Split], listed: int) -> str:
    """How many images each part has, over the rounds, and how many are in none, as '94 to 96 to train on, 24 to test on'."""
    uses = {'train': 'to train on', 'val': 'to choose the epoch', 'test': 'to test on'}
    counts = {use: {len(split.get(part, [])) for split in splits} for part, use in uses.items()}
    counts['in no part'] = {listed - sum(map(len, split.values())) for split in splits}
    shown = {
        use: ' to '.join(map(str, sorted({min(found), max(found)})))
        for use, found in counts.items()
        if any(found)
    }
    return ', '.join(f'{count} {use}' for use, count in shown.items())


def split_record(split: Split, database: OpenDatabase) -> SplitRecord:
    """What split.json holds: the names of the images of each part that has some, and a digest of the labels."""
    return {
        **{part: database.names(images) for part, images in split.items() if images},
        'labels': database.digest,
    }


def draw_split(units: int, seed: int, round_index: int, val_ratio: float) -> Split:
    """Draw the parts of a round, the same on every machine.

    Args:
        units: how many there are to draw from.
        val_ratio: fraction of the training units that choose the best epoch instead of being trained on.

    Returns:
        positions of the `train`, `val` and `test` units.
    """
    order = np.random.RandomState((seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_FRACTION * units)
    held_out = round(val_ratio * cut)
    split = {'train': order[held_out:cut], 'val': order[:held_out], 'test': order[cut:]}
    if not split['train'] or not split['test'] or bool(split['val']) != bool(val_ratio):
        raise InputError(f'{units} images or contents are too few to split')
    return split


def official_split(database: OpenDatabase) -> Split:
    """The images of each official set."""
    names, remedy = database.entry.official, 'use --split random'
    if not any(sample.official_set for sample in database.samples):
        none = f'the sets are named by {names}, which {database.path} does not have'
        raise InputError(
            f'--split official: {none if names else f"{database.entry.title} has no official sets"}; {remedy}'
        )
    for sample in database.samples:
        without = f'correct that row, or do without: {remedy}, or --columns set='
        set_of(sample.official_set, database.label_file, sample.where, remedy=without)
    return {
        part: [k for k, sample in enumerate(database.samples) if sample.official_set == part]
        for part in PARTS
    }


def read_split(
    asked: Path | str | Sequence[str],
    database: OpenDatabase,
    round_number: int = 1,
    columns: dict[str, str] | None = None,
) -> Split:
    """The images of each part in a split that somebody wrote down.

    Args:
        asked: a run, a split.json of one, a table with a set column, a folder with a list for each part, or with such a
            folder for each round, or several `part=FILE`. `{round}` in it stands for the round.
        round_number: 1-based.
        columns: names or numbers of a table's columns by role; `{round}` in them too.

    Raises:
        InputError: it cannot be read, or it names images that the database does not have, or names one twice.
    """
    texts = [
        with_round(text, round_number)
        for text in ([asked] if isinstance(asked, (str, Path)) else asked)
    ]
    chosen = {role: with_round(name, round_number) for role, name in (columns or {}).items()}
    if all('=' in text and text.partition('=')[0] in SETS for text in texts):
        files = {SETS[text.partition('=')[0]]: text.partition('=')[2] for text in texts}
    elif len(texts) > 1:
        raise InputError(
            f'--split {" ".join(texts)}: several files are named as train=FILE test=FILE val=FILE'
        )
    else:
        files = files_in(texts[0], round_number) if os.path.isdir(texts[0]) else {'': texts[0]}
    lists = {part: read_list(file, part, chosen, round_number) for part, file in files.items()}
    listed = [(name, own, files[part]) for part in files for name, own in lists[part]]
    return positions_of(listed, database, is_first=round_number == 1)


def with_round(text: Path | str, round_number: int) -> str:
    return re.sub(
        r'\{round(:0\d+d)?\}', lambda match: match[0].format(round=round_number), str(text)
    )


def files_in(folder: str, round_number: int) -> dict[str, str]:
    """The list of each part in `folder`, or in the folder of the round inside: the files with the part in their names.

    Of a run it is the round's split.json, with all parts.
    """
    if os.path.isfile(os.path.join(folder, 'config.json')):
        return {'': os.path.join(folder, f'round_{round_number:02d}', 'split.json')}
    rounds = [
        name
        for name in os.listdir(folder)
        if name.isdigit() and os.path.isdir(os.path.join(folder, name))
    ]
    if rounds:
        if str(round_number) not in rounds:
            raise too_few_rounds(folder, len(rounds))
        folder = os.path.join(folder, str(round_number))
    files: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, kind = os.path.splitext(name.lower())
        words = [SETS[word] for word in re.split(r'[^a-z]+', stem) if word in SETS]
        if words and kind in ('.txt', '.csv', '.json', '.npy'):
            if words[-1] in files:
                raise InputError(
                    f'{folder} holds two lists of the {words[-1]} part, also {name}; give train=FILE test=FILE'
                )
            files[words[-1]] = os.path.join(folder, name)
    if not files:
        raise InputError(
            f'{folder} holds no list with train or test in its name; give train=FILE test=FILE'
        )
    return files


def read_list(
    file: str, part: str, chosen: dict[str, str], round_number: int
) -> list[tuple[Any, str]]:
    """(name or row number, part) of every image in a file, which is of one `part`, or names the part of each where it is ''."""
    kind = os.path.splitext(file)[1].lower()
    if kind == '.npy':
        return [(row, part) for row in read_row_numbers(file, round_number)]
    if kind == '.json':
        with reading(file, 'JSON') as opened:
            content = json.load(opened)
            lists = {part: content} if part else content if isinstance(content, dict) else {}
            if not lists or not all(isinstance(lists.get(own, []), list) for own in (part, *PARTS)):
                raise ValueError(
                    'it holds no list, whose records each need an "image", nor a train and a test list'
                )
            return [
                (name_in(record), own)
                for own in lists
                if own in (part, *PARTS)
                for record in lists[own]
            ]
    rows = read_rows(file)
    names = [normalized_name(cell) for cell in rows[0].cells] if rows else []
    of_rounds = {
        int(name.rpartition('_')[2]): name for name in names if re.fullmatch(r'.*split_\d+', name)
    }  # seed123_split_01
    if of_rounds and not part and not set(ROLES['set']) & set(names) and 'set' not in chosen:
        if round_number not in of_rounds:
            raise too_few_rounds(file, len(of_rounds))
        chosen = {'set': of_rounds[round_number], **chosen}
    # the other choices are of the label table, which this one can have in common with it
    chosen = {
        role: own for role, own in chosen.items() if role == 'set' or normalized_name(own) in names
    }
    table = find_columns(file, rows, chosen, ('image',) if part else ('image', 'set'))
    images = [
        (where, str(cells[table.columns['image']]).strip(BLANK), cells)
        for where, cells, _ in table.rows
    ]
    return [
        (name, part or set_of(cells[table.columns['set']], file, where))
        for where, name, cells in images
    ]


def read_row_numbers(file: str, round_number: int) -> list[int]:
    """The row numbers in an integer .npy file of shape (n,) or (rounds, n), without its padding of -1."""
    with reading(file, 'a NumPy array of numbers') as opened:
        array = np.lib.format.read_array(opened, allow_pickle=False)
        if array.dtype.kind not in 'iu' or array.ndim not in (1, 2):
            raise ValueError(
                f'row numbers are integers in the shape (n,) or (rounds, n), not {array.dtype} {array.shape}'
            )
    if array.ndim == 2 and len(array) < round_number:
        raise too_few_rounds(file, len(array))
    return [
        int(row) for row in (array if array.ndim == 1 else array[round_number - 1]) if row != -1
    ]


def too_few_rounds(file: str, rounds: int) -> InputError:
    return InputError(f'{file} is for {rounds} rounds; --train_test_num {rounds} runs those')


def name_in(record: Any) -> str:
    """The image's name in a record of a JSON file."""
    name = record.get('image', record.get('img_path')) if isinstance(record, dict) else record
    if not isinstance(name, str):
        raise ValueError('a record has no "image" or "img_path" with a name')
    return name


class ImageNames:
    """Which image of a database a name in somebody's list means, in any letter case and Unicode form.

    It is the image with exactly that path, else the only one that shares the longest end of the path. A folder in the name
    that exists in the database too is never ignored: b/1.png is not a/1.png where the database has a folder b.
    """

    def __init__(self, database: OpenDatabase) -> None:
        self.rows = {sample.row: k for k, sample in enumerate(database.samples)}
        self.listed = len(database.samples) + len(database.left_out)
        self.ends: dict[str, int | None] = {}
        self.folders: set[str] = set()
        images = list(enumerate(database.all_names))
        left_out = [entry['image'] for entry in database.left_out] + [
            database.name_of(path) for path in database.known
        ]
        for k, name in images + [(LEFT_OUT, name) for name in left_out]:
            for end in path_ends(name):
                self.ends[end] = k if end not in self.ends else None
                self.folders.update(end.split('/')[:-1])
        self.ends.update({path_ends(name)[0]: k for k, name in images})

    def position(self, name: str | int) -> int | None:
        """The position of the image with this name or in this row of the label file, LEFT_OUT, or None unless one fits."""
        if isinstance(name, int):
            return self.rows.get(name, LEFT_OUT) if 0 <= name < self.listed else None
        for end in path_ends(name):
            if end in self.ends or end.partition('/')[0] in self.folders:
                return self.ends.get(end)
        return None


def path_ends(name: str) -> list[str]:
    """The ends of a path, longest first: 'A/b.png' -> ['a/b.png', 'b.png']."""
    steps = [
        step
        for step in normalized_name(name).replace('\\', '/').split('/')
        if step not in ('', '.', '..')
    ]
    return ['/'.join(steps[k:]) for k in range(len(steps))]


def positions_of(
    listed: list[tuple[Any, str, str]], database: OpenDatabase, is_first: bool
) -> Split:
    """The positions of images, of which each is listed as (name or row number, part, file that lists it).

    Of the first round it is logged how many listed images are known and left out.
    """
    known = ImageNames(database)
    split: Split = {part: [] for part in PARTS}
    seen: dict[int, str] = {}
    left_out: dict[str, int] = {}
    unknown: dict[str, list[str]] = {}
    for name, part, file in listed:
        position = known.position(name)
        if position is None:
            unknown.setdefault(file, []).append(str(name))
        elif position in seen and not (database.settings.average_votes and seen[position] == part):
            raise InputError(f'{file} names {name} twice; an image belongs to one part')
        elif position == LEFT_OUT:
            left_out[file] = left_out.get(file, 0) + 1
        elif position not in seen:  # otherwise it is a further vote
            seen[position] = part
            split[part].append(position)
    for file, names in unknown.items():
        first = f'the first of them {", ".join(names[:3])}; a name that fits several images counts as none'
        raise InputError(
            f'{file} names {len(names)} images that are not in {database.path}, {first}'
        )
    for file, count in left_out.items() if is_first else ():
        log(f'{file} names {count} images that are known and left out')
    return split
