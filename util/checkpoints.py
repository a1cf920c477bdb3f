"""Checkpoints: read without running anything in them, and loaded as weights into a network.

Weights come in the layouts in which people exchange them: a ResNet-50 as torchvision and timm name
it, a HyperIQA as the original names it, and a HyperIQA as pyiqa names it. Each may be inside the
wrappers and behind the prefixes that training code leaves.
"""

import hashlib
import json
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from util.errors import InputError, machine_fault
from util.files import reading, replacing

# Keys under which training code stores a state_dict.
WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'params', 'net')
PREFIXES = {'module', '_orig_mod'}  # of DataParallel and of torch.compile
WITH_SCORES = ('HyperIQA', 'pyiqa')  # layouts of whole networks
NOT_KNOWN = 'is not the state_dict of a torchvision ResNet-50 or of a HyperIQA'  # in messages
# The key under which weight files have the meaning of images and scores, as JSON.
FACTS = 'hyperiqa'
PYIQA_NAMES = (  # how pyiqa's names start and how ours do; {} is pyiqa's number plus 1
    (r'base_model\.', 'res.'),
    (r'lda_modules\.3\.2\.', 'res.lda4_fc.'),
    (r'lda_modules\.([012])\.0\.', 'res.lda{}_pool.0.'),
    (r'lda_modules\.([012])\.3\.', 'res.lda{}_fc.'),
    (r'fc_w_modules\.4\.2\.', 'fc5w_fc.'),
    (r'fc_w_modules\.([0123])\.', 'fc{}w_conv.'),
    (r'fc_b_modules\.([01234])\.2\.', 'fc{}b_fc.'),
)

Content = dict[str, Any]  # of a checkpoint file
StateDict = dict[str, Any]  # tensors by name


class Trained(NamedTuple):
    """The content of a trained HyperIQA's file.

    Attributes:
        state: its state_dict, with the names that `HyperNet` uses.
        layout: the layout of the file (see `state_of`).
        facts: the meaning of images and scores in the file, or None (see `Meaning.of_record`).
    """

    state: StateDict
    layout: str
    facts: dict[str, Any] | None


