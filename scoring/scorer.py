"""A trained network that scores whole images."""

import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from experiment.run_folder import checkpoint_in
from models import PATCH_SIZE
from scoring.photo import PatchScorer, PhotoScorer, places, starts
from scoring.trained import load_trained
from util import checkpoints, frames
from util.cores import cores
from util.distributed import amp_type, memory_format, pick_device, warn_of_slow_amp
from util.errors import MEMORY, InputError, log_once, machine_fault
from util.files import as_input_error

BATCH_SIZE = 100
STRIDE = 112  # pixels from the start of a map's patch to the start of the next one, at most
# An image whose shorter side is less than this part of the longer one is refused: it would become
# huge if it were enlarged until a patch fits in.
NARROWEST = 1 / 100
# Held while an opened picture is used. Pillow decodes it at its first use, which two threads must
# not do at once, and a list can have the same picture twice.
LOADING = threading.Lock()

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class Scorer:
    """A trained network that scores images.

    Args:
        checkpoint: a run's best.pth or last.pth, a run with one finished round, the authors' KonIQ
            model or pyiqa's, or a .safetensors file that export.py wrote.
        device: as in the scripts; None is CUDA or MPS if there is one, else the CPU.
        patches: patches per image.
        amp: compute in bfloat16, or in float16 on a GPU without it: faster, scores differ slightly.

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
        if amp:
            warn_of_slow_amp(self.device)
        self.patches = patches
        self.amp = amp
        self.checkpoint = checkpoint_in(checkpoint)
        model, self.meaning = load_trained(self.checkpoint)
        self.network = PatchScorer(model, self.meaning.score_range)
        self.photo_network = PhotoScorer(self.network, self.meaning.resize, patches)
        self.photo_network.eval().requires_grad_(False)
        # The stub of `to` lacks `memory_format`.
        form = memory_format(self.device)
        self.photo_network.to(self.device, memory_format=form)  # type: ignore[call-overload]

    def digest(self) -> str:
        """The first 8 digits of a hash of the weights."""
        return checkpoints.digest(self.network.model.state_dict())[:8]

    def __call__(
        self,
        images: Picture | list[Picture] | tuple[Picture, ...] | torch.Tensor,
        spread: bool = False,
    ) -> Any:
        """Score one image or a list of them.

        With a tensor of images it is `tensor_scores`, without `spread`.

        Args:
            images: a path, a `PIL.Image`, or an (H, W, 3) uint8 RGB array, or a list of these.
                Files and opened pictures are shown as a viewer shows them: upright, and with the
                colours of their profile in sRGB. A picture that was made from an opened one, as by
                a crop, is not turned.
            spread: also give the standard deviation over the patches.

        Returns:
            a float in the unit of the labels, or with `spread` a pair of floats; for a list of
            images, a list of these.

        Raises:
            InputError: an image cannot be used.
        """
        if isinstance(images, torch.Tensor):
            return self.tensor_scores(images)
        if not isinstance(images, list | tuple):
            return self([images], spread)[0]
        found = []
        for score, deviation in self.results(images, strict=True):
            found.append((score, deviation) if spread else score)
        return found

    def results(self, images: Sequence[Picture], strict: bool = False) -> Iterator[Any]:
        """Yields a pair for each image, in order: its score, and the deviation over its patches.

        For an image that cannot be used it yields the `InputError` instead. Images are decoded
        ahead on all cores while the network computes. It takes about BATCH_SIZE patches at once.

        Args:
            strict: raise the `InputError` of an image.
        """
        images_per_batch = max(1, BATCH_SIZE // self.patches)
        threads = cores()
        # Decoded in advance: the next batch, and one more image for each thread.
        jobs = frames.ahead(self.crops, images, threads, images_per_batch + threads)
        while batch := list(itertools.islice(jobs, images_per_batch)):
            yield from self.batch_results(batch, strict)

    def batch_results(self, batch: list[Future[np.ndarray]], strict: bool) -> Iterator[Any]:
        """Yields the `results` of one batch of images.

        Args:
            batch: for each image the job that gives its crops.
        """
        crops = []
        for job in batch:
            # `result` raises the job's exception: a fault of an image only if `strict`, but any
            # other one always.
            if strict or not isinstance(job.exception(), InputError):
                crops.append(job.result())
        scores = iter(self.means_and_deviations(crops) if crops else [])
        for job in batch:
            fault = job.exception()
            yield fault if fault else next(scores)

    def crops(self, image: Picture) -> np.ndarray:
        """(patches, 224, 224, 3) uint8 crops of an image, at the fixed `places`."""
        _, frame = self.photo_and_frame(image)
        height, width = frame.shape[:2]
        down, across = places(self.patches).T  # (patches,) each
        tops = starts(down, height).tolist()
        lefts = starts(across, width).tolist()
        return np.stack([crop_of(frame, y, x) for y, x in zip(tops, lefts)])

    def tensor_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Score images so that gradients flow to them, as a loss or a metric in other trainings.

        Args:
            images: (N, 3, H, W) floats from 0 to 1, RGB, on the scorer's device.

        Returns:
            (N,) in the unit of the labels.

        Raises:
            InputError: it is another tensor, an image is smaller than a patch, or the memory does
                not suffice.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                'a tensor of images has floats in the shape (N, 3, H, W), not '
                f'{images.dtype} {tuple(images.shape)}'
            )
        try:
            levels = images.float() * 255
            if self.meaning.resize:
                # As Pillow, but without its rounding to whole numbers, so that gradients flow.
                levels = F.interpolate(
                    levels, tuple(self.meaning.resize), mode='bilinear', antialias=True
                )
            height, width = levels.shape[2:]
            if min(height, width) < PATCH_SIZE:
                raise InputError(f'images of {width}x{height} are smaller than {PATCH_SIZE} pixels')
            with self.autocast():
                return self.photo_network.patch_scores(levels).mean(1)
        except (RuntimeError, MemoryError) as error:
            if machine_fault(error) != MEMORY:
                raise
            raise InputError(
                f'out of memory for {self.patches} patches of each of {len(images)} images; '
                'a Scorer with fewer patches needs less'
            )

    def autocast(self) -> torch.autocast:
        device_type = torch.device(self.device).type
        return torch.autocast(device_type, amp_type(self.device), enabled=self.amp)

    def map(self, image: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray, Image.Image]:
        """Score a grid of overlapping patches of one image. It raises what `__call__` raises.

        Content moves the scores as much as quality does: a map shows which half of a photo is
        blurred, but not which object.

        Returns:
            the scores (rows, columns) in the unit of the labels; y (rows,) and x (columns,) of the
            patches' centres, in pixels of the photo; and the photo, as a viewer shows it.
        """
        photo, frame = self.photo_and_frame(image)
        height, width = frame.shape[:2]
        top = grid_starts(height)
        left = grid_starts(width)
        crops = np.stack([crop_of(frame, y, x) for y in top for x in left])
        scores = self.patch_scores(crops).view(len(top), len(left)).numpy()
        # The frame may be the photo resized, so centres are scaled back.
        y_centres = (top + PATCH_SIZE / 2) * photo.height / height
        x_centres = (left + PATCH_SIZE / 2) * photo.width / width
        return scores, y_centres, x_centres, photo

    def drawn_map(self, image: Picture, title: str) -> bytes:
        """The `map` of an image, drawn over it, as the bytes of a PNG file."""
        # Not at the top: matplotlib takes half a second to import. Also, `util.plots` removes
        # MPLBACKEND from the environment, which a program that only scores would not expect.
        from util import plots

        scores, y, x, photo = self.map(image)
        return plots.score_map(scores, y, x, photo, title, unit=self.meaning.scale_line)

    def photo_and_frame(self, image: Picture) -> tuple[Image.Image, np.ndarray]:
        """An image as a viewer shows it, and its frame for patches to be cut from.

        Returns:
            the photo in RGB, and the frame (H, W, 3) uint8: the photo, resized as the network needs
            it.
        """
        if isinstance(image, str | os.PathLike):
            name = str(image)
            photo = frames.load_image(Path(image), exif_rotation=True, srgb=True)
        else:
            name = 'the image'
            photo = rgb_of(image)
        frame = enlarged(frames.resized(photo, self.meaning.resize), name)
        return photo, np.asarray(frame)

    def means_and_deviations(self, crops: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """The mean and the standard deviation of the scores of each image's crops.

        Args:
            crops: (patches, 224, 224, 3) uint8 of each image.

        Raises:
            InputError: a score is not finite.
        """
        of_images = self.patch_scores(np.concatenate(crops)).view(-1, self.patches)
        means = of_images.mean(1).tolist()
        # Without Bessel's correction, so that the deviation of one patch is 0 and not nan.
        deviations = of_images.std(1, correction=0).tolist()
        return list(zip(means, deviations))

    @torch.inference_mode()
    def patch_scores(self, crops: np.ndarray) -> torch.Tensor:
        """Score (N, 224, 224, 3) uint8 crops.

        Returns:
            (N,) float64 on the CPU, in the unit of the labels.

        Raises:
            InputError: a score is not finite.
        """
        patches = torch.from_numpy(crops)
        parts = []
        with self.autocast():
            for part in patches.split(BATCH_SIZE):
                parts.append(self.network(part.to(self.device)).cpu())
        scores = torch.cat(parts).double()
        if not scores.isfinite().all():
            raise InputError(
                f'{self.checkpoint} gives a score that is not finite; take the weights of another '
                'epoch'
            )
        return scores


def crop_of(frame: np.ndarray, y: int, x: int) -> np.ndarray:
    return frame[y : y + PATCH_SIZE, x : x + PATCH_SIZE]


def grid_starts(side: int) -> np.ndarray:
    """Where the patches of a map start along a side: evenly spread from its start to its end."""
    last = side - PATCH_SIZE
    steps = math.ceil(last / STRIDE)
    return np.linspace(0, last, steps + 1).round().astype(int)


def rgb_of(image: Any) -> Image.Image:
    """A picture as a viewer shows it, in RGB.

    Args:
        image: a `PIL.Image` of any mode, or an (H, W, 3) uint8 array.

    Raises:
        InputError: it is something else, or cannot be decoded.
    """
    if isinstance(image, Image.Image):
        with LOADING, as_input_error('the image', 'an image'):
            rgb, _oddities = frames.as_rgb(image, exif_rotation=True, srgb=True)
            return rgb
    wanted = 'an image is a path, a PIL image or an (H, W, 3) uint8 RGB array'
    if not isinstance(image, np.ndarray):
        raise InputError(f'{wanted}, not {type(image).__name__}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f'{wanted}, not {image.dtype} {image.shape}')
    return Image.fromarray(np.ascontiguousarray(image))


def enlarged(picture: Image.Image, name: str) -> Image.Image:
    """The picture, enlarged if it is smaller than a patch.

    Args:
        name: of the image, for messages.

    Raises:
        InputError: it is too narrow, so that it would become huge.
    """
    shorter = min(picture.size)
    if shorter >= PATCH_SIZE:
        return picture
    found = f'{name} is {picture.width}x{picture.height}'
    if shorter < NARROWEST * max(picture.size):
        raise InputError(f'{found}: too narrow to be enlarged until a patch fits in')
    scale = PATCH_SIZE / shorter
    width, height = (round(side * scale) for side in picture.size)
    log_once(f'{found}: enlarged to {width}x{height}, so its score is less certain')
    return picture.resize((width, height), Image.Resampling.BICUBIC)
