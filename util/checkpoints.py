"""Checkpoints: written whole, read without running anything, and loaded as weights into a network.

Weights come in the layouts in which people exchange them: a ResNet-50 as torchvision and timm name it, a HyperIQA as the
original names it, and a HyperIQA as pyiqa names it; each inside the wrappers and prefixes that training code leaves.
"""

import hashlib
import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from util.errors import InputError
from util.files import reading

WRAPPERS = (
    'state_dict',
    'model_state_dict',
    'model',
    'params',
    'net',
)  # keys under which training code keeps a state_dict
PREFIXES = {'module', '_orig_mod'}  # of DataParallel and of torch.compile
WITH_SCORES = ('HyperIQA', 'pyiqa')  # layouts of whole networks
NEITHER = 'is not the state_dict of a torchvision ResNet-50 or of a HyperIQA'
FACTS = 'hyperiqa'  # under which export.py writes what an image and a score mean
PYIQA_NAMES = (  # how its names start and ours do; it counts layers from 0
    (r'base_model\.', 'res.'),
    (r'lda_modules\.3\.2\.', 'res.lda4_fc.'),
    (r'lda_modules\.([012])\.0\.', 'res.lda{}_pool.0.'),
    (r'lda_modules\.([012])\.3\.', 'res.lda{}_fc.'),
    (r'fc_w_modules\.4\.2\.', 'fc5w_fc.'),
    (r'fc_w_modules\.([0123])\.', 'fc{}w_conv.'),
    (r'fc_b_modules\.([01234])\.2\.', 'fc{}b_fc.'),
)


def serialised(content: dict[str, Any]) -> memoryview:
    """What `read_checkpoint` reads `content` from."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def digest(state: Mapping[str, Any]) -> str:
    """A hash of the names and values of a state_dict's tensors."""
    total = hashlib.sha256()
    for name, value in state.items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def load_weights(model: nn.Module, source: Path | str) -> str:
    """Load initial weights into a `HyperNet`.

    Args:
        source: `none` keeps the random initialisation; `imagenet` downloads torchvision's `IMAGENET1K_V1` weights for
            the backbone; a path names a file of a ResNet-50, whose classifier is left out, or of a HyperIQA.

    Returns:
        the layout of the weights (see `state_of`), or ''.

    Raises:
        InputError: the download fails, or the file does not hold every weight of one of the two and nothing else.
    """
    if source == 'none':
        return ''
    state, layout = initial_weights(model, source)
    model.load_state_dict(state, strict=False)
    return layout


def initial_weights(model: nn.Module, source: Path | str) -> tuple[dict[str, Any], str]:
    """What `load_weights` copies into `model`, which is only looked at, and its layout; the same errors."""
    state, layout = state_of(
        read_imagenet() if source == 'imagenet' else read_checkpoint(source), source
    )
    return fitting_state(model, state, layout, source), layout


def load_trained(model: nn.Module, path: Path | str) -> tuple[str, dict[str, Any] | None]:
    """Load the file of a trained HyperIQA into a `HyperNet`.

    Returns:
        its layout, and what export.py wrote in it about images and scores, or None.

    Raises:
        InputError: the file is no checkpoint, or it does not hold every weight of a HyperIQA and nothing else.
    """
    content = read_checkpoint(path)
    state, layout = state_of(content, path)
    if layout == 'ResNet-50':
        raise InputError(
            f'{path} holds a ResNet-50 alone; only a trained HyperIQA gives scores, such as the best.pth of a run'
        )
    model.load_state_dict(fitting_state(model, state, layout, path), strict=False)
    return layout, content.get(FACTS)


def state_of(content: Mapping[Any, Any], source: Path | str) -> tuple[dict[str, Any], str]:
    """The state_dict in a checkpoint's `content`, named as in `HyperNet`, and its layout: ResNet-50, HyperIQA or pyiqa."""
    found = unwrapped(content)
    if not found or not all(isinstance(name, str) for name in found):
        raise InputError(f'{source} {NEITHER}: it does not name tensors')
    state = {
        '.'.join(step for step in name.split('.') if step not in PREFIXES): value
        for name, value in found.items()
    }
    if 'conv1.weight' in state:
        return {
            f'res.{name}': value for name, value in state.items() if not name.startswith('fc.')
        }, 'ResNet-50'
    if any(name.startswith('base_model.') for name in state):
        return {pyiqa_renamed(name): value for name, value in state.items()}, 'pyiqa'
    return state, 'HyperIQA'


