"""Checkpoints: written whole, read without running anything, and loaded as weights into a network.

Weights come in the layouts in which people exchange them: a ResNet-50 as torchvision and timm name it, a HyperIQA as the
original names it, and a HyperIQA as pyiqa names it; each inside the wrappers and prefixes that training code leaves.
"""

import functools
import hashlib
import io
import json
import re
import stat
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from util.distributed import say
from util.errors import InputError

WRAPPERS = ('state_dict', 'model_state_dict', 'model', 'params', 'net')  # keys under which training code keeps a state_dict
PREFIXES = {'module', '_orig_mod'}  # of DataParallel and of torch.compile
NEITHER = 'is not the state_dict of a torchvision ResNet-50 or of a HyperIQA'
COUNTER = 'num_batches_tracked'  # of batch norm; unused here, and younger than torchvision's first weights
PYIQA_NAMES = (  # how its names start and ours do; it counts layers from 0
    (r'base_model\.', 'res.'),
    (r'lda_modules\.3\.2\.', 'res.lda4_fc.'),
    (r'lda_modules\.([012])\.0\.', 'res.lda{}_pool.0.'),
    (r'lda_modules\.([012])\.3\.', 'res.lda{}_fc.'),
    (r'fc_w_modules\.4\.2\.', 'fc5w_fc.'),
    (r'fc_w_modules\.([0123])\.', 'fc{}w_conv.'),
    (r'fc_b_modules\.([01234])\.2\.', 'fc{}b_fc.'),
)
LEGACY_MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # opens what torch.save wrote before version 1.6
FOREIGN = {  # how files start that people have in place of a checkpoint
    b'version https://git-lfs': 'a Git LFS pointer and not the file itself, which `git lfs pull` fetches',
    b'<': 'a web page; download the file itself',
    b'\x1f\x8b': 'a gzip archive; unpack it',
    b'\x89HDF': 'an HDF5 file; save the state_dict with torch.save',
    b'\x80': 'a pickle, but not of torch.save: reading it could run anything; save the state_dict with torch.save',
}


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


def load_weights(model: nn.Module, source: Path | str) -> None:
    """Load initial weights into a `HyperNet`.

    Args:
        source: `none` keeps the random initialisation; `imagenet` downloads torchvision's `IMAGENET1K_V1` weights for
            the backbone; a path names a file of a ResNet-50, whose classifier is left out, or of a HyperIQA.

    Raises:
        InputError: the download fails, or the file does not hold every weight of one of the two and nothing else.
    """
    if source != 'none':
        model.load_state_dict(initial_weights(model, source), strict=False)


def initial_weights(model: nn.Module, source: Path | str) -> dict[str, Any]:
    """What `load_weights` copies into `model`, of which only names, shapes and types are looked at; the same errors."""
    content = read_imagenet() if source == 'imagenet' else read_checkpoint(source)
    return fitting_state(model, *state_of(content, source), source)


def load_trained(model: nn.Module, path: Path | str) -> bool:
    """Load the file of a trained HyperIQA into a `HyperNet`; whether it is pyiqa's.

    Raises:
        InputError: the file is no checkpoint, or it does not hold every weight of a HyperIQA and nothing else.
    """
    state, layout = state_of(read_checkpoint(path), path)
    if layout == 'ResNet-50':
        raise InputError(f'{path} holds a ResNet-50 alone; only a trained HyperIQA gives scores, such as the best.pth of a run')
    model.load_state_dict(fitting_state(model, state, layout, path), strict=False)
    return layout == 'pyiqa'


def state_of(content: Mapping[Any, Any], source: Path | str) -> tuple[dict[str, Any], str]:
    """The state_dict in a checkpoint's `content`, named as in `HyperNet`, and its layout: ResNet-50, HyperIQA or pyiqa."""
    state = unwrapped(content)
    if not state or not all(isinstance(name, str) for name in state):
        raise InputError(f'{source} {NEITHER}: it does not name tensors')
    plain = {'.'.join(part for part in name.split('.') if part not in PREFIXES): value for name, value in state.items()}
    if len(plain) < len(state):
        raise InputError(f'{source} holds some tensors twice, with and without {" or ".join(sorted(PREFIXES))} before the name')
    if 'conv1.weight' in plain:
        return {f'res.{name}': value for name, value in plain.items() if not name.startswith('fc.')}, 'ResNet-50'
    if any(name.startswith('base_model.') for name in plain):
        return {pyiqa_renamed(name): value for name, value in plain.items()}, 'pyiqa'
    return plain, 'HyperIQA'


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


def fitting_state(model: nn.Module, state: dict[str, Any], layout: str, source: Path | str) -> dict[str, Any]:
    """`state` for the network if each of its tensors fits and none is missing; only counters of batch norm may be."""
    own = model.state_dict()
    expected = {name for name in own if layout != 'ResNet-50' or re.match(r'res\.(?!lda)', name)}
    faults = {name: fault_of(state.get(name), own.get(name)) for name in sorted(expected | set(state))}
    wrong = [name for name, fault in faults.items() if fault and not (name in own and name.endswith(COUNTER))]
    if wrong:
        raise InputError(
            f'{source} {NEITHER}: {len(wrong)} tensors are missing, unknown or of another kind; '
            f'the first of them, {shortened(wrong[0])}, {faults[wrong[0]]}'
        )
    fitting = {name: value.detach().to(own[name].dtype) for name, value in state.items() if not faults[name]}
    for name, value in fitting.items():
        if not all(bound.isfinite() for bound in value.aminmax()):  # one pass, nan included
            raise InputError(f'{source} holds values in {name} that are not finite; another file of these weights is needed')
    return fitting


