"""Image quality databases: their labels, their images, and the unit that a split keeps whole.

`DATABASES` holds everything that differs between them. `OpenDatabase` is one of them on disk. The
`*Folder` names are the original's datasets.
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

from util import demo_database
from util.errors import InputError, log, nearest, visible
from util.files import path_from
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
from util.own_table import read_own_table
from util.tables import normalized_name

THUMBNAIL = 256  # pixels, at most
# Patterns of an image's path, whose group is the type of its distortion.
FOLDER = r'([^/\\]+)[/\\][^/\\]+$'  # the last folder: jp2k of jp2k/img1.bmp
# What stands before the last number: 24 of I01_24_5.png, AWGN of 1600.AWGN.1.png.
BEFORE_LEVEL = r'[._]([^._/\\]+)[._]\d+\.\w+$'

LIVE_TYPES = {'jp2k': 227, 'jpeg': 233, 'wn': 174, 'gblur': 174, 'fastfading': 174}  # images each
# CSIQ's types in the order of csiq_label.txt
CSIQ_ORDER = ('awgn', 'jpeg', 'jpeg2000', 'fnoise', 'blur', 'contrast')
# Where CSIQ's sheet calls a type otherwise than its image files do.
CSIQ_TYPES = {'noise': 'AWGN', 'jpeg 2000': 'jpeg2000'}
# The set that a cell of FLIVE's `is_valid` stands for, '' for none.
FLIVE_SETS = {'true': 'val', '1': 'val', 'false': '', '0': ''}


def read_live(labels: Labels) -> None:
    """Read LIVE, whose label files have one entry per image but no names of the images."""
    labels.open('refnames_all.mat')
    (references,) = labels.mat('refnames_all')
    labels.open('dmos_realigned.mat', 'dmos.mat')
    # The realigned scores have a name of their own.
    variable = 'dmos_new' if labels.file.name == 'dmos_realigned.mat' else 'dmos'
    scores, pristine = labels.mat(variable, 'orgs')
    # The entries are in the order of the types, and within a type in that of the numbers.
    names = []
    for kind, count in LIVE_TYPES.items():
        for number in range(1, count + 1):
            names.append(f'{kind}/img{number}.bmp')
    if {len(scores), len(pristine), len(references)} != {len(names)}:
        raise InputError(
            f'{labels.file}: {len(scores)} scores for {len(names)} images; use the files of the '
            'second release'
        )
    folder = labels.folder('jp2k').parent
    for k, name in enumerate(names):
        where = f'entry {k + 1}'
        # The folders also hold undistorted copies of the references, which are no samples.
        if labels.number(pristine[k], where, 'mark of a pristine image'):
            labels.known.append(os.path.join(folder, name))
        else:
            labels.add(folder, name, scores[k], where, content=str(references[k]))


def read_csiq(labels: Labels) -> None:
    """Read CSIQ, from the original project's label file or the authors' sheet."""
    labels.open('csiq_label.txt', 'csiq.DMOS.xlsx', 'csiq.beta.xlsx')
    # In dst_imgs/ the images are in a folder for each type, so they are looked for in depth.
    folder = labels.folder('dst_imgs_all', 'dst_imgs')
    if labels.file.suffix != '.txt':
        read_csiq_sheet(labels, folder)
        return
    for where, (name, score) in labels.rows('1', '2', header=False):
        scene = name.split('.')[0]  # of 1600.AWGN.1.png it is 1600
        labels.add(folder, name, score, where, content=scene, deep=True)


def read_csiq_sheet(labels: Labels, folder: Path) -> None:
    """Read the authors' sheet of CSIQ, which has the parts of the images' names in columns."""
    columns = ('image', 'dst_type', 'dst_lev', 'dmos')
    keys = []
    for where, (scene, kind, level, score) in labels.rows(*columns, sheet='all_by_image'):
        scene = str(scene).strip()  # 1600 is a number in Excel
        kind = str(kind).strip()
        kind = CSIQ_TYPES.get(normalized_name(kind), kind)
        level = labels.number(level, where, 'distortion level')
        name = f'{scene}.{kind}.{level:g}.png'
        labels.add(folder, name, score, where, content=scene, deep=True)
        is_known = kind.lower() in CSIQ_ORDER
        type_number = CSIQ_ORDER.index(kind.lower()) if is_known else len(CSIQ_ORDER)
        # csiq_label.txt sorts the scenes without their underscores.
        keys.append((type_number, scene.replace('_', ''), level))
    # Published splits count the rows of csiq_label.txt, which are sorted by these keys.
    in_order = sorted(range(len(labels.samples)), key=lambda k: keys[k])
    for row, k in enumerate(in_order):
        labels.samples[k] = labels.samples[k]._replace(row=row)


def read_tid2013(labels: Labels) -> None:
    """Read TID2013; I01_24_5.bmp is a distorted image of the scene I01."""
    labels.open('mos_with_names.txt')
    folder = labels.folder('distorted_images')
    for where, (score, name) in labels.rows('1', '2', header=False):
        labels.add(folder, name, score, where, content=name[:3].upper(), deep=True)


def read_kadid10k(labels: Labels) -> None:
    """Read KADID-10k, whose `dmos` is a MOS: it rises with quality."""
    labels.open('dmos.csv')
    folder = labels.folder('images')
    for where, (name, reference, score) in labels.rows('dist_img', 'ref_img', 'dmos'):
        labels.add(folder, name, score, where, content=reference)


def read_livec(labels: Labels) -> None:
    """Read LIVE Challenge, whose names and scores are in two files of the same order."""
    labels.open('Data/AllImages_release.mat', 'AllImages_release.mat')
    (names,) = labels.mat('AllImages_release')
    labels.open('Data/AllMOS_release.mat', 'AllMOS_release.mat')
    (scores,) = labels.mat('AllMOS_release')
    if len(names) != len(scores):
        raise InputError(
            f'{labels.file}: {len(scores)} scores for the {len(names)} names beside them; '
            'download both again'
        )
    folder = labels.folder('Images')
    for k, name in enumerate(names):
        # The first seven were for training the observers.
        if k < 7:
            labels.known.append(os.path.join(folder, 'trainingImages', name))
        else:
            labels.add(folder, name, scores[k], f'entry {k + 1}')


def read_koniq(labels: Labels) -> None:
    """Read KonIQ-10k; only one of its two label files has the official sets."""
    scores_file = 'koniq10k_scores_and_distributions.csv'
    sets_file = 'koniq10k_distributions_sets.csv'
    sets: dict[str, str] = {}
    if labels.open(sets_file, needed=False):
        for _, (name, text) in labels.rows('image_name', 'set'):
            sets[name] = known_set(text)
    labels.open(scores_file, sets_file)
    # The scores of 0..100. In the first file they are called MOS_zscore, and MOS is of 1..5.
    column = 'MOS_zscore' if labels.file.name == scores_file else 'MOS'
    folder = labels.folder('1024x768', '512x384')
    for where, (name, score) in labels.rows('image_name', column):
        labels.add(folder, name, score, where, in_set=sets.get(name, ''))


def read_bid(labels: Labels) -> None:
    """Read BID, whose sheet numbers its images."""
    labels.open('DatabaseGrades.xlsx', 'DatabaseGrades.xls')
    folder = labels.folder('ImageDatabase', default=labels.file.parent)
    for where, (image, grade) in labels.rows('1', '2'):
        # A sheet has numbers as 12.0 or as text.
        number = labels.number(image, where, 'image number')
        labels.add(folder, f'DatabaseImage{number:04g}.JPG', grade, where)


def read_spaq(labels: Labels) -> None:
    """Read SPAQ."""
    name = 'MOS and Image attribute scores'
    labels.open(
        f'Annotations/{name}.xlsx', f'{name}.xlsx', f'Annotations/{name}.csv', f'{name}.csv'
    )
    folder = labels.folder('TestImage')
    for where, (image, score) in labels.rows('Image name', 'MOS'):
        labels.add(folder, image, score, where)


def read_flive(labels: Labels) -> None:
    """Read FLIVE, whose names of images have folders in them."""
    sets = flive_sets(labels)
    labels.open('labels_image.csv')
    folder = labels.folder('database', 'FLIVE', default=labels.file.parent)
    # With the authors' lists, every image that they put into no other set is for training.
    unlisted = 'train' if sets else ''
    for where, (name, score) in labels.rows('name', 'mos'):
        labels.add(folder, name, score, where, in_set=sets.get(name, unlisted))


def flive_sets(labels: Labels) -> dict[str, str]:
    """The set of each of the authors' test and validation images, if both lists are there."""
    if not labels.open('labels640.csv', needed=False):
        return {}
    sets = {name: 'test' for _, (name,) in labels.rows('name_image')}
    if not labels.open('labels=640_padded.csv', needed=False):
        return {}
    for where, (name, valid) in labels.rows('name_image', 'is_valid'):
        if set_of(valid, labels.file, where, FLIVE_SETS):
            sets.setdefault(name, 'val')
    return sets