def unwrapped(content: Any, depth: int = 4) -> Mapping[Any, Any] | None:
    """The dict of tensors in `content`, inside at most `depth` wrappers, or None."""
    if not isinstance(content, Mapping) or not depth:
        return None
    for key in WRAPPERS:
        found = unwrapped(content.get(key), depth - 1)
        if found:
            return found
    return content if any(isinstance(value, torch.Tensor) for value in content.values()) else None


def pyiqa_renamed(name: str) -> str:
    for pattern, own in PYIQA_NAMES:
        match = re.match(pattern, name)
        if match:
            return own.format(*(int(number) + 1 for number in match.groups())) + name[match.end() :]
    return name


def fitting_state(
    model: nn.Module, state: dict[str, Any], layout: str, source: Path | str
) -> dict[str, Any]:
    """`state` for the network if each of its tensors fits and none is missing; only counters of batch norm may be."""
    own = model.state_dict()
    expected = {name for name in own if layout != 'ResNet-50' or re.match(r'res\.(?!lda)', name)}
    # of batch norm; unused here, and younger than torchvision's first weights
    counters = {name for name in own if name.endswith('num_batches_tracked')}
    faults = {
        name: fault_of(state.get(name), own.get(name))
        for name in sorted((expected | set(state)) - counters)
    }
    wrong = [f'{name[:80]}, {fault}' for name, fault in faults.items() if fault]
    if wrong:
        what = f'{len(wrong)} tensors are missing, unknown or of another kind; the first of them, {wrong[0]}'
        raise InputError(f'{source} {NEITHER}: {what}')
    return {name: value.detach().to(own[name].dtype) for name, value in state.items()}


def fault_of(value: Any, own: torch.Tensor | None) -> str:
    """What keeps `value` of a file from taking the place of the network's tensor `own`, or ''."""
    if own is None or value is None:
        return 'is unknown' if own is None else 'is missing'
    plain = isinstance(value, torch.Tensor) and (
        value.is_nested,
        value.layout,
        value.device.type,
    ) == (False, own.layout, 'cpu')
    if not plain or value.shape != own.shape or not value.is_floating_point():
        return f'is not a plain array of floating-point numbers in the shape {tuple(own.shape)}'
    bounds = value.to(own.dtype).aminmax()  # one pass, nan included
    return '' if all(bound.isfinite() for bound in bounds) else 'holds values that are not finite'


def read_imagenet() -> dict[str, Any]:
    """torchvision's ResNet-50 weights `IMAGENET1K_V1`, downloaded once into torch's cache folder."""
    url = ResNet50_Weights.IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / url.rpartition('/')[2]
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(path), path.stem.rpartition('-')[2], progress=sys.stderr.isatty()
            )
    except (OSError, RuntimeError) as error:
        remedy = f'Download {url} on another machine and copy it to {folder}, or name it with --weights FILE'
        raise InputError(
            f'the ImageNet weights cannot be loaded ({error}). {remedy}; --weights none starts from random ones'
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What torch.save or safetensors wrote into the file `path`: tensors and plain types only; nothing in it is run.

    A zip file, as torch.save writes it, is compared with its checksums.

    Raises:
        InputError: it is no regular file, no such file, damaged, or holds anything else; the message names which.
    """
    with reading(path, 'a checkpoint') as file:
        start = file.read(10)
        file.seek(0)
        if start.startswith(b'PK'):
            check_archive(file)
        content = read_safetensors(path) if start[8:] == b'{"' else load(file)
        if not isinstance(content, dict):
            raise InputError(f'{path} holds a {type(content).__name__}, not a state_dict')
    return content


def read_safetensors(path: Path | str) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise InputError(
            f'{path} is in the safetensors format, for which a package is missing: pip install safetensors'
        )
    with safe_open(path, 'pt') as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {'state_dict': state, FACTS: json.loads((file.metadata() or {}).get(FACTS, 'null'))}


def load(file: BinaryIO) -> Any:
    """As torch.load, whose own advice at a file that it does not read is unsafe."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of what torch.load then refuses, with its own words
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found:
            what = f'it holds the Python object {found[1][:80]}, perhaps a whole model, and reading that could run anything'
            raise ValueError(f'{what}; where it was made, save model.state_dict() alone')
        raise ValueError('it is no checkpoint of PyTorch, or it is cut or damaged')


def check_archive(file: BinaryIO) -> None:
    """Compare what a zip file holds with its checksums, unless it was saved without them (torch.save has a switch)."""
    with zipfile.ZipFile(file) as archive:
        broken = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    file.seek(0)
    if broken:
        raise ValueError(f'it is damaged (the checksum of {broken[:80]} in it is another)')
