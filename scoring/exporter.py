"""A trained network written as one file for other programs, and checked before it appears."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from models import PATCH_SIZE
from scoring.photo import PatchScorer, PhotoScorer
from scoring.scorer import Scorer
from util.checkpoints import FACTS
from util.demo_database import make_scene
from util.errors import InputError, log
from util.files import write_whole

# Relative to the largest score, or to 1 if it is smaller: other runtimes add up in another order.
TOLERANCE = 2e-4
INPUTS = {
    'photo': 'photo (H, W, 3) uint8 RGB, upright, in sRGB',
    'patches': 'patches (N, 224, 224, 3) uint8 RGB',
}
SIZES = {'photo': {0: 'H', 1: 'W'}, 'patches': {0: 'N'}}  # the dimensions of each that vary


def export(
    checkpoint: Path | str, out: Path | str, input: str = 'photo', patches: int = 25
) -> None:
    """Write the network in `checkpoint` to `out`, in the format of its ending.

    Args:
        input: what an .onnx or .pt2 takes: 'photo' or 'patches'.
        patches: how many of a photo are scored.

    Raises:
        InputError: a file cannot be read or written, or the exported file does not give the scores
            of the network.
    """
    ending = Path(out).suffix.lower()
    only_weights = ending == '.safetensors'
    takes_photo = input == 'photo' and not only_weights
    scorer = Scorer(checkpoint, 'cpu', patches)
    about = {'model': 'HyperIQA', **scorer.meaning._asdict()}
    if not only_weights:
        about['input'] = INPUTS[input]
    metadata = json.dumps(about)
    examples = example_photos() if takes_photo else example_patches()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        # PyTorch's exporters warn and log about changes in later versions.
        warnings.simplefilter('ignore')
        logging.getLogger('torch').setLevel(logging.CRITICAL)
        path = Path(folder) / f'exported{ending}'
        if only_weights:
            write_weights(scorer.network, path, metadata)
        else:
            module = scorer.photo_network if takes_photo else scorer.network
            # The first example has no size of 1, which torch.export would take for a constant.
            write_graph(module, examples[0], SIZES[input], path, metadata)
        # `out` appears only after the comparison.
        refuse_other_scores(path, scorer, examples)
        write_whole(out, path.read_bytes())
    log(f'{out} answers as {checkpoint} does; its metadata is {metadata}')


def example_photos() -> list[torch.Tensor]:
    """Pictures as in the demo database, (H, W, 3) uint8 each, the smallest one among them."""
    photos = []
    for width, height in ((400, 300), (PATCH_SIZE, PATCH_SIZE), (360, 480)):
        picture = make_scene(np.random.RandomState(0)).resize((width, height))
        photos.append(torch.from_numpy(np.array(picture)))
    return photos


def example_patches() -> list[torch.Tensor]:
    """Random patches, (N, 224, 224, 3) uint8 each, for several N."""
    shape = (PATCH_SIZE, PATCH_SIZE, 3)
    return [torch.randint(0, 256, (count, *shape), dtype=torch.uint8) for count in (2, 1, 3)]


def write_weights(network: PatchScorer, path: Path, metadata: str) -> None:
    from safetensors.torch import save_file

    # The scorer's weights are channels last, which the format does not have.
    state = {name: value.contiguous() for name, value in network.model.state_dict().items()}
    save_file(state, path, {'format': 'pt', FACTS: metadata})


def write_graph(
    module: torch.nn.Module, example: torch.Tensor, sizes: dict[int, str], path: Path, metadata: str
) -> None:
    """Write a module of one input as .pt2 or .onnx.

    Args:
        example: an input.
        sizes: the names of the dimensions of the input that vary.
    """
    # torch.export gets the dimensions that vary, and the ONNX exporter their names.
    varying = dict.fromkeys(sizes, Dim.DYNAMIC)
    graph = torch.export.export(module, (example,), dynamic_shapes=(varying,))
    if path.suffix == '.pt2':
        torch.export.save(graph, path, extra_files={FACTS: metadata})
        return
    outputs = ['score', 'patch_scores'] if isinstance(module, PhotoScorer) else ['scores']
    try:
        written: Any = torch.onnx.export(
            graph, dynamo=True, dynamic_shapes=(sizes,), output_names=outputs, verbose=False
        )
    except torch.onnx.OnnxExporterError:  # as in PyTorch 2.6; 2.7.1 can
        raise InputError(
            f'PyTorch {torch.__version__} cannot write this network as .onnx; take .pt2 or a newer '
            'PyTorch'
        )
    written.model.metadata_props[FACTS] = metadata
    written.save(path)


def refuse_other_scores(path: Path, scorer: Scorer, examples: list[torch.Tensor]) -> None:
    """Compare an exported file with the scorer.

    Args:
        examples: photos, (H, W, 3) uint8 each, or several patches, (N, 224, 224, 3) uint8 each.

    Raises:
        InputError: their scores differ.
    """
    answer = answers_of(path)
    for example in examples:
        if example.ndim == 3:
            expected, deviation = scorer(example.numpy(), spread=True)
        else:
            expected = scorer.patch_scores(example.numpy()).numpy()
            deviation = 0
        difference = np.abs(answer(example) - expected).max()
        # A photo's score, the mean over patches, may differ by a tenth of their deviation too.
        limit = max(TOLERANCE * max(1, np.abs(expected).max()), deviation / 10)
        # Not `>`, which is false for nan.
        if not difference <= limit:
            raise InputError(
                f'the exported network differs by {difference:.2g} from the scores of an input '
                f'{tuple(example.shape)}; nothing was written'
            )


def answers_of(path: Path) -> Callable[[torch.Tensor], Any]:
    """An exported file as a function from its input to its first output."""
    if path.suffix == '.safetensors':
        scorer = Scorer(path, 'cpu')
        return lambda patches: scorer.patch_scores(patches.numpy()).numpy()
    if path.suffix == '.pt2':
        module = torch.export.load(path).module()
        return lambda value: first_of(module(value)).numpy()
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda value: session.run(None, {name: value.numpy()})[0]


def first_of(outputs: Any) -> torch.Tensor:
    """The only output of a graph, or the first of several."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
