"""The images that each round trains and tests on.

A split gives the positions of the images in its `train`, `val` and `test` part. A published split
is a file or a folder of files. It lists images by name (see `ImageNames`), or by their row number
in the label file.
"""

import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from folders import OpenDatabase
from util.errors import InputError, log
from util.files import as_input_error, reading
from util.labels import SETS, set_of, word_of_set
from util.meaning import Meaning
from util.names import KnownNames, names_on_lines
from util.tables import (
    ROLES,
    choices_in,
    find_columns,
    normalized_name,
    read_content,
    read_rows,
    rows_of,
)

TRAIN_FRACTION = 0.8
PARTS = ('train', 'val', 'test')
LISTS = ('.txt', '.csv', '.json', '.npy')  # endings of lists in a folder
LEFT_OUT = -1  # in the place of a position: the image is known and left out
Split = dict[str, list[int]]
# The content of split.json: the names of the images in each part of a round's split, and in
# `labels` a digest of the labels.
SplitRecord = dict[str, Any]
Listed = list[tuple[Any, str]]  # (name or row number, part) of each image in somebody's list


class Job(NamedTuple):
    """The databases and splits of a run or a test.

    Attributes:
        database: the one that is trained on; in a test with --test_on, any of `others`.
        others: the databases of --test_on, by their names.
        splits: one for every round; in a test, only that of its checkpoint's round.
        meaning: of images and scores to the network.
        round_index: in a test, the 0-based round of its checkpoint.
    """

    database: OpenDatabase
    others: dict[str, OpenDatabase]
    splits: list[Split]
    meaning: Meaning
    round_index: int = 0


def draw_splits(config: Any, database: OpenDatabase) -> list[Split]:
    """The split of every round, by the options `config`.

    Raises:
        InputError: there are too few images, the requested sets or file do not fit the database, or
            a part has no two different scores, so that there would be no SRCC.
    """
    source, splits = requested_splits(config, database)
    for number, split in enumerate(splits, start=1):
        refuse_equal_scores(config, database, split, source, number)
        refuse_links(database, split, f'{source}: in round {number}')
    warn_of_single_content(database, splits, source)
    is_repeated = len(splits) > 1 and all(split == splits[0] for split in splits)
    # With --train_on_all nobody expects different splits.
    if is_repeated and not config.train_on_all:
        log(
            f'{source}: one split for all {len(splits)} rounds, which differ only in initial '
            'weights and patches'
        )
    # One round is enough: if its split shares contents, the others most likely do so too.
    warn_of_shared_contents(database, splits[0])
    return splits


def requested_splits(config: Any, database: OpenDatabase) -> tuple[str, list[Split]]:
    """The split of every round, before any check.

    Returns:
        the name of their source, for messages, and the splits.
    """
    rounds = range(config.train_test_num)  # 0-based
    if config.train_on_all:
        # The rounds still differ in initial weights and patches.
        everything = {'train': list(range(len(database.samples))), 'val': [], 'test': []}
        return '--train_on_all', [everything for _ in rounds]

    kind = default_kind(database) if config.split is None else config.split
    if kind == 'random':
        return '--split random', [random_split(config, database, k) for k in rounds]
    if kind == 'folds':
        return '--split folds', [fold(config, database, k) for k in rounds]
    if kind == 'official':
        source = f'--split official (the sets in {database.path})'
        split = official_split(database)
        splits = [split for _ in rounds]
    else:
        source = f'--split {kind if isinstance(kind, str) else " ".join(kind)}'
        splits = [read_split(kind, database, k + 1, config.columns) for k in rounds]
    if config.val_ratio:
        raise InputError(
            f'--val_ratio: the sets in {database.path} already name the images that choose the '
            'epoch'
        )
    return source, splits


def default_kind(database: OpenDatabase) -> str:
    """The kind of split without --split: 'official' if a table of one's own may have a test set.

    Otherwise it is 'random', and sets that are not used are logged.
    """
    # Published databases are split randomly, as in the original, even if they have official sets.
    if database.key != 'csv':
        return 'random'
    sets = {sample.official_set for sample in database.samples} - {''}
    # A set of an unknown name may be a misspelt 'test'. Then `official_split` refuses it.
    if 'test' in sets or sets - set(PARTS):
        return 'official'
    if sets:
        found = ', '.join(sorted(sets)[:3])
        log(
            f'{database.label_file}: its sets ({found}) name no test images, so splits are random, '
            'as with --split random'
        )
    return 'random'


