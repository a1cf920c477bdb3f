"""Image quality databases: their labels, their images, and the unit that a split must not cut through.

`DATABASES` holds everything that differs between them; `OpenDatabase` is one of them on disk; the `*Folder` names are the
original's datasets.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from util.demo_database import DEFAULTS, IMAGES, generate
from util.errors import InputError, log, nearest
from util.frames import (
    CachedFrames,
    DirectFrames,
    folder_of,
    load_image,
    on_all_cores,
    open_frames,
    read_picture,
)
from util.labels import AS_DOCUMENTED, Labels, Sample, Settings, known_set, scale_of, set_of
from util.meaning import Meaning
from util.own_table import read_csv
from util.tables import normalized_name

THUMBNAIL = 256  # pixels, at most
# where paths have the type of their distortion, as a pattern with one group: jp2k/img1.bmp, I01_24_5.png or 1600.AWGN.1.png
FOLDER, BEFORE_LEVEL = r'([^/\\]+)[/\\][^/\\]+$', r'[._]([^._/\\]+)[._]\d+\.\w+$'


def read_live(labels: Labels) -> None:
    """https://live.ece.utexas.edu/research/Quality/subjective.htm

    dmos_realigned.mat, refnames_all.mat, jp2k/, jpeg/, wn/, gblur/ and fastfading/
    """
    labels.open('refnames_all.mat')
    (references,) = labels.mat('refnames_all')
    labels.open('dmos_realigned.mat', 'dmos.mat')
    scores, pristine = labels.mat(
        'dmos_new' if labels.file.name == 'dmos_realigned.mat' else 'dmos', 'orgs'
    )
    kinds = (('jp2k', 227), ('jpeg', 233), ('wn', 174), ('gblur', 174), ('fastfading', 174))
    names = [f'{kind}/img{k}.bmp' for kind, count in kinds for k in range(1, count + 1)]
    if not len(names) == len(scores) == len(pristine) == len(references):
        raise InputError(
            f'{labels.file}: {len(scores)} scores for {len(names)} images; use the files of the second release'
        )
    folder = labels.folder('jp2k').parent
    for k, name in enumerate(names):
        where = f'entry {k + 1}'
        if labels.number(pristine[k], where, 'mark of a pristine image'):
            labels.known.append(os.path.join(folder, name))
        else:
            labels.add(folder, name, scores[k], where, references[k])


def read_csiq(labels: Labels) -> None:
    """https://s2.smu.edu/~eclarson/csiq.html

    csiq_label.txt (from the original HyperIQA project), csiq.DMOS.xlsx or csiq.beta.xlsx, and dst_imgs_all/, or dst_imgs/ with
    a folder for each type
    """
    labels.open('csiq_label.txt', 'csiq.DMOS.xlsx', 'csiq.beta.xlsx')
    folder = labels.folder('dst_imgs_all', 'dst_imgs')
    if labels.file.suffix == '.txt':
        for where, (name, score) in labels.rows(0, 1, header=False):
            labels.add(folder, name, score, where, name.split('.')[0], deep=True)
        return
    types = {
        'noise': 'AWGN',
        'jpeg 2000': 'jpeg2000',
    }  # where the sheet's words and the file names differ
    order = (
        'awgn',
        'jpeg',
        'jpeg2000',
        'fnoise',
        'blur',
        'contrast',
    )  # of csiq_label.txt, whose rows published splits count
    keys = []
    for where, (image, kind, level, score) in labels.rows(
        'image', 'dst_type', 'dst_lev', 'dmos', sheet='all_by_image'
    ):
        image = f'{image:g}' if isinstance(image, float) else str(image).strip()
        kind = types.get(normalized_name(kind), str(kind).strip())
        level = labels.number(level, where, 'distortion level')
        labels.add(folder, f'{image}.{kind}.{level:g}.png', score, where, image, deep=True)
        type_number = order.index(kind.lower()) if kind.lower() in order else len(order)
        keys.append((type_number, image.replace('_', ''), level))
    rows = np.argsort(sorted(range(len(keys)), key=keys.__getitem__)).tolist()
    labels.samples = [sample._replace(row=row) for sample, row in zip(labels.samples, rows)]


def read_tid2013(labels: Labels) -> None:
    """https://www.ponomarenko.info/tid2013.htm

    mos_with_names.txt and distorted_images/
    """
    labels.open('mos_with_names.txt')
    folder = labels.folder('distorted_images')
    for where, (score, name) in labels.rows(0, 1, header=False):
        labels.add(folder, name, score, where, name[:3].upper(), deep=True)


def read_kadid10k(labels: Labels) -> None:
    """https://database.mmsp-kn.de/kadid-10k-database.html

    dmos.csv and images/
    """
    labels.open('dmos.csv')
    folder = labels.folder('images')
    for where, (name, reference, score) in labels.rows('dist_img', 'ref_img', 'dmos'):
        labels.add(folder, name, score, where, reference)


def read_livec(labels: Labels) -> None:
    """https://live.ece.utexas.edu/research/ChallengeDB/index.html

    Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/
    """
    labels.open('Data/AllImages_release.mat', 'AllImages_release.mat')
    (names,) = labels.mat('AllImages_release')
    labels.open('Data/AllMOS_release.mat', 'AllMOS_release.mat')
    (scores,) = labels.mat('AllMOS_release')
    if len(names) != len(scores):
        raise InputError(
            f'{labels.file}: {len(scores)} scores for the {len(names)} names beside them; download both again'
        )
    folder = labels.folder('Images')
    for k, name in enumerate(names):
        if k < 7:  # these were for training the observers
            labels.known.append(os.path.join(folder, 'trainingImages', name))
        else:
            labels.add(folder, name, scores[k], f'entry {k + 1}')


def read_koniq(labels: Labels) -> None:
    """https://database.mmsp-kn.de/koniq-10k-database.html

    koniq10k_scores_and_distributions.csv (or koniq10k_distributions_sets.csv, which has the official sets) and 1024x768/
    (or 512x384/)
    """
    scores_file, sets_file = (
        'koniq10k_scores_and_distributions.csv',
        'koniq10k_distributions_sets.csv',
    )
    sets: dict[str, str] = {}
    if labels.open(sets_file, needed=False):
        sets = {name: known_set(text) for _, (name, text) in labels.rows('image_name', 'set')}
    labels.open(scores_file, sets_file)
    folder = labels.folder('1024x768', '512x384')
    for where, (name, score) in labels.rows(
        'image_name', 'MOS_zscore' if labels.file.name == scores_file else 'MOS'
    ):
        labels.add(folder, name, score, where, in_set=sets.get(name, ''))


def read_bid(labels: Labels) -> None:
    """http://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm

    DatabaseGrades.xlsx (or .xls) and DatabaseImage0001.JPG ..., beside it or in ImageDatabase/
    """
    labels.open('DatabaseGrades.xlsx', 'DatabaseGrades.xls')
    folder = labels.folder('ImageDatabase', default=labels.file.parent)
    for where, (image, grade) in labels.rows(0, 1):
        labels.add(
            folder,
            f'DatabaseImage{labels.number(image, where, "image number"):04g}.JPG',
            grade,
            where,
        )


def read_spaq(labels: Labels) -> None:
    """https://github.com/h4nwei/SPAQ

    Annotations/MOS and Image attribute scores.xlsx (or .csv) and TestImage/
    """
    name = 'MOS and Image attribute scores'
    labels.open(
        *(f'{folder}{name}.{kind}' for kind in ('xlsx', 'csv') for folder in ('Annotations/', ''))
    )
    folder = labels.folder('TestImage')
    for where, (image, score) in labels.rows('Image name', 'MOS'):
        labels.add(folder, image, score, where)


def read_flive(labels: Labels) -> None:
    """https://github.com/baidut/PaQ-2-PiQ

    labels_image.csv, for the official sets also labels640.csv and labels=640_padded.csv, and database/ (or FLIVE/) with
    its folders, or those folders
    """
    sets = flive_sets(labels)
    labels.open('labels_image.csv')
    folder = labels.folder('database', 'FLIVE', default=labels.file.parent)
    for where, (name, score) in labels.rows('name', 'mos'):
        labels.add(folder, name, score, where, in_set=sets.get(name, 'train') if sets else '')


def flive_sets(labels: Labels) -> dict[str, str]:
    """The authors' test and validation images by name, if both of their files are there; all others train."""
    if not labels.open('labels640.csv', needed=False):
        return {}
    sets = {name: 'test' for _, (name,) in labels.rows('name_image')}
    if not labels.open('labels=640_padded.csv', needed=False):
        return {}
    for where, (name, valid) in labels.rows('name_image', 'is_valid'):
        if set_of(valid, labels.file, where, {'true': 'val', '1': 'val', 'false': '', '0': ''}):
            sets.setdefault(name, 'val')
    return sets


