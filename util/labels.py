"""A database's label files and images: found below its folder, each fault named with its file and row."""

import functools
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from util.errors import InputError, log
from util.files import identity_of, is_entered, reading
from util.tables import BLANK, normalized_name, read_rows

SETS = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
}
HEADER_ROWS = 10  # in which a header is looked for: an Excel sheet may have a title above it


class Sample(NamedTuple):
    """One labelled image.

    `content` names what the image shows: images of one content stay on one side of a split. `official_set` is the set
    that the labels put it in, 'train', 'val' or 'test', another word that the labels have in its place, or '' for none.
    `where` is what its row is called, and `row` the number by which a split of row numbers names it. `file` identifies its
    file, the same under all its names; None where it is missing. `facts` are further columns of predictions.csv: its
    distortion `type`, and with `average_votes` the number of `votes` and their `deviation`.
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
    """How the user wants labels to be read, where that differs from the database's table entry.

    `columns` names the columns of the user's own table by their roles; `images` is the folder at which the names in it
    start; `lower_is_better` is the direction of its scores. `split_by` is 'image' or 'content'. `skip_missing` leaves out
    listed images that are missing or unreadable. `average_votes` takes the mean of the scores of all rows of an image.
    """

    columns: Mapping[str, str] = {}
    images: str | None = None
    lower_is_better: bool | None = None
    split_by: str | None = None
    skip_missing: bool = False
    average_votes: bool = False

    @classmethod
    def of(cls, config: Any) -> 'Settings':
        """The settings in the script's options."""
        columns = dict(config.columns or {})
        if config.split not in (None, 'random', 'official'):
            columns.pop('set', None)  # it is a column of the split's table
        others = (
            config.lower_is_better,
            config.split_by,
            config.skip_missing,
            config.average_votes,
        )
        return cls(columns, getattr(config, 'image_root', None), *others)


AS_DOCUMENTED = Settings()


