"""Score images with a trained HyperIQA.

    python demo.py --checkpoint runs/koniq-seed0/round_01/best.pth photo.jpg folder/

Prints `path<TAB>score`. From Python:

    from demo import Scorer
    score = Scorer('runs/koniq-seed0/round_01/best.pth')('photo.jpg')

An image's score is the mean over random patches that its own content seeds, so it is the same at every call.
"""

from util import program  # before the others, see there

# isort: split
import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from PIL import Image

import folders
import models
from data_loader import draw_patches, to_device
from models import PATCH_SIZE
from util import checkpoints, frames, run_folder
from util.distributed import pick_device, say
from util.errors import InputError
from util.files import refuse_unwritable, write_table
from util.options import positive
from util.program import one_line

BATCH_SIZE = 100
COLUMNS = ('image', 'score', 'spread')  # of --csv; the last only with --spread
FORMATS = {'AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PCX', 'PNG', 'PPM', 'SGI', 'TGA', 'TIFF', 'WEBP'}
PHOTO_ENDINGS = {  # of photos, whether or not Pillow reads them
    *('.avif', '.heic', '.heif', '.hif', '.jxl'),
    *('.arw', '.cr2', '.cr3', '.dng', '.nef', '.orf', '.pef', '.raf', '.rw2', '.srw'),
}

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Scorer:
    """A trained network that scores images.

    Args:
        checkpoint: a run's best.pth or last.pth, the authors' KonIQ model or pyiqa's, or what export.py wrote as .safetensors.
        device: as in the scripts; None is CUDA or MPS where there is one, else the CPU.
        patches: random patches an image.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(self, checkpoint: Path | str, device: str | None = None, patches: int = 25) -> None:
        self.device = pick_device(device)
        self.patches = patches
        model, self.facts = trained(checkpoint)
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def __call__(self, images: Picture | list[Picture] | tuple[Picture, ...], spread: bool = False) -> Any:
        """Score one image or a list of them.

        Args:
            images: a path, a `PIL.Image`, or an (H, W, 3) uint8 RGB array, or a list of such. The patches are seeded by
                the file's bytes, or by the pixels where there is no file.
            spread: also give the standard deviation over the patches.

        Returns:
            a float in the unit of the labels, with `spread` a pair of floats; a list of such for a list.

        Raises:
            InputError: an image cannot be used.
        """
        listed = list(images) if isinstance(images, list | tuple) else [images]
        found = [result for batch in self.batches(listed) for result in self.scores(map(self.crops, batch))]
        results = found if spread else [score for score, _ in found]
        return results if isinstance(images, list | tuple) else results[0]

    def batches(self, images: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """`images` in portions of about BATCH_SIZE patches."""
        count = max(1, BATCH_SIZE // self.patches)
        return (images[start : start + count] for start in range(0, len(images), count))

    def crops(self, image: Picture) -> np.ndarray:
        """(patches, 224, 224, 3) uint8 crops of an image, at places that its content decides."""
        resize, exif_rotation = self.facts['resize'], self.facts['exif_rotation']
        if isinstance(image, str | os.PathLike):
            name, picture = str(image), frames.load_image(Path(image), resize, exif_rotation)
            content = Path(image).read_bytes()
        else:
            name, picture = 'the image', as_picture(image)
            content = str(picture.size).encode() + picture.tobytes()
            picture = frames.prepared(picture, turn_of(image) if exif_rotation else None, resize)
        frame = np.asarray(enlarged(picture, name))
        seed = np.frombuffer(hashlib.sha256(content).digest(), np.uint32)
        places = draw_patches(seed, np.array([frame.shape[:2]]), self.patches, istrain=False)
        return np.stack([frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE] for top, left in zip(places.top, places.left)])

    @torch.inference_mode()
    def scores(self, crops: Iterable[np.ndarray]) -> list[tuple[float, float]]:
        """Mean and deviation of the scores of each image's `crops`, in the unit of the labels."""
        crops = list(crops)
        if not crops:
            return []
        patches = torch.from_numpy(np.concatenate(crops))
        unflipped = torch.zeros(len(patches), dtype=torch.bool)
        scores = [
            models.predict_scores(self.model, to_device(some, flip, self.device)).cpu()
            for some, flip in zip(patches.split(BATCH_SIZE), unflipped.split(BATCH_SIZE))
        ]
        low, high = self.facts['score_range'] or (0, 1)
        of_images = torch.cat(scores).double().view(-1, self.patches)
        means, deviations = of_images.mean(1), of_images.std(1, correction=0)
        return list(zip((low + (high - low) * means).tolist(), ((high - low) * deviations).tolist()))


def as_picture(image: Any) -> Image.Image:
    """An RGB `PIL.Image` of a `PIL.Image` of any mode, or of an (H, W, 3) uint8 array."""
    if isinstance(image, Image.Image):
        with frames.told_as_image('the image'):
            image.load()
            return frames.as_rgb(image, 'the image')[0]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f'an image is a path, a PIL image or an (H, W, 3) uint8 RGB array, not {found}')
    return Image.fromarray(np.ascontiguousarray(image))


def turn_of(image: Any) -> Image.Transpose | None:
    return frames.TURNS.get(frames.orientation(image)) if isinstance(image, Image.Image) and image.format != 'TIFF' else None


