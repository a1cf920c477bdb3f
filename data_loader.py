"""From samples to batches of patches on the device.

The patches are drawn before any pixel is read: `draw_patches` turns a seed into (image, top, left, flip) for a whole
epoch, so they depend on that seed alone and not on workers, cache or timing. A batch is then a uint8 gather of crops from
the frames, made ahead in threads; float, flip and normalisation happen on the device.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from folders import OpenDatabase
from models import PATCH_SIZE, patch_size_reason
from util import distributed
from util.errors import InputError
from util.frames import ahead

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCHES_AHEAD = 4
TRAIN_STREAM, TEST_STREAM, SCALE_STREAM = 0, 1, 2


class Patches(NamedTuple):
    """What an epoch sees, one entry per patch: position of the image, top and left of the crop, and whether it is flipped."""

    image: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


def draw_patches(
    seed: tuple[int, ...] | np.ndarray, sizes: np.ndarray, patch_num: int, istrain: bool
) -> Patches:
    """Draws `patch_num` crops per image.

    Uses NumPy's legacy generator, whose stream is frozen across NumPy versions.

    Args:
        sizes: (N, 2) heights and widths.
        istrain: shuffle the patches over the whole epoch and flip half of them.
    """
    rng = np.random.RandomState(seed)
    image = np.repeat(np.arange(len(sizes)), patch_num)
    if istrain:
        image = rng.permutation(image)
    room = sizes[image] - PATCH_SIZE + 1
    top, left = (rng.random_sample(room.shape) * room).astype(np.int64).T
    flip = rng.random_sample(len(image)) < 0.5 if istrain else np.zeros(len(image), bool)
    return Patches(image, top, left, flip)


class DataLoader:
    """An iterable of (patches, scores): float32 (B, 3, 224, 224), normalised, and float32 (B,).

    Under torchrun a batch is this rank's part of it. Where a batch has fewer patches than there are ranks, a rank without one
    gets another rank's patch with no score, so that its batch norm sees a photo as it takes part in the step.

    Before an epoch of training call `set_epoch`, as with torch's `DistributedSampler`; without it every pass draws the
    same patches.

    Args:
        dataset, path: a key of `folders.DATABASES`, or an alias, and the database's folder.
        img_indx: positions of the wanted units (see `folders.OpenDatabase`): images, or references for LIVE, CSIQ,
            TID2013, KADID-10k and the demo. With `opened` they are positions of images.
        patch_size: 224.
        patch_num: random patches per image and epoch.
        batch_size: patches per batch; the last batch may be smaller.
        istrain: shuffle, flip half of the patches, and draw new ones for each epoch. Otherwise the patches come image
            by image, unflipped, and are the same in every epoch.
        seed, round_index: what the drawn patches depend on, with the epoch when training.
        device: where the batches are delivered.
        num_workers: threads that gather the crops; 0 is one thread too.
        opened: the database with its frames, if they are open already.

    Raises:
        InputError: the database cannot be read, an image is smaller than a patch, or `patch_size` is not 224.
    """

    def __init__(
        self,
        dataset: str,
        path: Path | str,
        img_indx: Iterable[int],
        patch_size: int,
        patch_num: int,
        batch_size: int = 1,
        istrain: bool = True,
        *,
        seed: int = 0,
        round_index: int = 0,
        device: torch.device | str = 'cpu',
        num_workers: int = 2,
        opened: OpenDatabase | None = None,
    ) -> None:
        if patch_size != PATCH_SIZE:
            raise InputError(patch_size_reason(patch_size))
        if opened is None:
            opened = OpenDatabase(dataset, path).open_frames(patch_size)
            img_indx = opened.images(img_indx)
        self.frames, self.images = opened.frames, list(img_indx)
        self.scores = np.array([opened.samples[k].score for k in self.images], np.float64)
        self.patch_num = patch_num
        self.batch_size = batch_size
        self.istrain = istrain
        self.seed = seed, round_index
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.set_epoch(0)

    def get_data(self) -> 'DataLoader':
        """Itself: the original's callers ask for the iterable in this way."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of 0-based `epoch`."""
        stream = (TRAIN_STREAM, epoch) if self.istrain else (TEST_STREAM,)
        self.patches = draw_patches(
            (*self.seed, *stream), self.frames.sizes[self.images], self.patch_num, self.istrain
        )

    @property
    def patch_scores(self) -> np.ndarray:
        """(patches,) float32: the score of each patch's image."""
        return self.scores[self.patches.image].astype(np.float32)

    @property
    def batches(self) -> list[tuple[slice, int]]:
        """For each batch: the slice of `patches` that this rank takes of it, and how many the batch has on all ranks."""
        count = len(self.patches.image)
        ends = [
            (start, min(start + self.batch_size, count))
            for start in range(0, count, self.batch_size)
        ]
        return [(distributed.rank_slice(start, stop), stop - start) for start, stop in ends]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        patch_scores = self.patch_scores
        for crops, rows in self.crops():
            scores = torch.from_numpy(patch_scores[rows])
            flip = torch.from_numpy(self.patches.flip[at_least_one(rows)])
            yield (
                to_device(crops, flip, self.device),
                scores.to(self.device, non_blocking=self.device.type == 'cuda'),
            )

    def crops(self) -> Iterator[tuple[torch.Tensor, slice]]:
        """Yields ((B, 224, 224, 3) uint8 crops, the slice of `patches` that they are), in order, gathered ahead."""
        batches = [rows for rows, _ in self.batches]
        for job, rows in zip(
            ahead(self.gather, batches, max(1, self.num_workers), BATCHES_AHEAD), batches
        ):
            yield job.result(), rows

    def gather(self, rows: slice) -> torch.Tensor:
        """The (B, 224, 224, 3) uint8 crops of the slice `rows` of `patches`."""
        image, top, left = (column[at_least_one(rows)].tolist() for column in self.patches[:3])
        shape = (len(image), PATCH_SIZE, PATCH_SIZE, 3)
        crops = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == 'cuda')
        for crop, i, y, x in zip(crops.numpy(), image, top, left):
            crop[:] = self.frames[self.images[i]][y : y + PATCH_SIZE, x : x + PATCH_SIZE]
        return crops


def at_least_one(rows: slice) -> slice:
    """`rows`, or the one that an empty slice starts at: a rank without a patch of its own trains on one of another rank."""
    return slice(rows.start, max(rows.stop, rows.start + 1))


def to_device(crops: torch.Tensor, flip: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """(B, H, W, 3) uint8 crops -> (B, 3, H, W) float32 on `device`, flipped where `flip` (B,) is set, normalised."""
    asynchronous = (
        torch.device(device).type == 'cuda'
    )  # elsewhere a copy may be read before it has ended
    crops = crops.to(device, non_blocking=asynchronous).permute(0, 3, 1, 2)
    flip = flip.to(device, non_blocking=asynchronous)
    crops = torch.where(flip.view(-1, 1, 1, 1), crops.flip(3), crops)
    mean, std = imagenet_statistics(crops.device)
    return (
        crops.float()
        .div_(255)
        .sub_(mean)
        .div_(std)
        .contiguous(memory_format=distributed.memory_format(device))
    )


@functools.cache
def imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, (1, 3, 1, 1) each; made once for a device, since making them waits for it."""
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std