def read_agiqa3k(labels: Labels) -> None:
    """https://github.com/lcysyzxdxc/AGIQA-3k-Database

    data.csv and the images, beside it or in images/, img/ or AGIQA-3K/; --split_by content splits by prompt
    """
    labels.open('data.csv')
    folder = labels.folder('images', 'img', 'AGIQA-3K', default=labels.file.parent)
    for where, (name, prompt, score) in labels.rows('name', 'prompt', 'mos_quality'):
        labels.add(folder, name, score, where, prompt)


def read_demo(labels: Labels) -> None:
    """this project: it is generated on first use

    labels.csv and its images
    """
    labels.open('labels.csv')
    for where, (name, score, content) in labels.rows('image', 'score', 'content'):
        labels.add(labels.root, name, score, where, content)


class Database(NamedTuple):
    """What differs between databases.

    Args:
        read: fills a `Labels` with samples; its docstring describes where to get the database and what its folder holds.
        images: how many samples the complete database has, or None where that is the user's affair.
        score_range: (low, high) of the label's unit; single scores may be beyond. None: as in the user's file.
        higher_is_better: False for a DMOS.
        type_pattern: FOLDER or BEFORE_LEVEL, where the images' paths have the type of their distortion.
        by_content: a split keeps the images of one content together; otherwise it draws single images.
        official: what names the official set of each image, or '' where nothing does.
        resize: (height, width) that every image is resized to before it is cropped, or None.
        exif_rotation: images are turned by their EXIF orientation.
        srgb: images with a wide-gamut profile are converted to sRGB; not those of databases that are published without.
        defaults: options of the script that this database sets unless the user does.
    """

    title: str
    read: Callable[[Labels], None]
    images: int | None = None
    score_range: tuple[float, float] | None = None
    higher_is_better: bool = True
    by_content: bool = False
    type_pattern: str = ''
    official: str = ''
    resize: tuple[int, int] | None = None
    exif_rotation: bool = False
    srgb: bool = False
    defaults: Mapping[str, Any] = {}

    @property
    def scale(self) -> str:
        return scale_of(self.score_range, self.higher_is_better)

    @property
    def split(self) -> str:
        return (
            'by '
            + ('content' if self.by_content else 'image')
            + ', or official sets' * bool(self.official)
        )

    @property
    def source_and_layout(self) -> list[str]:
        return [' '.join(part.split()) for part in (self.read.__doc__ or '\n\n').split('\n\n')]


