"""The label files and images of a database, found below its folder.

Every message about a fault names the file and the row.
"""

import functools
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy

from util.errors import InputError, log
from util.files import identity_of, is_entered, reading
from util.names import FilesIn, unambiguous
from util.tables import BLANK, Row, columns_called, normalized_name, read_rows

SETS = {  # the part of a split that each word in a label file, or in a list's name, means
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validate': 'val',
    'validation': 'val',
    'dev': 'val',
    'test': 'test',
    'testing': 'test',
}
# A Python float: a comparison with numpy's would turn the other number into 32 bits first.
LARGEST = float(np.finfo(np.float32).max)
HEADER_ROWS = 10  # the header is one of the first rows: an Excel sheet may have a title above it


class Sample(NamedTuple):
    """One labelled image.

    Attributes:
        path: of the image file.
        score: in the unit of the database.
        content: what the image shows; a split keeps the images of one content together.
        official_set: 'train', 'val' or 'test', '' for none, or another word of the label file.
        where: the name of its row in messages, as in 'line 3'.
        row: its row number from 0, by which a published split can name it.
        file: identifies the image file under any of its names; None if the file is missing.
        facts: further columns of predictions.csv: the `type` of its distortion, and with
            `average_votes` the number of `votes` and their `deviation`.
    """

    path: str
    score: float
    content: str
    official_set: str = ''
    where: str = ''
    row: int = 0
    file: Any = None
    facts: Mapping[str, Any] = {}


class Settings(NamedTuple):
    """How the user wants labels to be read, if that differs from the database's own way.

    Attributes:
        columns: the names of the columns of the user's own table, by role.
        images: the folder in which names in that table start.
        lower_is_better: the direction of its scores.
        split_by: 'image' or 'content'.
        skip_missing: leave out listed images that are missing or unreadable.
        average_votes: give an image the mean score of all its rows.
        place: the option that names the place of the database, for messages.
    """

    columns: Mapping[str, str] = {}
    images: str | None = None
    lower_is_better: bool | None = None
    split_by: str | None = None
    skip_missing: bool = False
    average_votes: bool = False
    place: str = '--data_root DIR'

    @classmethod
    def of(cls, config: Any) -> 'Settings':
        """The settings in the script's options."""
        columns = dict(config.columns or {})
        # With a published split, the set is a column of the split's table and not of the labels.
        if config.split not in (None, 'random', 'folds', 'official'):
            columns.pop('set', None)
        return cls(
            columns=columns,
            images=getattr(config, 'image_root', None),
            lower_is_better=config.lower_is_better,
            split_by=config.split_by,
            skip_missing=config.skip_missing,
            average_votes=config.average_votes,
        )


AS_DOCUMENTED = Settings()


