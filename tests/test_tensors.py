"""`Scorer` with a tensor of images, as a loss for networks that restore images."""

import json

import numpy as np
import pytest
import torch

import demo
import models
from util.demo_database import make_scene
from util.errors import InputError

NO_RESIZE = {'resize': None, 'exif_rotation': True, 'score_range': [1, 5], 'higher_is_better': True}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """checkpoints(resize): a best.pth of random weights whose images have this resize."""
    torch.manual_seed(0)
    state = models.hyperiqa().state_dict()

    def make(resize):
        folder = tmp_path_factory.mktemp('run')
        torch.save(state, folder / 'best.pth')
        record = {'options': {}, 'model': {**NO_RESIZE, 'resize': resize}}
        (folder / 'config.json').write_text(json.dumps(record))
        return folder / 'best.pth'

    return make


def scenes(count, size):
    pictures = [make_scene(np.random.RandomState(k)).resize(size) for k in range(count)]
    return np.stack([np.array(picture) for picture in pictures])


@pytest.mark.parametrize('resize', [None, [256, 300]])
def test_tensors_have_the_scores_of_arrays(checkpoints, resize):
    scorer = demo.Scorer(checkpoints(resize), 'cpu', patches=3)
    arrays = scenes(2, (320, 240))
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    scores = scorer(tensor)
    assert scores.shape == (2,)
    expected = scorer(list(arrays), spread=True)
    for score, (wanted, deviation) in zip(scores.tolist(), expected, strict=True):
        # Only a resize of a tensor does not round to 8 bits.
        limit = deviation / 10 if resize else 1e-5
        assert score == pytest.approx(wanted, abs=limit)


def test_the_gradient_is_that_of_a_finite_difference(checkpoints):
    scorer = demo.Scorer(checkpoints([256, 300]), 'cpu', patches=2)
    images = torch.from_numpy(scenes(1, (320, 240))).permute(0, 3, 1, 2) / 255
    images.requires_grad_()
    [gradient] = torch.autograd.grad(scorer(images).sum(), images)
    assert not any(p.requires_grad for p in scorer.network.parameters())
    direction = gradient / gradient.norm()
    step = 0.0005
    with torch.no_grad():
        higher, lower = scorer(images + step * direction), scorer(images - step * direction)
    slope = ((higher - lower) / (2 * step)).item()
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.05)


@pytest.mark.parametrize(
    'images, reason',
    [
        (torch.zeros(1, 3, 223, 300), 'images of 300x223 are smaller than 224'),
        (torch.zeros(3, 300, 300), r'\(N, 3, H, W\), not torch.float32 \(3, 300, 300\)'),
        (torch.zeros(1, 3, 300, 300, dtype=torch.uint8), 'not torch.uint8'),
        # 600 GB once it is copied, and nothing before.
        (torch.zeros(1).expand(1_000_000, 3, 224, 224), 'fewer patches needs less'),
    ],
)
def test_tensors_that_cannot_be_scored_are_refused(checkpoints, images, reason):
    scorer = demo.Scorer(checkpoints(None), 'cpu', patches=2)
    with pytest.raises(InputError, match=reason):
        scorer(images)