class Labels:
    """A database's files while its labels are read.

    Args:
        root: the database's folder; the file itself for the user's own table.
        title: the database's name in messages.
        remedy: a sentence that ends the messages about missing files.
        settings: of the user.

    Attributes:
        file: the label file that was opened last.
        find: what finds the files of an image's name in a folder: `matches` unless a reader chooses another method.
        samples: a `Sample` for every image.
        votes: the scores of all rows of each sample.
        known: paths of images that the complete database has beside its samples; a list that names them too is right.
        higher_is_better: which way the scores run, where the label file shows it.
    """

    def __init__(
        self, root: Path | str, title: str, remedy: str, settings: Settings = AS_DOCUMENTED
    ) -> None:
        self.file = self.root = Path(root)
        self.title, self.remedy, self.settings = title, remedy, settings
        self.find: Callable[[Path | str, str], list[str]] = self.matches
        self.samples: list[Sample] = []
        self.votes: list[list[float]] = []
        self.positions: dict[str, int] = {}
        self.known: list[str] = []
        self.contents: dict[str, str] = {}
        self.found_by_end: dict[str, str] = {}
        self.higher_is_better: bool | None = None
        self.names_in = functools.cache(names_in)
        self.folders_in = functools.cache(folders_in)

    def matches(
        self, folder: Path | str, name: str, is_kind: Callable[[str], bool] = os.path.isfile
    ) -> list[str]:
        """The files, or what else `is_kind` accepts, that are `name` below `folder`.

        The exact one, else all whose names differ in letter case or Unicode form alone.
        """
        path = os.path.join(folder, name)
        if is_kind(path):
            return [path]
        places = [os.sep if os.path.isabs(name) else str(folder)]
        for step in os.path.normpath(name).strip(os.sep).split(os.sep):
            key = normalized_name(step)
            entries = {
                place: ['..'] if step == '..' else self.names_in(place).get(key, [])
                for place in places
            }
            places = [os.path.join(place, entry) for place in places for entry in entries[place]]
        return [place for place in places if is_kind(place)]

    def matches_by_end(self, folder: Path | str, name: str) -> list[str]:
        """As `matches`, else the files that the longest end of the path `name` fits, as of a path on another machine.

        A folder in the name that exists in `folder` too is never left out.
        """
        steps = name.split('/')
        for k, step in enumerate(steps):
            found = self.matches(folder, '/'.join(steps[k:]))
            if found:
                if k:
                    self.found_by_end[name] = found[0]
                return found
            if step and os.path.isdir(os.path.join(folder, step)):
                break
        return []

    def matches_below(self, folder: Path | str | list[Path], name: str) -> list[str]:
        """As `matches` in the folder or in several, else in all folders inside, and so on."""
        places = folder if isinstance(folder, list) else [Path(folder)]
        found = [path for place in places for path in self.matches(place, name)]
        inner = [path for place in places for path in self.folders_in(place)]
        return self.matches_below(inner, name) if inner and not found else found

    def first(
        self, names: Sequence[str], bases: Sequence[Path], is_kind: Callable[[str], bool]
    ) -> Path | None:
        """Path of the first of `names` that exists in one of `bases` or one folder down, the nearest one, or None."""
        if not os.path.isdir(self.root):
            raise InputError(f'{self.title}: there is no folder {self.root}. {self.remedy}')
        levels = [[base] for base in bases] + [
            self.folders_in(base) for base in bases
        ]  # the nearest one first
        for name, level in itertools.product(names, levels):
            found = [path for base in level for path in self.matches(base, name, is_kind)]
            if found:
                return Path(unambiguous(name, found))
        return None

    def open(self, *names: str, needed: bool = True) -> bool:
        """Make the first of the label files `names` that exists the file that the other methods read; whether there is one."""
        file = self.first(names, [self.root], os.path.isfile)
        if file is None and needed:
            raise InputError(
                f'{self.title}: {" or ".join(names)} is not in {self.root}. {self.remedy}'
            )
        self.file = file or self.file
        return file is not None

    def folder(self, *names: str, default: Path | None = None) -> Path:
        """Path of the first image folder of `names` that exists, near the label file or the root, or `default`."""
        folder = self.first(names, [self.file.parent, self.root], os.path.isdir) or default
        if folder is None:
            raise InputError(
                f'{self.title}: there is no image folder {" or ".join(names)} in {self.root}. {self.remedy}'
            )
        return folder

    def rows(
        self, *columns: str | int, sheet: str = '', header: bool = True
    ) -> Iterator[tuple[str, list[Any]]]:
        """(row name, cells of `columns`) of every row of the open table, below its header.

        Args:
            columns: names in the header, which is the first row that has them all, or 0-based positions.
            sheet: of an Excel file; the first one by default.
            header: False for a table without one, whose lines must have as many cells as there are `columns`.
        """
        rows = read_rows(self.file, sheet)
        positions: list[Any] = list(columns)
        if header:
            headers = [
                [normalized_name(cell) for cell in row.cells] for row in rows[:HEADER_ROWS]
            ] or [[]]
            wanted = [normalized_name(name) for name in columns if isinstance(name, str)]
            top = next(
                (k for k, names in enumerate(headers) if all(name in names for name in wanted)),
                None,
            )
            if top is None:
                missing = ', '.join(
                    str(name) for name in columns if normalized_name(name) not in headers[0]
                )
                raise InputError(
                    f'{self.file}: there is no column {missing}; the header is {",".join(headers[0])[:200]!r}'
                )
            positions = [
                headers[top].index(normalized_name(name)) if isinstance(name, str) else name
                for name in columns
            ]
            rows = rows[top + 1 :]
        for where, cells, _ in rows:
            yield where, [cells[k] if k < len(cells) else '' for k in positions]

    def mat(self, *keys: str) -> list[list[Any]]:
        """The arrays `keys` of the open .mat file, each flattened and freed of nested cells."""
        with reading(self.file, 'a MATLAB file') as file:
            content = scipy.io.loadmat(file)
            missing = [key for key in keys if key not in content]
            if missing:
                raise ValueError(f'it has no variable {missing[0]!r}')
            return [[unwrapped(cell) for cell in content[key].ravel()] for key in keys]

    def number(self, text: Any, where: str, role: str = 'score') -> float:
        """`text` as a finite float; `where` is its row and `role` its meaning, for the error."""
        with suppress(TypeError, ValueError):
            value = float(text)
            if abs(value) <= np.finfo(np.float32).max and '_' not in str(text):
                return value
        raise InputError(
            f'{self.file}, {where}: the {role} {text!r} is not a number that 32 bits hold; correct or remove it'
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
    ) -> None:
        """Append the sample whose image is `name` in `folder`, as `find` finds it there.

        With `average_votes` a further row of the same image is a vote more for its sample.

        Without `content` the image is a content of its own. Spellings of a content that differ in letter case or Unicode form
        are one content, which has the first of them; of file names, which `content` can be too, they are different images.
        """
        name = str(name).strip(BLANK)
        found = self.find(folder, name) or (
            '\\' in name and self.find(folder, name.replace('\\', '/'))
        )
        path = unambiguous(name, found) if found else os.path.join(folder, name)
        file = identity_of(path, os.stat(path)) if os.path.isfile(path) else None
        content = str(content or path)
        if content not in (name, path):
            content = self.contents.setdefault(normalized_name(content), content)
        k = self.positions.setdefault(os.path.normpath(path), len(self.samples))
        sample = Sample(
            path,
            self.number(score, where),
            content,
            in_set,
            where,
            k,
            file,
            {'type': kind} if kind else {},
        )
        if k == len(self.samples):
            self.samples.append(sample)
            self.votes.append([])
        elif not self.settings.average_votes:  # it would be trained on and tested on
            remedy = 'remove one of the two, or give --average_votes where each row is a vote'
            raise InputError(
                f'{self.file}, {where}: {path} is on {self.samples[k].where} already; {remedy}'
            )
        elif self.samples[k] != sample._replace(
            score=self.samples[k].score, where=self.samples[k].where
        ):
            other = f'another content, set or type than on {self.samples[k].where}; correct one of the two'
            raise InputError(f'{self.file}, {where}: {path} has {other}')
        self.votes[k].append(sample.score)

    def average(self) -> None:
        """Give each sample the mean of its votes as its score, and their number and deviation as facts."""
        log(
            f'{self.file}: the scores are the means of {sum(map(len, self.votes))} votes for {len(self.samples)} images'
        )
        for k, (sample, votes) in enumerate(zip(self.samples, self.votes)):
            facts = {
                **sample.facts,
                'votes': len(votes),
                'deviation': statistics.stdev(votes) if len(votes) > 1 else '',
            }
            self.samples[k] = sample._replace(score=statistics.fmean(votes), facts=facts)


