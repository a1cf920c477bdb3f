"""Checkpoints: written whole, read without running anything, and loaded as weights into a network."""

import io
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from util.errors import InputError


def serialised(content: dict[str, Any]) -> memoryview:
    """What `read_checkpoint` reads `content` from."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load_weights(model: nn.Module, source: Path | str) -> None:
    """Load weights into a `HyperNet`.

    Args:
        source: `none` keeps the random initialisation; `imagenet` downloads torchvision's `IMAGENET1K_V1` weights for
            the backbone; a path names a file with the state_dict of a torchvision ResNet-50 or of a HyperIQA, or a run's
            last.pth.

    Raises:
        InputError: the download fails, or the file is not such a state_dict.
    """
    if source == 'none':
        return
    state = imagenet_state_dict() if source == 'imagenet' else read_checkpoint(source)
    state = state.get('model', state)  # a run's last.pth holds the network beside the optimizer
    if 'conv1.weight' in state:
        state = {f'res.{name}': value for name, value in state.items() if not name.startswith('fc.')}
        expected = {name for name in model.state_dict() if name.startswith('res.') and not name.startswith('res.lda')}
    else:
        expected = set(model.state_dict())
    own = model.state_dict()
    wrong = sorted(
        str(name)
        for name in expected | set(state)
        if name not in own or getattr(state.get(name), 'shape', None) != own[name].shape
    )
    if wrong:
        raise InputError(
            f'{source} is not the state_dict of a torchvision ResNet-50 or of a HyperIQA: {len(wrong)} '
            f'tensors are missing, unknown or of another shape, the first of them {wrong[0]}'
        )
    model.load_state_dict(state, strict=False)


def imagenet_state_dict() -> Mapping[str, Any]:
    """torchvision's ResNet-50 weights `IMAGENET1K_V1`, downloaded once into torch's cache folder."""
    weights = ResNet50_Weights.IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f'the ImageNet weights cannot be loaded ({error}). Download {weights.url} on another machine '
            f'and copy it to {torch.hub.get_dir()}/checkpoints, or name it with --weights FILE; '
            f'--weights none trains from random weights'
        )


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What torch saved in the file `path`: tensors and plain types only; a file with any other payload is refused unrun."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise InputError(f'there is no file {path}')
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f'{path} cannot be loaded as a checkpoint of tensors and plain types: {reason}')
    if not isinstance(state, dict):
        raise InputError(f'{path} holds a {type(state).__name__}, not a state_dict')
    return state
