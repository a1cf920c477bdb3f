"""Image quality databases: their labels, their images, and the unit that a split must not cut through.

`DATABASES` holds everything that differs between them. `read_samples` turns a database on disk into a list of `Sample`s;
the `*Folder` classes wrap the same list as plain `torch.utils.data.Dataset`s.
"""
import csv
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import scipy.io
from PIL import Image, ImageOps
from torch.utils.data import Dataset

import demo_database
from errors import InputError


class Sample(NamedTuple):
    """One labelled image. `content` names what the image shows: images of one content stay on one side of a split."""
    path: str
    score: float
    content: str


class Labels:
    """A database's files while its labels are read: finds them, and names them in every error.

    Args:
        root: the database's folder.
        database: its entry in `DATABASES`.
    """

    def __init__(self, root, database):
        self.root = Path(root)
        self.database = database
        self.file = None
        self.samples = []
        if not self.root.is_dir():
            raise InputError(f'{database.title}: there is no folder {self.root}. {self.advice()}')

    def advice(self):
        return (f'Get the database from {self.database.source} and unpack it so that the folder holds '
                f'{self.database.layout}; --data_root DIR names another place.')

    def bases(self):
        """The root, then the folders one level below it, by name."""
        return [self.root] + sorted(path for path in self.root.iterdir() if path.is_dir())

    def open(self, *names):
        """Path of the first of the label files `names` that exists, in the root or one folder down."""
        for name in names:
            for base in self.bases():
                if (base / name).is_file():
                    self.file = base / name
                    return self.file
        raise InputError(f'{self.database.title}: {" or ".join(names)} is not in {self.root}. {self.advice()}')

    def folder(self, *names):
        """Path of the first image folder of `names` that exists, beside the label file, in the root or one folder down."""
        for name in names:
            for base in [self.file.parent] + self.bases():
                if (base / name).is_dir():
                    return base / name
        raise InputError(f'{self.database.title}: there is no image folder {" or ".join(names)} in {self.root}. '
                         f'{self.advice()}')

    def number(self, text, where):
        """`text` as a finite float; `where` is its row, for the error."""
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f'{self.file}, {where}: the score {text!r} is not a number; correct or remove that row')
        return value

    def add(self, path, score, content=None, where=''):
        """Append a sample; without `content` the image is a content of its own."""
        self.samples.append(Sample(str(path), self.number(score, where), str(content or path)))

    def mat(self, *keys):
        """The arrays `keys` of the open .mat file, each flattened and freed of nested cells."""
        try:
            content = scipy.io.loadmat(self.file)
            return [[unwrap(cell) for cell in content[key].ravel()] for key in keys]
        except KeyError as error:
            raise InputError(f'{self.file} has no variable {error}; it is not the file that its authors distribute')
        except (ValueError, OSError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
            raise InputError(f'{self.file} cannot be read as a MATLAB file: {error}; download it again')

    def text_rows(self, columns):
        """(row name, words) of every line of the open text file that is not blank; each has `columns` words."""
        for number, line in enumerate(read_text(self.file).splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != columns:
                raise InputError(f'{self.file}, line {number}: {columns} words are expected, not {line!r}')
            yield f'line {number}', words

    def csv_rows(self, *columns):
        """(row name, dict) of every row of the open CSV file that is not blank; its header must have `columns`."""
        reader = csv.DictReader(read_text(self.file).splitlines(keepends=True))
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f'{self.file}: there is no column {", ".join(missing)}; '
                             f'the header is {",".join(reader.fieldnames or ["empty"])}')
        for row in reader:
            if any(value and value.strip() for value in row.values() if isinstance(value, str)):
                yield f'line {reader.line_num}', row

    def sheet_rows(self):
        """(row name, cells) of every row of the open .xlsx file's first sheet, below its header."""
        import openpyxl
        try:
            sheet = openpyxl.load_workbook(self.file, read_only=True, data_only=True).worksheets[0]
            rows = list(sheet.iter_rows(values_only=True))
        except Exception as error:  # openpyxl lets zip, XML and key errors through
            raise InputError(f'{self.file} cannot be read as an Excel sheet: {error}; download it again')
        for number, cells in enumerate(rows[1:], start=2):
            if any(cell not in (None, '') for cell in cells):
                yield f'row {number}', cells


def read_text(path):
    """The text of a label file in UTF-8, with or without a byte order mark."""
    try:
        return Path(path).read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text: {error}')


def unwrap(cell):
    """The number or string inside the nested one-element arrays that MATLAB cells become."""
    while isinstance(cell, np.ndarray) and cell.size:
        cell = cell.ravel()[0]
    return cell.item() if isinstance(cell, np.generic) else cell


def listing(folder):
    """File paths below `folder`, keyed by their lower-case base name."""
    return {name.lower(): os.path.join(parent, name)
            for parent, _, names in sorted(os.walk(folder)) for name in sorted(names)}


def read_live(labels):
    labels.open('refnames_all.mat')
    references, = labels.mat('refnames_all')
    labels.open('dmos_realigned.mat', 'dmos.mat')
    scores, pristine = labels.mat('dmos_new' if labels.file.name == 'dmos_realigned.mat' else 'dmos', 'orgs')
    names = [f'{kind}/img{k}.bmp' for kind, count in (('jp2k', 227), ('jpeg', 233), ('wn', 174), ('gblur', 174),
                                                      ('fastfading', 174)) for k in range(1, count + 1)]
    if not len(names) == len(scores) == len(pristine) == len(references):
        raise InputError(f'{labels.file}: {len(scores)} scores and {len(references)} reference names for '
                         f'{len(names)} images; use the label files of the second release')
    base = labels.folder('jp2k').parent
    for k, name in enumerate(names):
        if not pristine[k]:
            labels.add(base / name, scores[k], references[k], f'entry {k + 1}')


def read_csiq(labels):
    labels.open('csiq_label.txt')
    files = listing(labels.folder('dst_imgs_all', 'dst_imgs'))
    for where, (name, score) in labels.text_rows(2):
        path = files.get(name.lower(), labels.root / 'dst_imgs_all' / name)
        labels.add(path, score, name.split('.')[0], where)


def read_tid2013(labels):
    labels.open('mos_with_names.txt')
    folder = labels.folder('distorted_images')
    files = listing(folder)
    for where, (score, name) in labels.text_rows(2):
        labels.add(files.get(name.lower(), folder / name), score, name[:3].upper(), where)


def read_livec(labels):
    labels.open('Data/AllImages_release.mat', 'AllImages_release.mat')
    names, = labels.mat('AllImages_release')
    labels.open('Data/AllMOS_release.mat', 'AllMOS_release.mat')
    scores, = labels.mat('AllMOS_release')
    folder = labels.folder('Images')
    for k, (name, score) in enumerate(zip(names, scores, strict=True)):
        if k >= 7:  # the first seven were for training the observers and lie in Images/trainingImages
            labels.add(folder / name, score, where=f'entry {k + 1}')


def read_koniq(labels):
    labels.open('koniq10k_scores_and_distributions.csv', 'koniq10k_distributions_sets.csv')
    score = 'MOS_zscore' if labels.file.name == 'koniq10k_scores_and_distributions.csv' else 'MOS'
    folder = labels.folder('1024x768', '512x384')
    for where, row in labels.csv_rows('image_name', score):
        labels.add(folder / row['image_name'], row[score], where=where)


def read_bid(labels):
    labels.open('DatabaseGrades.xlsx')
    base = next((base for base in labels.bases() if any(base.glob('DatabaseImage*.JPG'))), labels.root)
    for where, cells in labels.sheet_rows():
        number = int(labels.number(cells[0], where))
        labels.add(base / f'DatabaseImage{number:04d}.JPG', cells[1], where=where)


def read_demo(labels):
    labels.open('labels.csv')
    for where, row in labels.csv_rows('image', 'score', 'content'):
        labels.add(labels.root / row['image'], row['score'], row['content'], where)


@dataclass(frozen=True)
class Database:
    """What differs between databases.

    Args:
        read: fills a `Labels` with samples.
        images: how many samples the complete database has.
        source, layout: where to get it, and what its folder holds.
        by_content: a split keeps the images of one content together; otherwise it draws single images.
        resize: (height, width) that every image is resized to before it is cropped, or None.
        defaults: options of the script that this database sets unless the user does.
    """
    title: str
    read: Callable
    images: int
    source: str
    layout: str
    by_content: bool = False
    resize: tuple | None = None
    defaults: dict = field(default_factory=dict)


DATABASES = {
    'live': Database('LIVE', read_live, 779, 'https://live.ece.utexas.edu/research/Quality/subjective.htm',
                     'dmos_realigned.mat, refnames_all.mat, jp2k/, jpeg/, wn/, gblur/ and fastfading/', by_content=True),
    'csiq': Database('CSIQ', read_csiq, 866, 'https://s2.smu.edu/~eclarson/csiq.html',
                     'csiq_label.txt (from the original HyperIQA project) and dst_imgs_all/ or dst_imgs/<type>/',
                     by_content=True),
    'tid2013': Database('TID2013', read_tid2013, 3000, 'https://www.ponomarenko.info/tid2013.htm',
                        'mos_with_names.txt and distorted_images/', by_content=True),
    'livec': Database('LIVE Challenge', read_livec, 1162, 'https://live.ece.utexas.edu/research/ChallengeDB/index.html',
                      'Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/'),
    'koniq': Database('KonIQ-10k', read_koniq, 10073, 'https://database.mmsp-kn.de/koniq-10k-database.html',
                      'koniq10k_scores_and_distributions.csv (or koniq10k_distributions_sets.csv) and 1024x768/ '
                      '(or 512x384/)', resize=(512, 384)),
    'bid': Database('BID', read_bid, 586, 'http://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm',
                    'DatabaseGrades.xlsx and DatabaseImage0001.JPG ..., beside it or in ImageDatabase/',
                    resize=(512, 512)),
    'demo': Database('the demo database', read_demo, demo_database.IMAGES, 'this project: it is generated on first use',
                     'labels.csv and its images', by_content=True, defaults=demo_database.DEFAULTS),
}
ALIASES = {'koniq-10k': 'koniq'}


def database_key(name):
    """The key in `DATABASES` of a name or alias, in any letter case."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in DATABASES:
        raise InputError(f'there is no database {name!r}; choose one of {", ".join(DATABASES)}')
    return key


def read_samples(dataset, path):
    """Reads a database's labels and finds its images.

    Args:
        dataset: a key of `DATABASES`, or an alias.
        path: the database's folder. The demo database is generated there if it is not there yet.

    Returns:
        list[Sample]: in the order of the label file.

    Raises:
        InputError: the folder, the label file or images are missing, or a score is not a number.
    """
    key = database_key(dataset)
    if key == 'demo':
        demo_database.generate(path)
    labels = Labels(path, DATABASES[key])
    labels.database.read(labels)
    if not labels.samples:
        raise InputError(f'{labels.file} lists no image; download it again')
    missing = [sample.path for sample in labels.samples if not os.path.isfile(sample.path)]
    if missing:
        raise InputError(f'{labels.database.title}: {len(missing)} of the {len(labels.samples)} images that '
                         f'{labels.file} lists are missing, the first of them {", ".join(missing[:5])}. '
                         f'{labels.advice()}')
    return labels.samples


def split_units(dataset, samples):
    """What a split draws from: for each unit, the positions of its samples.

    A unit is a content, in the order of their names, for the databases that are split by content, and an image,
    in the order of `samples`, for the others.
    """
    if not DATABASES[database_key(dataset)].by_content:
        return [[k] for k in range(len(samples))]
    units = {content: [] for content in sorted({sample.content for sample in samples})}
    for k, sample in enumerate(samples):
        units[sample.content].append(k)
    return list(units.values())


def load_image(path, resize=None, exif_rotation=False):
    """The image in `path` as an RGB `PIL.Image`, resized to (height, width) `resize` if that is given.

    The resize is bilinear with antialiasing, as torchvision's `Resize` is for Pillow images.
    """
    try:
        with Image.open(path) as image:
            image = (ImageOps.exif_transpose(image) if exif_rotation else image).convert('RGB')
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f'{path} cannot be read as an image: {error}; replace the file')
    if resize is not None:
        image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    return image


class DatabaseFolder(Dataset):
    """A database as a plain dataset of (transformed image, score), each image `patch_num` times in a row.

    Args:
        root: the database's folder.
        index: positions of the wanted units (see `split_units`): images, or references where the split is by content.
        transform: a callable on `PIL.Image`.
        patch_num: how many patches an epoch takes from each image.
    """
    dataset: str

    def __init__(self, root, index, transform, patch_num):
        samples = read_samples(self.dataset, root)
        units = split_units(self.dataset, samples)
        self.samples = [(samples[k].path, samples[k].score)
                        for unit in index for k in units[unit] for _ in range(patch_num)]
        self.transform = transform

    def __getitem__(self, index):
        path, score = self.samples[index]
        return self.transform(load_image(path)), score

    def __len__(self):
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