def names_in(folder: str) -> dict[str, list[str]]:
    """The names in `folder` by their normalized form; none where it cannot be listed."""
    found: dict[str, list[str]] = {}
    with suppress(OSError, ValueError):
        for name in sorted(os.listdir(folder or '.')):
            found.setdefault(normalized_name(name), []).append(name)
    return found


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder` by name; none where it cannot be listed."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if is_entered(path.name) and path.is_dir())
    return []


def known_set(text: Any) -> str:
    """The official set that a cell means, or its own word where that is none; whether it will do shows where sets are used."""
    return SETS.get(normalized_name(text), str(text).strip(BLANK))


def set_of(
    text: Any,
    file: Path | str,
    where: str,
    sets: Mapping[str, str] = SETS,
    remedy: str = 'correct that row',
) -> str:
    """The official set that the cell `text` of a row means."""
    found = sets.get(normalized_name(text))
    if found is None:
        raise InputError(
            f'{file}, {where}: the set {text!r} is none of {", ".join(sets)}; {remedy}'
        )
    return found


def scale_of(label_range: Sequence[float] | None, higher_is_better: bool) -> str:
    """What a score means, as in '0 to 100, higher is better'."""
    unit = '{:g} to {:g}'.format(*label_range) if label_range else 'as in the file'
    return f'{unit}, {"higher" if higher_is_better else "lower"} is better'


def unambiguous(name: str, found: list[str]) -> str:
    if len(found) > 1:
        raise InputError(
            f'{name} can be {" or ".join(found[:3])}, equally near; remove or rename all but one'
        )
    return found[0]


def unwrapped(cell: Any) -> Any:
    """The number or string inside the nested one-element arrays that MATLAB cells become."""
    while isinstance(cell, np.ndarray) and cell.size:
        cell = cell.ravel()[0]
    return cell.item() if isinstance(cell, np.generic) else cell
