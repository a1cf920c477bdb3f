"""From a whole photo to its score, in operations of PyTorch that other runtimes have too."""

from collections.abc import Sequence

import numpy as np
import torch

from data_loader import imagenet_statistics
from models import PATCH_SIZE, HyperNet, predict_scores
from util.distributed import memory_format

# A place k means k / 65536 of the way from the first possible start of a patch to the last one.
PLACE_STEPS = 65536
WEIGHT_STEPS = 2**22  # Pillow rounds the weights of a resize to multiples of 2 ** -22


def places(count: int) -> torch.Tensor:
    """The places (count, 2) of patches, down and across, which are the same for every image."""
    # NumPy's legacy generator, since its numbers are the same in all versions of NumPy.
    return torch.from_numpy(np.random.RandomState(0).randint(PLACE_STEPS, size=(count, 2)))


def starts(steps: torch.Tensor, side: int) -> torch.Tensor:
    """Where patches start along a side of `side` pixels, from their places along it."""
    possible_starts = side - PATCH_SIZE + 1
    return steps * possible_starts // PLACE_STEPS


def resized(photo: torch.Tensor, size: Sequence[int], rounded: bool) -> torch.Tensor:
    """A photo in another size, as Pillow's bilinear resize makes it: in a pass across and one down.

    Args:
        photo: (..., H, W), from 0 to 255.
        rounded: round to whole numbers after each pass, as Pillow does. Without it the result is
            smooth, so that gradients flow.
    """
    height, width = size
    # `photo @ across` resizes the rows to the width, and `down @ photo` the columns to the height.
    across = resize_weights(photo.shape[-1], width).to(photo.device).T
    down = resize_weights(photo.shape[-2], height).to(photo.device)
    if not rounded:
        return down.float() @ (photo @ across.float())
    # float64 adds up the products of such weights exactly, so that a sum halfway between two levels
    # is rounded as by Pillow.
    across = (across * WEIGHT_STEPS).round() / WEIGHT_STEPS
    down = (down * WEIGHT_STEPS).round() / WEIGHT_STEPS
    photo = photo.double()
    across_first = to_levels(down @ to_levels(photo @ across))
    down_first = to_levels(to_levels(down @ photo) @ across)
    # The order of Pillow 13: down first if the height falls by more than twice as much as the
    # width. In tensors, since torch.export would keep only one branch.
    lower = torch.ones(1, device=photo.device) * (photo.shape[-2] - height)
    narrower = torch.ones(1, device=photo.device) * (photo.shape[-1] - width)
    return torch.where((lower > 0) & (lower > 2 * narrower), down_first, across_first).float()


def to_levels(values: torch.Tensor) -> torch.Tensor:
    """Rounded to whole numbers, halves up."""
    return (values + 0.5).floor()


def resize_weights(side: int, wanted: int) -> torch.Tensor:
    """The weights of a resize from `side` pixels to `wanted` ones.

    Returns:
        (wanted, side), the share of each old pixel in each new one. It falls with their distance.
    """
    scale = side / wanted
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    # An enlarged photo's pixel comes from the two nearest ones, a reduced photo's from all that it
    # covers. As a tensor, since torch.export would keep only one branch of a maximum of numbers.
    reach = (torch.ones(1, dtype=torch.float64) * scale).clamp(min=1)
    distances = (torch.arange(side, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    weights = (1 - distances / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class PatchScorer(torch.nn.Module):
    """uint8 patches -> scores in the unit of the labels, with the preparation inside.

    Args:
        score_range: the scores that its outputs 0 and 1 mean; None if its output is a score.
    """

    def __init__(self, model: HyperNet, score_range: Sequence[float] | None) -> None:
        super().__init__()
        self.model = model
        self.low, self.high = map(float, score_range or (0, 1))
        mean, std = imagenet_statistics(torch.device('cpu'))
        self.mean = torch.nn.Buffer(mean)
        self.std = torch.nn.Buffer(std)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 -> (N,) float32."""
        # Cast first: TensorRT and Core ML refuse to transpose uint8.
        return self.of_images(patches.float().permute(0, 3, 1, 2))

    def of_images(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) float32, from 0 to 255 -> (N,) float32."""
        images = (images / 255 - self.mean) / self.std
        images = images.contiguous(memory_format=memory_format(images.device))
        return self.low + (self.high - self.low) * predict_scores(self.model, images)


class PhotoScorer(torch.nn.Module):
    """A uint8 photo -> its score, with the resize, the places of the patches and the mean inside.

    Args:
        resize: the height and width that it is resized to, or None.
        patches: how many are scored.
    """

    def __init__(self, scorer: PatchScorer, resize: Sequence[int] | None, patches: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.resize = resize
        self.places = torch.nn.Buffer(places(patches))
        self.offsets = torch.nn.Buffer(torch.arange(PATCH_SIZE))

    def forward(self, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, W, 3) uint8 RGB -> its score () and the scores of its patches (patches,), float32.

        A photo that is smaller than a patch is an error: the patches do not fit in.
        """
        # Cast first: other runtimes cannot gather uint8.
        image = photo.float().permute(2, 0, 1)
        if self.resize:
            image = resized(image, self.resize, rounded=True)
        # (patches, 224) each: the rows and columns of the pixels of every patch.
        rows = starts(self.places[:, :1], image.shape[1]) + self.offsets
        columns = starts(self.places[:, 1:], image.shape[2]) + self.offsets
        # Indexing gives (3, patches, 224, 224); then the patches come first.
        patches = image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        scores = self.scorer.of_images(patches)
        return scores.mean(), scores
