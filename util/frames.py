"""Image files, and their decoded frames: straight from the files or from a cache that every process and every later run shares.

Both kinds of frames have `sizes`, (N, 2) heights and widths, and give the (height, width, 3) uint8 RGB image at a position.
The cache is one file: N x 2 heights and widths (int64, little endian), then the pixels of every frame. It is mapped into memory
read-only, so its pages belong to the system's page cache and not to the process. It appears whole or not at all, and its name
is a hash of all that its content depends on, so a cache that is there is current.
"""

import errno
import hashlib
import io
import itertools
import logging
import os
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from util.errors import InputError, log
from util.files import is_locked, locked, reading, remove_abandoned, writing
from util.progress import progress

FORMAT = 3  # of the cache; changes with anything that gives other pixels for the same files
SAMPLED = 64  # images whose first and last kilobyte are in the cache's name
DEEP, TRANSPARENT, WIDE = '16-bit grey', 'transparent', 'in a wide-gamut profile'
CLOSE = 3  # levels by which a colour profile may differ from sRGB and count as it
T = Image.Transpose
FLIPS = {
    2: T.FLIP_LEFT_RIGHT,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    7: T.TRANSVERSE,
}  # by EXIF orientation
TURNS = {**FLIPS, 3: T.ROTATE_180, 6: T.ROTATE_270, 8: T.ROTATE_90}

warnings.filterwarnings('ignore', module=r'PIL\.')  # they do not name the file
logging.getLogger('PIL').addHandler(logging.NullHandler())


class Picture(NamedTuple):
    """What is kept of a decoded image.

    Attributes:
        size: (height, width) before any resize, or None if it cannot be read.
        digest: hash of size and pixels, the same for every file that decodes to the same picture, or None.
        fault: why it cannot be read, or ''.
        oddities: which of DEEP, TRANSPARENT and WIDE it is.
    """

    size: tuple[int, int] | None
    digest: bytes | None
    fault: str = ''
    oddities: Sequence[str] = ()


def load_image(path: Path | str, exif_rotation: bool = False, srgb: bool = False) -> Image.Image:
    """The first picture in a file as an RGB `PIL.Image`.

    With `exif_rotation` it is turned by its EXIF orientation, and with `srgb` converted from its colour profile to sRGB.

    Raises:
        InputError: it cannot be read, or holds numbers of an unknown range.
    """
    return decode_image(path, exif_rotation, srgb)[0]


def decode_image(
    path: Path | str, exif_rotation: bool = False, srgb: bool = False
) -> tuple[Image.Image, list[str]]:
    """The picture of `load_image`, and which of DEEP, TRANSPARENT and WIDE it was."""
    with reading(path, 'an image') as file, Image.open(file) as image:
        return as_rgb(image, exif_rotation, srgb)


def read_picture(path: str, exif_rotation: bool) -> Picture:
    """What is kept of an image file, whether it can be read or not."""
    try:
        image, oddities = decode_image(path, exif_rotation)
    except InputError as error:
        return Picture(None, None, str(error).removeprefix(path).strip())
    size = image.height, image.width
    return Picture(
        size, hashlib.sha256(repr(size).encode() + image.tobytes()).digest(), oddities=oddities
    )


