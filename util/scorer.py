"""A trained network that scores whole images, and the network itself with what an image and a score mean to it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import models
from data_loader import draw_patches, to_device
from models import PATCH_SIZE
from util import checkpoints, frames
from util.distributed import memory_format, pick_device
from util.errors import InputError, log
from util.files import named
from util.labels import scale_of
from util.options import facts_of_koniq, read_record, record_of

BATCH_SIZE = 100
NARROWEST = 1 / 100  # an image that is narrower for its length is not enlarged until it holds a patch

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Scorer:
    """A trained network that scores images.

    Args:
        checkpoint: a run's best.pth or last.pth, the authors' KonIQ model or pyiqa's, or what export.py wrote as .safetensors.
        device: as in the scripts; None is CUDA or MPS where there is one, else the CPU.
        patches: random patches per image.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(self, checkpoint: Path | str, device: str | None = None, patches: int = 25) -> None:
        self.device = pick_device(device)
        self.patches = patches
        self.checkpoint = checkpoint
        model, self.facts = trained(checkpoint)
        self.model = model.to(self.device, memory_format=memory_format(self.device)).eval()  # type: ignore[call-overload]

    def __call__(self, images: Picture | list[Picture] | tuple[Picture, ...], spread: bool = False) -> Any:
        """Score one image or a list of them.

        Args:
            images: a path, a `PIL.Image`, or an (H, W, 3) uint8 RGB array, or a list of such. Files and opened pictures are
                shown as a viewer shows them: upright, and with the colours of their profile in sRGB.
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
        """(patches, 224, 224, 3) uint8 crops of an image, at places that the frame's height and width decide."""
        if isinstance(image, str | os.PathLike):
            name, picture = str(image), frames.load_image(Path(image), exif_rotation=True, srgb=True)
        else:
            name, picture = 'the image', rgb_of(image)
        frame = np.asarray(enlarged(frames.resized(picture, self.facts['resize']), name))
        places = draw_patches(frame.shape[:2], np.array([frame.shape[:2]]), self.patches, istrain=False)
        return np.stack([frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE] for top, left in zip(places.top, places.left)])

    @torch.inference_mode()
    def scores(self, crops: Iterable[np.ndarray]) -> list[tuple[float, float]]:
        """Mean and deviation of the scores of each image's `crops`, in the unit of the labels.

        Raises:
            InputError: a score is not finite.
        """
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
        if not means.isfinite().all():
            raise InputError(f'{self.checkpoint} gives a score that is not finite; take the weights of another epoch')
        return list(zip((low + (high - low) * means).tolist(), ((high - low) * deviations).tolist()))


def rgb_of(image: Any) -> Image.Image:
    """An RGB `PIL.Image`, as a viewer shows it, of a `PIL.Image` of any mode, or of an (H, W, 3) uint8 array."""
    if isinstance(image, Image.Image):
        with named('the image', 'an image'):
            return frames.as_rgb(image, exif_rotation=True, srgb=True)[0]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f'an image is a path, a PIL image or an (H, W, 3) uint8 RGB array, not {found}')
    return Image.fromarray(np.ascontiguousarray(image))


def enlarged(picture: Image.Image, name: str) -> Image.Image:
    """The picture, at least as large as a patch."""
    if min(picture.size) >= PATCH_SIZE:
        return picture
    if min(picture.size) < NARROWEST * max(picture.size):
        raise InputError(f'{name} is {picture.width}x{picture.height}: too narrow to be enlarged until it holds a patch')
    scale = PATCH_SIZE / min(picture.size)
    width, height = (max(PATCH_SIZE, round(side * scale)) for side in picture.size)
    log(f'{name} is {picture.width}x{picture.height}: enlarged to {width}x{height}, so its score is less certain')
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def scale_line(facts: Mapping[str, Any]) -> str:
    """What the scores mean, in one line."""
    scale = scale_of(facts.get('label_range'), facts.get('higher_is_better', True))
    return f'scores on the scale of the labels of {facts.get("title", "the training images")}: {scale}'


def trained(checkpoint: Path | str) -> tuple[models.HyperNet, dict[str, Any]]:
    """The network in a checkpoint, and what an image and a score mean to it, see `train_test_IQA.prepare_run`.

    That is in the config.json of the run that holds the checkpoint, or beside the checkpoint, or in a file of export.py. A
    checkpoint without one is taken for the original authors' KonIQ model.
    """
    model = models.hyperiqa()
    layout, facts = checkpoints.load_trained(model, checkpoint)
    if layout == 'pyiqa':
        log(f'{checkpoint} is of pyiqa: images are prepared as it does, without a resize, and its 0..1 is shown as 0..100')
        return model, {**facts_of_koniq(), 'resize': None, 'score_range': (0, 100)}
    record = record_of(checkpoint)
    if record:
        return model, read_record(record)['model']
    if facts is None:
        facts = facts_of_koniq()
        height, width = facts['resize']
        log(f'there is no config.json with {checkpoint}: images are resized to {height} high, {width} wide as for KonIQ-10k')
    return model, facts
