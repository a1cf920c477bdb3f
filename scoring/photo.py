"""From a whole photo to its score, in operations of PyTorch that other runtimes have too."""

from collections.abc import Sequence

import numpy as np
import torch

from data_loader import imagenet_statistics
from models import PATCH_SIZE, HyperNet, predict_scores
from util.distributed import memory_format

PLACE_STEPS = 65536  # a place is a fraction of the room for a patch, in such steps


def places(count: int) -> torch.Tensor:
    """The places (count, 2) of patches, down and across, which are the same for every image."""
    # NumPy's legacy generator, since its numbers are the same in all versions of NumPy.
    return torch.from_numpy(np.random.RandomState(0).randint(PLACE_STEPS, size=(count, 2)))


def starts(steps: torch.Tensor, side: int) -> torch.Tensor:
    """Where patches start along a side, in pixels."""
    return steps * (side - PATCH_SIZE + 1) // PLACE_STEPS


def resized(photo: torch.Tensor, size: Sequence[int], whole: bool) -> torch.Tensor:
    """A photo in another size, as Pillow's bilinear resize makes it: first across, then down.

    With `whole`, a pixel differs from Pillow's by at most one level of 255.

    Args:
        photo: (..., H, W), from 0 to 255.
        whole: round to whole numbers after each pass, as Pillow does. Without it the result is
            smooth, so that gradients flow.
    """
    height, width = size
    across = photo @ resize_weights(photo.shape[-1], width).to(photo.device).T
    across = (across + 0.5).floor() if whole else across
    down = resize_weights(photo.shape[-2], height).to(photo.device) @ across
    return (down + 0.5).floor() if whole else down


def resize_weights(side: int, wanted: int) -> torch.Tensor:
    """The weight (wanted, side) of each pixel in each resized one: a triangle over its pixels."""
    scale = side / wanted
    centres = (torch.arange(wanted) + 0.5) * scale
    # To enlarge, it takes the two nearest pixels; to reduce, all that the resized one covers.
    reach = torch.clamp(torch.ones(1) * scale, min=1)
    distances = (torch.arange(side) + 0.5 - centres[:, None]).abs()
    weights = (1 - distances / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class PatchScorer(torch.nn.Module):
    """uint8 patches -> scores in the unit of the labels, with the preparation inside.

    Args:
        score_range: the scores that the network's 0 and 1 stand for; None if it gives scores.
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
        self.side = torch.nn.Buffer(torch.arange(PATCH_SIZE))

    def forward(self, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, W, 3) uint8 RGB -> its score () and those of its patches (patches,), float32.

        A photo that is smaller than a patch is an error: the patches do not fit in.
        """
        # Cast first: other runtimes cannot gather uint8.
        image = photo.float().permute(2, 0, 1)
        if self.resize:
            image = resized(image, self.resize, whole=True)
        rows = starts(self.places[:, :1], image.shape[1]) + self.side
        columns = starts(self.places[:, 1:], image.shape[2]) + self.side
        patches = image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        scores = self.scorer.of_images(patches)
        return scores.mean(), scores
