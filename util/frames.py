"""Image files, and their decoded frames: straight from the files or from a cache that every process and every later run shares.

Both kinds of frames have `sizes`, (N, 2) heights and widths; give the (height, width, 3) uint8 RGB image at a position; and
give the frames at some `positions` by `part`. The cache is one file:

    MAGIC, length of the JSON (8 bytes, little endian), JSON, zeros to a multiple of ALIGNMENT, pixels of every frame

where the JSON lists [path, bytes, modification time in ns, height, width] for each image. It is mapped into memory read-only,
so its pages belong to the system's page cache and not to the process. A file appears whole or not at all, under a lock, and
is used only while every source image has the size and time that it lists.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from util.distributed import say
from util.errors import InputError
from util.files import locked

MAGIC = b'HyperIQA frames 1\n'
ALIGNMENT = 4096
QUARTER_TURNS = {Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Item = TypeVar('Item')
Result = TypeVar('Result')


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """The `Image.Transpose` that sets an open image upright by its EXIF orientation, or None.

    `ImageOps.exif_transpose` also writes the EXIF block anew and fails on photos where another tag is odd.
    """
    method = Image.Transpose
    turns: dict[int | None, Image.Transpose] = {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }
    return turns.get(image.getexif().get(ExifTags.Base.Orientation))


@contextmanager
def opened_image(path: Path | str) -> Iterator[Image.Image]:
    """The image file, open; what goes wrong with it while it is read is told in one line."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f'{path} cannot be read as an image: {error}; replace the file')


def load_image(path: Path | str, resize: Sequence[int] | None = None, exif_rotation: bool = False) -> Image.Image:
    """The image in `path` as an RGB `PIL.Image`, resized to (height, width) `resize` if that is given.

    With `exif_rotation` it is turned first as its EXIF orientation says.
    The resize is bilinear with antialiasing, as torchvision's `Resize` is for Pillow images.
    """
    with opened_image(path) as opened:
        turn = exif_turn(opened) if exif_rotation else None
        image = opened.convert('RGB')
    if turn is not None:
        image = image.transpose(turn)
    if resize is not None:
        image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    return image


def image_size(path: Path | str, exif_rotation: bool) -> tuple[int, int]:
    """(height, width) from the header of an image file."""
    with opened_image(path) as image:
        lies = exif_rotation and exif_turn(image) in QUARTER_TURNS
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
    direct = DirectFrames(paths, smallest, resize, exif_rotation)
    if cache == 'none':
        return direct
    for folder in [Path(cache)] if cache else default_folders(root):
        identity = os.path.relpath(Path(root).resolve(), folder.resolve()), resize and tuple(resize), exif_rotation
        path = folder / f'{name}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}.frames'
        try:
            return open_cache(path, root, direct)
        except OSError as error:
            if error.errno in FULL:
                say(
                    f'there is no room for the frame cache in {folder} ({error.strerror}), so images are decoded in every '
                    f'epoch; --cache DIR names another place'
                )
                return direct
            reason = f'the frame cache cannot be written in {folder}: {error.strerror}'
            if cache:
                raise InputError(f'{reason}; --cache DIR names another place, --cache none goes without')
    say(f'{reason}, so images are decoded in every epoch; --cache DIR names another place')
    return direct


def default_folders(root: Path | str) -> list[Path]:
    user = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return [folder_of(root) / '.hyperiqa_cache', user / 'hyperiqa']


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
        return np.asarray(load_image(self.paths[k], self.resize, self.exif_rotation))

    def part(self, positions: list[int]) -> 'DirectFrames':
        return DirectFrames([self.paths[k] for k in positions], self.smallest, self.resize, self.exif_rotation)


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
        InputError: an image cannot be read or is too small.
    """
    stamps = [stamp(image, root) for image in direct.paths]
    index = current_index(path, stamps)
    if index is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix('.lock')):
            index = current_index(path, stamps) or build(path, stamps, direct)
    sizes = np.array([entry[3:] for entry in index])
    return CachedFrames(np.asarray(np.memmap(path, np.uint8, 'r', offset=len(header(index)))), sizes, starts_of(sizes))


def stamp(image: Path | str, root: Path | str) -> list[str | int]:
    """What tells a changed image file: its path below `root`, its bytes and its modification time."""
    status = os.stat(image)
    return [os.path.relpath(image, root), status.st_size, status.st_mtime_ns]


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,): where each frame of `sizes` (N, 2) starts among the pixels, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(3 * sizes.prod(1))))


def header(index: list[list[str | int]]) -> bytes:
    """The bytes of a cache file before its pixels."""
    text = json.dumps(index).encode()
    start = MAGIC + len(text).to_bytes(8, 'little') + text
    return start + bytes(-len(start) % ALIGNMENT)


def current_index(path: Path, stamps: list[list[str | int]]) -> list[list[str | int]] | None:
    """The index of the cache file `path` if it is whole and was made from images with these `stamps`, else None."""
    try:
        with open(path, 'rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            index = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
            pixels = int(starts_of(np.array([entry[3:] for entry in index]))[-1])
            whole = os.fstat(file.fileno()).st_size == len(header(index)) + pixels
    except (OSError, ValueError):
        return None
    return index if whole and [entry[:3] for entry in index] == stamps else None


def build(path: Path, stamps: list[list[str | int]], direct: DirectFrames) -> list[list[str | int]]:
    """Decode every frame of `direct`, in parallel, into a new cache file `path`; its index."""
    index = [[*entry, *map(int, size)] for entry, size in zip(stamps, direct.sizes)]
    starts = len(header(index)) + starts_of(direct.sizes)
    change = 'images changed since the frame cache was made: ' if path.exists() else ''
    say(f'{change}decoding {len(stamps)} images once into {path} ({starts[-1] / 1e9:.2f} GB)')
    for abandoned in path.parent.glob(f'.{path.name}.*'):
        abandoned.unlink()
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with open(beside, 'wb') as file:
            reserve(file, int(starts[-1]))
            os.pwrite(file.fileno(), header(index), 0)
            write_frames(file.fileno(), direct, starts)
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return index


def reserve(file: BinaryIO, size: int) -> None:
    """Claim `size` bytes of the disk, so that a full one shows before the work and not after it."""
    if hasattr(os, 'posix_fallocate'):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def write_frames(descriptor: int, frames: DirectFrames, starts: np.ndarray) -> None:
    """Write each frame at its start."""
    on_all_cores('decode', lambda k: write_at(descriptor, frames[k], int(starts[k])), range(len(frames.paths)))


def write_at(descriptor: int, frame: np.ndarray, start: int) -> None:
    """Write the whole of a frame; one call may write less than it was given."""
    content = np.ascontiguousarray(frame).data.cast('B')
    while content:
        written = os.pwrite(descriptor, content, start)
        content, start = content[written:], start + written


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