DATABASES = {
    'live': Database(
        'LIVE',
        read_live,
        779,
        (0, 100),
        higher_is_better=False,
        by_content=True,
        type_pattern=FOLDER,
    ),
    'csiq': Database(
        'CSIQ',
        read_csiq,
        866,
        (0, 1),
        higher_is_better=False,
        by_content=True,
        type_pattern=BEFORE_LEVEL,
    ),
    'tid2013': Database(
        'TID2013', read_tid2013, 3000, (0, 9), by_content=True, type_pattern=BEFORE_LEVEL
    ),
    'kadid10k': Database(
        'KADID-10k', read_kadid10k, 10125, (1, 5), by_content=True, type_pattern=BEFORE_LEVEL
    ),
    'livec': Database('LIVE Challenge', read_livec, 1162, (0, 100)),
    'koniq': Database(
        'KonIQ-10k',
        read_koniq,
        10073,
        (0, 100),
        official='koniq10k_distributions_sets.csv',
        resize=(512, 384),
    ),
    'bid': Database('BID', read_bid, 586, (0, 5), resize=(512, 512)),
    'spaq': Database('SPAQ', read_spaq, 11125, (0, 100), resize=(512, 384), exif_rotation=True),
    'flive': Database(
        'FLIVE',
        read_flive,
        39810,
        (0, 100),
        official='labels640.csv, labels=640_padded.csv',
        resize=(512, 512),
    ),
    'agiqa3k': Database('AGIQA-3K', read_agiqa3k, 2982, (0, 5)),
    'csv': Database(
        'your images',
        read_csv,
        by_content=True,
        official='a column called set',
        exif_rotation=True,
        srgb=True,
    ),
    'demo': Database(
        'the demo database', read_demo, IMAGES, (1, 5), True, True, BEFORE_LEVEL, defaults=DEFAULTS
    ),
}
ALIASES = {  # without the - and _ that names can have
    **{
        'koniq10k': 'koniq',
        'clive': 'livec',
        'livechallenge': 'livec',
        'kadid': 'kadid10k',
        'tid': 'tid2013',
    },
    **{'agiqa': 'agiqa3k', 'paq2piq': 'flive'},
}


