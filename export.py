"""Write a trained HyperIQA as one file for other programs.

    python export.py runs/koniq-seed0/round_01/best.pth hyperiqa.onnx    # or .pt2 (torch.export), or .safetensors

The .onnx and .pt2 take `patches`, (N, 224, 224, 3) uint8 RGB of any N, cut from an image that is resized as the file's metadata
`hyperiqa` says, and answer N scores in the unit of the labels; the mean over an image's patches is its score. A .safetensors
holds the weights for `demo.py`. Before a file appears it is loaded back and compared with the network.
"""

from util import program  # before the others, see there

# isort: split
import argparse
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import demo
import models
from data_loader import imagenet_statistics
from models import PATCH_SIZE
from util.distributed import say
from util.errors import InputError
from util.files import refuse_unwritable, write_whole

PACKAGES = {'.pt2': (), '.onnx': ('onnx', 'onnxscript', 'onnxruntime'), '.safetensors': ('safetensors',)}
TOLERANCE = 2e-4  # of the largest score


class PatchScorer(nn.Module):
    """uint8 patches -> scores in the unit of the labels, with the preparation inside."""

    def __init__(self, model: models.HyperNet, score_range: Sequence[float] | None) -> None:
        super().__init__()
        self.model = model
        self.low, self.high = map(float, score_range or (0, 1))
        self.mean, self.std = (nn.Buffer(values) for values in imagenet_statistics(torch.device('cpu')))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) uint8 -> (N,) float32."""
        images = (patches.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.low + (self.high - self.low) * models.predict_scores(self.model, images)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Write a trained HyperIQA as one file for other programs.')
    parser.add_argument('checkpoint', help="a run's best.pth, or the authors' or pyiqa's KonIQ model")
    parser.add_argument('out', help='a file that ends in .pt2, .onnx or .safetensors')
    with program.boundary():
        export(**vars(program.parse(parser, argv)))


def export(checkpoint: Path | str, out: Path | str) -> None:
    """Write the network in `checkpoint` to `out`, in the format that its ending says.

    Raises:
        InputError: the ending is none of PACKAGES, a package is missing, a file cannot be read or written, or the exported
            file does not answer as the network does.
    """
    ending = Path(out).suffix.lower()
    if ending not in PACKAGES:
        raise InputError(f'{out} must end in {", ".join(PACKAGES)}, which says the format')
    for package in PACKAGES[ending]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(f'{ending} needs a package that is missing here: pip install {" ".join(PACKAGES[ending])}')
    refuse_unwritable(out, checkpoint)
    model, facts = demo.trained(checkpoint)
    metadata = json.dumps({'model': 'HyperIQA', 'input': 'patches (N, 224, 224, 3) uint8 RGB', **facts})
    scorer = PatchScorer(model.eval(), facts['score_range']).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of PyTorch's exporters, about their own future
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        path = Path(folder) / f'exported{ending}'
        write(scorer, path, metadata)
        refuse_difference(scorer, path)
        write_whole(out, path.read_bytes())
    say(f'{out} answers as {checkpoint} does; it holds the metadata {metadata}')


def write(scorer: PatchScorer, path: Path, metadata: str) -> None:
    """Write the scorer to `path`, in the format that its ending says."""
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        state = {name: value.contiguous() for name, value in scorer.model.state_dict().items()}
        save_file(state, path, {'format': 'pt', 'hyperiqa': metadata})
        return
    any_number = {'patches': {0: torch.export.Dim('N', min=1)}}
    graph = torch.export.export(scorer, (random_patches(2),), dynamic_shapes=any_number)
    if path.suffix == '.pt2':
        torch.export.save(graph, path, extra_files={'hyperiqa': metadata})
    else:
        written = cast(Any, torch.onnx.export(graph, dynamo=True, output_names=['scores'], verbose=False))
        written.model.metadata_props['hyperiqa'] = metadata
        written.save(path)


def refuse_difference(scorer: PatchScorer, path: Path) -> None:
    """Load the exported file back and compare it with the network, on one patch and on several."""
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file

        written, own = load_file(path), scorer.model.state_dict()
        if written.keys() != own.keys() or not all(torch.equal(written[name], own[name]) for name in own):
            raise InputError('the exported weights are not those of the network; nothing was written')
        return
    answer = answers_of(path)
    for count in (1, 3):
        patches = random_patches(count)
        expected = scorer(patches)
        difference = (answer(patches) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1, expected.abs().max().item()):
            raise InputError(f'the exported network differs by {difference:.2g} from {count} scores; nothing was written')


def answers_of(path: Path) -> Callable[[torch.Tensor], Any]:
    """The exported network as a function of patches."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    return lambda patches: torch.from_numpy(session.run(None, {'patches': patches.numpy()})[0])


def random_patches(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, PATCH_SIZE, PATCH_SIZE, 3), dtype=torch.uint8)


if __name__ == '__main__':
    main()