def enlarged(picture: Image.Image, name: str) -> Image.Image:
    """The picture, at least as large as a patch."""
    if min(picture.size) >= PATCH_SIZE:
        return picture
    scale = PATCH_SIZE / min(picture.size)
    width, height = (max(PATCH_SIZE, round(side * scale)) for side in picture.size)
    frames.refuse_giant(height, width, what=f'{name} is too narrow: enlarged until it holds a patch,')
    say(f'{name} is {picture.width}x{picture.height}: enlarged to {width}x{height}, so its score is less certain')
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def main(argv: list[str] | None = None) -> None:
    with program.boundary('; the scores so far are kept'):
        readable = score_all(parse_options(argv))
    sys.exit(0 if readable else 2)


def score_all(options: argparse.Namespace) -> bool:
    """Print, and write to `options.csv`, the score of every image; whether all of them could be read."""
    paths, unread = list_images(options.images)
    if options.csv:
        refuse_unwritable(options.csv, options.checkpoint, *paths, start=','.join(COLUMNS[:2]).encode())
    scorer = Scorer(options.checkpoint, options.device, options.patches)
    rows: list[dict[str, Any]] = []
    try:
        for batch in scorer.batches(paths):
            names, crops = [], []
            for path in batch:
                try:
                    crops.append(scorer.crops(path))
                    names.append(one_line(path))
                except InputError as error:
                    say(f'skipped: {error}')
                    unread += 1
            for name, (score, spread) in zip(names, scorer.scores(crops)):
                rows.append({'image': name, 'score': score, 'spread': spread})
                print(f'{name}\t{score:.4f}' + (f'\t{spread:.4f}' if options.spread else ''), flush=True)
    finally:  # after an interrupt too
        if options.csv:
            columns = COLUMNS[: 2 + options.spread]
            write_table(options.csv, columns, [{column: row[column] for column in columns} for row in rows])
    if unread:
        say(f'{unread} of {len(paths)} images could not be read')
    return not unread


def trained(checkpoint: Path | str) -> tuple[models.HyperNet, dict[str, Any]]:
    """The network in a checkpoint, and what an image and a score mean to it, see `train_test_IQA.model_facts`.

    That is in the config.json of the run that the checkpoint lies in, or beside the checkpoint, or in a file of export.py. A
    checkpoint without one is taken for the original authors' KonIQ model.
    """
    model = models.hyperiqa()
    if checkpoints.load_trained(model, checkpoint):
        say(f'{checkpoint} is of pyiqa: images are prepared as it does, without a resize, and its 0..1 is shown as 0..100')
        return model, {'resize': None, 'exif_rotation': False, 'score_range': (0, 100)}
    for place in (os.path.abspath(checkpoint), os.path.realpath(checkpoint)):  # as it is named, and what a link points to
        folder = Path(place).parent
        for record in (folder / 'config.json', folder.parent / 'config.json'):
            if record.exists():
                return model, run_folder.read_record(record)['model']
    facts = checkpoints.metadata_of(checkpoint)
    if facts is None:
        height, width = cast(tuple[int, int], folders.DATABASES['koniq'].resize)
        say(f'there is no config.json with {checkpoint}: images are resized to {height} high, {width} wide as for KonIQ-10k')
        facts = {'resize': (height, width), 'exif_rotation': False, 'score_range': None}
    return model, facts


def list_images(arguments: list[str]) -> tuple[list[Path], int]:
    """The files among `arguments` and every image below the folders among them, by name, without hidden ones.

    Returns:
        their paths, and how many photos in those folders Pillow cannot read.
    """
    endings = {ending for ending, format in Image.registered_extensions().items() if format in FORMATS}
    paths, unread = [], 0
    for argument in map(Path, arguments):
        found = sorted(files_below(argument, endings | PHOTO_ENDINGS)) if argument.is_dir() else [argument]
        if not found:
            raise InputError(f'there are no images in the folder {argument}')
        for path in found:
            if argument.is_dir() and path.suffix.lower() not in endings:
                say(f'skipped: {path} is of a kind that Pillow does not read; convert it, to PNG for example')
                unread += 1
            else:
                paths.append(path)
    return paths, unread


def files_below(folder: Path, endings: set[str]) -> Iterator[Path]:
    """The files below `folder` with one of the `endings`; hidden ones are the system's own, as a Mac's `._photo.jpg` is."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f'the folder {error.filename} cannot be read: {error.strerror}')

    for place, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith('.')]
        paths = (Path(place, name) for name in names if not name.startswith('.'))
        yield from (path for path in paths if path.suffix.lower() in endings and path.is_file())


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Score images with a trained HyperIQA.')
    parser.add_argument('images', nargs='+', help='image files, and folders of them')
    parser.add_argument(
        '--checkpoint', required=True, metavar='FILE', help="a run's best.pth, or the authors' or pyiqa's KonIQ model"
    )
    parser.add_argument('--patches', type=positive, default=25, help='random patches an image (default: 25)')
    parser.add_argument('--spread', action='store_true', help='print the standard deviation over the patches too')
    parser.add_argument('--csv', metavar='FILE', help='write the scores to FILE too')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)')
    return program.parse(parser, argv)


if __name__ == '__main__':
    main()