def database_key(name: str) -> str:
    """The key in `DATABASES` of a name or alias, in any letter case, with - and _ or without."""
    plain = re.sub('[-_ ]', '', name.lower())
    key = ALIASES.get(plain, plain)
    if key not in DATABASES:
        meant = nearest(plain, [*DATABASES, *ALIASES]) or f'; choose one of {", ".join(DATABASES)}'
        raise InputError(f'there is no database {name!r}{meant}')
    return key


def remedy_of(key: str, path: Path | str, settings: Settings) -> str:
    """What to do where files of the database `key` are missing in `path`."""
    if key == 'csv':
        start = settings.images or f'{Path(path).parent}{os.sep}'
        return f'Each line names an image and its score; a relative name starts at {start} or at --data_root DIR.'
    source, layout = DATABASES[key].source_and_layout
    other = '--data_root DIR names another place; --dataset demo needs no data.'
    return f'Get it from {source} and unpack it so that the folder holds {layout}; {other}'


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
        generate(path)
    database = DATABASES[key]
    labels = Labels(path, database.title, remedy_of(key, path, settings), settings)
    database.read(labels)
    if not labels.samples:
        raise InputError(f'{labels.file} lists no image. {labels.remedy}')
    if database.type_pattern:
        for k, sample in enumerate(labels.samples):
            labels.samples[k] = sample._replace(
                facts={'type': ''.join(re.findall(database.type_pattern, sample.path))}
            )
    if settings.average_votes:
        labels.average()
    missing = [
        f'{sample.path} ({sample.where})' for sample in labels.samples if sample.file is None
    ]
    if missing and not settings.skip_missing:
        what = f'{len(missing)} of the {len(labels.samples)} images that {labels.file} lists are missing'
        first = f'the first of them {", ".join(missing[:5])}. {labels.remedy} --skip_missing leaves them out.'
        raise InputError(f'{database.title}: {what}, {first}')
    return labels


