"""From samples to batches of patches on the device.

The patches are drawn before any pixel is read: `draw_patches` turns a seed into (image, top, left,
flip) for a whole epoch. So they depend on that seed only, and not on threads, cache or timing.
Threads then gather the crops of the next batches from the frames, as uint8. Conversion to float,
flips and normalisation happen on the device.
"""

import functools
import math
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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCHES_AHEAD = 4
# Training, tests and the comparison of scales draw from separate streams of random numbers.
TRAIN_STREAM = 0
TEST_STREAM = 1
SCALE_STREAM = 2


class Patches(NamedTuple):
    """The patches of an epoch in order: four arrays with one entry per patch."""

    image: np.ndarray  # index of the image in `DataLoader.images`
    top: np.ndarray  # first row of the crop
    left: np.ndarray  # first column of the crop
    flip: np.ndarray  # whether the crop is mirrored


class Batch(NamedTuple):
    """This rank's part of a batch; the whole batch if there is only one process."""

    rows: slice  # of the epoch's `Patches`
    size: int  # patches of the whole batch, on all ranks
    patches: torch.Tensor  # (B, 3, 224, 224) float32, normalised
    scores: torch.Tensor  # (B,) float32; empty on a rank without a patch (see `DataLoader`)


def draw_patches(
    seed: tuple[int, ...], sizes: np.ndarray, patch_num: int, istrain: bool
) -> Patches:
    """Draw `patch_num` crops per image.

    Args:
        sizes: (N, 2) heights and widths of the images.
        istrain: shuffle the patches over the whole epoch and flip half of them.
    """
    # NumPy's legacy generator, since its numbers are the same in all versions of NumPy.
    rng = np.random.RandomState(seed)
    image = np.repeat(np.arange(len(sizes)), patch_num)
    if istrain:
        image = rng.permutation(image)
    # The number of positions that a crop can have in its image, down and across.
    room = sizes[image] - PATCH_SIZE + 1
    position = (rng.random_sample(room.shape) * room).astype(np.int64)
    if istrain:
        flip = rng.random_sample(len(image)) < 0.5
    else:
        flip = np.zeros(len(image), dtype=bool)
    return Patches(image, top=position[:, 0], left=position[:, 1], flip=flip)


