"""Image quality databases: their labels, their images, and the unit that a split must not cut through.

`DATABASES` holds everything that differs between them; `OpenDatabase` is one of them on disk; the `*Folder` classes are the
original's datasets.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from util import demo_database
from util.distributed import say
from util.errors import InputError
from util.frames import CachedFrames, DirectFrames, folder_of, load_image, open_frames
from util.labels import Labels, Sample, listing, read_text


def read_live(labels: Labels) -> None:
    labels.open('refnames_all.mat')
    (references,) = labels.mat('refnames_all')
    labels.open('dmos_realigned.mat', 'dmos.mat')
    scores, pristine = labels.mat('dmos_new' if labels.file.name == 'dmos_realigned.mat' else 'dmos', 'orgs')
    names = [
        f'{kind}/img{k}.bmp'
        for kind, count in (('jp2k', 227), ('jpeg', 233), ('wn', 174), ('gblur', 174), ('fastfading', 174))
        for k in range(1, count + 1)
    ]
    if not len(names) == len(scores) == len(pristine) == len(references):
        raise InputError(
            f'{labels.file}: {len(scores)} scores and {len(references)} reference names for '
            f'{len(names)} images; use the label files of the second release'
        )
    base = labels.folder('jp2k').parent
    for k, name in enumerate(names):
        if not pristine[k]:
            labels.add(base / name, scores[k], f'entry {k + 1}', references[k])


def read_csiq(labels: Labels) -> None:
    labels.open('csiq_label.txt')
    folder = labels.folder('dst_imgs_all', 'dst_imgs')
    files = listing(folder)
    for where, (name, score) in labels.text_rows(2):
        labels.add(files.get(name.lower(), folder / name), score, where, name.split('.')[0])


def read_tid2013(labels: Labels) -> None:
    labels.open('mos_with_names.txt')
    folder = labels.folder('distorted_images')
    files = listing(folder)
    for where, (score, name) in labels.text_rows(2):
        labels.add(files.get(name.lower(), folder / name), score, where, name[:3].upper())


def read_kadid10k(labels: Labels) -> None:
    labels.open('dmos.csv')
    folder = labels.folder('images')
    for where, row in labels.csv_rows('dist_img', 'ref_img', 'dmos'):
        labels.add(folder / row['dist_img'], row['dmos'], where, row['ref_img'])


def read_livec(labels: Labels) -> None:
    labels.open('Data/AllImages_release.mat', 'AllImages_release.mat')
    (names,) = labels.mat('AllImages_release')
    labels.open('Data/AllMOS_release.mat', 'AllMOS_release.mat')
    (scores,) = labels.mat('AllMOS_release')
    if len(names) != len(scores):
        raise InputError(
            f'{labels.file}: {len(scores)} scores for the {len(names)} names in AllImages_release.mat; download both again'
        )
    folder = labels.folder('Images')
    for k in range(7, len(names)):  # the first seven were for training the observers and lie in Images/trainingImages
        labels.add(folder / names[k], scores[k], f'entry {k + 1}')


def read_koniq(labels: Labels) -> None:
    scores_file, sets_file = 'koniq10k_scores_and_distributions.csv', 'koniq10k_distributions_sets.csv'
    sets: dict[str, str] = {}
    if labels.find(sets_file):
        labels.open(sets_file)
        sets = {row['image_name']: labels.part(row['set'], where) for where, row in labels.csv_rows('image_name', 'set')}
    labels.open(scores_file, sets_file)
    score = 'MOS_zscore' if labels.file.name == scores_file else 'MOS'
    folder = labels.folder('1024x768', '512x384')
    for where, row in labels.csv_rows('image_name', score):
        labels.add(folder / row['image_name'], row[score], where, part=sets.get(row['image_name'], ''))


def read_bid(labels: Labels) -> None:
    labels.open('DatabaseGrades.xlsx', 'DatabaseGrades.xls')
    base = next((base for base in labels.near() if any(base.glob('DatabaseImage*.JPG'))), labels.root)
    for where, (image, grade) in labels.sheet_rows(0, 1):
        number = labels.number(image, where, 'image number')
        labels.add(base / f'DatabaseImage{number:04g}.JPG', grade, where)


def read_spaq(labels: Labels) -> None:
    labels.open('Annotations/MOS and Image attribute scores.xlsx', 'MOS and Image attribute scores.xlsx')
    folder = labels.folder('TestImage')
    for where, (name, score) in labels.sheet_rows('Image name', 'MOS'):
        labels.add(folder / str(name), score, where)


def read_flive(labels: Labels) -> None:
    labels.open('labels_image.csv')
    folder = labels.folder('database')
    flags = {'true': 'train', '1': 'train', 'false': 'test', '0': 'test'}
    for where, row in labels.csv_rows('name', 'mos'):
        part = labels.part(row['is_train'], where, flags) if 'is_train' in row else ''
        labels.add(folder / row['name'], row['mos'], where, part=part)


def read_agiqa3k(labels: Labels) -> None:
    labels.open('data.csv')
    folder = labels.file.parent
    if (folder / 'images').is_dir():
        folder = folder / 'images'
    for where, row in labels.csv_rows('name', 'mos_quality'):
        labels.add(folder / row['name'], row['mos_quality'], where)


def read_demo(labels: Labels) -> None:
    labels.open('labels.csv')
    for where, row in labels.csv_rows('image', 'score', 'content'):
        labels.add(labels.root / row['image'], row['score'], where, row['content'])


CSV_COLUMNS = {
    'image': ('image', 'image_name', 'name', 'filename'),
    'score': ('score', 'mos', 'dmos'),
    'content': ('content',),
    'set': ('set',),
}


def csv_columns(file: Path | str) -> tuple[str, dict[str, str]]:
    """Reads the header of the user's own CSV file.

    Returns:
        (delimiter, dict): the dict gives the header's name for each role in `CSV_COLUMNS` that the file has.

    Raises:
        InputError: there is no such file, no image or score column, or two columns for one role.
    """
    if not Path(file).is_file():
        raise InputError(f'there is no file {file}; --csv FILE names the table of your images and scores')
    line = next(iter(read_text(file).splitlines()), '')
    known = {name for names in CSV_COLUMNS.values() for name in names}
    delimiter = max(',;\t', key=lambda mark: sum(cell.strip(' "').lower() in known for cell in line.split(mark)))
    header = next(csv.reader([line], delimiter=delimiter), [])
    columns = {}
    for role, names in CSV_COLUMNS.items():
        found = [name for name in header if name.strip().lower() in names]
        if len(found) > 1:
            raise InputError(f'{file}, line 1: {" and ".join(found)} can each be the column of the {role}; rename one')
        if found:
            columns[role] = found[0]
        elif role in ('image', 'score'):
            raise InputError(
                f'{file}, line 1: no column is the {role}; name it {" or ".join(names)} in the header, which is {line!r}'
            )
    return delimiter, columns


def read_csv(labels: Labels) -> None:
    delimiter, columns = csv_columns(labels.root)
    labels.file = labels.root
    line_of: dict[str, str] = {}
    for where, row in labels.csv_rows(*columns.values(), delimiter=delimiter, strict=True):
        cells = {role: row[column].strip() for role, column in columns.items()}
        for role, cell in cells.items():
            if not cell:
                raise InputError(f'{labels.file}, {where}: the {role} is empty; fill it in or remove that row')
        path = os.path.join(os.path.dirname(labels.file), cells['image'])
        first = line_of.setdefault(os.path.normpath(path), where)
        if first != where:
            raise InputError(f'{labels.file}, {where}: {cells["image"]} is on {first} already; remove one of the two')
        score = cells['score'] if delimiter == ',' else re.sub(r'^([+-]?\d*),(\d+)$', r'\1.\2', cells['score'])
        part = labels.part(cells['set'], where) if 'set' in cells else ''
        labels.add(path, score, where, cells.get('content', cells['image']), part)


@dataclass(frozen=True)
class Database:
    """What differs between databases.

    Args:
        read: fills a `Labels` with samples.
        images: how many samples the complete database has, or None where that is the user's affair.
        source, layout: where to get it, and what its folder holds.
        score_range: (low, high) of the label's unit; single scores may lie beyond. None: as in the user's file.
        higher_is_better: False for a DMOS.
        by_content: a split keeps the images of one content together; otherwise it draws single images.
        official: the labels can name the official set of each image.
        resize: (height, width) that every image is resized to before it is cropped, or None.
        exif_rotation: images are turned as their EXIF orientation says.
        defaults: options of the script that this database sets unless the user does.
    """

    title: str
    read: Callable[[Labels], None]
    images: int | None
    source: str
    layout: str
    score_range: tuple[float, float] | None
    higher_is_better: bool = True
    by_content: bool = False
    official: bool = False
    resize: tuple[int, int] | None = None
    exif_rotation: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


DATABASES = {
    'live': Database(
        'LIVE',
        read_live,
        779,
        'https://live.ece.utexas.edu/research/Quality/subjective.htm',
        'dmos_realigned.mat, refnames_all.mat, jp2k/, jpeg/, wn/, gblur/ and fastfading/',
        (0, 100),
        higher_is_better=False,
        by_content=True,
    ),
    'csiq': Database(
        'CSIQ',
        read_csiq,
        866,
        'https://s2.smu.edu/~eclarson/csiq.html',
        'csiq_label.txt (from the original HyperIQA project) and dst_imgs_all/, or dst_imgs/ with a folder for each type',
        (0, 1),
        higher_is_better=False,
        by_content=True,
    ),
    'tid2013': Database(
        'TID2013',
        read_tid2013,
        3000,
        'https://www.ponomarenko.info/tid2013.htm',
        'mos_with_names.txt and distorted_images/',
        (0, 9),
        by_content=True,
    ),
    'kadid10k': Database(
        'KADID-10k',
        read_kadid10k,
        10125,
        'https://database.mmsp-kn.de/kadid-10k-database.html',
        'dmos.csv and images/',
        (1, 5),
        by_content=True,
    ),
    'livec': Database(
        'LIVE Challenge',
        read_livec,
        1162,
        'https://live.ece.utexas.edu/research/ChallengeDB/index.html',
        'Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/',
        (0, 100),
    ),
    'koniq': Database(
        'KonIQ-10k',
        read_koniq,
        10073,
        'https://database.mmsp-kn.de/koniq-10k-database.html',
        'koniq10k_scores_and_distributions.csv (or koniq10k_distributions_sets.csv, which has the '
        'official sets) and 1024x768/ (or 512x384/)',
        (0, 100),
        official=True,
        resize=(512, 384),
    ),
    'bid': Database(
        'BID',
        read_bid,
        586,
        'http://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm',
        'DatabaseGrades.xlsx (or .xls) and DatabaseImage0001.JPG ..., beside it or in ImageDatabase/',
        (0, 5),
        resize=(512, 512),
    ),
    'spaq': Database(
        'SPAQ',
        read_spaq,
        11125,
        'https://github.com/h4nwei/SPAQ',
        'Annotations/MOS and Image attribute scores.xlsx and TestImage/',
        (0, 100),
        resize=(512, 384),
        exif_rotation=True,
    ),
    'flive': Database(
        'FLIVE',
        read_flive,
        39810,
        'https://github.com/baidut/PaQ-2-PiQ',
        'labels_image.csv and database/ with its folders',
        (0, 100),
        official=True,
        resize=(512, 512),
    ),
    'agiqa3k': Database(
        'AGIQA-3K',
        read_agiqa3k,
        2982,
        'https://github.com/lcysyzxdxc/AGIQA-3k-Database',
        'data.csv and the images, beside it or in images/',
        (0, 5),
    ),
    'csv': Database(
        'your images',
        read_csv,
        None,
        'yours',
        '--csv FILE with the columns image and score (or dmos: lower is better), optionally content (its '
        'images stay together in a split) and set (train, val or test)',
        None,
        by_content=True,
        official=True,
        exif_rotation=True,
    ),
    'demo': Database(
        'the demo database',
        read_demo,
        demo_database.IMAGES,
        'this project: it is generated on first use',
        'labels.csv and its images',
        (1, 5),
        by_content=True,
        defaults=demo_database.DEFAULTS,
    ),
}
ALIASES = {'koniq-10k': 'koniq'}


def database_key(name: str) -> str:
    """The key in `DATABASES` of a name or alias, in any letter case."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in DATABASES:
        raise InputError(f'there is no database {name!r}; choose one of {", ".join(DATABASES)}')
    return key


