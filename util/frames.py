"""Image files, and their decoded frames: straight from the files or from a cache that every process and every later run shares.

Both kinds of frames have `sizes`, (N, 2) heights and widths; give the (height, width, 3) uint8 RGB image at a position; and
give the frames at some `positions` by `part`. The cache is one file:

    MAGIC, time of writing in s, length of the JSON (8 bytes each, little endian), JSON, zeros to a multiple of ALIGNMENT,
    pixels of every frame

where the JSON lists [path, bytes, modification time in ns, height, width] for each image. It is mapped into memory read-only,
so its pages belong to the system's page cache and not to the process. A file appears whole or not at all, under a lock, and
is used only while it has not been written to since, and every source image has the size and time that it lists.
"""

import ctypes
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import signal
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from util.distributed import say
from util.errors import InputError
from util.files import try_lock

MAGIC = b'HyperIQA frames 2\n'  # 1 held 16-bit, transparent and turned TIFF images wrongly
ALIGNMENT = 4096
LARGEST = 500_000_000  # pixels
PATIENCE = 180  # seconds without a sign of life from the process that builds the cache
ABANDONED = 3600  # seconds after which a half-built cache is nobody's, where no lock says so
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DEEP, TRANSPARENT, UNENDED = '16-bit grey', 'transparent', 'no end marker'

END_MARKER = b'\xff\xd9'
T = Image.Transpose
TURNS = dict(
    enumerate([T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90], 2)
)
said: set[str] = set()
saying = threading.Lock()
mapped: set[str] = set()

Image.MAX_IMAGE_PIXELS = LARGEST // 2  # Pillow refuses what has more than twice as many
warnings.filterwarnings('ignore', module=r'PIL\.')  # they do not name the file
logging.getLogger('PIL').addHandler(logging.NullHandler())

Item = TypeVar('Item')
Result = TypeVar('Result')


@contextmanager
def told_as_image(name: Path | str) -> Iterator[None]:
    """Tell in one line what goes wrong in the body, whatever it is: a decoder raises anything at a damaged picture."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f'{name} has more than {LARGEST // 10**6} million pixels; make it smaller')
    except Exception as error:
        reason = 'it does not fit into memory' if isinstance(error, MemoryError) else ' '.join(str(error).split())
        raise InputError(f'{name} cannot be read as an image: {reason or type(error).__name__}; replace the file')


@contextmanager
def opened_image(path: Path | str) -> Iterator[Image.Image]:
    """The image file, open, with its errors told as those of an image."""
    with told_as_image(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError('it is no regular file')  # to open a FIFO would be to wait
        with Image.open(path) as image:
            yield image


def decode_image(path: Path | str) -> tuple[Image.Image, Image.Transpose | None, list[str]]:
    """The first picture in a file: as RGB, what sets it upright, and which of DEEP, TRANSPARENT and UNENDED it was.

    16-bit grey is scaled to 8 bits, and transparent pixels are shown on white.

    Raises:
        InputError: it cannot be read, or holds numbers whose range it does not say.
    """
    oddities = []
    with opened_image(path) as image:
        turn = TURNS.get(orientation(image)) if image.format != 'TIFF' else None  # Pillow has turned that when it is loaded
        try:
            image.load()
        except OSError:
            if image.format not in ('JPEG', 'MPO') or not lacks_end_marker(path):
                raise
            image = Image.open(io.BytesIO(Path(path).read_bytes() + END_MARKER))
            oddities.append(UNENDED)
        rgb, found = as_rgb(image, path)
        return rgb, turn, oddities + found


def as_rgb(image: Image.Image, name: Path | str) -> tuple[Image.Image, list[str]]:
    """A loaded picture as RGB, and which of DEEP and TRANSPARENT it was; see `decode_image`."""
    oddities = []
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        image = eight_bits(image)
        oddities.append(DEEP)
    if image.mode in ('I', 'F'):
        raise InputError(f'{name} holds 32-bit or signed numbers, whose range nobody knows; save it with 8 or 16 bits')
    if 'A' in image.getbands() or 'transparency' in image.info:
        layer = image.convert('RGBA')
        if layer.getchannel('A').getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new('RGBA', layer.size, 'white'), layer)
            oddities.append(TRANSPARENT)
    return image.convert('RGB'), oddities


def orientation(image: Image.Image) -> Any:
    """How an open image lies, 1 ... 8; `ImageOps.exif_transpose` fails on photos where another tag is odd."""
    return image.getexif().get(ExifTags.Base.Orientation)


def lacks_end_marker(path: Path | str) -> bool:
    """Whether a JPEG file lacks its end marker and nothing else.

    What follows the image data, with or without a restart marker, changes the picture only if some of that data is missing.
    """
    content = Path(path).read_bytes().removesuffix(END_MARKER[:1])
    pictures = (
        np.asarray(Image.open(io.BytesIO(content + rest + END_MARKER)))
        for rest in [b'', b'Z' * 64, b'\x93' * 64, *(bytes([255, 208 + n]) + b'Z' * 64 for n in range(8))]
    )
    first = next(pictures)
    whole_scans = b'\xff\xc2' not in content  # a progressive file could lack some
    # a disk that was full leaves zeros, which decode to something
    return whole_scans and not content.endswith(bytes(8)) and all(np.array_equal(first, picture) for picture in pictures)


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, with an alpha channel if one value stands for transparency."""
    tags, values = getattr(image, 'tag_v2', {}), np.asarray(image)
    grey = (values >> (tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 8)).astype(np.uint8)
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    result = Image.fromarray(255 - grey if white_is_zero else grey)
    if 'transparency' in image.info:
        result.putalpha(Image.fromarray(np.where(values == image.info['transparency'], 0, 255).astype(np.uint8)))
    return result


