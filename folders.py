"""Image quality databases: their labels, their images, and the unit that a split must not cut through.

`DATABASES` holds everything that differs between them; `OpenDatabase` is one of them on disk; the `*Folder` classes are the
original's datasets.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from util import demo_database
from util.distributed import say
from util.errors import InputError
from util.frames import CachedFrames, DirectFrames, folder_of, image_size, load_image, on_all_cores, open_frames
from util.labels import AS_DOCUMENTED, Labels, Sample, Settings, plain, table_text

THUMBNAIL = 256  # pixels, at most


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
            labels.add(base, name, scores[k], f'entry {k + 1}', references[k])


CSIQ_TYPES = {'noise': 'AWGN', 'jpeg 2000': 'jpeg2000'}  # of the authors' sheet, where the file names differ


def read_csiq(labels: Labels) -> None:
    labels.open('csiq_label.txt', 'csiq.beta.xlsx')
    folder = labels.folder('dst_imgs_all', 'dst_imgs')
    if labels.file.suffix == '.txt':
        for where, (name, score) in labels.text_rows(2):
            labels.add(folder, name, score, where, name.split('.')[0], deep=True)
        return
    for where, (image, kind, level, score) in labels.sheet_rows('image', 'dst_type', 'dst_lev', 'dmos', sheet='all_by_image'):
        image = f'{image:g}' if isinstance(image, float) else str(image).strip()
        kind = CSIQ_TYPES.get(str(kind).strip().lower(), str(kind).strip())
        level = labels.number(level, where, 'distortion level')
        labels.add(folder, f'{image}.{kind}.{level:g}.png', score, where, image, deep=True)


def read_tid2013(labels: Labels) -> None:
    labels.open('mos_with_names.txt')
    folder = labels.folder('distorted_images')
    for where, (score, name) in labels.text_rows(2):
        labels.add(folder, name, score, where, name[:3].upper(), deep=True)


def read_kadid10k(labels: Labels) -> None:
    labels.open('dmos.csv')
    folder = labels.folder('images')
    for where, row in labels.csv_rows('dist_img', 'ref_img', 'dmos'):
        labels.add(folder, row['dist_img'], row['dmos'], where, row['ref_img'])


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
        labels.add(folder, str(names[k]), scores[k], f'entry {k + 1}')


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
        labels.add(folder, row['image_name'], row[score], where, part=sets.get(row['image_name'], ''))


def read_bid(labels: Labels) -> None:
    labels.open('DatabaseGrades.xlsx', 'DatabaseGrades.xls')
    places = [base for level in labels.near() for base in level]
    base = next(
        (base for base in places if any('databaseimage' in name for name in labels.finder.listing(str(base)))), labels.root
    )
    for where, (image, grade) in labels.sheet_rows(0, 1):
        number = labels.number(image, where, 'image number')
        labels.add(base, f'DatabaseImage{number:04g}.JPG', grade, where)


def read_spaq(labels: Labels) -> None:
    name = 'MOS and Image attribute scores'
    labels.open(*(f'{folder}{name}.{kind}' for kind in ('xlsx', 'csv') for folder in ('Annotations/', '')))
    folder = labels.folder('TestImage')
    if labels.file.suffix.lower() == '.csv':
        for where, row in labels.csv_rows('Image name', 'MOS'):
            labels.add(folder, row['Image name'], row['MOS'], where)
    else:
        for where, (image, score) in labels.sheet_rows('Image name', 'MOS'):
            labels.add(folder, str(image), score, where)


def read_flive(labels: Labels) -> None:
    sets = flive_sets(labels)
    labels.open('labels_image.csv')
    folder = labels.folder('database', 'FLIVE', default=labels.file.parent)
    for where, row in labels.csv_rows('name', 'mos'):
        labels.add(folder, row['name'], row['mos'], where, part=sets.get(row['name'], 'train') if sets else '')


def flive_sets(labels: Labels) -> dict[str, str]:
    """The authors' test and validation images by name, if both of their files are there; all others train."""
    sets: dict[str, str] = {}
    for part, file in (('test', 'labels640.csv'), ('val', 'labels=640_padded.csv')):
        if not labels.find(file):
            return {}
        labels.open(file)
        for where, row in labels.csv_rows('name_image', *['is_valid'] * (part == 'val')):
            if part == 'test' or labels.part(row['is_valid'], where, {'true': 'val', '1': 'val', 'false': '', '0': ''}):
                sets.setdefault(row['name_image'], part)
    return sets


