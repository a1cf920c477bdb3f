"""Image files and their decoded frames, read from the files or from a cache.

Both kinds of frames have `sizes`, (N, 2) heights and widths, and give the (height, width, 3) uint8
RGB image at a position.

The cache is one file, which every process and every later run shares: N x 2 heights and widths
(int64, little endian), then the pixels of every frame. It is mapped into memory read-only, so its
pages belong to the system's page cache and not to the process. It appears whole or not at all, and
its name is a hash of everything that its content depends on, so a cache that exists is current.
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
CLOSE = 3  # levels by which a colour profile may differ from sRGB and still count as sRGB
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations in which height and width are swapped
TURNS = {  # by EXIF orientation: the step that sets an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own warnings do not name the file.
warnings.filterwarnings('ignore', module=r'PIL\.')
logging.getLogger('PIL').addHandler(logging.NullHandler())


class Picture(NamedTuple):
    """The facts that are kept of a decoded image.

    Attributes:
        size: (height, width) before any resize, or None if the image cannot be read.
        digest: hash of size and pixels, equal for all files with the same picture; None if the
            image cannot be read.
        fault: the reason why it cannot be read, or ''.
        oddities: those of DEEP, TRANSPARENT and WIDE that it is.
    """

    size: tuple[int, int] | None
    digest: bytes | None
    fault: str = ''
    oddities: Sequence[str] = ()


def load_image(path: Path | str, exif_rotation: bool = False, srgb: bool = False) -> Image.Image:
    """The first picture in a file as an RGB `PIL.Image`.

    Args:
        exif_rotation: turn it by its EXIF orientation.
        srgb: convert it from its colour profile to sRGB.

    Raises:
        InputError: it cannot be read, or holds numbers of an unknown range.
    """
    image, _ = decode_image(path, exif_rotation, srgb)
    return image


def decode_image(
    path: Path | str, exif_rotation: bool = False, srgb: bool = False
) -> tuple[Image.Image, list[str]]:
    """The picture of `load_image`, and those of DEEP, TRANSPARENT and WIDE that it was."""
    with reading(path, 'an image') as file, Image.open(file) as image:
        return as_rgb(image, exif_rotation, srgb)


def read_picture(path: str, exif_rotation: bool) -> Picture:
    """The facts about an image file, whether it can be read or not."""
    try:
        image, oddities = decode_image(path, exif_rotation)
    except InputError as error:
        return Picture(size=None, digest=None, fault=str(error).removeprefix(path).strip())
    size = (image.height, image.width)
    digest = hashlib.sha256(repr(size).encode() + image.tobytes()).digest()
    return Picture(size, digest, oddities=oddities)


def as_rgb(image: Image.Image, exif_rotation: bool, srgb: bool) -> tuple[Image.Image, list[str]]:
    """A picture of any mode as RGB, and those of DEEP, TRANSPARENT and WIDE that it was.

    16-bit grey is scaled to 8 bits, and transparent pixels are shown on white. `exif_rotation` and
    `srgb` are as in `load_image`.
    """
    # The steps below make new images, which no longer have the EXIF block.
    turn = TURNS.get(orientation(image)) if exif_rotation else None
    image.load()
    oddities = []

    # Pillow reads a 16-bit PPM, and some versions a 16-bit PNG, in the mode for 32 bits.
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        image = in_8_bits(image)
        oddities.append(DEEP)
    if image.mode in ('I', 'F'):
        raise ValueError('it holds 32-bit or signed numbers, whose range nobody knows')

    if 'A' in image.getbands() or 'transparency' in image.info:
        layer = image.convert('RGBA')
        # Many images have an alpha channel in which every pixel is opaque.
        if layer.getchannel('A').getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new('RGBA', layer.size, 'white'), layer)
            oddities.append(TRANSPARENT)

    rgb = image.convert('RGB')
    transform = srgb_transform(image.info.get('icc_profile') or b'')
    if transform:
        oddities.append(WIDE)
        if srgb:
            ImageCms.applyTransform(rgb, transform, inPlace=True)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return rgb, oddities


def in_8_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture, scaled to 8 bits.

    Raises:
        ValueError: it is a TIFF that means something else by the same mode.
    """
    tags = getattr(image, 'tag_v2', {})  # only a TIFF has them
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))
    if bits != (16,) or tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        raise ValueError('it is a grey TIFF of other than 16 bits, or one in which zero is white')
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@lru_cache(maxsize=64)
def srgb_transform(profile: bytes) -> Any:
    """The conversion from a colour profile to sRGB, or None if the picture is in sRGB already.

    Most pictures are. Only RGB profiles are converted, relative to white. One that changes no
    colour by more than CLOSE levels counts as sRGB, which has many spellings.
    """
    if profile[16:20] != b'RGB ':  # the header's field for the colour space
        return None
    # Colours from everywhere in the cube, as the pixels of a small image.
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    colours = Image.fromarray(cube.reshape(len(steps), -1, 3))
    try:
        to_srgb = ImageCms.buildTransform(
            io.BytesIO(profile),
            ImageCms.createProfile('sRGB'),
            'RGB',
            'RGB',
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        converted = ImageCms.applyTransform(colours, to_srgb)
    except (ImageCms.PyCMSError, OSError):  # a damaged profile counts as none
        return None
    # As int16, since the difference of two uint8 wraps around.
    difference = np.asarray(converted, np.int16) - np.asarray(colours, np.int16)
    return to_srgb if np.abs(difference).max() > CLOSE else None


def orientation(image: Image.Image) -> Any:
    """The EXIF orientation of an open image, 1 ... 8, or None.

    `ImageOps.exif_transpose` is not used, since it fails on photos in which another tag is odd.
    """
    # Pillow itself turns a TIFF as it loads it.
    return 1 if image.format == 'TIFF' else image.getexif().get(ExifTags.Base.Orientation)


def resized(image: Image.Image, resize: Sequence[int] | None) -> Image.Image:
    """The image at (height, width) `resize`, or as it is if that is None.

    Bilinear with antialiasing, as torchvision's `Resize` does it for Pillow images.
    """
    if resize is None:
        return image
    height, width = resize
    return image.resize((width, height), Image.Resampling.BILINEAR)


def image_size(path: Path | str, exif_rotation: bool) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    with reading(path, 'an image') as file, Image.open(file) as image:
        if image.format == 'TIFF' and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
            image.load()  # only some versions of Pillow turn the size of a TIFF before it is loaded
        if exif_rotation and orientation(image) in SIDEWAYS:
            return image.width, image.height
        return image.height, image.width


def folder_of(path: Path | str) -> Path:
    """The folder at which a database's relative names start: `path`, or a table's folder."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def open_frames(
    direct: 'DirectFrames', root: Path | str, name: str, cache: Path | str | None
) -> 'DirectFrames | CachedFrames':
    """The frames `direct` from their cache, which is built if it does not exist.

    Args:
        root: the database's folder or label file, next to which the cache is by default.
        name: the start of the cache file's name.
        cache: the cache's folder. None is `.hyperiqa_cache` next to the images, or the user's cache
            folder if that cannot be written or has no room. 'none' stands for no cache: image files
            are read at every access.

    Raises:
        InputError: an image cannot be read or is too small, or `cache` is a folder that cannot be
            written.
    """
    if cache == 'none':
        return direct
    reason = ''
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
    """The folders for a cache, the first choice first."""
    folders = [folder_of(root) / '.hyperiqa_cache']
    with suppress(RuntimeError):  # a user without a home
        user_cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        folders.append(user_cache / 'hyperiqa')
    return folders


class DirectFrames:
    """Frames that are decoded and resized at every access.

    Args:
        paths: of the image files.
        smallest: the least height and width of an image after the resize.
        resize: (height, width) that every image is resized to, or None.
        exif_rotation: turn images by their EXIF orientation.
        srgb: convert images with a wide-gamut profile to sRGB.
        folder: at which the images' names start. With their contents it may move.
        column: the column of a table that names the images, if the user chose it.
    """

    def __init__(
        self,
        paths: list[str],
        smallest: int,
        resize: Sequence[int] | None,
        exif_rotation: bool,
        srgb: bool,
        folder: Path | str,
        column: str,
    ) -> None:
        self.paths = paths
        self.smallest = smallest
        self.resize = resize
        self.exif_rotation = exif_rotation
        self.srgb = srgb
        self.folder = folder
        self.column = column

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths, from the headers of the files.

        Raises:
            InputError: a file is no image, or a frame is smaller than `smallest`.
        """
        sizes = [self.resize or image_size(path, self.exif_rotation) for path in self.paths]
        for path, (height, width) in zip(self.paths, sizes):
            if min(height, width) < self.smallest:
                raise InputError(
                    f'{path} is {width}x{height}: an image must be at least '
                    f'{self.smallest}x{self.smallest}; enlarge it or remove it'
                )
        return np.array(sizes).reshape(-1, 2)

    def __getitem__(self, k: int) -> np.ndarray:
        image = load_image(self.paths[k], self.exif_rotation, self.srgb)
        frame = np.asarray(resized(image, self.resize))
        if frame.shape[:2] != tuple(self.sizes[k]):
            raise changed(self.paths[k])
        return frame


def changed(path: str) -> InputError:
    """The error at an image that is not as it was before."""
    return InputError(
        f'{path} was changed while it was in use, or its header is wrong; start again once it '
        'stays as it is'
    )


class CachedFrames:
    """Frames in one array of `pixels` (uint8), each from its place in `starts` (N + 1,)."""

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.pixels = pixels
        self.sizes = sizes
        self.starts = starts

    def __getitem__(self, k: int) -> np.ndarray:
        height, width = self.sizes[k]
        return self.pixels[self.starts[k] : self.starts[k + 1]].reshape(height, width, 3)


def open_cache(folder: Path, name: str, root: Path | str, direct: DirectFrames) -> CachedFrames:
    """The `CachedFrames` in `folder`, built from `direct` if they do not exist.

    Raises:
        OSError: the folder cannot be written.
        InputError: an image cannot be read or is too small.
    """
    place = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    stamps = stamps_of(direct.paths, direct.folder)
    path = folder / cache_name(name, place, direct, stamps)
    frames = read_cache(path, len(stamps))
    if frames is not None:
        return frames

    # The sizes are read before the lock is held, since an image may be at fault.
    sizes = direct.sizes
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix('.lock')) as is_held:
        # Another process may have built it while this one waited for the lock.
        if read_cache(path, len(stamps)) is None:
            remove_abandoned(folder)
            remove_abandoned(folder, path.name, owned=is_held)
            build(path, sizes, direct)
            remove_if_changed(path, direct.paths, stamps, stamps_of(direct.paths, direct.folder))
    frames = read_cache(path, len(stamps))
    if frames is None:
        raise OSError(errno.EIO, 'it does not read as it was written')
    return frames