def as_rgb(image: Image.Image, exif_rotation: bool, srgb: bool) -> tuple[Image.Image, list[str]]:
    """A picture of any mode as RGB, upright if `exif_rotation` is set, and which of DEEP, TRANSPARENT and WIDE it was.

    16-bit grey is scaled to 8 bits, transparent pixels are shown on white, and with `srgb` a wide gamut becomes sRGB's.
    """
    turn = TURNS.get(orientation(image)) if exif_rotation else None
    image.load()
    oddities = []
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        tags = getattr(image, 'tag_v2', {})
        if (
            tags.get(ExifTags.Base.BitsPerSample, (16,)) != (16,)
            or tags.get(ExifTags.Base.PhotometricInterpretation) == 0
        ):
            raise ValueError(
                'it is a grey TIFF of other than 16 bits, or one in which zero is white'
            )
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        oddities.append(DEEP)
    if image.mode in ('I', 'F'):
        raise ValueError('it holds 32-bit or signed numbers, whose range nobody knows')
    if 'A' in image.getbands() or 'transparency' in image.info:
        layer = image.convert('RGBA')
        if layer.getchannel('A').getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new('RGBA', layer.size, 'white'), layer)
            oddities.append(TRANSPARENT)
    rgb = image.convert('RGB')
    transform = srgb_transform(image.info.get('icc_profile') or b'')
    if transform:
        oddities.append(WIDE)
        if srgb:
            ImageCms.applyTransform(rgb, transform, inPlace=True)
    return rgb if turn is None else rgb.transpose(turn), oddities