def read_agiqa3k(labels: Labels) -> None:
    labels.open('data.csv')
    folder = labels.folder('images', 'img', 'AGIQA-3K', default=labels.file.parent)
    for where, row in labels.csv_rows('name', 'prompt', 'mos_quality'):
        labels.add(folder, row['name'], row['mos_quality'], where, row['prompt'])


def read_demo(labels: Labels) -> None:
    labels.open('labels.csv')
    for where, row in labels.csv_rows('image', 'score', 'content'):
        labels.add(labels.root, row['image'], row['score'], where, row['content'])


CSV_COLUMNS = {  # found in tables of other people
    'image': (
        *('image', 'image_name', 'img_name', 'image name', 'name_image', 'name', 'filename', 'file_name', 'img_path'),
        *('image_path', 'image path', 'dist_img', 'dist_name', 'dis_img_path'),
    ),
    'score': (
        *('score', 'mos', 'dmos', 'quality_mos', 'mos_quality', 'qmos', 'mos_image', 'elo_score', 'jod', 'gt_score'),
        'human_score',
    ),
    'content': ('content', 'reference', 'ref_name', 'ref_img', 'ref_img_path', 'hq_name', 'scene'),
    'set': ('set', 'split', 'official_split'),
}


class Table(NamedTuple):
    """How a user's own table is laid out.

    Attributes:
        header: its columns, and `named` whether its first line names them.
        columns: the header's name for each role in `CSV_COLUMNS` that the file has.
    """

    delimiter: str
    header: list[str]
    named: bool
    columns: dict[str, str]


def read_layout(file: Path | str, chosen: Mapping[str, str]) -> Table:
    """Reads the header of a user's own table.

    Args:
        chosen: columns by role that the user names.

    Raises:
        InputError: there is no such file, no image or score column, or two columns for one role.
    """
    if not os.path.isfile(file):
        raise InputError(f'there is no file {file}; --csv FILE names the table of your images and scores')
    before, text, delimiter = table_text(file)
    line = next(iter(text.splitlines()), '')
    bare = re.fullmatch(r'[^\t,;]*?\S( *[\t;] *| *,(?=[^,]*$) *| +)[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?\s*', line)
    known = {plain(name) for names in [*CSV_COLUMNS.values(), chosen.values()] for name in names} | set(chosen.values())
    delimiter = delimiter or max(',;\t', key=lambda mark: sum(plain(cell.strip(' "')) in known for cell in line.split(mark)))
    header = next(csv.reader([line], delimiter=delimiter), [])
    if bare and not any(plain(name.strip()) in known for name in header):
        return Table(bare[1].strip(' ') or ' ', ['image', 'score'], False, {'image': 'image', 'score': 'score'})
    columns = {}
    for role, names in CSV_COLUMNS.items():
        names = (plain(chosen[role]),) if role in chosen else names
        found = [name for name in header if plain(name.strip()) in names]
        if len(found) > 1:
            raise InputError(
                f'{file}, line {before + 1}: {" and ".join(found)} can each be the column of the {role}; '
                f'--columns {role}={found[0].strip()} settles it'
            )
        if found:
            columns[role] = found[0]
        elif role in ('image', 'score') or role in chosen:
            raise InputError(
                f'{file}, line {before + 1}: no column is the {role}; name it {" or ".join(names[:4])}, or say --columns '
                f'{role}=NAME; the header is {line[:200]!r}'
            )
    return Table(delimiter, header, True, columns)