def read_agiqa3k(labels: Labels) -> None:
    """Read AGIQA-3K; the content of an image is its prompt."""
    labels.open('data.csv')
    folder = labels.folder('images', 'img', 'AGIQA-3K', default=labels.file.parent)
    for where, (name, prompt, score) in labels.rows('name', 'prompt', 'mos_quality'):
        labels.add(folder, name, score, where, content=prompt)


def read_demo(labels: Labels) -> None:
    """Read the demo database, which is generated if it is not there yet."""
    demo_database.generate(labels.root)
    labels.open('labels.csv')
    for where, (name, score, content) in labels.rows('image', 'score', 'content'):
        labels.add(labels.root, name, score, where, content=content)


class Database(NamedTuple):
    """The differences between databases.

    Args:
        title: its name in messages.
        read: fills a `Labels` with samples.
        source: where to get it.
        layout: the files in its folder.
        images: the number of samples in the complete database; None if that is up to the user.
        score_range: nominal (low, high) of the labels; single ones may be beyond. None: as in the
            user's file.
        higher_is_better: False for a DMOS.
        by_content: a split keeps the images of one content together; otherwise it draws images.
        type_pattern: finds the type of distortion in an image's path; '' if it is not there.
        official: the file or column that has official sets; '' if there are none.
        resize: (height, width) that every image is resized to before it is cropped, or None.
        exif_rotation: images are turned by their EXIF orientation.
        srgb: images in a colour profile of their own are converted to sRGB; published databases
            are read as they are, as in published results.
        defaults: the script's options that this database sets unless the user does.
    """

    title: str
    read: Callable[[Labels], None]
    source: str
    layout: str
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
    def meaning(self) -> Meaning:
        """What an image and a score mean to a network that is trained on it by default."""
        return Meaning(
            title=self.title,
            label_range=self.score_range,
            higher_is_better=self.higher_is_better,
            score_range=None,
            resize=self.resize,
            exif_rotation=self.exif_rotation,
            srgb=self.srgb,
        )

    @property
    def split(self) -> str:
        text = 'by content' if self.by_content else 'by image'
        if self.official:
            text += ', or official sets'
        return text


