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

import models
from scoring.photo import PatchScorer, PhotoScorer
from scoring.scorer import Scorer
from util.checkpoints import FACTS
from util.demo_database import make_scene
from util.errors import InputError, log
from util.files import write_whole

TOLERANCE = 2e-4  # relative to the largest score: another runtime adds up in another order
INPUTS = {
    'photo': 'photo (H, W, 3) uint8 RGB, upright, in sRGB',
    'patches': 'patches (N, 224, 224, 3) uint8 RGB',
}
SIZES = ((224, 224), (300, 400), (480, 360))  # (height, width) of the pictures it is tested with


def export(
    checkpoint: Path | str, out: Path | str, input: str = 'photo', patches: int = 25
) -> None:
    """Write the network in `checkpoint` to `out`, in the format of its ending.

    Args:
        input: of an .onnx or .pt2: 'photo' or 'patches'.
        patches: how many of a photo are scored.

    Raises:
        InputError: a file cannot be read or written, or the exported file does not give the scores
            of the network.
    """
    scorer = Scorer(checkpoint, 'cpu', patches)
    network = scorer.network
    about = {'model': 'HyperIQA', **scorer.meaning._asdict()}
    # A file of weights alone takes no input.
    if Path(out).suffix.lower() != '.safetensors':
        about['input'] = INPUTS[input]
    metadata = json.dumps(about)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        # PyTorch's exporters warn and log about changes in later versions.
        warnings.simplefilter('ignore')
        logging.getLogger('torch').setLevel(logging.CRITICAL)
        path = Path(folder) / f'exported{Path(out).suffix.lower()}'
        # `out` appears only after the comparison.
        if path.suffix == '.safetensors':
            write_weights(network, path, metadata)
            refuse_difference(network, path)
        elif input == 'patches':
            write_graph(
                network, random_patches(2), {0: torch.export.Dim('N', min=1)}, path, metadata
            )
            refuse_difference(network, path)
        else:
            photo_scorer = PhotoScorer(network, scorer.meaning.resize, patches)
            # With a resize, a photo may have any size but 1, which torch.export takes for a
            # constant. Without one, a patch must fit in.
            least = 2 if scorer.meaning.resize else models.PATCH_SIZE
            sides = {0: torch.export.Dim('H', min=least), 1: torch.export.Dim('W', min=least)}
            write_graph(photo_scorer, demo_picture(SIZES[1]), sides, path, metadata)
            refuse_other_scores(scorer, path)
        write_whole(out, path.read_bytes())
    log(f'{out} answers as {checkpoint} does; its metadata is {metadata}')


def write_weights(network: PatchScorer, path: Path, metadata: str) -> None:
    from safetensors.torch import save_file

    # The scorer's weights are channels last, which the format does not have.
    state = {name: value.contiguous() for name, value in network.model.state_dict().items()}
    save_file(state, path, {'format': 'pt', FACTS: metadata})


def write_graph(
    module: torch.nn.Module, example: torch.Tensor, sizes: dict[int, Any], path: Path, metadata: str
) -> None:
    """Write a module of one input as .pt2 or .onnx.

    Args:
        example: an input whose varying sizes are not 1, which torch.export takes for a constant.
        sizes: the dimensions of the input that vary.
    """
    graph = torch.export.export(module, (example,), dynamic_shapes=(sizes,))
    if path.suffix == '.pt2':
        torch.export.save(graph, path, extra_files={FACTS: metadata})
        return
    names = ({axis: size.__name__ for axis, size in sizes.items()},)
    outputs = ['score', 'patch_scores'] if isinstance(module, PhotoScorer) else ['scores']
    try:
        written: Any = torch.onnx.export(
            graph, dynamo=True, dynamic_shapes=names, output_names=outputs, verbose=False
        )
    except torch.onnx.OnnxExporterError:  # 2.6 fails at any number of patches, 2.7.1 does not
        raise InputError(
            f'PyTorch {torch.__version__} cannot write this network as .onnx; take .pt2 or a newer '
            'PyTorch'
        )
    written.model.metadata_props[FACTS] = metadata
    written.save(path)


def refuse_difference(network: PatchScorer, path: Path) -> None:
    """Compare an exported file with the network, on one patch and on several.

    Raises:
        InputError: their scores differ.
    """
    answer = answers_of(path)
    for count in (1, 3):  # other numbers than in the example that it was exported with
        patches = random_patches(count)
        expected = network(patches)
        difference = (answer(patches) - expected).abs().max().item()
        largest = max(1, expected.abs().max().item())
        refuse_above(TOLERANCE * largest, difference, f'the scores of {count} patches')


def refuse_other_scores(scorer: Scorer, path: Path) -> None:
    """Compare an exported file with the scorer, on photos of several sizes.

    The resize of Pillow cannot be repeated to the last digit, so the scores may differ by a tenth
    of their deviation over the patches.

    Raises:
        InputError: their scores differ by more.
    """
    answer = answers_of(path)
    for size in SIZES:
        photo = demo_picture(size)
        expected, deviation = next(scorer.results([photo.numpy()], strict=True))
        score, _ = answer(photo)
        difference = abs(score.item() - expected)
        limit = max(TOLERANCE * max(1, abs(expected)), deviation / 10)
        refuse_above(limit, difference, f'the score of a photo of {size[1]}x{size[0]}')


def refuse_above(limit: float, difference: float, scores: str) -> None:
    """Refuse an exported file whose answer differs from the named scores by more than `limit`."""
    # Not `>`, which is false for nan.
    if not difference <= limit:
        raise InputError(
            f'the exported network differs by {difference:.2g} from {scores}; nothing was written'
        )


def answers_of(path: Path) -> Callable[[torch.Tensor], Any]:
    """An exported file as a function of its input."""
    if path.suffix == '.safetensors':
        return Scorer(path, 'cpu').network
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    name = session.get_inputs()[0].name

    def answer(value: torch.Tensor) -> Any:
        outputs = [
            torch.from_numpy(np.asarray(out)) for out in session.run(None, {name: value.numpy()})
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    return answer


def random_patches(count: int) -> torch.Tensor:
    size = (count, models.PATCH_SIZE, models.PATCH_SIZE, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8)


def demo_picture(size: tuple[int, int]) -> torch.Tensor:
    """A picture as in the demo database, in the size (height, width): (H, W, 3) uint8."""
    height, width = size
    picture = make_scene(np.random.RandomState(0)).resize((width, height))
    return torch.from_numpy(np.array(picture))
