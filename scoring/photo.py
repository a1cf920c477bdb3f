"""From a whole photo to its score, in operations of PyTorch that other runtimes have too."""

from collections.abc import Sequence

import numpy as np
import torch

from data_loader import imagenet_statistics
from models import PATCH_SIZE, HyperNet, predict_scores
from util.distributed import memory_format

# A place is a whole number k from 0 to 65535: the patch starts at k / 65536 of the possible starts.
PLACE_STEPS = 65536
WEIGHT_STEPS = 2**22  # Pillow rounds the weights of a resize to multiples of 2 ** -22


def places(count: int) -> torch.Tensor:
    """The places (count, 2) of patches, down and across, which are the same for every image."""
    # NumPy's legacy generator, since its numbers are the same in all versions of NumPy.
    return torch.from_numpy(np.random.RandomState(0).randint(PLACE_STEPS, size=(count, 2)))


def starts(places_along: torch.Tensor, side: int) -> torch.Tensor:
    """Where patches start along a side of `side` pixels, from their places along it."""
    possible_starts = side - PATCH_SIZE + 1
    return places_along * possible_starts // PLACE_STEPS


def resized(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Images in another size, exactly as `frames.resized` makes them with Pillow.

    Args:
        images: (N, 3, H, W), whole numbers from 0 to 255.
        size: (height, width).
    """
    height, width = size
    # These weights are multiples of 2 ** -22, so that sums are exact in float64, and one halfway
    # between two levels is rounded as by Pillow.
    across = resize_weights(images.shape[3], width).T  # (W, width)
    down = resize_weights(images.shape[2], height)  # (height, H)
    narrowed = to_levels(images.double() @ across)
    return to_levels(down @ narrowed).float()


def to_levels(values: torch.Tensor) -> torch.Tensor:
    """Rounded to whole numbers, halves up."""
    return (values + 0.5).floor()


def resize_weights(side: int, wanted: int) -> torch.Tensor:
    """The weights of Pillow's bilinear resize from `side` pixels to `wanted` ones.

    Returns:
        (wanted, side) float64, the share of each old pixel in each new one. The further away an
        old pixel is, the smaller is its share.
    """
    scale = side / wanted
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    distances = (torch.arange(side, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    # An old pixel has a share if it is nearer than this: max(1, scale). As a tensor, since
    # torch.export would record the maximum of two numbers only for its example.
    reach = (torch.ones(1, dtype=torch.float64) * scale).clamp(min=1)
    weights = (1 - distances / reach).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * WEIGHT_STEPS).round() / WEIGHT_STEPS


class PatchScorer(torch.nn.Module):
    """uint8 patches -> scores in the unit of the labels, with the preparation inside.

    Args:
        score_range: the scores that the model's outputs 0 and 1 stand for; None if its outputs are
            scores.
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
        resize: the height and width that a photo is resized to, or None.
        patches: how many are scored.
    """

    def __init__(self, scorer: PatchScorer, resize: Sequence[int] | None, patches: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.resize = resize
        self.places = torch.nn.Buffer(places(patches))
        self.offsets = torch.nn.Buffer(torch.arange(PATCH_SIZE))

    def forward(self, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, W, 3) uint8 RGB -> its score () and the scores of its patches (patches,), float32."""
        # Cast first: other runtimes cannot gather uint8.
        images = photo.float().permute(2, 0, 1)[None]
        if self.resize:
            images = resized(images, self.resize)
        scores = self.patch_scores(images)[0]
        return scores.mean(), scores

    def patch_scores(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float32, from 0 to 255 -> the scores of their patches (N, patches).

        An image that is smaller than a patch is an error.
        """
        # (patches, 224) each: the numbers of the 224 rows, or columns, of every patch.
        rows = starts(self.places[:, :1], images.shape[2]) + self.offsets
        columns = starts(self.places[:, 1:], images.shape[3]) + self.offsets
        # The pixels in the rows and columns of each patch, (N, 3, patches, 224, 224), transposed.
        patches = images[:, :, rows[:, :, None], columns[:, None, :]].transpose(1, 2)
        return self.scorer.of_images(patches.flatten(0, 1)).view(-1, len(self.places))