def refuse_equal_scores(
    config: Any, database: OpenDatabase, split: Split, source: str, number: int
) -> None:
    """Refuse a round's split if all scores of a part are equal: the part would have no SRCC."""
    needed = ('train',) if config.train_on_all else ('train', 'test')
    for part in PARTS:
        # Scores that differ only beyond float32 are equal to the network.
        scores = np.array([database.samples[k].score for k in split[part]], np.float32)
        different = len(np.unique(scores))
        is_used = split[part] or part in needed
        if different < 2 and is_used:
            if part == 'val' and config.val_ratio:
                source = '--val_ratio'
            raise InputError(
                f'{source}: in round {number}, the {part} part needs two different scores for an '
                f'SRCC (images: {len(scores)}, different scores: {different}); give another split '
                '(--split, --split_by) or more images'
            )


def refuse_links(database: OpenDatabase, split: Split, where: str) -> None:
    """Refuse a split that has one file, under two names, in two parts."""
    part_of: dict[Any, tuple[str, int]] = {}
    for part in PARTS:
        for k in split[part]:
            # The same for a link and its target.
            identity = database.samples[k].file
            other, first = part_of.setdefault(identity, (part, k))
            if other != part:
                names = ' and '.join(database.names([first, k]))
                raise InputError(
                    f'{where}, {names} are one file, in {other} and in {part}; leave one of the '
                    'two out'
                )


def warn_of_single_content(database: OpenDatabase, splits: list[Split], source: str) -> None:
    """Warn of the first round that tests on the images of a single content."""
    if not database.by_content:
        return
    for number, split in enumerate(splits, start=1):
        if len(set(database.contents(split['test']))) == 1:
            log(
                f'warning: {source}: in round {number}, the test part has only one content, so its '
                'SRCC has no interval'
            )
            return


def warn_of_shared_contents(database: OpenDatabase, split: Split) -> None:
    """Warn if images of one content are trained on and tested on."""
    trained = {database.samples[k].content for k in split['train']}
    tested = {database.samples[k].content for k in split['test']}
    shared = sorted(trained & tested)
    if shared:
        log(
            f'warning: {len(shared)} contents are in train and in test, the first is '
            f'{shared[0]!r}: this inflates every score'
        )


def sizes_of(splits: list[Split], listed: int) -> str:
    """The sizes of the parts over the rounds, such as '94 to 96 to train on, 24 to test on'.

    Args:
        listed: the number of images in the database. Those in no part are counted too.
    """
    uses = {'train': 'to train on', 'val': 'to choose the epoch', 'test': 'to test on'}
    sizes = {}
    for part, use in uses.items():
        sizes[use] = [len(split.get(part, [])) for split in splits]
    sizes['in no part'] = [listed - sum(map(len, split.values())) for split in splits]

    shown = []
    for use, counts in sizes.items():
        if any(counts):
            extremes = sorted({min(counts), max(counts)})  # one number if they are equal
            shown.append(f'{" to ".join(map(str, extremes))} {use}')
    return ', '.join(shown)


def split_record(split: Split, database: OpenDatabase) -> SplitRecord:
    """The content of split.json: the images of each part that has some, and the labels' digest."""
    record: SplitRecord = {part: database.names(images) for part, images in split.items() if images}
    record['labels'] = database.digest
    return record


def random_split(config: Any, database: OpenDatabase, round_index: int) -> Split:
    """The images of each part in a random split of the database's contents or images."""
    # Of the contents or images, as `database.units` has them.
    parts = draw_split(len(database.units), config.seed, round_index, config.val_ratio)
    return {part: database.images(parts[part]) for part in parts}