def fault_of(value: Any, own: torch.Tensor | None) -> str | None:
    """What keeps `value` of a file from taking the place of the network's tensor `own`."""
    if own is None:
        return 'is unknown'
    if value is None:
        return 'is missing'
    if not isinstance(value, torch.Tensor):
        return f'is a {type(value).__name__}'
    if value.is_nested or value.layout != torch.strided or value.device.type != 'cpu':
        return 'is not a plain array of numbers'
    if value.dtype != own.dtype and not (value.is_floating_point() and own.is_floating_point()):
        return f'is of {value.dtype} in place of {own.dtype}'.replace('torch.', '')
    return None if value.shape == own.shape else f'has the shape {tuple(value.shape)} in place of {tuple(own.shape)}'


def shortened(name: str) -> str:
    return repr(name)[1:-1][:80]


def read_imagenet() -> dict[str, Any]:
    """torchvision's ResNet-50 weights `IMAGENET1K_V1`, downloaded once into torch's cache folder."""
    url = ResNet50_Weights.IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / url.rpartition('/')[2]
    hash_prefix = path.stem.rpartition('-')[2]
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise InputError(
            f'the ImageNet weights cannot be loaded ({error}). Download {url} on another machine and copy it to {folder}, '
            f'or name it with --weights FILE; --weights none trains from random weights'
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """What torch.save or safetensors wrote into the file `path`: tensors and plain types only; nothing in it is run.

    A zip file, as torch.save writes it, is compared with its checksums; the older format and safetensors carry none.

    Raises:
        InputError: it is no regular file, no such file, damaged, or holds anything else; the message says which.
    """
    try:
        content = content_of(Path(path))
    except FileNotFoundError:
        raise InputError(f'there is no file {path}')
    except OSError as error:
        raise InputError(f'{path} cannot be loaded: {error.strerror or error}')
    except InputError as error:
        raise InputError(f'{path} cannot be loaded: it {error}')
    if not isinstance(content, dict):
        raise InputError(f'{path} holds a {type(content).__name__}, not a state_dict')
    return content


def content_of(path: Path) -> Any:
    """As `read_checkpoint`, for any content; an `InputError` says what the file is."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise InputError('is a folder; name the file in it' if stat.S_ISDIR(mode) else 'is a pipe or a device, not a file')
    with open(path, 'rb') as file:
        head = file.read(512)
    try:
        if head[8:10] == b'{"':
            from safetensors.torch import load_file

            tell_unchecked(path, 'in the safetensors format')
            return load_file(path)
        if head.startswith(b'PK'):
            check_archive(path)
        elif LEGACY_MAGIC in head[:64]:
            tell_unchecked(path, "in PyTorch's older format")
        else:
            raise InputError(f'is {foreign_kind(head)}')
        return torch.load(path, map_location='cpu', weights_only=True)
    except (InputError, OSError):
        raise
    except ImportError:
        raise InputError('is in the safetensors format, for which a package is missing: pip install safetensors')
    except Exception as error:  # whatever a damaged or hostile file makes of its reader; PyTorch's own advice is unsafe
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found:
            raise InputError(
                f'holds the Python object {shortened(found[1])}, perhaps a whole model: reading that could run anything, so it '
                f'was not read; where it was made, save model.state_dict() alone'
            )
        raise InputError('is cut or damaged, or holds something else than tensors and plain types; get it again')


def check_archive(path: Path) -> None:
    """Compare what a zip file holds with its checksums and with what torch.save writes."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition('/')[2] for name in archive.namelist()}
        unchecked = all(entry.CRC == 0 for entry in archive.infolist())  # torch.save can be told to leave them out
        broken = None if unchecked else archive.testzip()
    if broken:
        raise InputError(f'is damaged (the checksum of {shortened(broken)} in it is another); get it again')
    if 'constants.pkl' in names:
        raise InputError('is a TorchScript program; save the state_dict of its model with torch.save')
    if 'data.pkl' not in names:
        raise InputError('is a zip archive, but not of torch.save; unpack it if the checkpoint is inside')
    if unchecked:
        tell_unchecked(path, 'a zip file')


def metadata_of(path: Path | str) -> dict[str, Any] | None:
    """What export.py says in a safetensors file that it wrote: as `demo.training_facts`."""
    with open(path, 'rb') as file:
        size, start = int.from_bytes(file.read(8), 'little'), file.read(2)
        if start != b'{"':
            return None
        text = json.loads(start + file.read(size - 2)).get('__metadata__', {}).get('hyperiqa', 'null')
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f'{path}: what it says in `hyperiqa` about its images is damaged; export it again')


def foreign_kind(head: bytes) -> str:
    """What a file is that starts with `head` and is no checkpoint."""
    start = head.removeprefix(b'\xef\xbb\xbf').lstrip()
    for sign, kind in FOREIGN.items():
        if start.startswith(sign):
            return kind
    if head[257:262] == b'ustar':
        return 'a tar archive; unpack it, or have a newer PyTorch save it again'
    if not head:
        return 'empty'
    is_text = not head.translate(None, bytes(range(32, 127)) + b'\t\r\n')
    return 'text, not a checkpoint' if is_text else 'of no format that PyTorch or safetensors writes, or its start is damaged'


@functools.cache
def tell_unchecked(path: Path, kind: str) -> None:
    """Say it once."""
    say(f'{path} is {kind}, without a checksum: damage inside its tensors would not be noticed')