DATABASES = {
    'live': Database(
        title='LIVE',
        read=read_live,
        source='https://live.ece.utexas.edu/research/Quality/subjective.htm',
        layout='dmos_realigned.mat, refnames_all.mat, jp2k/, jpeg/, wn/, gblur/ and fastfading/',
        images=779,
        score_range=(0, 100),
        higher_is_better=False,
        by_content=True,
        type_pattern=FOLDER,
    ),
    'csiq': Database(
        title='CSIQ',
        read=read_csiq,
        source='https://s2.smu.edu/~eclarson/csiq.html',
        layout='csiq_label.txt (from the original HyperIQA project), csiq.DMOS.xlsx or '
        'csiq.beta.xlsx, and dst_imgs_all/, or dst_imgs/ with a folder for each type',
        images=866,
        score_range=(0, 1),
        higher_is_better=False,
        by_content=True,
        type_pattern=BEFORE_LEVEL,
    ),
    'tid2013': Database(
        title='TID2013',
        read=read_tid2013,
        source='https://www.ponomarenko.info/tid2013.htm',
        layout='mos_with_names.txt and distorted_images/',
        images=3000,
        score_range=(0, 9),
        by_content=True,
        type_pattern=BEFORE_LEVEL,
    ),
    'kadid10k': Database(
        title='KADID-10k',
        read=read_kadid10k,
        source='https://database.mmsp-kn.de/kadid-10k-database.html',
        layout='dmos.csv and images/',
        images=10125,
        score_range=(1, 5),
        by_content=True,
        type_pattern=BEFORE_LEVEL,
    ),
    'livec': Database(
        title='LIVE Challenge',
        read=read_livec,
        source='https://live.ece.utexas.edu/research/ChallengeDB/index.html',
        layout='Data/AllImages_release.mat, Data/AllMOS_release.mat and Images/',
        images=1162,
        score_range=(0, 100),
    ),
    'koniq': Database(
        title='KonIQ-10k',
        read=read_koniq,
        source='https://database.mmsp-kn.de/koniq-10k-database.html',
        layout='koniq10k_scores_and_distributions.csv (or koniq10k_distributions_sets.csv, which '
        'has the official sets) and 1024x768/ (or 512x384/)',
        images=10073,
        score_range=(0, 100),
        official='koniq10k_distributions_sets.csv',
        # (height, width) as in the original: it squeezes these photos, which are wider than high.
        resize=(512, 384),
    ),
    'bid': Database(
        title='BID',
        read=read_bid,
        source='http://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm',
        layout='DatabaseGrades.xlsx (or .xls) and DatabaseImage0001.JPG ..., beside it or in '
        'ImageDatabase/',
        images=586,
        score_range=(0, 5),
        resize=(512, 512),
    ),
    'spaq': Database(
        title='SPAQ',
        read=read_spaq,
        source='https://github.com/h4nwei/SPAQ',
        layout='Annotations/MOS and Image attribute scores.xlsx (or .csv) and TestImage/',
        images=11125,
        score_range=(0, 100),
        resize=(512, 384),
        exif_rotation=True,
    ),
    'flive': Database(
        title='FLIVE',
        read=read_flive,
        source='https://github.com/baidut/PaQ-2-PiQ',
        layout='labels_image.csv, for the official sets also labels640.csv and '
        'labels=640_padded.csv, and database/ (or FLIVE/) with its folders, or those folders',
        images=39810,
        score_range=(0, 100),
        official='labels640.csv, labels=640_padded.csv',
        resize=(512, 512),
    ),
    'agiqa3k': Database(
        title='AGIQA-3K',
        read=read_agiqa3k,
        source='https://github.com/lcysyzxdxc/AGIQA-3k-Database',
        layout='data.csv and the images, beside it or in images/, img/ or AGIQA-3K/; '
        '--split_by content splits by prompt',
        images=2982,
        score_range=(0, 5),
    ),
    'csv': Database(
        title='your images',
        read=read_own_table,
        source='yours',
        layout='--csv FILE with the columns image and score (or dmos: lower is better), '
        'optionally content (its images stay together in a split) and set (train, val or test); '
        'many other names are known',
        by_content=True,
        official='a column called set',
        exif_rotation=True,
        srgb=True,
    ),
    'demo': Database(
        title='the demo database',
        read=read_demo,
        source='this project: it is generated on first use',
        layout='labels.csv and its images',
        images=demo_database.IMAGES,
        score_range=(1, 5),
        by_content=True,
        type_pattern=BEFORE_LEVEL,
        defaults=demo_database.DEFAULTS,
    ),
}
ALIASES = {  # without the - and _ that names can have
    'koniq10k': 'koniq',
    'clive': 'livec',
    'livechallenge': 'livec',
    'kadid': 'kadid10k',
    'tid': 'tid2013',
    'agiqa': 'agiqa3k',
    'paq2piq': 'flive',
}