def load_image(path: Path | str, resize: Sequence[int] | None = None, exif_rotation: bool = False) -> Image.Image:
    """The image in `path` as an RGB `PIL.Image`, resized to (height, width) `resize` if that is given.

    With `exif_rotation` it is turned first as its EXIF orientation says.
    The resize is bilinear with antialiasing, as torchvision's `Resize` is for Pillow images.
    """
    image, turn, oddities = decode_image(path)
    if TRANSPARENT in oddities:
        say_once(TRANSPARENT, f'{path} has transparent pixels: they are shown on white, as in every image')
    if UNENDED in oddities:
        say_once(str(path), f'warning: {path} lacks its end marker; its picture is whole')
    return prepared(image, turn if exif_rotation else None, resize)


def prepared(image: Image.Image, turn: Image.Transpose | None, resize: Sequence[int] | None) -> Image.Image:
    """A picture turned and resized as `load_image` does it."""
    if turn is not None:
        image = image.transpose(turn)
    if resize is not None:
        refuse_giant(resize[0], resize[1])
        image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    return image


def say_once(matter: str, text: str) -> None:
    """`say` the text, unless this process has said something on the `matter`."""
    with saying:
        if matter not in said:
            said.add(matter)
            say(text)


def refuse_giant(height: int, width: int, *, what: str = 'a resize to') -> None:
    if height * width > LARGEST:
        raise InputError(f'{what} {height} high, {width} wide is more than {LARGEST // 10**6} million pixels')


def image_size(path: Path | str, exif_rotation: bool) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    with opened_image(path) as image:
        lies = (exif_rotation or image.format == 'TIFF') and orientation(image) in (5, 6, 7, 8)
        if lies and image.format == 'TIFF':
            image.load()  # only some versions of Pillow turn the size before
            lies = False
        return (image.width, image.height) if lies else (image.height, image.width)