def read_csv(labels: Labels) -> None:
    labels.file = labels.root
    table = read_layout(labels.file, labels.settings.columns)
    start = labels.settings.images or os.path.dirname(labels.file)
    header = None if table.named else table.header
    rows = labels.csv_rows(*table.columns.values(), header=header, delimiter=table.delimiter, strict=True)
    if table.delimiter == ' ':
        rows = labels.spaced_rows()
    ignored = [name for name in table.header if name.strip() and name not in table.columns.values()]
    seen: dict[str, list[str]] = {name: [] for name in ignored}
    for where, row in rows:
        cells = {role: row[column].strip() for role, column in table.columns.items()}
        for role, cell in cells.items():
            if not cell:
                raise InputError(f'{labels.file}, {where}: the {role} is empty; fill it in or remove that row')
        score = cells['score']
        if table.delimiter not in ', ':
            score = re.sub(r'^([+-]?\d*),(\d+)$', r'\1.\2', score)
        part = labels.part(cells['set'], where) if 'set' in cells else ''
        labels.add(start, cells['image'], score, where, cells.get('content', cells['image']), part)
        for name in ignored:
            seen[name].append(row.get(name) or '')
    tell_layout(labels, table, ignored)
    if 'content' not in table.columns:
        warn_of_references(labels, seen)


def tell_layout(labels: Labels, table: Table, ignored: list[str]) -> None:
    """Set which way the scores run, and say on stderr what was taken from a user's own table."""
    by_name = plain(table.columns['score'].strip()) != 'dmos'
    lower = labels.settings.lower_is_better
    labels.higher_is_better = by_name if lower is None else not lower
    direction = f'{"higher" if labels.higher_is_better else "lower"} is better'
    if lower is None and not by_name:
        direction += ', as a column named dmos is read; --higher_is_better or --lower_is_better settles it'
    taken = ', '.join(f'{role} from {column.strip()!r}' for role, column in table.columns.items())
    if not table.named:
        taken = 'no header, so each line is a name and a score'
    rest = f'; ignored: {", ".join(repr(name.strip()) for name in ignored)}' if ignored else ''
    say(f'{labels.file}: {taken}; {direction}{rest}')