def database_key(name: str) -> str:
    """The key in `DATABASES` of a name or alias, in any letter case, with - and _ or without."""
    plain = re.sub('[-_ ]', '', name.lower())
    key = ALIASES.get(plain, plain)
    if key not in DATABASES:
        advice = nearest(plain, [*DATABASES, *ALIASES])
        if not advice:
            advice = f'; choose one of {", ".join(DATABASES)}'
        raise InputError(f'there is no database {name!r}{advice}')
    return key


def remedy_of(key: str, path: Path | str, settings: Settings) -> str:
    """The advice to a user who lacks files of the database `key` in `path`."""
    if key == 'csv':
        start = settings.images or f'{Path(path).parent}{os.sep}'
        remedy = f'Each line names an image and its score; a relative name starts at {start}'
        # Not of a table of --test_on, whose names have no other start.
        if settings.place == AS_DOCUMENTED.place:
            remedy += f' or at {settings.place}'
        return f'{remedy}.'
    entry = DATABASES[key]
    return (
        f'Get it from {entry.source} and unpack it so that the folder holds {entry.layout}; '
        f'{settings.place} names another place; --dataset demo needs no data.'
    )


def read_labels(dataset: str, path: Path | str, settings: Settings = AS_DOCUMENTED) -> Labels:
    """Read a database's labels and find its images.

    Args:
        dataset: a key of `DATABASES`, or an alias.
        path: the database's folder; for `csv` the table itself. The demo database is generated
            there if it is not there yet.

    Raises:
        InputError: the folder, the label file or images are missing, or a row is wrong.
    """
    key = database_key(dataset)
    database = DATABASES[key]
    labels = Labels(path, database.title, remedy_of(key, path, settings), settings)
    database.read(labels)
    if not labels.samples:
        raise InputError(f'{labels.file} lists no image. {labels.remedy}')
    if database.type_pattern:
        add_types(labels.samples, database.type_pattern)
    if settings.average_votes:
        labels.average()
    if not settings.skip_missing:
        refuse_missing(labels)
    return labels