def advice(key: str, path: Path | str) -> str:
    """What to do where files of the database `key` are missing in `path`."""
    if key == 'csv':
        return f'Each line names an image and its score; a relative name starts at {Path(path).parent}{os.sep}'
    return (
        f'Get the database from {DATABASES[key].source} and unpack it so that the folder holds '
        f'{DATABASES[key].layout}; --data_root DIR names another place.'
    )


def read_samples(dataset: str, path: Path | str) -> list[Sample]:
    """Reads a database's labels and finds its images.

    Args:
        dataset: a key of `DATABASES`, or an alias.
        path: the database's folder; the file itself for `csv`. The demo database is generated there if it is not there
            yet.

    Returns:
        the samples in the order of the label file.

    Raises:
        InputError: the folder, the label file or images are missing, or a row of the labels is wrong.
    """
    key = database_key(dataset)
    if key == 'demo':
        demo_database.generate(path)
    database = DATABASES[key]
    labels = Labels(path, database.title, advice(key, path))
    database.read(labels)
    if not labels.samples:
        raise InputError(f'{labels.file} lists no image. {labels.advice}')
    missing = [
        f'{sample.path} ({where})' for sample, where in zip(labels.samples, labels.places) if not os.path.isfile(sample.path)
    ]
    if missing:
        raise InputError(
            f'{database.title}: {len(missing)} of the {len(labels.samples)} images that '
            f'{labels.file} lists are missing, the first of them {", ".join(missing[:5])}. '
            f'{labels.advice}'
        )
    return labels.samples


