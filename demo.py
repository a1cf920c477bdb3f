"""Score images with a trained HyperIQA.

    python demo.py --checkpoint runs/koniq-seed0/round_01/best.pth photo.jpg folder/

Prints `path<TAB>score`. An image's score is the mean over random patches that its own content seeds, so it is the same
at every call.
"""

from util import program  # before the others, see there

# isort: split
import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, cast

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
from util.files import write_table
from util.options import positive

BATCH_SIZE = 100


def main(argv: list[str] | None = None) -> None:
    with program.boundary():
        readable = score_all(parse_options(argv))
    sys.exit(0 if readable else 2)


def score_all(options: argparse.Namespace) -> bool:
    """Print, and write to `options.csv`, the score of every image; whether all of them could be read."""
    device = pick_device(options.device)
    model = models.hyperiqa()
    is_pyiqa = checkpoints.load_trained(model, options.checkpoint)
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stub
    facts = pyiqa_facts(options.checkpoint) if is_pyiqa else training_facts(options.checkpoint)
    low, high = facts['score_range'] or (0, 1)
    paths = list_images(options.images)

    rows, unread = [], 0
    images_a_batch = max(1, BATCH_SIZE // options.patches)
    for start in range(0, len(paths), images_a_batch):
        batch = {}
        for path in paths[start : start + images_a_batch]:
            try:
                batch[path] = crops_of(path, facts, options.patches)
            except InputError as error:
                say(f'skipped: {error}')
                unread += 1
        for path, score in zip(batch, scores_of(model, list(batch.values()), device)):
            rows.append({'image': path, 'score': low + (high - low) * score})
            print(f'{path}\t{rows[-1]["score"]:.4f}', flush=True)
    if options.csv:
        write_table(options.csv, ['image', 'score'], rows)
    return not unread


def pyiqa_facts(checkpoint: Path | str) -> dict[str, Any]:
    """As `training_facts`, for the layout that pyiqa's files have."""
    say(f'{checkpoint} is a file of pyiqa: images are prepared as it does, without a resize, and its 0..1 is shown as 0..100')
    return {'resize': None, 'exif_rotation': False, 'score_range': (0, 100)}


def training_facts(checkpoint: Path | str) -> dict[str, Any]:
    """What an image and a score mean to the network, see `train_test_IQA.model_facts`.

    It is read from the config.json of the run that the checkpoint lies in, or from one beside the checkpoint. A checkpoint
    without one is taken for the original authors' KonIQ model.
    """
    for place in (os.path.abspath(checkpoint), os.path.realpath(checkpoint)):  # as it is named, and what a link points to
        folder = Path(place).parent
        for record in (folder / 'config.json', folder.parent / 'config.json'):
            if record.exists():
                return run_folder.read_record(record)['model']
    height, width = cast(tuple[int, int], folders.DATABASES['koniq'].resize)
    say(f'there is no config.json with {checkpoint}: images are resized to {height} high, {width} wide as for KonIQ-10k')
    return {'resize': (height, width), 'exif_rotation': False, 'score_range': None}


def list_images(arguments: list[str]) -> list[Path]:
    """The files among `arguments`, and every image below the folders among them, by name."""
    endings = Image.registered_extensions()
    paths = []
    for argument in map(Path, arguments):
        if argument.is_dir():
            found = sorted(path for path in argument.rglob('*') if path.suffix.lower() in endings and path.is_file())
            if not found:
                raise InputError(f'there are no images in the folder {argument}')
            paths += found
        else:
            paths.append(argument)
    return paths


def crops_of(path: Path | str, facts: dict[str, Any], patch_num: int) -> np.ndarray:
    """(patch_num, 224, 224, 3) uint8 crops of an image, at places that the content of its file decides."""
    image = frames.load_image(path, facts['resize'], facts['exif_rotation'])
    if min(image.size) < PATCH_SIZE:
        scale = PATCH_SIZE / min(image.size)
        larger = cast(tuple[int, int], tuple(max(PATCH_SIZE, round(side * scale)) for side in image.size))
        frames.refuse_giant(larger[1], larger[0], f'{path} is too narrow: enlarged until it holds a patch,')
        say(f'{path} is {image.width}x{image.height}: enlarged to {larger[0]}x{larger[1]}, so its score is less certain')
        image = image.resize(larger, Image.Resampling.BICUBIC)
    frame = np.asarray(image)
    seed = np.frombuffer(hashlib.sha256(Path(path).read_bytes()).digest(), np.uint32)
    patches = draw_patches(seed, np.array([frame.shape[:2]]), patch_num, istrain=False)
    return np.stack([frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE] for top, left in zip(patches.top, patches.left)])


@torch.inference_mode()
def scores_of(model: torch.nn.Module, crops: list[np.ndarray], device: str) -> list[float]:
    """The mean score of each image's crops."""
    if not crops:
        return []
    patches = torch.from_numpy(np.concatenate(crops))
    unflipped = torch.zeros(len(patches), dtype=torch.bool)
    scores = [
        models.predict_scores(model, to_device(some, flip, device))
        for some, flip in zip(patches.split(BATCH_SIZE), unflipped.split(BATCH_SIZE))
    ]
    return torch.cat(scores).double().view(len(crops), -1).mean(1).tolist()


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Score images with a trained HyperIQA.')
    parser.add_argument('images', nargs='+', help='image files, and folders of them')
    parser.add_argument(
        '--checkpoint', required=True, metavar='FILE', help="a run's best.pth, or the original authors' KonIQ state_dict"
    )
    parser.add_argument('--patches', type=positive, default=25, help='random patches an image (default: 25)')
    parser.add_argument('--csv', metavar='FILE', help='write the scores to FILE too')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: cuda if there is one, else cpu)')
    return parser.parse_args(argv)


if __name__ == '__main__':
    main()