def add_types(samples: list[Sample], pattern: str) -> None:
    """Take the type of each sample's distortion from its path; '' if the path has none."""
    for k, sample in enumerate(samples):
        match = re.search(pattern, sample.path)
        kind = match[1] if match else ''
        samples[k] = sample._replace(facts={'type': kind})


def refuse_missing(labels: Labels) -> None:
    missing = [sample for sample in labels.samples if sample.file is None]
    if missing:
        first = ', '.join(f'{visible(sample.path)} ({sample.where})' for sample in missing[:5])
        raise InputError(
            f'{labels.title}: {len(missing)} of the {len(labels.samples)} images that '
            f'{labels.file} lists are missing, the first of them {first}. {labels.remedy} '
            '--skip_missing leaves them out.'
        )


class OpenDatabase:
    """A database whose labels are read; `open_frames` opens its images too.

    Args:
        dataset, path: as in `read_labels`.
        resize: (height, width) that every image is resized to, instead of the database's own.
        settings: how the labels are read.
        srgb: whether its images are converted to sRGB, instead of the database's own way.

    Attributes:
        key: its name in `DATABASES`.
        entry: its row there.
        samples: its `Sample`s, in the order of the label file.
        known: paths of its images that are not scored.
        higher_is_better: the direction of its scores.
        by_content: whether a split keeps the images of one content together.
        left_out: with `settings.skip_missing`, the name, row and reason of each listed image that
            is left out.
        units: what a split keeps together: a list of positions in `samples` for each content,
            sorted by name, or for each image.
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
        srgb: bool | None = None,
    ) -> None:
        self.key = database_key(dataset)
        self.entry = DATABASES[self.key]
        self.path = path
        self.resize = resize or self.entry.resize
        self.srgb = self.entry.srgb if srgb is None else srgb
        self.settings = settings
        labels = read_labels(self.key, path, settings)
        self.label_file = labels.file
        self.known = labels.known
        self.samples = labels.samples
        self.left_out: list[dict[str, str]] = []
        if settings.skip_missing:
            self.leave_out(labels)
        self.refuse_equal_scores()

        # The label file or the user can say otherwise than the table of databases.
        self.higher_is_better = self.entry.higher_is_better
        if labels.higher_is_better is not None:
            self.higher_is_better = labels.higher_is_better
        self.by_content = self.entry.by_content
        if settings.split_by is not None:
            self.by_content = settings.split_by == 'content'
        if settings.split_by == 'content':
            self.refuse_single_contents()
        self.units = split_units(self.samples, self.by_content)

    def leave_out(self, labels: Labels) -> None:
        """Leave out the images that are missing or unreadable, and log how many."""

        def fault_of(path: str) -> str:
            return read_picture(path, self.entry.exif_rotation).fault

        paths = [sample.path for sample in labels.samples]
        faults = on_all_cores('find unreadable images', fault_of, paths)
        self.samples = []
        for sample, fault in zip(labels.samples, faults):
            if fault:
                name = self.name_of(sample.path)
                self.left_out.append({'image': name, 'row': sample.where, 'reason': fault})
            else:
                self.samples.append(sample)
        if not self.samples:
            raise InputError(
                f'{labels.file}: none of the {len(faults)} images that it lists can be read. '
                f'{labels.remedy}'
            )
        if self.left_out:
            log(
                f'--skip_missing: {len(self.left_out)} of {len(faults)} listed images are left '
                f'out, the first is {self.left_out[0]["image"]}'
            )

    def refuse_equal_scores(self) -> None:
        scores = [sample.score for sample in self.samples]
        # The network computes with 32 bits, in which close scores are equal.
        if len(scores) > 1 and np.float32(min(scores)) == np.float32(max(scores)):
            raise InputError(
                f'{self.label_file}: all {len(scores)} scores are {scores[0]:g}; give scores that '
                'differ'
            )

    def refuse_single_contents(self) -> None:
        """Refuse --split_by content if each image is a content of its own."""
        contents = {sample.content for sample in self.samples}
        if len(contents) == len(self.samples):
            if self.key == 'csv':
                remedy = '--columns content=NAME names the column'
            else:
                remedy = f'{self.entry.title} names none'
            raise InputError(
                f'--split_by content: no two images of {self.label_file} have the same content; '
                f'{remedy}'
            )

    def open_frames(self, smallest: int, cache: Path | str | None = None) -> 'OpenDatabase':
        """Make the images ready, decoding them into the cache if they are not in it.

        Args:
            smallest: the least height and width of an image, after the resize.
            cache: as in `util.frames.open_frames`.

        Returns:
            the database itself.
        """
        direct = DirectFrames(
            paths=[sample.path for sample in self.samples],
            smallest=smallest,
            resize=self.resize,
            exif_rotation=self.entry.exif_rotation,
            srgb=self.srgb,
            folder=self.folder,
            # Another column of images is another cache.
            column=self.settings.columns.get('image', ''),
        )
        self.frames = open_frames(direct, self.path, self.key, cache)
        return self

    def images(self, units: Iterable[int]) -> list[int]:
        """The positions of the samples of `units`, in their order."""
        positions = []
        for unit in units:
            positions += self.units[unit]
        return positions

    def names(self, positions: Iterable[int]) -> list[str]:
        """The samples' names in the files of a run, the same on every machine."""
        return [self.all_names[k] for k in positions]

    @cached_property
    def all_names(self) -> list[str]:
        return [self.name_of(sample.path) for sample in self.samples]

    def name_of(self, path: str) -> str:
        """The path of an image below the database's folder."""
        return Path(path_from(self.folder, path)).as_posix()

    @property
    def folder(self) -> Path | str:
        """The folder at which the images' names start."""
        return self.settings.images or folder_of(self.path)

    @cached_property
    def digest(self) -> str:
        """A hash of the samples' names, scores, contents and official sets, in their order."""
        return digest_of(self.rows())

    @cached_property
    def digest_in_any_order(self) -> str:
        """As `digest`, the same if only the order of the samples differs."""
        return digest_of(sorted(self.rows()))

    def rows(self) -> list[list[Any]]:
        """The name, score, content and official set of each sample."""
        rows = []
        for name, sample in zip(self.all_names, self.samples):
            rows.append([name, sample.score, self.plain_content(sample), sample.official_set])
        return rows

    def plain_content(self, sample: Sample) -> str:
        """The content of a sample. If it is an image's path, only the part below the folder."""
        return sample.content.removeprefix(f'{folder_of(self.path)}{os.sep}')

    def contents(self, positions: Iterable[int]) -> list[str]:
        """The content of each image if splits are by content, else its name.

        Intervals resample these, since images of one content are not independent.
        """
        if not self.by_content:
            return self.names(positions)
        return [self.plain_content(self.samples[k]) for k in positions]

    def facts(self, positions: Sequence[int]) -> dict[str, list[Any]]:
        """The further columns of predictions.csv (see `Sample`)."""
        columns = {}
        for name in self.samples[0].facts:
            columns[name] = [self.samples[k].facts[name] for k in positions]
        return columns

    def thumbnail(self, position: int) -> Image.Image:
        """A small picture of an image, in the proportions of its file and not of its frame."""
        path = self.samples[position].path
        picture = load_image(path, exif_rotation=self.entry.exif_rotation, srgb=self.srgb)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture

    @property
    def score_range(self) -> tuple[float, float]:
        """(low, high) of the scores: nominal, or of the samples for `csv`."""
        scores = [sample.score for sample in self.samples]
        return self.entry.score_range or (min(scores), max(scores))

    def meaning(self, normalized: bool) -> Meaning:
        """What an image and a score mean to a network that is trained on this database.

        Args:
            normalized: whether the network's 0..1 stands for the range of the labels.
        """
        # The user's options and the labels can say otherwise than the table of databases.
        return self.entry.meaning._replace(
            label_range=self.score_range,
            higher_is_better=self.higher_is_better,
            score_range=self.score_range if normalized else None,
            resize=self.resize,
            srgb=self.srgb,
        )

    def warn_if_incomplete(self) -> None:
        """Warn if the labels list more or fewer images than the complete database has."""
        listed = len(self.samples) + len(self.left_out)
        if self.entry.images is not None and self.entry.images != listed:
            log(
                f'warning: {self.entry.title} has {self.entry.images} images; {listed} are listed '
                'in the labels of this copy'
            )


