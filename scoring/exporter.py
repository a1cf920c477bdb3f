"""A trained network written as one file for other programs, and compared with it beforehand."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import models
from scoring.scorer import PatchScorer
from scoring.trained import trained
from util.checkpoints import FACTS, read_checkpoint
from util.errors import InputError, log
from util.files import write_whole

TOLERANCE = 2e-4  # relative to the largest score: another runtime adds up in another order


def export(checkpoint: Path | str, out: Path | str) -> None:
    """Write the network in `checkpoint` to `out`, in the format of its ending.

    Raises:
        InputError: a file cannot be read or written, or the exported file does not answer as the
            network does.
    """
    model, meaning = trained(checkpoint)
    about = {'model': 'HyperIQA', 'input': 'patches (N, 224, 224, 3) uint8 RGB'}
    metadata = json.dumps({**about, **meaning._asdict()})
    scorer = PatchScorer(model, meaning.score_range).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        # PyTorch's exporters warn and log about their own future.
        warnings.simplefilter('ignore')
        logging.getLogger('torch').setLevel(logging.CRITICAL)
        path = Path(folder) / f'exported{Path(out).suffix.lower()}'
        write(scorer, path, metadata)
        # `out` appears only after the comparison.
        refuse_difference(scorer, path)
        write_whole(out, path.read_bytes())
    log(f'{out} answers as {checkpoint} does; it holds the metadata {metadata}')


def write(scorer: PatchScorer, path: Path, metadata: str) -> None:
    """Write the scorer to `path`, in the format of its ending."""
    if path.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(scorer.model.state_dict(), path, {'format': 'pt', FACTS: metadata})
        return
    any_number = {'patches': {0: torch.export.Dim('N', min=1)}}
    # Two example patches: a size of 1 would be taken for a constant.
    graph = torch.export.export(scorer, (random_patches(2),), dynamic_shapes=any_number)
    if path.suffix == '.pt2':
        torch.export.save(graph, path, extra_files={FACTS: metadata})
    else:
        write_onnx(graph, path, metadata)


def write_onnx(graph: Any, path: Path, metadata: str) -> None:
    try:
        written: Any = torch.onnx.export(
            graph,
            dynamo=True,
            dynamic_shapes={'patches': {0: 'N'}},
            output_names=['scores'],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError:  # 2.6 fails at any number of patches, 2.7.1 does not
        raise InputError(
            f'PyTorch {torch.__version__} cannot write this network as .onnx; take .pt2 or a newer '
            'PyTorch'
        )
    written.model.metadata_props[FACTS] = metadata
    written.save(path)


def refuse_difference(scorer: PatchScorer, path: Path) -> None:
    """Load the exported file back and compare it with the network, on one patch and on several.

    Raises:
        InputError: their scores differ.
    """
    answer = answers_of(scorer, path)
    for count in (1, 3):  # neither is the number that it was exported with
        patches = random_patches(count)
        expected = scorer(patches)
        difference = (answer(patches) - expected).abs().max().item()
        largest = max(1, expected.abs().max().item())
        # Not `>`, which is false for nan.
        if not difference <= TOLERANCE * largest:
            raise InputError(
                f'the exported network differs by {difference:.2g} from {count} scores; nothing '
                'was written'
            )


def answers_of(scorer: PatchScorer, path: Path) -> Callable[[torch.Tensor], Any]:
    """The exported network as a function of patches."""
    if path.suffix == '.safetensors':
        written = PatchScorer(models.hyperiqa(), (scorer.low, scorer.high)).eval()
        written.model.load_state_dict(read_checkpoint(path)['state_dict'])
        return written
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    return lambda patches: torch.from_numpy(session.run(None, {'patches': patches.numpy()})[0])


def random_patches(count: int) -> torch.Tensor:
    size = (count, models.PATCH_SIZE, models.PATCH_SIZE, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8)
