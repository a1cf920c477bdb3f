"""Image files and their decoded frames, read from the files or from a cache.

Both kinds of frames, DirectFrames and CachedFrames, have `sizes`, (N, 2) heights and widths, and
return the (height, width, 3) uint8 RGB image at a position.

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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from util.cores import cores
from util.errors import InputError, log
from util.files import is_locked, locked, path_from, reading, remove_abandoned, writing
from util.names import RAW_ENDINGS
from util.progress import progress

FORMAT = 4  # of the cache; changes with anything that gives other pixels for the same files
SAMPLED = 64  # images whose first and last kilobyte are in the cache's name
# The oddities of a picture, which is not shown as it is stored.
DEEP = '16-bit grey'
TRANSPARENT = 'transparent'
BLANK = 'with a blank alpha'  # an alpha that is 0 everywhere
WIDE = 'in a wide-gamut profile'
PRINTED = 'in a profile for print'  # CMYK
# Many programs write 32 bits per pixel in these formats and leave the last 8 at 0.
WITHOUT_ALPHA = ('BMP', 'DIB', 'TGA')
MOSAICS = (32803, 34892)  # TIFF's photometric interpretations of a camera's raw pixels
SPACE = slice(16, 20)  # the bytes of a colour profile that name its colour space
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
        oddities: those of DEEP, TRANSPARENT, BLANK, WIDE and PRINTED that apply to it.
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
        InputError: it cannot be read, or the range of its numbers is unknown.
    """
    with opened(path) as image:
        rgb, _ = as_rgb(image, exif_rotation, srgb)
    return rgb


@contextmanager
def opened(path: Path | str) -> Iterator[Image.Image]:
    """Open the first picture in a file for the body.

    Raises:
        InputError: it cannot be read, or Pillow would read something other than the picture.
    """
    with reading(path, 'an image') as file:
        if Path(path).suffix.lower() in RAW_ENDINGS:
            raise InputError(f"{path} is a camera's raw file; convert it to JPEG, PNG or TIFF")
        with Image.open(file) as image:
            refuse_misread(image)
            yield image


def refuse_misread(image: Image.Image) -> None:
    """Refuse a TIFF from which Pillow reads something other than its picture.

    Raises:
        ValueError: it is such a TIFF.
    """
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    is_reduced = tags.get(Tag.NewSubfileType, 0) & 1 or tags.get(Tag.SubfileType) == 2
    if is_reduced or Tag.DNGVersion in tags or has_mosaic(image, tags.get(Tag.SubIFDs, ())):
        raise ValueError("it is a camera's raw file, or its first page is a reduced copy")
    is_planar = tags.get(Tag.PlanarConfiguration) == 2 and tags.get(Tag.Compression, 1) == 1
    if is_planar and len(image.getbands()) > 1 and max(tags.get(Tag.BitsPerSample, (1,))) > 8:
        raise ValueError(
            'Pillow misreads planes of more than 8 bits, one for each colour, without compression'
        )


def has_mosaic(image: TiffImageFile, starts: int | Sequence[int]) -> bool:
    """Whether a directory of an opened TIFF at one of `starts` has raw pixels of a camera."""
    if image.fp is None:  # Pillow closes a file once its picture is loaded
        return False
    for start in np.atleast_1d(starts).tolist():
        image.fp.seek(0)
        head = image.fp.read(8)
        if head[2] == 43:  # a BigTIFF, whose head is longer
            head += image.fp.read(8)
        directory = ImageFileDirectory_v2(head)
        image.fp.seek(start)
        directory.load(image.fp)
        if directory.get(Tag.PhotometricInterpretation) in MOSAICS:
            return True
    return False


def read_picture(path: str, exif_rotation: bool) -> Picture:
    """The facts about an image file, whether it can be read or not."""
    try:
        with opened(path) as image:
            rgb, oddities = as_rgb(image, exif_rotation, srgb=False)
    except InputError as error:
        return Picture(size=None, digest=None, fault=str(error).removeprefix(path).strip())
    size = (rgb.height, rgb.width)
    digest = hashlib.sha256(repr(size).encode() + rgb.tobytes()).digest()
    return Picture(size, digest, oddities=oddities)


