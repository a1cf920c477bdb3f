"""From samples to batches of patches on the device.

The patches are drawn before any pixel is read: `draw_patches` turns a seed into (image, top, left,
flip) for a whole epoch. So they depend on that seed only, and not on workers, cache or timing. A
batch is then a gather of uint8 crops from the frames, made ahead of time in threads. The conversion
to float, the flip and the normalisation happen on the device.
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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCHES_AHEAD = 4
# The last number of a seed. Patches to train on, to test on, and to look at the scale of the scores
# are drawn from different random streams, so none of them changes with how many the others are.
TRAIN_STREAM = 0
TEST_STREAM = 1
SCALE_STREAM = 2


class Patches(NamedTuple):
    """The patches of an epoch, one entry per patch in each of four arrays."""

    image: np.ndarray  # position of the image in the loader's list
    top: np.ndarray  # of the crop, in pixels of the frame
    left: np.ndarray
    flip: np.ndarray  # whether the crop is mirrored


class Batch(NamedTuple):
    """This rank's part of a batch. Without torchrun that is the whole batch."""

    rows: slice  # of the epoch's `Patches`
    size: int  # patches of the whole batch, on all ranks
    patches: torch.Tensor  # (B, 3, 224, 224) float32, normalised
    scores: torch.Tensor  # (B,) float32; empty if this rank only fills in (see `DataLoader`)


def draw_patches(
    seed: tuple[int, ...] | np.ndarray, sizes: np.ndarray, patch_num: int, istrain: bool
) -> Patches:
    """Draw `patch_num` crops per image.

    Args:
        sizes: (N, 2) heights and widths.
        istrain: shuffle the patches over the whole epoch and flip half of them.
    """
    # NumPy's legacy generator: its stream is frozen across NumPy versions.
    rng = np.random.RandomState(seed)
    image = np.repeat(np.arange(len(sizes)), patch_num)
    if istrain:
        image = rng.permutation(image)
    room = sizes[image] - PATCH_SIZE + 1
    corners = (rng.random_sample(room.shape) * room).astype(np.int64)
    if istrain:
        flip = rng.random_sample(len(image)) < 0.5
    else:
        flip = np.zeros(len(image), bool)
    return Patches(image=image, top=corners[:, 0], left=corners[:, 1], flip=flip)