def warn_of_references(labels: Labels, columns: dict[str, list[str]]) -> None:
    """Say on stderr which of the ignored `columns` looks like the name of what the images show.

    That is one whose cells, each of several images, are how those images' file names start.
    """
    names = [plain(os.path.basename(sample.path.replace('\\', '/'))) for sample in labels.samples]
    for column, cells in columns.items():
        stems = [plain(os.path.splitext(os.path.basename(cell.strip().replace('\\', '/')))[0]) for cell in cells]
        starts = all(stem and name.startswith(stem) for stem, name in zip(stems, names))
        if stems and starts and len(set(stems)) < len(stems):
            say(
                f'warning: the column {column!r} of {labels.file} looks like the reference of each image and is not used: '
                f'images of one scene on both sides of a split inflate every score; '
                f'--columns content={column} keeps them together'
            )


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
        'csiq_label.txt (from the original HyperIQA project) or csiq.beta.xlsx, and dst_imgs_all/, or dst_imgs/ with a folder '
        'for each type',
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
        'Annotations/MOS and Image attribute scores.xlsx (or .csv) and TestImage/',
        (0, 100),
        resize=(512, 384),
        exif_rotation=True,
    ),
    'flive': Database(
        'FLIVE',
        read_flive,
        39810,
        'https://github.com/baidut/PaQ-2-PiQ',
        'labels_image.csv, for the official sets also labels640.csv and labels=640_padded.csv, and database/ (or FLIVE/) '
        'with its folders, or those folders',
        (0, 100),
        official=True,
        resize=(512, 512),
    ),
    'agiqa3k': Database(
        'AGIQA-3K',
        read_agiqa3k,
        2982,
        'https://github.com/lcysyzxdxc/AGIQA-3k-Database',
        'data.csv and the images, beside it or in images/, img/ or AGIQA-3K/; --split_by content splits by prompt',
        (0, 5),
    ),
    'csv': Database(
        'your images',
        read_csv,
        None,
        'yours',
        '--csv FILE with the columns image and score (or dmos: lower is better), optionally content (its '
        'images stay together in a split) and set (train, val or test); many other names are known',
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


def advice(key: str, path: Path | str, settings: Settings) -> str:
    """What to do where files of the database `key` are missing in `path`."""
    if key == 'csv':
        start = settings.images or f'{Path(path).parent}{os.sep}'
        return f'Each line names an image and its score; a relative name starts at {start} or at --data_root DIR.'
    return (
        f'Get the database from {DATABASES[key].source} and unpack it so that the folder holds '
        f'{DATABASES[key].layout}; --data_root DIR names another place.'
    )


def read_samples(dataset: str, path: Path | str) -> list[Sample]:
    """The samples of `read_labels`, in the order of the label file."""
    return read_labels(dataset, path).samples


def read_labels(dataset: str, path: Path | str, settings: Settings = AS_DOCUMENTED) -> Labels:
    """Reads a database's labels and finds its images.

    Args:
        dataset: a key of `DATABASES`, or an alias.
        path: the database's folder; the file itself for `csv`. The demo database is generated there if it is not there
            yet.

    Raises:
        InputError: the folder, the label file or images are missing, or a row of the labels is wrong.
    """
    key = database_key(dataset)
    if key == 'demo':
        demo_database.generate(path)
    database = DATABASES[key]
    labels = Labels(path, database.title, advice(key, path, settings), settings)
    database.read(labels)
    if not labels.samples:
        raise InputError(f'{labels.file} lists no image. {labels.advice}')
    labels.refuse_repeated()
    missing = [
        f'{sample.path} ({where})' for sample, where in zip(labels.samples, labels.places) if not os.path.isfile(sample.path)
    ]
    if missing and not settings.skip_missing:
        raise InputError(
            f'{database.title}: {len(missing)} of the {len(labels.samples)} images that '
            f'{labels.file} lists are missing, the first of them {", ".join(missing[:5])}. '
            f'{labels.advice} --skip_missing leaves them out.'
        )
    return labels


def fault_of(sample: Sample, exif_rotation: bool) -> str:
    """Why the image of a sample cannot be used, or ''."""
    if not os.path.isfile(sample.path):
        return 'missing'
    try:
        load_image(sample.path, exif_rotation=exif_rotation)
    except InputError as error:
        return str(error)
    return ''


class OpenDatabase:
    """A database whose labels are read; `open_frames` opens its images too.

    Args:
        dataset, path: as in `read_samples`.
        resize: (height, width) that every image is resized to, instead of the database's own.
        settings: how the labels are read.

    Attributes:
        key: its name in `DATABASES`, and `entry` what stands there.
        samples: its `Sample`s, in the order of the label file, and `rows` the 0-based row of each among all listed images.
        left_out: with `settings.skip_missing`, for each image that is listed and left out its name, row and the reason.
        units: what a split draws from: for each unit, the positions of its samples. A unit is a content, in the order
            of their names, for the databases that are split by content, and an image for the others.
        frames: its images (see `util/frames.py`), once they are open.

    Raises:
        InputError: as `read_labels`, or all scores are equal.
    """

    frames: DirectFrames | CachedFrames

    def __init__(
        self, dataset: str, path: Path | str, resize: Sequence[int] | None = None, settings: Settings = AS_DOCUMENTED
    ) -> None:
        self.key = database_key(dataset)
        self.entry = DATABASES[self.key]
        self.path = path
        self.resize = resize or self.entry.resize
        self.settings = settings
        labels = read_labels(self.key, path, settings)
        self.samples, self.rows = labels.samples, list(range(len(labels.samples)))
        self.left_out: list[dict[str, str]] = []
        if settings.skip_missing:
            self.leave_out(labels)
        scores = [sample.score for sample in self.samples]
        if len(scores) > 1 and np.float32(min(scores)) == np.float32(max(scores)):  # the network sees no more digits
            raise InputError(f'{labels.file}: all {len(scores)} scores are {scores[0]:g}; give scores that differ')
        self.higher_is_better = self.entry.higher_is_better if labels.higher_is_better is None else labels.higher_is_better
        self.by_content = {'content': True, 'image': False, None: self.entry.by_content}[settings.split_by]
        self.units = split_units(self.samples, self.by_content)

    def leave_out(self, labels: Labels) -> None:
        """Leave out the images that are missing or unreadable, and say how many."""
        faults = on_all_cores('find unreadable images', lambda sample: fault_of(sample, self.entry.exif_rotation), self.samples)
        names = self.names(range(len(self.samples)))
        self.left_out = [
            {'image': name, 'row': where, 'reason': fault} for name, where, fault in zip(names, labels.places, faults) if fault
        ]
        self.rows = [k for k, fault in enumerate(faults) if not fault]
        self.samples = [self.samples[k] for k in self.rows]
        del self.all_names  # which were of all that are listed
        if not self.samples:
            raise InputError(f'{labels.file}: none of the {len(faults)} images that it lists can be read. {labels.advice}')
        if self.left_out:
            first = self.left_out[0]['image']
            say(f'--skip_missing: {len(self.left_out)} of {len(faults)} listed images are left out, the first is {first}')

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
        return [self.all_names[k] for k in positions]

    @cached_property
    def all_names(self) -> list[str]:
        start = self.settings.images or folder_of(self.path)
        return [Path(os.path.relpath(sample.path, start)).as_posix() for sample in self.samples]

    @cached_property
    def digest(self) -> str:
        """A hash of the samples' names, scores, contents and official sets."""
        rows = zip(self.all_names, self.samples)
        facts = [[name, sample.score, self.plain_content(sample), sample.part] for name, sample in rows]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def plain_content(self, sample: Sample) -> str:
        """The content of a sample, the same on every machine also where it is the image's own path."""
        return sample.content.removeprefix(f'{folder_of(self.path)}{os.sep}')

    def contents(self, positions: Iterable[int]) -> list[str]:
        """What each image shows, where splits are by content: images of one are not independent. Otherwise its name."""
        return [self.plain_content(self.samples[k]) if self.by_content else self.all_names[k] for k in positions]

    def small_picture(self, position: int) -> Image.Image:
        """A thumbnail of an image, in the proportions of its file even where the frame is squeezed."""
        frame = Image.fromarray(np.asarray(self.frames[position]))
        width, height = frame.size
        if self.resize:
            with suppress(InputError):  # the file may have gone since it was decoded
                height, width = image_size(self.samples[position].path, self.entry.exif_rotation)
        scale = min(1, THUMBNAIL / max(height, width))
        return frame.resize((max(1, round(scale * width)), max(1, round(scale * height))))

    @property
    def score_range(self) -> tuple[float, float]:
        """(low, high) of the scores: nominal, or of the samples for `csv`."""
        if self.entry.score_range:
            return self.entry.score_range
        scores = [sample.score for sample in self.samples]
        return min(scores), max(scores)

    def warn_of_count(self) -> None:
        """Say on stderr if the labels list more or fewer images than the complete database has."""
        listed = len(self.samples) + len(self.left_out)
        if self.entry.images not in (None, listed):
            say(f'warning: {self.entry.title} has {self.entry.images} images; {listed} are listed in the labels of this copy')


def split_units(samples: list[Sample], by_content: bool) -> list[list[int]]:
    """The `OpenDatabase.units` of `samples`."""
    if not by_content:
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
