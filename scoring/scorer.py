"""A trained network that scores whole images, and the network itself with what an image and a score mean to it."""

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_loader import draw_patches, imagenet_statistics
from experiment.options import facts_of_koniq
from experiment.record import read_record, record_of
from models import PATCH_SIZE, HyperNet, hyperiqa, predict_scores
from util import checkpoints, frames
from util.distributed import has_bfloat16, memory_format, pick_device
from util.errors import InputError, log, log_once
from util.files import named
from util.labels import scale_of

BATCH_SIZE = 100
STRIDE = 112  # pixels of the frame between the patches of a map
NARROWEST = (
    1 / 100
)  # an image that is narrower for its length is not enlarged until it holds a patch
LOADING = (
    threading.Lock()
)  # of opened pictures: Pillow loads one at its first use, and it can be in a list twice

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Scorer:
    """A trained network that scores images.

    Args:
        checkpoint: a run's best.pth or last.pth, the authors' KonIQ model or pyiqa's, or what export.py wrote as .safetensors.
        device: as in the scripts; None is CUDA or MPS where there is one, else the CPU.
        patches: random patches per image.
        amp: compute in bfloat16: faster, scores differ slightly.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        device: str | None = None,
        patches: int = 25,
        amp: bool = False,
    ) -> None:
        self.device = pick_device(device)
        if amp and not has_bfloat16(self.device):
            log(
                'warning: bfloat16 has no instructions on this device, so --amp makes scoring many times slower; leave it out'
            )
        self.patches, self.amp, self.checkpoint = patches, amp, checkpoint
        model, self.facts = trained(checkpoint)
        self.network = PatchScorer(model, self.facts['score_range']).eval()
        self.network.to(self.device, memory_format=memory_format(self.device))  # type: ignore[call-overload]  # not in its stub

    def __call__(
        self, images: Picture | list[Picture] | tuple[Picture, ...], spread: bool = False
    ) -> Any:
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
        found = [result if spread else result[0] for result in self.results(listed, strict=True)]
        return found if isinstance(images, list | tuple) else found[0]

    def results(self, images: Sequence[Picture], strict: bool = False) -> Iterator[Any]:
        """Yields for each image, in order, its score and their deviation over the patches, or why it cannot be used.

        Images are decoded ahead on all cores while the network computes, which takes about BATCH_SIZE patches at once.

        Args:
            strict: raise the `InputError` of an image that cannot be used instead.
        """
        count, cores = max(1, BATCH_SIZE // self.patches), frames.cores()
        jobs = frames.ahead(self.crops, images, cores, count + cores)
        while batch := list(itertools.islice(jobs, count)):
            usable = [job for job in batch if strict or not isinstance(job.exception(), InputError)]
            scores = iter(self.scores([job.result() for job in usable]) if usable else ())
            yield from (job.exception() or next(scores) for job in batch)

    def crops(self, image: Picture) -> np.ndarray:
        """(patches, 224, 224, 3) uint8 crops of an image, at places that the frame's height and width decide."""
        frame = self.pictures(image)[1]
        places = draw_patches(
            frame.shape[:2], np.array([frame.shape[:2]]), self.patches, istrain=False
        )
        return np.stack(
            [
                frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE]
                for top, left in zip(places.top, places.left)
            ]
        )

    def map(self, image: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray, Image.Image]:
        """The scores of a grid of overlapping patches; argument and errors as of a call.

        Content moves them as much as quality does: a map shows which half of a photo is blurred, but not which object.

        Returns:
            the scores (rows, columns) in the unit of the labels; y (rows,) and x (columns,) of the patches' centres, in pixels
            of the photo; and the photo, as a viewer shows it.
        """
        photo, frame = self.pictures(image)
        top, left = (
            np.array([*range(0, side - PATCH_SIZE, STRIDE), side - PATCH_SIZE])
            for side in frame.shape[:2]
        )
        crops = [frame[y : y + PATCH_SIZE, x : x + PATCH_SIZE] for y in top for x in left]
        y, x = (
            (start + PATCH_SIZE / 2) * size / side
            for start, size, side in zip((top, left), photo.size[::-1], frame.shape)
        )
        return self.patch_scores(np.stack(crops)).view(len(top), len(left)).numpy(), y, x, photo

    def drawn_map(self, image: Picture, title: str) -> bytes:
        """The `map` of an image over it, as the bytes of a PNG file."""
        from util import (
            plots,
        )  # a program that scores needs no matplotlib, nor the side effects of importing it

        return plots.score_map(*self.map(image), title, scale_line(self.facts))

    def pictures(self, image: Picture) -> tuple[Image.Image, np.ndarray]:
        """An image as a viewer shows it, and the (H, W, 3) uint8 frame that patches are cut from."""
        if isinstance(image, str | os.PathLike):
            name, photo = str(image), frames.load_image(Path(image), exif_rotation=True, srgb=True)
        else:
            name, photo = 'the image', rgb_of(image)
        return photo, np.asarray(enlarged(frames.resized(photo, self.facts['resize']), name))

    def scores(self, crops: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """Mean and deviation of the scores of each image's `crops`; unit and errors as of `patch_scores`."""
        of_images = self.patch_scores(np.concatenate(crops)).view(-1, self.patches)
        return list(zip(of_images.mean(1).tolist(), of_images.std(1, correction=0).tolist()))

    @torch.inference_mode()
    def patch_scores(self, crops: np.ndarray) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 crops -> (N,) float64 scores in the unit of the labels.

        Raises:
            InputError: a score is not finite.
        """
        patches = torch.from_numpy(crops)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.amp):
            scores = torch.cat(
                [self.network(some.to(self.device)).cpu() for some in patches.split(BATCH_SIZE)]
            ).double()
        if not scores.isfinite().all():
            raise InputError(
                f'{self.checkpoint} gives a score that is not finite; take the weights of another epoch'
            )
        return scores


class PatchScorer(torch.nn.Module):
    """uint8 patches -> scores in the unit of the labels, with the preparation inside."""

    def __init__(self, model: HyperNet, score_range: Sequence[float] | None) -> None:
        super().__init__()
        self.model = model
        self.low, self.high = map(float, score_range or (0, 1))
        self.mean, self.std = (
            torch.nn.Buffer(values) for values in imagenet_statistics(torch.device('cpu'))
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 -> (N,) float32."""
        # cast first: TensorRT and Core ML refuse to transpose uint8
        images = (patches.float().permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        images = images.contiguous(memory_format=memory_format(patches.device))
        return self.low + (self.high - self.low) * predict_scores(self.model, images)


def rgb_of(image: Any) -> Image.Image:
    """An RGB `PIL.Image`, as a viewer shows it, of a `PIL.Image` of any mode, or of an (H, W, 3) uint8 array."""
    if isinstance(image, Image.Image):
        with LOADING, named('the image', 'an image'):
            return frames.as_rgb(image, exif_rotation=True, srgb=True)[0]
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        found = (
            f'{image.dtype} {image.shape}'
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        raise InputError(
            f'an image is a path, a PIL image or an (H, W, 3) uint8 RGB array, not {found}'
        )
    return Image.fromarray(np.ascontiguousarray(image))


def enlarged(picture: Image.Image, name: str) -> Image.Image:
    """The picture, at least as large as a patch."""
    if min(picture.size) >= PATCH_SIZE:
        return picture
    if min(picture.size) < NARROWEST * max(picture.size):
        raise InputError(
            f'{name} is {picture.width}x{picture.height}: too narrow to be enlarged until it holds a patch'
        )
    scale = PATCH_SIZE / min(picture.size)
    width, height = (max(PATCH_SIZE, round(side * scale)) for side in picture.size)
    log_once(
        f'{name} is {picture.width}x{picture.height}: enlarged to {width}x{height}, so its score is less certain'
    )
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def scale_line(facts: Mapping[str, Any]) -> str:
    """What the scores mean, in one line."""
    scale = scale_of(facts.get('label_range'), facts.get('higher_is_better', True))
    return (
        f'scores on the scale of the labels of {facts.get("title", "the training images")}: {scale}'
    )


def trained(checkpoint: Path | str) -> tuple[HyperNet, dict[str, Any]]:
    """The network in a checkpoint, and what an image and a score mean to it, see `train_test_IQA.prepare_run`.

    That is in the config.json of the run that holds the checkpoint, or beside the checkpoint, or in a file of export.py. A
    checkpoint without one is taken for the original authors' KonIQ model.
    """
    model = hyperiqa()
    layout, facts = checkpoints.load_trained(model, checkpoint)
    if layout == 'pyiqa':
        log(
            f'{checkpoint} is of pyiqa: images are prepared as it does, without a resize, and its 0..1 is shown as 0..100'
        )
        return model, {**facts_of_koniq(), 'resize': None, 'score_range': (0, 100)}
    record = record_of(checkpoint)
    if record:
        return model, read_record(record)['model']
    if facts is None:
        facts = facts_of_koniq()
        height, width = facts['resize']
        log(
            f'there is no config.json with {checkpoint}: images are resized to {height} high, {width} wide as for KonIQ-10k'
        )
    return model, facts