@lru_cache(maxsize=64)
def srgb_transform(profile: bytes) -> Any:
    """The conversion from a colour profile to sRGB, or None where the picture means sRGB already, as by far most do.

    Of an RGB profile alone, relative to white; what differs by up to CLOSE levels is one of the many spellings of sRGB.
    """
    if profile[16:20] != b'RGB ':
        return None
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = Image.fromarray(
        np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
    )
    try:
        ends = (io.BytesIO(profile), ImageCms.createProfile('sRGB'))
        to_srgb = ImageCms.buildTransform(
            *ends, 'RGB', 'RGB', ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        converted = ImageCms.applyTransform(lattice, to_srgb)
    except (ImageCms.PyCMSError, OSError):  # a damaged profile means nothing
        return None
    difference = np.asarray(converted, np.int16) - np.asarray(lattice, np.int16)
    return to_srgb if np.abs(difference).max() > CLOSE else None


def orientation(image: Image.Image) -> Any:
    """The EXIF orientation of an open image, 1 ... 8; `ImageOps.exif_transpose` fails on photos where another tag is odd."""
    # Pillow turns a TIFF itself when it is loaded
    return 1 if image.format == 'TIFF' else image.getexif().get(ExifTags.Base.Orientation)


def resized(image: Image.Image, resize: Sequence[int] | None) -> Image.Image:
    """Bilinear with antialiasing, as torchvision's `Resize` is for Pillow images, to (height, width)."""
    return (
        image if resize is None else image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    )


def image_size(path: Path | str, exif_rotation: bool) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    with reading(path, 'an image') as file, Image.open(file) as image:
        if image.format == 'TIFF' and image.getexif().get(ExifTags.Base.Orientation) in (
            5,
            6,
            7,
            8,
        ):
            image.load()  # only some versions of Pillow turn the size before
        sideways = exif_rotation and orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if sideways else (image.height, image.width)


def folder_of(path: Path | str) -> Path:
    """The folder at which a database's relative names start: `path`, or the one that holds a table of one's own."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def open_frames(
    direct: 'DirectFrames', root: Path | str, name: str, cache: Path | str | None
) -> 'DirectFrames | CachedFrames':
    """The frames `direct` from their cache, which is built first if need be.

    Args:
        root: the database's folder or label file.
        name: starts the cache file's name.
        cache: the cache's folder; None is `.hyperiqa_cache` beside the images, or the user's cache folder where that
            cannot be written or has no room; `none` reads the image files at every access instead.

    Raises:
        InputError: an image cannot be read or is too small, or `cache` names a folder that cannot be written.
    """
    if cache == 'none':
        return direct
    for folder in [Path(cache)] if cache else default_folders(root):
        try:
            return open_cache(folder, name, root, direct)
        except OSError as error:
            if error.filename in direct.paths:  # an image is at fault, not the cache
                raise
            reason = f'the frame cache cannot be written in {folder}: {error.strerror or error}'
    if cache:
        raise InputError(f'{reason}; --cache DIR names another place, --cache none goes without')
    log(f'{reason}, so images are decoded in every epoch; --cache DIR names another place')
    return direct


def default_folders(root: Path | str) -> list[Path]:
    folders = [folder_of(root) / '.hyperiqa_cache']
    with suppress(RuntimeError):  # this user has no home
        folders.append(
            Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'hyperiqa'
        )
    return folders


class DirectFrames:
    """Frames that are decoded and resized at every access.

    Args:
        paths: of the image files.
        smallest: height and width that an image must have at least after the resize.
        resize: (height, width) that every image is resized to, or None.
        exif_rotation: turn images by their EXIF orientation.
        srgb: convert images with a wide-gamut profile to sRGB.
    """

    def __init__(
        self,
        paths: list[str],
        smallest: int,
        resize: Sequence[int] | None,
        exif_rotation: bool,
        srgb: bool,
    ) -> None:
        self.paths, self.smallest, self.resize, self.exif_rotation, self.srgb = (
            paths,
            smallest,
            resize,
            exif_rotation,
            srgb,
        )

    @cached_property
    def sizes(self) -> np.ndarray:
        """From the headers of the files.

        Raises:
            InputError: a file is no image, or a frame is smaller than `smallest`.
        """
        sizes = [self.resize or image_size(path, self.exif_rotation) for path in self.paths]
        for path, (height, width) in zip(self.paths, sizes):
            if min(height, width) < self.smallest:
                least = f'an image must be at least {self.smallest}x{self.smallest}'
                raise InputError(f'{path} is {width}x{height}: {least}; enlarge it or remove it')
        return np.array(sizes).reshape(-1, 2)

    def __getitem__(self, k: int) -> np.ndarray:
        frame = np.asarray(
            resized(load_image(self.paths[k], self.exif_rotation, self.srgb), self.resize)
        )
        if frame.shape[:2] != tuple(self.sizes[k]):
            raise changed(self.paths[k])
        return frame


def changed(path: str) -> InputError:
    return InputError(
        f'{path} was changed while it was in use, or its header is wrong; start again once it stays as it is'
    )


class CachedFrames:
    """Frames in one array of `pixels` (uint8), each from its place in `starts` (N + 1,)."""

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.pixels, self.sizes, self.starts = pixels, sizes, starts

    def __getitem__(self, k: int) -> np.ndarray:
        return self.pixels[self.starts[k] : self.starts[k + 1]].reshape(*self.sizes[k], 3)


def open_cache(folder: Path, name: str, root: Path | str, direct: DirectFrames) -> CachedFrames:
    """The `CachedFrames` in `folder`, which are built from `direct` unless they are there.

    Raises:
        OSError: the folder cannot be written.
        InputError: an image cannot be read or is too small.
    """
    place = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    how = (direct.exif_rotation, *(['sRGB'] if direct.srgb else []))
    made = repr((FORMAT, place, direct.resize and tuple(direct.resize), *how)).encode()
    stamps = stamps_of(direct.paths, root)
    of_place, of_files = (
        hashlib.sha256(made).hexdigest()[:8],
        hashlib.sha256(repr(stamps).encode()).hexdigest()[:16],
    )
    path = folder / f'{name}-{of_place}-{of_files}.frames'
    if read_cache(path, len(stamps)) is None:
        sizes = direct.sizes  # before the lock is held, since this may fail
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix('.lock')) as alone:
            if read_cache(path, len(stamps)) is None:  # otherwise another process was faster
                remove_abandoned(folder)
                remove_abandoned(folder, path.name, owned=alone)
                build(path, sizes, direct)
                for image, before, after in zip(
                    direct.paths, stamps, stamps_of(direct.paths, root)
                ):
                    if before != after:
                        path.unlink()
                        raise changed(image)
    frames = read_cache(path, len(stamps))
    if frames is None:
        raise OSError(errno.EIO, 'it does not read as it was written')
    return frames


def stamps_of(paths: Sequence[str], root: Path | str) -> list[tuple[Any, ...]]:
    """What makes one list of image files differ from another: each path below `root`, with its bytes and modification time.

    Of some images their first and last kilobyte too, since two databases that one container path shows one after the other
    can have equal names, sizes and times.
    """
    start = os.path.join(folder_of(root), '')
    found = [(path.removeprefix(start), os.stat(path)) for path in paths]
    stamps: list[tuple[Any, ...]] = [
        (name, status.st_size, status.st_mtime_ns) for name, status in found
    ]
    for k in range(0, len(paths), max(1, len(paths) // SAMPLED)):
        with reading(paths[k], 'an image') as file:
            head = file.read(1024)
            file.seek(max(0, stamps[k][1] - 1024))
            stamps[k] += head, file.read(1024)
    return stamps


def read_cache(path: Path, count: int) -> CachedFrames | None:
    """The `count` frames in the cache file `path`, or None if it is missing or not whole."""
    if not path.is_file() or path.stat().st_size < 16 * count:
        return None
    sizes = np.fromfile(path, '<i8', 2 * count).reshape(-1, 2)
    starts = starts_of(sizes)
    if path.stat().st_size != starts[-1] or sizes.min() < 1:
        return None
    return CachedFrames(np.asarray(np.memmap(path, np.uint8, 'r')), sizes, starts)


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,): where each frame of `sizes` (N, 2) starts in the cache file, and where the last one ends."""
    return 16 * len(sizes) + np.concatenate(([0], np.cumsum(3 * sizes.prod(1))))


def build(path: Path, sizes: np.ndarray, direct: DirectFrames) -> None:
    """Decode every frame of `direct`, in parallel, into a new cache file `path`; those made there from other files go."""
    older = [
        other
        for other in path.parent.glob(f'{path.name.rpartition("-")[0]}-*.frames')
        if other != path
    ]
    for other in older:
        lock = other.with_suffix('.lock')
        if not is_locked(lock):
            other.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    starts = starts_of(sizes)
    change = 'images changed since the frame cache was made: ' if older else ''
    log(f'{change}decoding {len(sizes)} images once into {path} ({starts[-1] / 1e9:.2f} GB)')
    if (
        starts[-1] > shutil.disk_usage(path.parent).free
    ):  # a full disk shows before the work and not after it
        raise OSError(errno.ENOSPC, f'{starts[-1] / 1e9:.2f} GB are needed')
    lock = threading.Lock()
    with writing(path) as file:
        file.write(sizes.astype('<i8').tobytes())
        file.truncate(int(starts[-1]))

        def write(k: int) -> None:
            frame = np.ascontiguousarray(direct[k])
            with lock:
                file.seek(int(starts[k]))
                file.write(frame.data)

        on_all_cores('decode', write, range(len(direct.paths)))


def on_all_cores(title: str, function: Callable[[Any], Any], images: Sequence[Any]) -> list[Any]:
    """`function` of each of `images`, in order; stderr shows how far it is."""
    with closing(
        ahead(function, images, cores(), 2 * cores())
    ) as jobs:  # so that none runs any more after a failure
        return [job.result() for job in progress(jobs, title, len(images), 'images')]


def ahead(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, count: int
) -> Generator[Future[Any]]:
    """Yields the jobs of `function` of each of `items`, in order, with up to `count` later ones under way in threads."""
    pool = ThreadPoolExecutor(workers)
    jobs = (pool.submit(function, item) for item in items)
    waiting = deque(itertools.islice(jobs, count))
    try:
        while waiting:
            job = waiting.popleft()
            waiting.extend(itertools.islice(jobs, 1))
            yield job
    finally:
        pool.shutdown(
            cancel_futures=bool(waiting)
        )  # not what was yielded last and is perhaps not looked at yet


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