def folder_of(path: Path | str) -> Path:
    """The folder at which a database's relative names start: `path`, or the one in which a CSV of one's own lies."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def open_frames(
    paths: list[str],
    root: Path | str,
    name: str,
    smallest: int,
    resize: Sequence[int] | None = None,
    exif_rotation: bool = False,
    cache: Path | str | None = None,
) -> 'DirectFrames | CachedFrames':
    """The frames of the images `paths`, from their cache, which is built first if need be.

    Args:
        root: the database's folder or label file.
        name: starts the cache file's name.
        smallest: height and width that an image must have at least after the resize.
        resize: (height, width) that every image is resized to, or None.
        exif_rotation: turn images as their EXIF orientation says.
        cache: the cache's folder; None is `.hyperiqa_cache` beside the images, or the user's cache folder where that
            cannot be written; `none` reads the image files at every access instead.

    Raises:
        InputError: an image cannot be read or is too small, or `cache` names a folder that cannot be written.
    """
    if resize:
        refuse_giant(resize[0], resize[1])
    direct = DirectFrames(paths, smallest, resize, exif_rotation)
    if cache == 'none':
        return direct
    for folder in [Path(cache)] if cache else default_folders(root):
        place = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
        identity = place, resize and tuple(resize), exif_rotation
        path = folder / f'{name}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}.frames'
        try:
            return open_cache(path, root, direct)
        except OSError as error:
            full = error.errno in FULL
            problem = 'there is no room for the frame cache' if full else 'the frame cache cannot be written'
            reason = f'{problem} in {folder}: {error.strerror or error}'
            if full:
                break
            if cache:
                raise InputError(f'{reason}; --cache DIR names another place, --cache none goes without')
    say(f'{reason}, so images are decoded in every epoch; --cache DIR names another place')
    return direct


def default_folders(root: Path | str) -> list[Path]:
    folders = [folder_of(root) / '.hyperiqa_cache']
    with suppress(RuntimeError):  # this user has no home
        folders.append(Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'hyperiqa')
    return folders


class DirectFrames:
    """Frames that are decoded and resized at every access."""

    def __init__(self, paths: list[str], smallest: int, resize: Sequence[int] | None, exif_rotation: bool) -> None:
        self.paths, self.smallest, self.resize, self.exif_rotation = paths, smallest, resize, exif_rotation

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.array([self.size(path) for path in self.paths]).reshape(-1, 2)

    def size(self, path: str) -> tuple[int, int]:
        """(height, width) of a frame, from the header of its file.

        Raises:
            InputError: the file is no image, or the frame is smaller than `smallest`.
        """
        height, width = self.resize or image_size(path, self.exif_rotation)
        if min(height, width) < self.smallest:
            raise InputError(
                f'{path} is {width}x{height}: an image must be at least {self.smallest}x{self.smallest}; '
                f'enlarge it or remove it from the labels'
            )
        return height, width

    def __getitem__(self, k: int) -> np.ndarray:
        frame = np.asarray(load_image(self.paths[k], self.resize, self.exif_rotation))
        if frame.shape[:2] != tuple(self.sizes[k]):
            raise changed(self.paths[k])
        return frame

    def part(self, positions: list[int]) -> 'DirectFrames':
        return DirectFrames([self.paths[k] for k in positions], self.smallest, self.resize, self.exif_rotation)


def changed(path: str) -> InputError:
    return InputError(f'{path} was changed while it was in use, or its header lies; start again once it stays as it is')


class CachedFrames:
    """Frames in one array of `pixels` (uint8), each from its place in `starts` (N,)."""

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, starts: np.ndarray) -> None:
        self.pixels, self.sizes, self.starts = pixels, sizes, starts

    def __getitem__(self, k: int) -> np.ndarray:
        height, width = self.sizes[k]
        start = self.starts[k]
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def part(self, positions: list[int]) -> 'CachedFrames':
        return CachedFrames(self.pixels, self.sizes[positions], self.starts[positions])


def open_cache(path: Path, root: Path | str, direct: DirectFrames) -> CachedFrames:
    """The `CachedFrames` in the file `path`, which is built from `direct` unless it is there and up to date.

    Raises:
        OSError: the file cannot be written.
        InputError: an image cannot be read or is too small, or the process that builds the cache hangs.
    """
    stamps = stamps_of(direct.paths, root)
    frames = current_frames(path, stamps)
    if frames is None:
        sizes = direct.sizes  # before the lock is held: who waits for it would see no sign of life
        path.parent.mkdir(parents=True, exist_ok=True)
        with building(path):
            frames = current_frames(path, stamps)
            if frames is None:
                build(path, stamps, sizes, direct, root)
                frames = current_frames(path, stamps)
    if frames is None:
        raise OSError(errno.EIO, 'it does not read as it was written')
    mapped.add(str(path))
    if hasattr(signal, 'SIGBUS'):  # Python's own handlers run after the instruction, which would be repeated for ever
        ctypes.CDLL(None).signal(signal.SIGBUS, end_at_cut)
    return frames


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def end_at_cut(number: int) -> None:
    """End in one line when a mapped file has become shorter than what is read of it: no check before could be in time."""
    try:
        text = f'error: a frame cache was cut while it was in use: {" or ".join(sorted(mapped))}; start again\n'
        os.write(2, text.encode(errors='backslashreplace'))
    finally:
        os._exit(2)


def stamps_of(images: Sequence[str], root: Path | str) -> list[list[str | int]]:
    """What tells a changed image file: its path below `root`, its bytes and its modification time."""
    start = os.path.join(folder_of(root), '')
    try:
        found = [(image, os.stat(image)) for image in images]
    except OSError as error:
        raise InputError(f'{error.filename} cannot be read: {error.strerror}')
    return [[image.removeprefix(start), status.st_size, status.st_mtime_ns] for image, status in found]


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,): where each frame of `sizes` (N, 2) starts among the pixels, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(3 * sizes.prod(1))))


def header(index: bytes, written: int) -> bytes:
    """The bytes of a cache file before its pixels: of the JSON `index`, written at the second `written`."""
    start = MAGIC + written.to_bytes(8, 'little') + len(index).to_bytes(8, 'little') + index
    return start + bytes(-len(start) % ALIGNMENT)


def current_frames(path: Path, stamps: list[list[str | int]]) -> CachedFrames | None:
    """The frames in the cache file `path` if it is whole, untouched and was made from images with these `stamps`, else None."""
    try:
        if not path.is_file():
            return None
        with open(path, 'rb') as file:
            status = os.fstat(file.fileno())
            magic, written, length = file.read(len(MAGIC)), *(int.from_bytes(file.read(8), 'little') for _ in range(2))
            # two seconds are the coarsest that a file system keeps
            if magic != MAGIC or abs(status.st_mtime - written) > 2 or length > status.st_size:
                return None
            text = file.read(length)
            index = json.loads(text)
            if [entry[:3] for entry in index] != stamps:
                return None
            sizes = np.array([entry[3:] for entry in index])
            starts, before = starts_of(sizes), len(header(text, written))
            if status.st_size != before + starts[-1]:
                return None
            return CachedFrames(np.asarray(np.memmap(file, np.uint8, 'r', offset=before)), sizes, starts)
    except Exception:  # whatever stands in the file, the answer is to build it anew
        return None


@contextmanager
def building(path: Path) -> Iterator[None]:
    """Hold the lock of the cache file `path`; who waits for it sees that what the other process writes goes on changing.

    Raises:
        InputError: it has not for `PATIENCE` seconds.
    """
    life: list[int] | None = None
    while (lock := try_lock(path.with_suffix('.lock'))) is None:
        sign = []
        with suppress(OSError):  # it may get its final name meanwhile
            sign = [entry.stat().st_mtime_ns for entry in path.parent.glob(f'.{path.name}.*')]
        if life is None:
            say(f'another process makes {path}; waiting for it')
        if sign != life:
            life, since = sign, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise InputError(
                f'the process that makes {path} hangs; end it and start again, or name another place by --cache DIR'
            )
        time.sleep(0.1)
    with lock:
        yield


def build(path: Path, stamps: list[list[str | int]], sizes: np.ndarray, direct: DirectFrames, root: Path | str) -> None:
    """Decode every frame of `direct`, in parallel, into a new cache file `path`."""
    index = json.dumps([[*entry, *map(int, size)] for entry, size in zip(stamps, sizes)]).encode()
    starts = len(header(index, 0)) + starts_of(sizes)
    change = 'images changed since the frame cache was made: ' if path.exists() else ''
    say(f'{change}decoding {len(stamps)} images once into {path} ({starts[-1] / 1e9:.2f} GB)')
    remove_abandoned(path)
    path.unlink(missing_ok=True)
    beside = path.with_name(f'.{path.name}.{secrets.token_hex(8)}')
    try:
        with open(beside, 'xb') as file:
            reserve(file, int(starts[-1]))
            write_frames(file, direct, starts)
            for image, before, after in zip(direct.paths, stamps, stamps_of(direct.paths, root)):
                if before != after:
                    raise changed(image)
            written = int(time.time())
            write_at(file, header(index, written), 0)
            os.fsync(file.fileno())
        os.utime(beside, (written, written))
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left: of the cache file `path`, whose lock is held, and what is old of others."""
    locks_work = try_lock(path.with_suffix('.lock')) is None
    for entry in path.parent.glob('.*.frames.*'):
        with suppress(OSError):
            mine = locks_work and entry.name.startswith(f'.{path.name}.')
            if mine or time.time() - entry.stat().st_mtime > ABANDONED:
                entry.unlink()