class DataLoader:
    """An iterable of (patches, scores): float32 (B, 3, 224, 224), normalised, and float32 (B,).

    Under torchrun each rank gets its part of every batch. A batch may have fewer patches than there
    are ranks. A rank without a patch then gets a copy of another rank's patch, without a score. So
    every rank runs the step, and its batch norm sees a real photo.

    Before an epoch of training call `set_epoch`, as with torch's `DistributedSampler`. Otherwise
    each pass has the same patches.

    Args:
        dataset: a key of `folders.DATABASES` or an alias.
        path: the database's folder, or a `folders.OpenDatabase` with open frames.
        img_indx: positions of the wanted units (see `folders.OpenDatabase`): images, or references
            for LIVE, CSIQ, TID2013, KADID-10k and the demo. With an `OpenDatabase` they are
            positions of images.
        patch_size: 224. The original's callers pass it.
        patch_num: random patches per image and epoch.
        batch_size: patches per batch; the last batch may be smaller.
        istrain: shuffle, flip half of the patches, and draw new ones for each epoch. Otherwise the
            patches come image by image, unflipped, and are the same in every epoch.
        seed, round_index, stream: the drawn patches depend on these, and on the epoch in training.
            The default stream is that of training or of tests, by `istrain`.
        device: where the batches are delivered.
        num_workers: threads that gather the crops; 0 is one thread too.

    Raises:
        InputError: the database cannot be read, an image is smaller than a patch, or `patch_size`
            is not 224.
    """

    def __init__(
        self,
        dataset: str,
        path: Path | str | OpenDatabase,
        img_indx: Iterable[int],
        patch_size: int,
        patch_num: int,
        batch_size: int = 1,
        istrain: bool = True,
        *,
        seed: int = 0,
        round_index: int = 0,
        stream: int | None = None,
        device: torch.device | str = 'cpu',
        num_workers: int = 2,
    ) -> None:
        if patch_size != PATCH_SIZE:
            raise InputError(patch_size_reason(patch_size))
        if isinstance(path, OpenDatabase):
            database = path
            self.images = list(img_indx)  # positions in `database.samples`
        else:
            database = OpenDatabase(dataset, path).open_frames(patch_size)
            self.images = database.images(img_indx)
        if stream is None:
            stream = TRAIN_STREAM if istrain else TEST_STREAM
        self.frames = database.frames
        self.scores = np.array([database.samples[k].score for k in self.images], np.float64)
        self.patch_num = patch_num
        self.batch_size = batch_size
        self.istrain = istrain
        # Together they seed the generator of the patches.
        self.seed = (seed, round_index, stream)
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.set_epoch(0)

    def get_data(self) -> 'DataLoader':
        """Return the loader itself, which the original's callers ask for in this way."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of the 0-based `epoch`."""
        seed = (*self.seed, epoch) if self.istrain else self.seed
        sizes = self.frames.sizes[self.images]
        self.patches = draw_patches(seed, sizes, self.patch_num, self.istrain)

    @property
    def patch_count(self) -> int:
        """The number of patches in an epoch."""
        return len(self.patches.image)

    @property
    def patch_scores(self) -> np.ndarray:
        """The score of each patch's image, (patches,) float32."""
        return self.scores[self.patches.image].astype(np.float32)

    def __len__(self) -> int:
        return math.ceil(self.patch_count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (patches, scores), as the original's loop reads them."""
        for batch in self.batches():
            yield batch.patches, batch.scores

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of an epoch in order, their crops gathered ahead."""
        parts = []  # of each batch: the number of its patches, and this rank's rows, perhaps none
        for start in range(0, self.patch_count, self.batch_size):
            stop = min(start + self.batch_size, self.patch_count)
            parts.append((stop - start, distributed.rank_slice(start, stop)))
        # A rank that has no row of a batch runs another rank's.
        rows_to_run = [at_least_one(rows) for _, rows in parts]

        patch_scores = self.patch_scores
        on_gpu = self.device.type == 'cuda'
        threads = max(1, self.num_workers)
        # A future for the crops of each batch, in order. While a batch is used, the threads gather
        # those of the next BATCHES_AHEAD.
        futures = ahead(self.gather, rows_to_run, threads, BATCHES_AHEAD)
        for (size, rows), run_rows, future in zip(parts, rows_to_run, futures):
            flip = torch.from_numpy(self.patches.flip[run_rows])
            patches = to_device(future.result(), flip, self.device)
            scores = torch.from_numpy(patch_scores[rows]).to(self.device, non_blocking=on_gpu)
            yield Batch(rows, size, patches, scores)

    def gather(self, rows: slice) -> torch.Tensor:
        """Return the (B, 224, 224, 3) uint8 crops of the slice `rows` of `patches`."""
        # Python's integers, since they index the frames faster than NumPy's.
        images = self.patches.image[rows].tolist()
        tops = self.patches.top[rows].tolist()
        lefts = self.patches.left[rows].tolist()
        # Only from pinned memory can the GPU copy while it computes.
        crops = torch.empty(
            (len(images), PATCH_SIZE, PATCH_SIZE, 3),
            dtype=torch.uint8,
            pin_memory=self.device.type == 'cuda',
        )
        # The array shares the tensor's memory, so the loop fills `crops`.
        for crop, image, top, left in zip(crops.numpy(), images, tops, lefts):
            position = self.images[image]  # in the database
            frame = self.frames[position]
            crop[:] = frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE]
        return crops


def at_least_one(rows: slice) -> slice:
    """Return `rows`, or the one row that an empty slice starts at.

    A rank without a patch runs that row, which is another rank's (see `DataLoader`).
    """
    return slice(rows.start, max(rows.stop, rows.start + 1))


def to_device(crops: torch.Tensor, flip: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Flip and normalise crops on `device`.

    Args:
        crops: (B, H, W, 3) uint8.
        flip: (B,) bool, which of them are mirrored.

    Returns:
        (B, 3, H, W) float32.
    """
    # Copying without waiting is safe only on CUDA.
    on_gpu = torch.device(device).type == 'cuda'
    crops = crops.to(device, non_blocking=on_gpu).permute(0, 3, 1, 2)
    flip = flip.to(device, non_blocking=on_gpu)
    crops = torch.where(flip.view(-1, 1, 1, 1), crops.flip(3), crops)
    mean, std = imagenet_statistics(crops.device)
    patches = crops.float().div_(255).sub_(mean).div_(std)
    return patches.contiguous(memory_format=distributed.memory_format(device))


@functools.cache
def imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ImageNet's mean and standard deviation on `device`, (1, 3, 1, 1) each.

    They are made once per device: making them for every batch would wait for the GPU each time.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return mean, std