class OpenDatabase:
    """A database whose labels are read; `open_frames` opens its images too.

    Args:
        dataset, path: as in `read_samples`.
        resize: (height, width) that every image is resized to, instead of the database's own.

    Attributes:
        key: its name in `DATABASES`, and `entry` what stands there.
        samples: its `Sample`s, in the order of the label file.
        units: what a split draws from: for each unit, the positions of its samples. A unit is a content, in the order
            of their names, for the databases that are split by content, and an image for the others.
        frames: its images (see `util/frames.py`), once they are open.

    Raises:
        InputError: as `read_samples`.
    """

    frames: DirectFrames | CachedFrames

    def __init__(self, dataset: str, path: Path | str, resize: Sequence[int] | None = None) -> None:
        self.key = database_key(dataset)
        self.entry = DATABASES[self.key]
        self.path = path
        self.resize = resize or self.entry.resize
        self.samples = read_samples(self.key, path)
        self.units = split_units(self.key, self.samples)

    def open_frames(self, smallest: int, cache: Path | str | None = None) -> 'OpenDatabase':
        """Make the images ready, decoding them into the cache if need be (see `util.frames.open_frames`); returns itself."""
        paths = [sample.path for sample in self.samples]
        self.frames = open_frames(paths, self.path, self.key, smallest, self.resize, self.entry.exif_rotation, cache)
        return self

    def images(self, units: Iterable[int]) -> list[int]:
        """Positions of the samples of `units`, in their order."""
        return [k for unit in units for k in self.units[unit]]

    def names(self, positions: Iterable[int]) -> list[str]:
        """The samples' names in the files of a run: their paths below the database's folder, the same on every machine."""
        start = folder_of(self.path)
        return [Path(os.path.relpath(self.samples[k].path, start)).as_posix() for k in positions]

    @cached_property
    def digest(self) -> str:
        """A hash of the samples' names, scores, contents and official sets."""
        start = folder_of(self.path)
        rows = zip(self.names(range(len(self.samples))), self.samples)
        facts = [[name, sample.score, sample.content.removeprefix(f'{start}{os.sep}'), sample.part] for name, sample in rows]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score means a better image; the header of the file tells it for `csv`."""
        if self.key == 'csv':
            _, columns = csv_columns(self.path)
            return columns['score'].strip().lower() != 'dmos'
        return self.entry.higher_is_better

    @property
    def score_range(self) -> tuple[float, float]:
        """(low, high) of the scores: nominal, or of the samples for `csv`."""
        if self.entry.score_range:
            return self.entry.score_range
        scores = [sample.score for sample in self.samples]
        if min(scores) == max(scores):
            raise InputError(f'{self.entry.title}: all {len(scores)} scores are {scores[0]:g}; give scores that differ')
        return min(scores), max(scores)

    def warn_of_count(self) -> None:
        """Say on stderr if the labels list more or fewer images than the complete database has."""
        if self.entry.images not in (None, len(self.samples)):
            say(
                f'warning: {self.entry.title} has {self.entry.images} images; '
                f'{len(self.samples)} are listed in the labels of this copy'
            )


def split_units(key: str, samples: list[Sample]) -> list[list[int]]:
    """The `OpenDatabase.units` of `samples`."""
    if not DATABASES[key].by_content:
        return [[k] for k in range(len(samples))]
    units: dict[str, list[int]] = {content: [] for content in sorted({sample.content for sample in samples})}
    for k, sample in enumerate(samples):
        units[sample.content].append(k)
    return list(units.values())


def dataset_table() -> str:
    """All databases as a Markdown table."""
    lines = [
        '| `--dataset` | database | images | scores | a split draws | before the crop | get it from | its folder holds |',
        '|' + '---|' * 8,
    ]
    for key, database in DATABASES.items():
        names = [key] + [alias for alias, target in ALIASES.items() if target == key]
        scores = '{} to {}'.format(*database.score_range) if database.score_range else 'as in the file'
        polarity = 'higher' if database.higher_is_better else 'lower'
        unit = 'contents' if database.by_content else 'images'
        steps = ['EXIF rotation'] * database.exif_rotation
        if database.resize:
            steps.append('resize to {} x {} (height x width)'.format(*database.resize))
        cells = [
            ', '.join(f'`{name}`' for name in names),
            database.title,
            database.images or 'any number',
            f'{scores}, {polarity} is better',
            unit + ', or the official sets' * database.official,
            ', '.join(steps) or 'nothing',
            database.source,
            database.layout,
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


class DatabaseFolder:
    """A database as a map-style dataset, as torch's DataLoader takes it, of (transformed image, score).

    Each image comes `patch_num` times in a row.

    Args:
        root: the database's folder.
        index: positions of the wanted units (see `OpenDatabase`): images, or references where the split is by content.
        transform: turns a `PIL.Image` into what the dataset gives.
        patch_num: how many patches an epoch takes from each image.
    """

    dataset: str

    def __init__(self, root: Path | str, index: Iterable[int], transform: Callable[[Image.Image], Any], patch_num: int) -> None:
        database = OpenDatabase(self.dataset, root)
        images = [database.samples[k] for k in database.images(index)]
        self.samples = [(sample.path, sample.score) for sample in images for _ in range(patch_num)]
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, float]:
        path, score = self.samples[index]
        exif_rotation = DATABASES[self.dataset].exif_rotation
        return self.transform(load_image(path, exif_rotation=exif_rotation)), score

    def __len__(self) -> int:
        return len(self.samples)


class LIVEFolder(DatabaseFolder):
    dataset = 'live'


class LIVEChallengeFolder(DatabaseFolder):
    dataset = 'livec'


class CSIQFolder(DatabaseFolder):
    dataset = 'csiq'


class Koniq_10kFolder(DatabaseFolder):
    dataset = 'koniq'


class BIDFolder(DatabaseFolder):
    dataset = 'bid'


class TID2013Folder(DatabaseFolder):
    dataset = 'tid2013'


class KADID10kFolder(DatabaseFolder):
    dataset = 'kadid10k'


class SPAQFolder(DatabaseFolder):
    dataset = 'spaq'


class FLIVEFolder(DatabaseFolder):
    dataset = 'flive'


class AGIQA3kFolder(DatabaseFolder):
    dataset = 'agiqa3k'