def digest_of(rows: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def split_units(samples: list[Sample], by_content: bool) -> list[list[int]]:
    """The `OpenDatabase.units` of `samples`."""
    units: dict[Any, list[int]] = {}
    for k, sample in enumerate(samples):
        unit = sample.content if by_content else k
        units.setdefault(unit, []).append(k)
    # By name, so that a seed draws the same contents whatever the order of the label file.
    return [units[unit] for unit in sorted(units)]


def dataset_table() -> str:
    """All databases as a table, one line each."""
    form = '{:11}{:19}{:8}{:34}{}'
    lines = [form.format('--dataset', 'database', 'images', 'scores', 'split')]
    for key, entry in DATABASES.items():
        images = str(entry.images or 'any')
        lines.append(form.format(key, entry.title, images, entry.scale, entry.split))
    return '\n'.join(lines)


def dataset_facts(key: str) -> str:
    """All that is known of a database, one line each."""
    entry = DATABASES[key]
    resized = ''
    if entry.resize:
        height, width = entry.resize
        resized = f'{height} high, {width} wide'
    facts = {
        'also called': ', '.join(alias for alias, target in ALIASES.items() if target == key),
        'images': entry.images,
        'scores': entry.scale,
        'split': entry.split,
        'resized to': resized,
        'rotation': 'as their EXIF orientation' if entry.exif_rotation else '',
        'options': ' '.join(f'--{name} {value}' for name, value in entry.defaults.items()),
        'get it from': entry.source,
        'folder': entry.layout,
    }
    lines = [entry.title]
    for name, text in facts.items():
        if text:
            lines.append(f'  {name:13}{text}')
    return '\n'.join(lines)


class DatabaseFolder:
    """A map-style dataset of (image, score), for code that was written for the original's datasets.

    Each image comes `patch_num` times in a row.

    Args:
        dataset: a key of `DATABASES`.
        root: the database's folder.
        index: positions of the wanted units (see `OpenDatabase`): images, or references if splits
            are by content.
        transform: turns a `PIL.Image` into the image that the dataset gives.
        patch_num: patches of each image per epoch.
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
        self.samples = []
        for k in database.images(index):
            sample = database.samples[k]
            for _ in range(patch_num):
                self.samples.append((sample.path, sample.score))
        self.database = database
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, float]:
        path, score = self.samples[index]
        rotation = self.database.entry.exif_rotation
        image = load_image(path, exif_rotation=rotation, srgb=self.database.srgb)
        return self.transform(image), score

    def __len__(self) -> int:
        return len(self.samples)


# the original's datasets under its names
LIVEFolder = functools.partial(DatabaseFolder, 'live')
CSIQFolder = functools.partial(DatabaseFolder, 'csiq')
TID2013Folder = functools.partial(DatabaseFolder, 'tid2013')
LIVEChallengeFolder = functools.partial(DatabaseFolder, 'livec')
Koniq_10kFolder = functools.partial(DatabaseFolder, 'koniq')
BIDFolder = functools.partial(DatabaseFolder, 'bid')