class DataLoader:
    """An iterable of (patches, scores): float32 (B, 3, 224, 224), normalised, and float32 (B,).

    Under torchrun each rank gets its part of every batch. If the last batch has fewer patches than
    there are ranks, idle ranks get a copy of another rank's patch without a score, so that every
    rank runs the step on a real photo.

    Before an epoch of training call `set_epoch`, as with torch's `DistributedSampler`; without it
    every pass draws the same patches.

    Args:
        dataset: a key of `folders.DATABASES`, or an alias; not read if `path` is an OpenDatabase.
        path: the database's folder, or an `OpenDatabase` with open frames.
        img_indx: positions of the wanted images in an OpenDatabase. With a folder, positions of
            the wanted units (see `folders.OpenDatabase`): images, or references for LIVE, CSIQ,
            TID2013, KADID-10k and the demo.
        patch_size: must be 224.
        patch_num: random patches per image and epoch.
        batch_size: patches per batch; the last batch may be smaller.
        istrain: shuffle, flip half of the patches, and draw new ones for each epoch. Otherwise the
            patches come image by image, unflipped, and are the same in every epoch.
        seed, round_index: the drawn patches depend on both, and on the epoch when training.
        stream: the random stream of patches that are not trained on.
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
        stream: int = TEST_STREAM,
        device: torch.device | str = 'cpu',
        num_workers: int = 2,
    ) -> None:
        if patch_size != PATCH_SIZE:
            raise InputError(patch_size_reason(patch_size))
        if isinstance(path, OpenDatabase):
            database = path
        else:
            database = OpenDatabase(dataset, path).open_frames(patch_size)
            img_indx = database.images(img_indx)
        self.frames = database.frames
        self.images = list(img_indx)
        self.scores = np.array([database.samples[k].score for k in self.images], np.float64)
        self.patch_num = patch_num
        self.batch_size = batch_size
        self.istrain = istrain
        self.seed = (seed, round_index)
        self.stream = stream
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.set_epoch(0)

    def get_data(self) -> 'DataLoader':
        """Itself: the original's callers ask for the iterable in this way."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of the 0-based `epoch`; those of a test are the same in each."""
        seed = (*self.seed, TRAIN_STREAM, epoch) if self.istrain else (*self.seed, self.stream)
        sizes = self.frames.sizes[self.images]
        self.patches = draw_patches(seed, sizes, self.patch_num, self.istrain)

    @property
    def patch_scores(self) -> np.ndarray:
        """(patches,) float32: the score of each patch's image."""
        return self.scores[self.patches.image].astype(np.float32)

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.patches.image) // self.batch_size)  # rounded up

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (patches, scores), as the original's loop reads them."""
        for batch in self.batches():
            yield batch.patches, batch.scores

    def batches(self) -> Iterator[Batch]:
        """Yields the batches of an epoch in order, their crops gathered ahead of time."""
        count = len(self.patches.image)
        rows_of_batches = []
        sizes = []
        for start in range(0, count, self.batch_size):
            stop = min(start + self.batch_size, count)
            rows_of_batches.append(distributed.rank_slice(start, stop))
            sizes.append(stop - start)

        patch_scores = self.patch_scores
        on_gpu = self.device.type == 'cuda'
        threads = max(1, self.num_workers)
        gathered = ahead(self.gather, rows_of_batches, threads, BATCHES_AHEAD)
        for rows, size, future in zip(rows_of_batches, sizes, gathered):
            # A rank that only fills in has a patch, and so a flip, but no score.
            flip = torch.from_numpy(self.patches.flip[at_least_one(rows)])
            patches = to_device(future.result(), flip, self.device)
            scores = torch.from_numpy(patch_scores[rows]).to(self.device, non_blocking=on_gpu)
            yield Batch(rows, size, patches, scores)

    def gather(self, rows: slice) -> torch.Tensor:
        """The (B, 224, 224, 3) uint8 crops of the slice `rows` of `patches`."""
        rows = at_least_one(rows)
        # Python integers: indexing the frames with them is faster than with NumPy's.
        images = self.patches.image[rows].tolist()
        tops = self.patches.top[rows].tolist()
        lefts = self.patches.left[rows].tolist()
        # Only from pinned memory can the copy to the GPU run during the computation.
        crops = torch.empty(
            (len(images), PATCH_SIZE, PATCH_SIZE, 3),
            dtype=torch.uint8,
            pin_memory=self.device.type == 'cuda',
        )
        # The array shares the tensor's memory, so this loop fills the tensor.
        for crop, image, top, left in zip(crops.numpy(), images, tops, lefts):
            frame = self.frames[self.images[image]]
            crop[:] = frame[top : top + PATCH_SIZE, left : left + PATCH_SIZE]
        return crops


def at_least_one(rows: slice) -> slice:
    """`rows`, or the row that an empty slice starts at: another rank's, to fill in with."""
    return slice(rows.start, max(rows.stop, rows.start + 1))


def to_device(
    crops: torch.Tensor, flip: torch.Tensor, device: torch.device | str
) -> torch.Tensor:
    """Crops as the network takes them: on `device`, flipped where `flip` is set, normalised.

    Args:
        crops: (B, H, W, 3) uint8.
        flip: (B,) bool.

    Returns:
        (B, 3, H, W) float32.
    """
    # Only a GPU waits for its copies by itself; elsewhere one could be read before it has ended.
    on_gpu = torch.device(device).type == 'cuda'
    crops = crops.to(device, non_blocking=on_gpu).permute(0, 3, 1, 2)
    flip = flip.to(device, non_blocking=on_gpu)
    crops = torch.where(flip.view(-1, 1, 1, 1), crops.flip(3), crops)
    mean, std = imagenet_statistics(crops.device)
    patches = crops.float().div_(255).sub_(mean).div_(std)
    return patches.contiguous(memory_format=distributed.memory_format(device))


@functools.cache
def imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ImageNet's mean and standard deviation of each channel, (1, 3, 1, 1) each.

    They are made once per device, because making them there waits for the GPU.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return mean, std