class OpenDatabase:
    """A database whose labels are read; `open_frames` opens its images too.

    Args:
        dataset, path: as in `read_labels`.
        resize: (height, width) that every image is resized to, instead of the database's own.
        settings: how the labels are read.

    Attributes:
        key: its name in `DATABASES`, and `entry` what stands there.
        samples: its `Sample`s, in the order of the label file.
        left_out: with `settings.skip_missing`, for each image that is listed and left out its name, row and the reason.
        units: what a split draws from: for each unit, the positions of its samples. A unit is a content, in the order
            of their names, for the databases that are split by content, and an image for the others.
        frames: its images (see `util/frames.py`), once they are open.

    Raises:
        InputError: as `read_labels`, or all scores are equal.
    """

    frames: DirectFrames | CachedFrames

    def __init__(
        self,
        dataset: str,
        path: Path | str,
        resize: Sequence[int] | None = None,
        settings: Settings = AS_DOCUMENTED,
    ) -> None:
        self.key = database_key(dataset)
        self.entry = DATABASES[self.key]
        self.path = path
        self.resize = resize or self.entry.resize
        self.settings = settings
        labels = read_labels(self.key, path, settings)
        self.samples, self.known, self.label_file, self.srgb = (
            labels.samples,
            labels.known,
            labels.file,
            self.entry.srgb,
        )
        self.left_out: list[dict[str, str]] = []
        if settings.skip_missing:
            self.leave_out(labels)
        scores = [sample.score for sample in self.samples]
        if len(scores) > 1 and np.float32(min(scores)) == np.float32(
            max(scores)
        ):  # the network sees no more digits
            raise InputError(
                f'{labels.file}: all {len(scores)} scores are {scores[0]:g}; give scores that differ'
            )
        self.higher_is_better = (
            self.entry.higher_is_better
            if labels.higher_is_better is None
            else labels.higher_is_better
        )
        self.by_content = {'content': True, 'image': False, None: self.entry.by_content}[
            settings.split_by
        ]
        if settings.split_by == 'content' and len(
            {sample.content for sample in self.samples}
        ) == len(self.samples):
            remedy = (
                '--columns content=NAME names the column'
                if self.key == 'csv'
                else f'{self.entry.title} names none'
            )
            raise InputError(
                f'--split_by content: no two images of {labels.file} have the same content; {remedy}'
            )
        self.units = split_units(self.samples, self.by_content)

    def leave_out(self, labels: Labels) -> None:
        """Leave out the images that are missing or unreadable, and log how many."""

        exif_rotation, paths = self.entry.exif_rotation, [sample.path for sample in self.samples]
        faults = on_all_cores(
            'find unreadable images', lambda path: read_picture(path, exif_rotation).fault, paths
        )
        rows = zip(self.all_names, self.samples, faults)
        self.left_out = [
            {'image': name, 'row': sample.where, 'reason': fault}
            for name, sample, fault in rows
            if fault
        ]
        self.samples = [sample for sample, fault in zip(self.samples, faults) if not fault]
        del self.all_names  # which were of all that are listed
        if not self.samples:
            raise InputError(
                f'{labels.file}: none of the {len(faults)} images that it lists can be read. {labels.remedy}'
            )
        if self.left_out:
            first = self.left_out[0]['image']
            log(
                f'--skip_missing: {len(self.left_out)} of {len(faults)} listed images are left out, the first is {first}'
            )

    def open_frames(self, smallest: int, cache: Path | str | None = None) -> 'OpenDatabase':
        """Make the images ready, decoding them into the cache if need be (see `util.frames.open_frames`); returns itself."""
        paths, exif_rotation = [sample.path for sample in self.samples], self.entry.exif_rotation
        direct = DirectFrames(paths, smallest, self.resize, exif_rotation, self.srgb)
        self.frames = open_frames(direct, self.path, self.key, cache)
        return self

    def images(self, units: Iterable[int]) -> list[int]:
        """Positions of the samples of `units`, in their order."""
        return [k for unit in units for k in self.units[unit]]

    def names(self, positions: Iterable[int]) -> list[str]:
        """The samples' names in the files of a run: their paths below the database's folder, the same on every machine."""
        return [self.all_names[k] for k in positions]

    @cached_property
    def all_names(self) -> list[str]:
        return [self.name_of(sample.path) for sample in self.samples]

    def name_of(self, path: str) -> str:
        return Path(os.path.relpath(path, self.settings.images or folder_of(self.path))).as_posix()

    @cached_property
    def digest(self) -> str:
        """A hash of the samples' names, scores, contents and official sets."""
        rows = zip(self.all_names, self.samples)
        facts = [
            [name, sample.score, self.plain_content(sample), sample.official_set]
            for name, sample in rows
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def plain_content(self, sample: Sample) -> str:
        """The content of a sample, the same on every machine also where it is the image's own path."""
        return sample.content.removeprefix(f'{folder_of(self.path)}{os.sep}')

    def contents(self, positions: Iterable[int]) -> list[str]:
        """What each image shows, where splits are by content: images of one are not independent. Otherwise its name."""
        return [
            self.plain_content(self.samples[k]) if self.by_content else self.all_names[k]
            for k in positions
        ]

    def facts(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """The further columns of predictions.csv (see `Sample`)."""
        return {
            name: [self.samples[k].facts[name] for k in positions] for name in self.samples[0].facts
        }

    def thumbnail(self, position: int) -> Image.Image:
        """A small picture of an image, in the proportions of its file even where the frame is squeezed."""
        picture = load_image(
            self.samples[position].path, exif_rotation=self.entry.exif_rotation, srgb=self.srgb
        )
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture

    @property
    def score_range(self) -> tuple[float, float]:
        """(low, high) of the scores: nominal, or of the samples for `csv`."""
        scores = [sample.score for sample in self.samples]
        return self.entry.score_range or (min(scores), max(scores))

    def meaning(self, normalized: bool) -> Meaning:
        """Return what an image and a score mean to a network that is trained on this database.

        Args:
            normalized: whether the network's 0..1 stands for the range of the labels.
        """
        return Meaning(
            title=self.entry.title,
            label_range=self.score_range,
            higher_is_better=self.higher_is_better,
            score_range=self.score_range if normalized else None,
            resize=self.resize,
            exif_rotation=self.entry.exif_rotation,
            srgb=self.srgb,
        )

    def warn_of_count(self) -> None:
        """Warn if the labels list more or fewer images than the complete database has."""
        listed = len(self.samples) + len(self.left_out)
        if self.entry.images not in (None, listed):
            log(
                f'warning: {self.entry.title} has {self.entry.images} images; {listed} are listed in the labels of this copy'
            )


def split_units(samples: list[Sample], by_content: bool) -> list[list[int]]:
    """The `OpenDatabase.units` of `samples`."""
    keys: list[Any] = [sample.content if by_content else k for k, sample in enumerate(samples)]
    units: dict[Any, list[int]] = {key: [] for key in sorted(set(keys))}
    for k, key in enumerate(keys):
        units[key].append(k)
    return list(units.values())


def koniq_meaning() -> Meaning:
    """Return what an image and a score mean to the original authors' model for KonIQ-10k."""
    entry = DATABASES['koniq']
    return Meaning(
        title=entry.title,
        label_range=entry.score_range,
        higher_is_better=entry.higher_is_better,
        score_range=None,
        resize=entry.resize,
        exif_rotation=entry.exif_rotation,
        srgb=entry.srgb,
    )


def dataset_table() -> str:
    """All databases as a table, one line each."""
    rows = [('--dataset', 'database', 'images', 'scores', 'split')]
    rows += [
        (key, entry.title, str(entry.images or 'any'), entry.scale, entry.split)
        for key, entry in DATABASES.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def dataset_facts(key: str) -> str:
    """All that is known of a database, one line each."""
    entry = DATABASES[key]
    source, layout = entry.source_and_layout
    facts = {
        'also called': ', '.join(alias for alias, target in ALIASES.items() if target == key),
        'images': entry.images,
        'scores': entry.scale,
        'split': entry.split,
        'resized to': entry.resize and '{} high, {} wide'.format(*entry.resize),
        'rotation': 'as their EXIF orientation' * entry.exif_rotation,
        'options': ' '.join(f'--{name} {value}' for name, value in entry.defaults.items()),
        'get it from': source,
        'folder': layout,
    }
    return '\n'.join([entry.title, *(f'  {name:13}{text}' for name, text in facts.items() if text)])


class DatabaseFolder:
    """A database as a map-style dataset, as torch's DataLoader takes it, of (transformed image, score).

    Each image comes `patch_num` times in a row.

    Args:
        dataset: a key of `DATABASES`.
        root: the database's folder.
        index: positions of the wanted units (see `OpenDatabase`): images, or references where the split is by content.
        transform: turns a `PIL.Image` into what the dataset gives.
        patch_num: how many patches each image gives per epoch.
    """

    def __init__(
        self,
        dataset: str,
        root: Path | str,
        index: Iterable[int],
        transform: Callable[[Image.Image], Any],
        patch_num: int,
    ) -> None:
        database = OpenDatabase(dataset, root)
        images = [database.samples[k] for k in database.images(index)]
        self.samples = [(sample.path, sample.score) for sample in images for _ in range(patch_num)]
        self.exif_rotation = database.entry.exif_rotation
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, float]:
        path, score = self.samples[index]
        return self.transform(load_image(path, exif_rotation=self.exif_rotation)), score

    def __len__(self) -> int:
        return len(self.samples)


# the original's datasets under its names
LIVEFolder = functools.partial(DatabaseFolder, 'live')
CSIQFolder = functools.partial(DatabaseFolder, 'csiq')
TID2013Folder = functools.partial(DatabaseFolder, 'tid2013')
LIVEChallengeFolder = functools.partial(DatabaseFolder, 'livec')
Koniq_10kFolder = functools.partial(DatabaseFolder, 'koniq')
BIDFolder = functools.partial(DatabaseFolder, 'bid')