def draw_split(units: int, seed: int, round_index: int, val_ratio: float) -> Split:
    """Draw the parts of a round, the same on every machine.

    Args:
        units: the number of contents or images to draw from.
        val_ratio: fraction of the training units that choose the best epoch instead.

    Returns:
        positions of the `train`, `val` and `test` units.
    """
    # RandomState keeps its numbers in all versions of NumPy.
    order = np.random.RandomState((seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_FRACTION * units)
    return with_val_part(order[:cut], order[cut:], val_ratio)


def with_val_part(train: list[int], test: list[int], val_ratio: float) -> Split:
    """Take the val part out of `train`, so that the test part is the same with and without it."""
    held_out = round(val_ratio * len(train))
    split = {'train': train[held_out:], 'val': train[:held_out], 'test': test}
    lacks_val = val_ratio and not split['val']
    if not split['train'] or not test or lacks_val:
        raise InputError(f'{len(train) + len(test)} images or contents are too few to split')
    return split


def fold(config: Any, database: OpenDatabase, round_index: int) -> Split:
    """The images of each part in a round of cross-validation, the same on every machine.

    The contents or images are drawn into as many folds as there are rounds, and each round tests
    on one of them, so that all rounds together test every image once.
    """
    count = config.train_test_num
    units = len(database.units)
    if not 2 <= count <= units:
        raise InputError(
            f'--split folds: --train_test_num {count} is the number of folds, of {units} images or '
            f'contents; give 2 to {units}'
        )
    # The second number is the same in all rounds, since they share one drawing.
    order = np.random.RandomState((config.seed, 0)).permutation(units)
    folds = np.array_split(order, count)
    # `with_val_part` takes the first images. The fold after the tested one comes first, so that the
    # rounds choose their epochs on different images.
    others = np.concatenate(folds[round_index + 1 :] + folds[:round_index]).tolist()
    parts = with_val_part(others, folds[round_index].tolist(), config.val_ratio)
    return {part: database.images(parts[part]) for part in PARTS}


def official_split(database: OpenDatabase) -> Split:
    """The images of each official set."""
    # Some databases name their sets in another file, which a copy of the database may lack.
    if not any(sample.official_set for sample in database.samples):
        names = database.entry.official
        if names:
            reason = f'the sets are named by {names}, which {database.path} does not have'
        else:
            reason = f'{database.entry.title} has no official sets'
        raise InputError(f'--split official: {reason}; use --split random')

    split: Split = {part: [] for part in PARTS}
    remedy = 'correct that row, or do without: use --split random, or --columns set='
    for k, sample in enumerate(database.samples):
        part = set_of(sample.official_set, database.label_file, sample.where, remedy=remedy)
        split[part].append(k)
    return split


class ImageNames:
    """Finds the images of a database by the names or row numbers in somebody's list."""

    def __init__(self, database: OpenDatabase) -> None:
        # Row numbers count all rows of the label file, also those of missing images.
        self.rows = {sample.row: k for k, sample in enumerate(database.samples)}
        self.row_count = len(database.samples) + len(database.left_out)
        # Left out are images that --skip_missing dropped, and `known` ones, which have no score.
        left_out = [entry['image'] for entry in database.left_out]
        left_out += [database.name_of(path) for path in database.known]
        self.positions = dict.fromkeys(left_out, LEFT_OUT)
        self.positions.update((name, k) for k, name in enumerate(database.all_names))
        self.names = KnownNames(self.positions)

    def is_known(self, name: str) -> bool:
        """Whether a whole name, and not only an end of it, stands for images of the database."""
        return bool(self.names.find(name))

    def position(self, name: str | int) -> int | None:
        """The position of the image with this name, or in this row of the label file.

        LEFT_OUT stands for an image that is known and left out, None for no image or several.
        """
        if isinstance(name, int):
            return self.rows.get(name, LEFT_OUT) if 0 <= name < self.row_count else None
        found = self.names.find(name, by_end=True)
        return self.positions[found[0]] if len(found) == 1 else None


# The names of a database's images are indexed once for all rounds. The cache compares databases by
# identity, and keeps the last one.
image_names = functools.lru_cache(maxsize=1)(ImageNames)


def read_split(
    requested: Path | str | Sequence[str],
    database: OpenDatabase,
    round_number: int = 1,
    columns: dict[str, str] | None = None,
) -> Split:
    """The images of each part in a split that somebody wrote down.

    Args:
        requested: a run, the split.json of one, a table with a set column, a folder with a list for
            each part, a folder with such a folder for each round, or several `part=FILE`. `{round}`
            in it stands for the round.
        round_number: 1-based.
        columns: names or numbers of a table's columns by role, which can have `{round}` too.

    Raises:
        InputError: it cannot be read, lists images that the database does not have, or lists one
            twice.
    """
    texts = [requested] if isinstance(requested, (str, Path)) else requested
    files = files_of([with_round(text, round_number) for text in texts], round_number)
    chosen = {role: with_round(name, round_number) for role, name in (columns or {}).items()}
    names = image_names(database)
    split: Split = {part: [] for part in PARTS}
    part_of: dict[int, str] = {}
    for part, file in files.items():
        listed = listed_in(file, part, chosen, round_number, names)
        # Later rounds usually leave out the same images, so only the first one logs their number.
        found = find_images(file, listed, names, database, logs_left_out=round_number == 1)
        for name, own_part, position in found:
            if position not in part_of:
                part_of[position] = own_part
                split[own_part].append(position)
            # A table of votes lists an image once for each vote.
            elif not database.settings.average_votes or part_of[position] != own_part:
                raise InputError(f'{file} names {name} twice; an image belongs to one part')
    # A list of test images is enough: all images in no part are for training.
    if 'test' in files and 'train' not in files:
        held_out = {*split['val'], *split['test']}
        split['train'] = [k for k in range(len(database.samples)) if k not in held_out]
    return split


def with_round(text: Path | str, round_number: int) -> str:
    """`text` with the round's number in the place of {round}, or of {round:02d} and the like."""
    return re.sub(
        r'\{round(:0\d+d)?\}', lambda match: match[0].format(round=round_number), str(text)
    )


def files_of(texts: list[str], round_number: int) -> dict[str, str]:
    """The file that lists each part, or one that lists them all as the part ''."""
    pairs = [text.partition('=') for text in texts]  # (word, '=', file)
    if all(mark and part_of_word(word) for word, mark, _ in pairs):
        files: dict[str, str] = {}
        for word, _, file in pairs:
            add_list(files, part_of_word(word), file)
        return files
    if len(texts) > 1:
        raise InputError(
            f'--split {" ".join(texts)}: several files are named as train=FILE test=FILE val=FILE'
        )
    if os.path.isdir(texts[0]):
        return files_in(texts[0], round_number)
    return {'': texts[0]}


def add_list(files: dict[str, str], part: str, file: str) -> None:
    """Make `file` the list of a part.

    Raises:
        InputError: the part already has a list, or the file is the list of another part.
    """
    if part in files:
        raise InputError(
            f'--split: there are two lists of the {part} part, {files[part]} and {file}; name one '
            f'as {part}=FILE'
        )
    for other, first in files.items():
        if os.path.realpath(first) == os.path.realpath(file):
            raise InputError(
                f'--split: the list {file} is given twice, as {other} and as {part}; give each '
                'part a list of its own'
            )
    files[part] = file


def files_in(folder: str, round_number: int) -> dict[str, str]:
    """As `files_of`, for a run, a folder of lists, or a folder with such a folder per round."""
    if os.path.isfile(os.path.join(folder, 'config.json')):
        return {'': os.path.join(folder, f'round_{round_number:02d}', 'split.json')}

    # LIQE publishes a folder for each round, called 1, 2, 3 ...
    rounds = {}
    for name in os.listdir(folder):
        if name.isdecimal() and os.path.isdir(os.path.join(folder, name)):
            rounds[int(name)] = name
    if rounds:
        folder = os.path.join(folder, of_round(rounds, round_number, folder))

    files: dict[str, str] = {}
    unknown = []
    for name in sorted(os.listdir(folder)):
        if os.path.splitext(name)[1].lower() not in LISTS:
            continue
        part = part_of_list(name)
        if part:
            add_list(files, part, os.path.join(folder, name))
        else:
            unknown.append(name)
    if not files:
        raise InputError(
            f'{folder} has no list with train or test in its name; give train=FILE test=FILE'
        )
    # A list of no known part may be the missing part. Left out, its test images would be trained on
    # without a word.
    missing = [part for part in ('train', 'test') if part not in files]
    if missing and unknown:
        raise InputError(
            f'{folder} has no list of the {missing[0]} part, and {", ".join(unknown[:3])} of no '
            f'known part (known are {", ".join(SETS)}); give train=FILE test=FILE'
        )
    return files


def of_round(numbered: dict[int, Any], round_number: int, source: str) -> Any:
    """The entry of a round in a dict whose keys count the rounds from 1, or from 0 with a key 0.

    Raises:
        InputError: `source` has no entry for it.
    """
    number = round_number - 1 if 0 in numbered else round_number
    if number not in numbered:
        rounds = len(numbered)
        raise InputError(f'{source} is for {rounds} rounds; --train_test_num {rounds} runs those')
    return numbered[number]


def part_of_list(name: str) -> str:
    """The part that the last such word in a list's file name means, or ''.

    kadid10k_train.txt -> 'train'
    """
    # Some names are in camel case, as AADB's imgListTestNewRegression_score.txt.
    words = re.findall('[A-Z]?[a-z]+|[A-Z]+', os.path.splitext(name)[0])
    part = ''
    for word in words:
        part = part_of_word(word) or part
    return part


def part_of_word(word: str) -> str:
    """The part that a word means; '' for other words."""
    return SETS.get(word_of_set(word), '')


def listed_in(
    file: str, part: str, chosen: dict[str, str], round_number: int, names: ImageNames
) -> Listed:
    """The images that a file lists.

    Args:
        part: the part of all of them; with '' the file itself gives each image's part.
        chosen: as in `find_columns`, if the file is a table.
        names: of the database's images.
    """
    kind = os.path.splitext(file)[1].lower()
    if kind == '.npy':
        return read_npy_list(file, part, round_number)
    if kind == '.json':
        return read_json_list(file, part)
    if part:
        return [(name, part) for name in read_names(file, chosen, names)]
    return read_sets(file, chosen, round_number)


def read_npy_list(file: str, part: str, round_number: int) -> Listed:
    """The row numbers in an integer .npy file of shape (n,) or (rounds, n)."""
    if not part:
        raise InputError(
            f'{file} lists the images of one part only; give train={file} test=FILE, '
            'or a folder with a file for each part'
        )
    with reading(file, 'a NumPy array of numbers') as opened:
        array = np.lib.format.read_array(opened, allow_pickle=False)
        if array.dtype.kind not in 'iu' or array.ndim not in (1, 2):
            raise ValueError(
                'row numbers are integers in the shape (n,) or (rounds, n), not '
                f'{array.dtype} {array.shape}'
            )
    if array.ndim == 2:
        array = of_round(dict(enumerate(array, start=1)), round_number, file)
    # The rows of rounds with fewer images than others are padded with -1.
    return [(row, part) for row in array.tolist() if row != -1]


def read_json_list(file: str, part: str) -> Listed:
    """The images in a JSON list, or in the lists of all parts in a JSON object."""
    with reading(file, 'JSON') as opened:
        content = json.load(opened)
        if part:
            lists = {part: content}
        elif isinstance(content, dict):
            # A split.json also has a digest of the labels, which is no list.
            lists = {key: records for key, records in content.items() if part_of_word(key)}
        else:
            lists = {}
        if not lists or not all(isinstance(records, list) for records in lists.values()):
            raise ValueError(
                'it has no list, whose records each need an "image", nor a train and a test list'
            )
        listed = []
        for key, records in lists.items():
            for record in records:
                listed.append((name_in(record), part_of_word(key)))
        return listed


def name_in(record: Any) -> str:
    """The image's name in a record of a JSON file."""
    name = record.get('image', record.get('img_path')) if isinstance(record, dict) else record
    if not isinstance(name, str):
        raise ValueError('a record has no "image" or "img_path" with a name')
    return name


def read_names(file: str, chosen: dict[str, str], names: ImageNames) -> list[str]:
    """The names in a list of a single part: one on each line, or a column of a table."""
    content = read_content(file)
    with as_input_error(file, 'a table'):
        found = names_on_lines(content, names.is_known, chosen)
        if found is not None:
            return found
        rows = rows_of(content, file)
    # --columns also describes the table of the labels: choices that this table lacks are dropped.
    choices = choices_in(rows, chosen, kept=('set',))
    table = find_columns(file, rows, choices, needed=('image',))
    return table.cells('image')


def read_sets(file: str, chosen: dict[str, str], round_number: int) -> Listed:
    """The images in a table with a set column, or with one for each round."""
    rows = read_rows(file)
    header = [normalized_name(cell) for cell in rows[0].cells] if rows else []
    if 'set' not in chosen and not any(name in ROLES['set'] for name in header):
        chosen = {**chosen, **column_of_round(file, header, round_number)}
    choices = choices_in(rows, chosen, kept=('set',))
    table = find_columns(file, rows, choices, needed=('image', 'set'))
    listed = []
    for row, name, text in zip(table.rows, table.cells('image'), table.cells('set')):
        listed.append((name, set_of(text, file, row.where)))
    return listed


def column_of_round(file: str, header: list[str], round_number: int) -> dict[str, str]:
    """The choice of a round's column among columns such as seed123_split_01; {} without them."""
    columns = {}
    for name in header:
        match = re.fullmatch(r'.*split_(\d+)', name)
        if match:
            columns[int(match[1])] = name
    return {'set': of_round(columns, round_number, file)} if columns else {}


def find_images(
    file: str, listed: Listed, names: ImageNames, database: OpenDatabase, logs_left_out: bool
) -> list[tuple[Any, str, int]]:
    """The listed images of a file, each with its position in the database.

    Args:
        names: of the database's images.
        logs_left_out: whether to log the number of those that are known and left out.
    """
    # Faults are collected, so that the message shows whether a list has one odd name or belongs to
    # another database.
    found = []
    unknown = []
    left_out = 0
    for name, part in listed:
        position = names.position(name)
        if position is None:
            unknown.append(str(name))
        elif position == LEFT_OUT:
            left_out += 1
        else:
            found.append((name, part, position))
    if unknown:
        raise InputError(
            f'{file} names {len(unknown)} images that are not in {database.path}, the first of '
            f'them {", ".join(unknown[:3])}; a name that fits several images counts as none'
        )
    if left_out and logs_left_out:
        log(f'{file} names {left_out} images that are known and left out')
    return found