def write_weights(
    path: Path | str, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
    """Write a plain state_dict file.

    Args:
        facts: the meaning of images and scores to the network (see `Meaning`).
    """
    # On the CPU, so that a plain torch.load works where there is no GPU.
    weights: Any = OrderedDict((name, value.cpu()) for name, value in state.items())
    # An attribute that PyTorch's own state_dicts have. It is saved with the dict and adds no key
    # to it, so that any program loads the weights as before.
    weights._metadata = {FACTS: json.dumps(facts)}
    write_checkpoint(path, weights)


def facts_in(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The meaning of images and scores in a checkpoint's `content`, or None.

    In a best.pth it is an attribute of the state_dict, and copies (`dict(content)`) do not have it.
    """
    text = content.get(FACTS)
    metadata = getattr(content, '_metadata', None)
    if not text and metadata:
        text = metadata.get(FACTS)
    return json.loads(text) if isinstance(text, str) else None


def write_checkpoint(path: Path | str, content: Content) -> None:
    """Write a checkpoint file, as `write_whole` does."""
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # PyTorch replaces the file's error, such as that of a full disk, by one of its own.
            raise error.__context__ or error


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
        source: `none` keeps the random initialisation; `imagenet` downloads torchvision's
            `IMAGENET1K_V1` weights for the backbone; a path names a file of a ResNet-50, whose
            classifier is left out, or of a HyperIQA.

    Returns:
        the layout of the weights (see `state_of`), or '' if there are none.

    Raises:
        InputError: the download fails, or the file does not have exactly the weights of a ResNet-50
            or of a HyperIQA.
    """
    if source == 'none':
        return ''
    state, layout = initial_weights(model, source)
    # Not strict: a ResNet-50 has only the backbone, and batch norm's counters may be missing.
    model.load_state_dict(state, strict=False)
    return layout


def initial_weights(model: nn.Module, source: Path | str) -> tuple[StateDict, str]:
    """The state_dict that `load_weights` would load, and its layout; `model` is not changed.

    Raises:
        InputError: as in `load_weights`.
    """
    content = read_imagenet() if source == 'imagenet' else read_checkpoint(source)
    state, layout = state_of(content, source)
    return fitting_state(model, state, layout, source), layout


def read_trained(path: Path | str) -> Trained:
    """Read the file of a trained HyperIQA.

    Raises:
        InputError: the file is no checkpoint, or contains only a ResNet-50.
    """
    content = read_checkpoint(path)
    state, layout = state_of(content, path)
    if layout == 'ResNet-50':
        raise InputError(
            f'{path} contains only a ResNet-50; only a trained HyperIQA gives scores, such as the '
            'best.pth of a run'
        )
    return Trained(state, layout, facts_in(content))


def state_of(content: Mapping[Any, Any], source: Path | str) -> tuple[StateDict, str]:
    """The state_dict in a checkpoint's `content`, with the names that `HyperNet` uses.

    Returns:
        the state_dict, and the layout that it had: 'ResNet-50', 'HyperIQA' or 'pyiqa'.
    """
    found = tensors_in(content)
    if not found or not all(isinstance(name, str) for name in found):
        raise InputError(f'{source} {NOT_KNOWN}: it does not name tensors')
    state = {without_prefixes(name): value for name, value in found.items()}

    # Each layout is recognised by a name that the others do not have.
    if 'conv1.weight' in state:
        layout = 'ResNet-50'
        # fc is the classifier, which a HyperIQA does not have.
        state = {
            f'res.{name}': value for name, value in state.items() if not name.startswith('fc.')
        }
    elif any(name.startswith('base_model.') for name in state):
        layout = 'pyiqa'
        state = {pyiqa_renamed(name): value for name, value in state.items()}
    else:
        layout = 'HyperIQA'
    return state, layout


def tensors_in(content: Any, depth: int = 4) -> Mapping[Any, Any] | None:
    """The dict in `content` that has tensors, inside at most `depth` - 1 wrappers, or None."""
    if not isinstance(content, Mapping) or depth == 0:
        return None
    # The wrappers come first: a checkpoint may have tensors next to its state_dict too.
    for key in WRAPPERS:
        found = tensors_in(content.get(key), depth - 1)
        if found:
            return found
    return content if any(isinstance(value, torch.Tensor) for value in content.values()) else None


def without_prefixes(name: str) -> str:
    """A tensor's name without the steps that a wrapped module adds at any place."""
    return '.'.join(step for step in name.split('.') if step not in PREFIXES)


def pyiqa_renamed(name: str) -> str:
    """The name in a `HyperNet` of a tensor of pyiqa's."""
    for pattern, own in PYIQA_NAMES:
        match = re.match(pattern, name)
        if match:
            # pyiqa counts layers from 0.
            numbers = [int(number) + 1 for number in match.groups()]
            return own.format(*numbers) + name[match.end() :]
    return name


def fitting_state(model: nn.Module, state: StateDict, layout: str, source: Path | str) -> StateDict:
    """`state` in the network's types, after a check that it fits.

    Raises:
        InputError: a tensor does not fit, is missing, or is none of the network's.
    """
    own = model.state_dict()
    expected = set(own)
    if layout == 'ResNet-50':
        expected = {name for name in own if re.match(r'res\.(?!lda)', name)}
    # Batch norm's counters are unused here, and torchvision's first weights lack them.
    counters = {name for name in own if name.endswith('num_batches_tracked')}

    wrong = []
    for name in sorted((expected | set(state)) - counters):
        fault = fault_of(state.get(name), own.get(name))
        if fault:
            wrong.append(f'{name[:80]}, {fault}')
    if wrong:
        raise InputError(
            f'{source} {NOT_KNOWN}: {len(wrong)} tensors are missing, unknown or of another kind; '
            f'the first of them, {wrong[0]}'
        )
    return {name: value.detach().to(own[name].dtype) for name, value in state.items()}


def fault_of(value: Any, own: torch.Tensor | None) -> str:
    """The reason why a file's `value` cannot replace the network's tensor `own`, or ''."""
    if own is None:
        return 'is unknown'
    if value is None:
        return 'is missing'
    if not is_plain(value, own):
        return f'is not a plain array of floating-point numbers in the shape {tuple(own.shape)}'
    # Both bounds are nan if any value is. A large value can be infinite in the network's type.
    low, high = value.to(own.dtype).aminmax()
    if not low.isfinite() or not high.isfinite():
        return 'has values that are not finite'
    return ''


def is_plain(value: Any, own: torch.Tensor) -> bool:
    """Whether `value` is a tensor of floating-point numbers in memory, laid out as `own`."""
    # A nested tensor has no shape to compare.
    if not isinstance(value, torch.Tensor) or value.is_nested:
        return False
    if value.layout != own.layout or value.device.type != 'cpu':
        return False
    return value.shape == own.shape and value.is_floating_point()


def read_imagenet() -> Content:
    """torchvision's ResNet-50 weights `IMAGENET1K_V1`, downloaded once into torch's cache."""
    url = ResNet50_Weights.IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / url.rpartition('/')[2]
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # The file's name ends in the start of its hash, with which the download is compared.
            hash_prefix = path.stem.rpartition('-')[2]
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=hash_prefix, progress=sys.stderr.isatty()
            )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f'the ImageNet weights cannot be loaded ({error}). Download {url} on another machine '
            f'and copy it to {folder}, or name it with --weights FILE; --weights none starts from '
            'random ones'
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path | str) -> Content:
    """The content of a file that torch.save or safetensors wrote; nothing in it is run.

    A zip file, as torch.save writes it, is compared with its checksums.

    Raises:
        InputError: the file is missing, not a regular one or damaged, or contains anything but
            tensors and plain types; the message says which.
    """
    with reading(path, 'a checkpoint') as file:
        start = file.read(10)
        file.seek(0)
        if start.startswith(b'PK'):
            check_archive(file)
        # A safetensors file starts with 8 bytes for the length of its header, which is JSON.
        content = read_safetensors(path) if start[8:] == b'{"' else load(file)
        if not isinstance(content, dict):
            raise InputError(f'{path} contains a {type(content).__name__}, not a state_dict')
    return content