def as_rgb(image: Image.Image, exif_rotation: bool, srgb: bool) -> tuple[Image.Image, list[str]]:
    """A picture of any mode as RGB, and its oddities as in `Picture`.

    16-bit grey is scaled to 8 bits, and transparent pixels are shown on white. `exif_rotation` and
    `srgb` are as in `load_image`.
    """
    refuse_misread(image)
    # Read first: the steps below make new images, which no longer have the EXIF block.
    turn = TURNS.get(orientation(image)) if exif_rotation else None
    image.load()
    oddities = []

    # Pillow reads a 16-bit PPM, and some versions a 16-bit PNG, in the mode for 32 bits.
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        image = in_8_bits(image)
        oddities.append(DEEP)
    if image.mode in ('I', 'F'):
        raise ValueError('it has 32-bit or signed numbers, whose range nobody knows')

    alpha, found = alpha_of(image)
    oddities += found
    rgb = image.convert('RGB')
    profile = image.info.get('icc_profile') or b''
    is_printed = image.mode == 'CMYK' and profile[SPACE] == b'CMYK'
    stored = image if is_printed else rgb
    transform = srgb_transform(profile, stored.mode)
    if transform:
        oddities.append(PRINTED if is_printed else WIDE)
        if srgb:
            rgb = transform.apply(stored)

    # After the conversion, since the white is sRGB's.
    if alpha:
        rgb.putalpha(alpha)
        white = Image.new('RGBA', rgb.size, 'white')
        rgb = Image.alpha_composite(white, rgb).convert('RGB')
    if turn is not None:
        rgb = rgb.transpose(turn)
    return rgb, oddities


def alpha_of(image: Image.Image) -> tuple[Image.Image | None, list[str]]:
    """The alpha channel of a picture, and its oddities: TRANSPARENT, BLANK or none.

    The channel is None if every pixel is opaque, or if it is blank and means nothing.
    """
    if 'A' not in image.getbands() and 'transparency' not in image.info:
        return None, []
    alpha = image.convert('RGBA').getchannel('A')
    extrema = alpha.getextrema()
    # Many images have an alpha channel in which every pixel is opaque.
    if extrema == (255, 255):
        return None, []
    if extrema == (0, 0) and image.format in WITHOUT_ALPHA:
        return None, [BLANK]
    return alpha, [TRANSPARENT]


def is_shown_differently(path: Path | str, srgb: bool) -> bool:
    """Whether a picture is shown in another way than by versions before FORMAT 4.

    They showed a blank alpha as white, and converted neither CMYK nor transparent pictures to sRGB.
    """
    with opened(path) as image:
        # For most pictures the header is enough, and they are not decoded.
        may_have_alpha = 'A' in image.getbands() or 'transparency' in image.info
        if image.mode != 'CMYK' and not may_have_alpha:
            return False
        _, oddities = as_rgb(image, exif_rotation=False, srgb=False)
    is_converted = PRINTED in oddities or {WIDE, TRANSPARENT} <= set(oddities)
    return BLANK in oddities or (srgb and is_converted)