def cache_name(name: str, place: str, direct: DirectFrames, stamps: Sequence[Any]) -> str:
    """The file name of a cache: `name`, a hash for database and preparation, one for the files.

    A new cache replaces the others with the same first hash (`remove_older`).

    Args:
        place: the path from the cache to the database, which stays when both are moved.
        stamps: those of `stamps_of`.
    """
    made = [FORMAT, place, direct.resize and tuple(direct.resize), direct.exif_rotation]
    # Left out where they are off, so that caches from before these options keep their names.
    if direct.srgb:
        made.append('sRGB')
    if direct.column:
        made.append(f'column {direct.column}')
    of_place = hashlib.sha256(repr(tuple(made)).encode()).hexdigest()
    of_files = hashlib.sha256(repr(stamps).encode()).hexdigest()
    return f'{name}-{of_place[:8]}-{of_files[:16]}.frames'


def stamps_of(paths: Sequence[str], folder: Path | str) -> list[tuple[Any, ...]]:
    """A value for each image file that changes when the file does.

    It has the path below `folder`, the size and the modification time, and for some of the images
    the first and last kilobyte too: two databases that a container shows under one path, one after
    the other, can have equal names, sizes and times.
    """
    start = os.path.join(folder, '')
    stamps: list[tuple[Any, ...]] = []
    for path in paths:
        status = os.stat(path)
        stamps.append((path.removeprefix(start), status.st_size, status.st_mtime_ns))
    for k in range(0, len(paths), max(1, len(paths) // SAMPLED)):
        _, size, _ = stamps[k]
        with reading(paths[k], 'an image') as file:
            head = file.read(1024)
            file.seek(max(0, size - 1024))
            tail = file.read(1024)
        stamps[k] += (head, tail)
    return stamps


def remove_if_changed(
    path: Path, images: Sequence[str], before: Sequence[Any], after: Sequence[Any]
) -> None:
    """Remove the new cache `path` if an image's stamp changed while it was built.

    Raises:
        InputError: the stamp of one of the images changed.
    """
    for image, old, new in zip(images, before, after):
        if old != new:
            path.unlink()
            raise changed(image)


def read_cache(path: Path, count: int) -> CachedFrames | None:
    """The `count` frames in the cache file `path`, or None if it is missing or not whole."""
    if not path.is_file() or path.stat().st_size < 16 * count:
        return None
    sizes = np.fromfile(path, '<i8', 2 * count).reshape(-1, 2)
    starts = starts_of(sizes)
    # Sizes that are not those of a cache seldom add up to the file's.
    if path.stat().st_size != starts[-1] or sizes.min() < 1:
        return None
    pixels = np.asarray(np.memmap(path, np.uint8, 'r'))
    return CachedFrames(pixels, sizes, starts)


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,): where each frame of `sizes` (N, 2) starts in the cache file, and the file's end."""
    lengths = 3 * sizes.prod(1)
    # Before the frames are 16 bytes for the height and width of each.
    return 16 * len(sizes) + np.concatenate(([0], np.cumsum(lengths)))


def build(path: Path, sizes: np.ndarray, direct: DirectFrames) -> None:
    """Decode every frame of `direct`, in parallel, into a new cache file `path`.

    Older caches of the same database and preparation are deleted.
    """
    is_replaced = remove_older(path)
    starts = starts_of(sizes)
    gigabytes = f'{starts[-1] / 1e9:.2f} GB'
    text = f'decoding {len(sizes)} images once into {path} ({gigabytes})'
    # Perhaps an image has changed, or the table names other images or other rows first.
    if is_replaced:
        text += ', in place of the cache of an earlier state of the database'
    log(text)
    # A full disk shows before the work and not after it.
    if starts[-1] > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, f'{gigabytes} are needed')

    write_lock = threading.Lock()
    with writing(path) as file:
        file.write(sizes.astype('<i8').tobytes())
        file.truncate(int(starts[-1]))

        def write(k: int) -> None:
            frame = np.ascontiguousarray(direct[k])
            # Threads decode at the same time, but the file has only one position.
            with write_lock:
                file.seek(int(starts[k]))
                file.write(frame.data)

        on_all_cores('decode', write, range(len(direct.paths)))