def reserve(file: BinaryIO, size: int) -> None:
    """Claim `size` bytes of the disk, so that a full one shows before the work and not after it."""
    if size > shutil.disk_usage(file.name).free:
        raise OSError(errno.ENOSPC, f'{size / 1e9:.2f} GB are needed')
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:  # no such function on macOS and Windows, and not on every file system
        if getattr(error, 'errno', None) in FULL:
            raise
        file.truncate(size)


def write_frames(file: BinaryIO, frames: DirectFrames, starts: np.ndarray) -> None:
    """Write each frame at its start."""
    lock = threading.Lock()

    def write(k: int) -> None:
        frame = frames[k]
        with lock:
            write_at(file, np.ascontiguousarray(frame), int(starts[k]))

    on_all_cores('decode', write, range(len(frames.paths)))


def write_at(file: BinaryIO, content: Any, start: int) -> None:
    file.seek(start)
    file.write(content)
    file.flush()


def on_all_cores(title: str, function: Callable[[Item], Result], images: Sequence[Item]) -> list[Result]:
    """`function` of each of `images`, in order, with a progress bar on stderr if that is a terminal."""
    pool = ThreadPoolExecutor(cores(), thread_name_prefix=title)
    try:
        return list(tqdm(pool.map(function, images), title, total=len(images), unit='img', leave=False, disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int | None:
    """How many CPU cores this process may use, or None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