def in_8_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture, scaled to 8 bits.

    Raises:
        ValueError: it is a TIFF in which the same mode has another meaning.
    """
    tags = getattr(image, 'tag_v2', {})  # only a TIFF has them
    bits = tags.get(Tag.BitsPerSample, (16,))
    if bits != (16,) or tags.get(Tag.PhotometricInterpretation) == 0:
        raise ValueError('it is a grey TIFF of other than 16 bits, or one in which zero is white')
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@lru_cache(maxsize=64)
def srgb_transform(profile: bytes, mode: str) -> Any:
    """The conversion from a colour profile to sRGB, or None if the picture is in sRGB already.

    Colours are converted relative to white, which stays white. There are many profiles of sRGB, so
    one that changes no colour by more than CLOSE levels counts as sRGB.

    Args:
        mode: of the picture, 'RGB' or 'CMYK'.
    """
    if profile[SPACE] != mode.ljust(4).encode():
        return None
    # A grid of colours over the whole RGB cube, as the pixels of a small image.
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    colours = Image.fromarray(cube.reshape(len(steps), -1, 3))
    try:
        to_srgb = ImageCms.buildTransform(
            io.BytesIO(profile),
            ImageCms.createProfile('sRGB'),
            mode,
            'RGB',
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        converted = to_srgb.apply(colours.convert(mode))
    except (ImageCms.PyCMSError, OSError):  # a damaged profile counts as none
        return None
    # As int16, since the difference of two uint8 wraps around.
    difference = np.asarray(converted, np.int16) - np.asarray(colours, np.int16)
    return to_srgb if np.abs(difference).max() > CLOSE else None


def orientation(image: Image.Image) -> Any:
    """The EXIF orientation of an opened file, 1 ... 8, or None.

    A picture that is no longer an opened file has none: whoever made it may have turned it, and the
    tag stays. `ImageOps.exif_transpose` is not used, since it fails on photos in which another tag
    is odd.
    """
    # Pillow itself turns a TIFF as it loads it.
    if not isinstance(image, ImageFile.ImageFile) or image.format == 'TIFF':
        return None
    return image.getexif().get(Tag.Orientation)


def resized(image: Image.Image, resize: Sequence[int] | None) -> Image.Image:
    """The image at (height, width) `resize`, or as it is if that is None.

    Bilinear with antialiasing, as torchvision's `Resize` does it for Pillow images.
    """
    if resize is None:
        return image
    height, width = resize
    # First the width and then the height, in two calls: in a single one Pillow 13 takes the other
    # order for some photos, and rounds other numbers than its earlier versions.
    across = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return across.resize((width, height), Image.Resampling.BILINEAR)


def image_size(path: Path | str, exif_rotation: bool) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    with opened(path) as image:
        if image.format == 'TIFF' and image.getexif().get(Tag.Orientation) in SIDEWAYS:
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
        except UnreadableCache as error:
            reason = f'the frame cache {error.filename} cannot be read: {error.strerror}'
            if not cache:  # with --cache it is the error below
                log(f'{reason}; its owner can let others read it')
        except OSError as error:
            if error.filename in direct.paths:  # an image is at fault, not the cache
                raise
            reason = f'the frame cache cannot be written in {folder}: {error.strerror or error}'
    if cache:
        raise InputError(f'{reason}; --cache DIR names another place, --cache none goes without')
    log(f'{reason}, so images are decoded in every epoch; --cache DIR names another place')
    return direct


class UnreadableCache(OSError):
    """A frame cache exists and cannot be read, as one that belongs to another user."""


def default_folders(root: Path | str) -> list[Path]:
    """The folders for a cache, the first choice first."""
    folders = [folder_of(root) / '.hyperiqa_cache']
    with suppress(RuntimeError):  # a user without a home
        user_cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        folders.append(user_cache / 'hyperiqa')
    return folders


@dataclass
class DirectFrames:
    """Frames that are decoded and resized at every access.

    Args:
        paths: of the image files.
        smallest: the least height and width of an image after the resize.
        resize: (height, width) that every image is resized to, or None.
        exif_rotation: turn images by their EXIF orientation.
        srgb: convert images with a wide-gamut profile to sRGB.
        folder: where the images' names start. It may be moved with all that is in it.
        column: the column of a table that names the images, if the user chose it.
    """

    paths: list[str]
    smallest: int
    resize: Sequence[int] | None
    exif_rotation: bool
    srgb: bool
    folder: Path | str
    column: str

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


@dataclass
class CachedFrames:
    """Frames in one array of `pixels` (uint8), each from its place in `starts` (N + 1,)."""

    pixels: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray

    def __getitem__(self, k: int) -> np.ndarray:
        height, width = self.sizes[k]
        return self.pixels[self.starts[k] : self.starts[k + 1]].reshape(height, width, 3)


def open_cache(folder: Path, name: str, root: Path | str, direct: DirectFrames) -> CachedFrames:
    """The `CachedFrames` in `folder`, built from `direct` if they do not exist.

    Raises:
        UnreadableCache: they exist and cannot be read.
        OSError: the folder cannot be written.
        InputError: an image cannot be read, is too small, or changed while they were built.
    """
    place = path_from(os.path.realpath(folder), os.path.realpath(root))
    stamps = stamps_of(direct)
    path = folder / cache_name(name, place, direct, stamps)
    try:
        frames = read_cache(path, len(stamps))
    except OSError as error:
        raise UnreadableCache(error.errno, error.strerror, str(path))
    if frames is not None:
        return frames

    # The sizes are read before the lock is taken, since an image can be at fault.
    sizes = direct.sizes
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix('.lock')) as is_held:
        # Another process may have built it while this one waited for the lock.
        if read_cache(path, len(stamps)) is None:
            remove_abandoned(folder)
            remove_abandoned(folder, path.name, owned=is_held)
            build(path, sizes, direct)
            for image, before, now in zip(direct.paths, stamps, stamps_of(direct)):
                if before != now:
                    path.unlink()
                    raise changed(image)
    frames = read_cache(path, len(stamps))
    if frames is None:
        raise OSError(errno.EIO, 'it does not read as it was written')
    return frames


def cache_name(name: str, place: str, direct: DirectFrames, stamps: Sequence[Any]) -> str:
    """The file name of a cache: `name`, a hash for database and preparation, one for the files.

    A new cache replaces the others with the same first hash (`remove_older`).

    Args:
        place: the relative path from the cache to the database, which stays when both are moved.
        stamps: those of `stamps_of`.
    """
    preparation = [FORMAT, place, direct.resize and tuple(direct.resize), direct.exif_rotation]
    # Left out where they are off, so that caches from before these options keep their names.
    if direct.srgb:
        preparation.append('sRGB')
    if direct.column:
        preparation.append(f'column {direct.column}')
    of_place = hashlib.sha256(repr(tuple(preparation)).encode()).hexdigest()
    of_files = hashlib.sha256(repr(stamps).encode()).hexdigest()
    return f'{name}-{of_place[:8]}-{of_files[:16]}.frames'


def stamps_of(direct: DirectFrames) -> list[tuple[Any, ...]]:
    """A value for each image file that changes when the file does.

    It has the path below `direct.folder`, the size and the modification time, and for some of the
    images the first and last kilobyte too: two databases that a container shows under one path, one
    after the other, can have equal names, sizes and times.
    """
    paths = direct.paths
    start = os.path.join(direct.folder, '')
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


def read_cache(path: Path, count: int) -> CachedFrames | None:
    """The `count` frames in the cache file `path`, or None if it is missing or not whole."""
    if not path.is_file() or path.stat().st_size < 16 * count:
        return None
    sizes = np.fromfile(path, '<i8', 2 * count).reshape(-1, 2)
    starts = starts_of(sizes)
    # In a file that is no cache, the numbers read as sizes hardly ever add up to its own size.
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
    # A disk that is too full is reported before the work and not after it.
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
            # Windows keeps a file that another process has mapped.
            with suppress(PermissionError):
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
    # A generator, so a job is submitted only when it is taken from here.
    jobs = (pool.submit(function, item) for item in items)
    waiting = deque(itertools.islice(jobs, count))
    try:
        while waiting:
            job = waiting.popleft()
            waiting.extend(itertools.islice(jobs, 1))
            yield job
    finally:
        # If none is waiting, nothing is cancelled: whoever got the last job may still wait for it.
        pool.shutdown(cancel_futures=bool(waiting))