class Labels:
    """The files of a database while its labels are read.

    Args:
        root: the database's folder; the file itself for the user's own table.
        title: the database's name in messages.
        remedy: the last sentence of messages about missing files.
        settings: of the user.

    Attributes:
        file: the label file that was opened last.
        samples: a `Sample` for each image.
        votes: the scores of all rows of each sample.
        known: paths of images of the database that are not scored; a split list may name them.
        found_by_end: the image of each name that fits only by its end (see `util/names.py`).
        higher_is_better: the direction of the scores; None if the label file does not show it.
        has_contents: whether the contents are known; if not, the images' names stand for them.
    """

    def __init__(
        self, root: Path | str, title: str, remedy: str, settings: Settings = AS_DOCUMENTED
    ) -> None:
        self.root = Path(root)
        self.file = self.root
        self.title = title
        self.remedy = remedy
        self.settings = settings
        self.samples: list[Sample] = []
        self.votes: list[list[float]] = []
        self.known: list[str] = []
        self.found_by_end: dict[str, str] = {}
        self.higher_is_better: bool | None = None
        self.has_contents = True
        self.positions: dict[Any, int] = {}  # in `samples`, by the image
        self.contents: dict[str, str] = {}  # the first spelling of each content
        # A folder is listed once, however many names are looked up in it.
        self.files_in = functools.cache(FilesIn)
        self.folders_in = functools.cache(folders_in)

    def nearest(
        self,
        folder: Path | str,
        name: str,
        depth: float,
        is_kind: Callable[[str], bool] = os.path.isfile,
    ) -> list[str]:
        """The paths that `name` can mean in `folder`, or on the nearest level of folders inside it.

        Args:
            depth: the number of levels below `folder` to search.
        """
        # Copies of the images on deeper levels do not count.
        level = [folder]
        while level:
            found = []
            for place in level:
                found += self.files_in(place, is_kind).paths(name)
            if found or depth == 0:
                return found
            inner = []
            for place in level:
                inner += self.folders_in(place)
            level = inner
            depth -= 1
        return []

    def first(
        self, names: Sequence[str], bases: Sequence[Path], is_kind: Callable[[str], bool]
    ) -> Path | None:
        """The path of the first of `names` that exists in one of `bases` or one folder down."""
        if not os.path.isdir(self.root):
            raise InputError(f'{self.title}: there is no folder {self.root}. {self.remedy}')
        for name in names:
            # The nearest one wins: each base, then the folders inside each.
            for depth in (0, 1):
                for base in bases:
                    found = self.nearest(base, name, depth, is_kind)
                    if found:
                        return Path(unambiguous(name, found))
        return None

    def open(self, *names: str, needed: bool = True) -> bool:
        """Choose the label file that the other methods read: the first of `names` that exists.

        Returns:
            whether there is one.

        Raises:
            InputError: there is none, and it is `needed`.
        """
        file = self.first(names, [self.root], os.path.isfile)
        if file is not None:
            self.file = file
        elif needed:
            raise InputError(
                f'{self.title}: {" or ".join(names)} is not in {self.root}. {self.remedy}'
            )
        return file is not None

    def folder(self, *names: str, default: Path | None = None) -> Path:
        """The first image folder of `names` near the label file or in the root; or `default`."""
        folder = self.first(names, [self.file.parent, self.root], os.path.isdir) or default
        if folder is None:
            raise InputError(
                f'{self.title}: there is no image folder {" or ".join(names)} in {self.root}. '
                f'{self.remedy}'
            )
        return folder

    def rows(
        self, *columns: str, sheet: str = '', header: bool = True
    ) -> Iterator[tuple[str, list[Any]]]:
        """Yields (row name, cells of `columns`) of every row of the open table below its header.

        Args:
            columns: names in the header, or numbers from '1'.
            sheet: of an Excel file; the first one by default.
            header: False for a table without a header, whose first columns are taken.
        """
        rows = read_rows(self.file, sheet)
        positions = list(range(len(columns)))
        if header:
            top, positions = self.find_header(rows, columns)
            rows = rows[top + 1 :]
        for row in rows:
            # A row of a sheet may end before its last columns.
            yield row.where, [row.cells[k] if k < len(row.cells) else '' for k in positions]

    def find_header(self, rows: list[Row], columns: Sequence[str]) -> tuple[int, list[int]]:
        """The index of the first row that has all `columns`, and their positions in it."""
        for top, row in enumerate(rows[:HEADER_ROWS]):
            found = [columns_called(column, row.cells) for column in columns]
            if all(found):
                return top, [positions[0] for positions in found]
        header = rows[0].cells if rows else []
        missing = [column for column in columns if not columns_called(column, header)]
        shown = ','.join(str(cell) for cell in header)
        raise InputError(
            f'{self.file}: there is no column {", ".join(missing)}; the header is {shown[:200]!r}'
        )

    def mat(self, *keys: str) -> list[list[Any]]:
        """The arrays `keys` of the open .mat file, each flattened and freed of nested cells."""
        arrays = []
        with reading(self.file, 'a MATLAB file') as file:
            content = scipy.io.loadmat(file, squeeze_me=True)
            for key in keys:
                if key not in content:
                    raise ValueError(f'it has no variable {key!r}')
                arrays.append(np.ravel(content[key]).tolist())
        return arrays

    def number(self, text: Any, where: str, role: str = 'score') -> float:
        """`text` as a finite float.

        Args:
            where, role: its row and its meaning, for the message.
        """
        with suppress(TypeError, ValueError):
            value = float(text)
            # Python reads 1_000 as a number, which no label file means.
            if abs(value) <= LARGEST and '_' not in str(text):
                return value
        raise InputError(
            f'{self.file}, {where}: the {role} {text!r} is not a number that fits in 32 bits; '
            'correct or remove it'
        )

    def add(
        self,
        folder: Path | str,
        name: Any,
        score: Any,
        where: str,
        content: str = '',
        in_set: str = '',
        kind: str = '',
        deep: bool = False,
    ) -> None:
        """Append the sample whose image is `name` in `folder`.

        With `average_votes`, a further row of the same image is one more vote for its sample.

        Args:
            where: the row, for messages.
            content: what the image shows; without it, the image is a content of its own.
            kind: the type of its distortion.
            deep: also look for the image in the folders inside `folder`.
        """
        name = str(name).strip(BLANK)
        path = self.find_image(folder, name, deep)
        file = identity_of(path, os.stat(path)) if os.path.isfile(path) else None
        key: Any = os.path.normpath(path)
        # If a file system ignores letter case, one file can have two paths, so votes are matched
        # by the file.
        if self.settings.average_votes and file is not None:
            key = file
        sample = Sample(
            path=path,
            score=self.number(score, where),
            content=self.merged_content(str(content)) if content else path,
            official_set=in_set,
            where=where,
            # a further vote has the number of the image's first row
            row=self.positions.get(key, len(self.samples)),
            file=file,
            facts={'type': kind} if kind else {},
        )
        if key in self.positions:
            self.add_vote(sample)
        else:
            self.positions[key] = sample.row
            self.samples.append(sample)
            self.votes.append([sample.score])

    def find_image(self, folder: Path | str, name: str, deep: bool) -> str:
        """The path of the image `name`, or its path as written if there is no such file."""
        found = self.nearest(folder, name, depth=math.inf if deep else 0)
        # A table from another machine has that machine's paths.
        if not found and self.settings.images:
            found = self.files_in(folder).paths(name, by_end=True)
            if found:
                self.found_by_end[name] = found[0]
        return unambiguous(name, found) if found else os.path.join(folder, name)

    def merged_content(self, content: str) -> str:
        """A content in its first spelling: letter case and Unicode form make no other content.

        The names of the images themselves are not merged.
        """
        if not self.has_contents:
            return content
        return self.contents.setdefault(normalized_name(content), content)

    def add_vote(self, vote: Sample) -> None:
        """Add a further row of an image to its sample's votes.

        Raises:
            InputError: votes are not averaged, or this row has another content, set or type.
        """
        first = self.samples[vote.row]
        if not self.settings.average_votes:
            # Two samples of one image could be trained on and tested on.
            raise InputError(
                f'{self.file}, {vote.where}: {vote.path} is on {first.where} already; remove one '
                'of the two, or give --average_votes where each row is a vote'
            )
        # Without contents, a row's content is the image's name as that row spells it, and two rows
        # of one image can differ in it.
        same_content = vote.content == first.content or not self.has_contents
        if not same_content or vote.official_set != first.official_set or vote.facts != first.facts:
            raise InputError(
                f'{self.file}, {vote.where}: {vote.path} has another content, set or type than on '
                f'{first.where}; correct one of the two'
            )
        self.votes[vote.row].append(vote.score)

    def average(self) -> None:
        """Give each sample its votes' mean as score, and their number and deviation as facts."""
        count = sum(len(votes) for votes in self.votes)
        log(
            f'{self.file}: the scores are the means of {count} votes for {len(self.samples)} images'
        )
        for k, votes in enumerate(self.votes):
            facts = dict(self.samples[k].facts)
            facts['votes'] = len(votes)
            # One vote has no deviation.
            facts['deviation'] = statistics.stdev(votes) if len(votes) > 1 else ''
            self.samples[k] = self.samples[k]._replace(score=statistics.fmean(votes), facts=facts)