def remove_older(path: Path) -> bool:
    """Delete the caches that the new cache `path` replaces, unless another process builds them.

    Returns:
        whether there are such caches.
    """
    database, _, _ = path.name.rpartition('-')
    older = [other for other in path.parent.glob(f'{database}-*.frames') if other != path]
    for other in older:
        lock = other.with_suffix('.lock')
        if not is_locked(lock):
            other.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    return bool(older)


def on_all_cores(title: str, function: Callable[[Any], Any], images: Sequence[Any]) -> list[Any]:
    """`function` of each of `images`, in order; the progress is shown on stderr."""
    # Closed at the end, so that after a failure no job runs any more.
    with closing(ahead(function, images, workers=cores(), count=2 * cores())) as jobs:
        done = progress(jobs, title, total=len(images), unit='images')
        return [job.result() for job in done]


def ahead(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, count: int
) -> Generator[Future[Any]]:
    """Yields the jobs of `function` of each of `items`, in order.

    Args:
        workers: the number of threads.
        count: the number of later jobs that are submitted when one is yielded.
    """
    pool = ThreadPoolExecutor(workers)
    # A job is submitted when it is taken from here.
    jobs = (pool.submit(function, item) for item in items)
    waiting = deque(itertools.islice(jobs, count))
    try:
        while waiting:
            job = waiting.popleft()
            waiting.extend(itertools.islice(jobs, 1))
            yield job
    finally:
        # The last job is not cancelled, since whoever got it may still wait for its result.
        pool.shutdown(cancel_futures=bool(waiting))


def cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