def read_safetensors(path: Path | str) -> Content:
    """The tensors of a safetensors file, and the facts that export.py wrote into it."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise InputError(
            f'{path} is in the safetensors format, for which a package is missing: '
            'pip install safetensors'
        )
    with safe_open(path, 'pt') as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    return {'state_dict': state, FACTS: metadata.get(FACTS)}


def load(file: BinaryIO) -> Any:
    """As torch.load, but with another message about a file that it refuses.

    The message of torch.load advises an unsafe way to read it.
    """
    try:
        with warnings.catch_warnings():
            # torch.load warns of files that it then refuses.
            warnings.simplefilter('ignore')
            return torch.load(file, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # If memory runs out, the file may be intact.
        if machine_fault(error):
            raise
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found:
            raise ValueError(
                f'it contains the Python object {found[1][:80]}, perhaps a whole model, and '
                'reading that could run anything; where it was made, save model.state_dict() '
                'instead'
            )
        raise ValueError('it is no checkpoint of PyTorch, or it is cut or damaged')


def check_archive(file: BinaryIO) -> None:
    """Compare the entries of a zip file with their checksums.

    Raises:
        ValueError: an entry is damaged.
    """
    broken = None
    with zipfile.ZipFile(file) as archive:
        # torch.save can leave the checksums out, and all of them are 0 then.
        if any(entry.CRC for entry in archive.infolist()):
            broken = archive.testzip()
    file.seek(0)
    if broken:
        raise ValueError(f'it is damaged (the checksum of {broken[:80]} in it is another)')