def folders_in(folder: Path | str) -> list[Path]:
    """The folders in `folder`, sorted; none if it cannot be listed, as lost+found."""
    with suppress(OSError):
        inner = Path(folder).iterdir()
        return sorted(path for path in inner if is_entered(path.name) and path.is_dir())
    return []


def known_set(text: Any) -> str:
    """The official set that a cell means, or the cell itself if it means none.

    Such a cell is refused once official sets are used (`set_of`).
    """
    return SETS.get(word_of_set(text), str(text).strip(BLANK))


def word_of_set(text: Any) -> str:
    """The word in a set's name: 'test' of 'Test set', 'test_set' or 'testset'."""
    return re.sub('[ _-]*set$', '', normalized_name(text))


def set_of(
    text: Any,
    file: Path | str,
    where: str,
    sets: Mapping[str, str] = SETS,
    remedy: str = 'correct that row',
) -> str:
    """The official set that the cell `text` of a row means.

    Raises:
        InputError: it is none of `sets`.
    """
    found = sets.get(word_of_set(text))
    if found is None:
        raise InputError(
            f'{file}, {where}: the set {text!r} is none of {", ".join(sets)}; {remedy}'
        )
    return found


def scale_of(label_range: Sequence[float] | None, higher_is_better: bool) -> str:
    """The meaning of a score, as in '0 to 100, higher is better'."""
    unit = 'as in the file'
    if label_range:
        low, high = label_range
        unit = f'{low:g} to {high:g}'
    return f'{unit}, {"higher" if higher_is_better else "lower"} is better'
