"""A trained network as one file answers elsewhere as it does here, in the unit of the labels."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch

import demo
import models
from export import main as export_main
from scoring import exporter, photo, scorer
from scoring.exporter import export
from util import checkpoints, frames
from util.demo_database import make_scene
from util.errors import InputError
from util.files import check_output

FACTS = {
    'label_range': [1, 5],
    'higher_is_better': True,
    'resize': [300, 400],
    'exif_rotation': True,
    'score_range': [1, 5],
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with the checkpoint of a run whose scores of 1 to 5 were mapped to 0..1."""
    folder = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    torch.save(models.hyperiqa().state_dict(), folder / 'best.pth')
    (folder / 'config.json').write_text(json.dumps({'options': {}, 'model': FACTS}))
    return folder


@pytest.fixture(scope='module')
def patches():
    return np.random.RandomState(0).randint(0, 256, (3, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def expected(run, patches):
    """The scores of single patches, by the scorer of demo.py, which resizes no picture here."""
    of_patches = demo.Scorer(run / 'best.pth', 'cpu', patches=1)
    return [
        score for score, _ in of_patches.means_and_deviations([patch[None] for patch in patches])
    ]


def facts_of(metadata):
    return {name: json.loads(metadata)[name] for name in FACTS}


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.startswith('2.6.'), reason='PyTorch 2.6 cannot write this network as .onnx'
)
def test_onnx_runs_in_onnxruntime_on_any_number_of_patches(tmp_path, run, patches, expected):
    export(run / 'best.pth', tmp_path / 'network.onnx', 'patches')
    session = onnxruntime.InferenceSession(tmp_path / 'network.onnx')
    assert session.run(None, {'patches': patches})[0].tolist() == pytest.approx(expected, abs=8e-4)
    assert session.run(['scores'], {'patches': patches[:1]})[0].tolist() == pytest.approx(
        expected[:1], abs=8e-4
    )
    written = onnx.load(tmp_path / 'network.onnx')
    [metadata] = [entry.value for entry in written.metadata_props if entry.key == 'hyperiqa']
    assert facts_of(metadata) == FACTS
    # TensorRT and Core ML refuse to transpose uint8
    assert {node.op_type for node in written.graph.node if 'patches' in node.input} <= {
        'Shape',
        'Cast',
    }
    ends = (*written.graph.input, *written.graph.output)
    assert [
        [size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim]
        for end in ends
    ] == [
        ['N', 224, 224, 3],
        ['N'],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ['network.onnx']
    check_output(tmp_path / 'network.onnx', ['.onnx'])  # it has the mark of this project


@pytest.mark.slow
def test_pt2_runs_where_nothing_of_the_project_is(tmp_path, run, patches, expected):
    export(run / 'best.pth', tmp_path / 'network.pt2', 'patches')
    np.save(tmp_path / 'patches.npy', patches)
    code = (
        'import json, sys, numpy, torch; extra = {"hyperiqa": ""}\n'
        'network = torch.export.load("network.pt2", extra_files=extra).module()\n'
        'scores = network(torch.from_numpy(numpy.load("patches.npy"))).tolist()\n'
        'assert not {"models", "demo", "util", "data_loader"} & set(sys.modules)\n'
        'print(json.dumps([scores, extra["hyperiqa"]]))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    check_output(tmp_path / 'network.pt2', ['.pt2'])  # it has the mark of this project
    scores, metadata = json.loads(done.stdout.splitlines()[-1])
    assert scores == pytest.approx(expected, abs=8e-4) and facts_of(metadata) == FACTS
    assert json.loads(metadata)['input'] == exporter.INPUTS['patches']


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.startswith('2.6.'), reason='PyTorch 2.6 cannot write this network as .onnx'
)
def test_an_onnx_file_scores_whole_photos_without_this_project_and_torch(tmp_path, run):
    export(run / 'best.pth', tmp_path / 'network.onnx', patches=3)
    names = []
    for k, (width, height) in enumerate(((224, 224), (640, 480), (300, 700), (90, 60), (401, 299))):
        picture = make_scene(np.random.RandomState(k)).resize((width, height))
        picture.save(tmp_path / f'{k}.png')
        names.append(f'{k}.png')
    code = (
        'import sys, numpy, onnxruntime; from PIL import Image\n'
        'session = onnxruntime.InferenceSession("network.onnx")\n'
        'for name in sys.argv[1:]:\n'
        '    photo = numpy.asarray(Image.open(name))\n'
        '    score, of_patches = session.run(None, {"photo": photo})\n'
        '    assert of_patches.shape == (3,) and abs(of_patches.mean() - score) < 1e-4\n'
        '    print(score)\n'
        'assert not {"torch", "models", "demo", "util"} & set(sys.modules)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, *names], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    own = demo.Scorer(run / 'best.pth', 'cpu', patches=3)
    expected = own([tmp_path / name for name in names], spread=True)
    for line, (score, deviation) in zip(done.stdout.splitlines(), expected, strict=True):
        assert float(line) == pytest.approx(score, abs=deviation / 100)


def test_the_resize_is_that_of_frames():
    """Larger and smaller, also where a single resize of Pillow 13 begins with the height."""
    for size, wanted in (
        ((384, 512), (300, 400)),
        ((360, 480), (300, 400)),
        ((120, 100), (400, 300)),
        ((900, 700), (512, 384)),
    ):
        picture = make_scene(np.random.RandomState(1)).resize(size)
        tensor = torch.from_numpy(np.array(picture)).float().permute(2, 0, 1)
        [ours] = photo.resized(tensor[None], wanted).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(ours, np.asarray(frames.resized(picture, wanted)))


def test_a_photo_that_is_smaller_than_a_patch_is_an_error(run):
    whole = photo.PhotoScorer(demo.Scorer(run / 'best.pth', 'cpu').network, None, 25)
    for height, width in ((223, 300), (300, 223), (10, 10)):
        with pytest.raises(IndexError):
            whole(torch.zeros((height, width, 3), dtype=torch.uint8))


def test_safetensors_is_exact_and_scores_as_the_checkpoint_does(tmp_path, run, patches):
    """Far from the run's config.json: what it says travels in the file."""
    export(run / 'best.pth', tmp_path / 'network.safetensors')
    written = checkpoints.read_checkpoint(tmp_path / 'network.safetensors')['state_dict']
    own = checkpoints.read_checkpoint(run / 'best.pth')
    assert all(torch.equal(written[name], own[name]) for name in own)
    here, there = (
        demo.Scorer(path, 'cpu', patches=2)
        for path in (run / 'best.pth', tmp_path / 'network.safetensors')
    )
    assert {name: there.meaning._asdict()[name] for name in FACTS} == FACTS
    assert here(patches[0]) == there(patches[0])
    check_output(tmp_path / 'network.safetensors', ['.safetensors'])  # it has the mark
    with safetensors.safe_open(tmp_path / 'network.safetensors', 'pt') as file:
        about = json.loads(file.metadata()['hyperiqa'])
    assert about['model'] == 'HyperIQA' and 'input' not in about


def test_every_kind_of_checkpoint_has_the_range_and_direction_of_its_labels(tmp_path, run):
    """A checkpoint alone, and one of a run whose record is of before the range was in it."""
    old = {'resize': None, 'exif_rotation': False, 'score_range': None, 'higher_is_better': False}
    for folder, record, expected in (
        ('alone', None, ((0, 100), True)),
        ('old', {'options': {'dataset': 'csiq'}, 'model': old}, ((0, 1), False)),
    ):
        (tmp_path / folder).mkdir()
        os.link(run / 'best.pth', tmp_path / folder / 'best.pth')
        if record:
            (tmp_path / folder / 'config.json').write_text(json.dumps(record))
        _, meaning = scorer.load_trained(tmp_path / folder / 'best.pth')
        assert (meaning.label_range, meaning.higher_is_better) == expected


def test_a_network_that_this_pytorch_cannot_write_as_onnx_is_one_line(
    tmp_path, run, in_process, monkeypatch
):
    """With an operator that no ONNX version has; torch 2.6 has none for the generated weights."""

    def forward(network, photo):
        score = torch.special.bessel_j0(photo.float()).sum()
        return score, score

    monkeypatch.setattr(exporter.PhotoScorer, 'forward', forward)
    done = in_process(export_main, run / 'best.pth', 'network.onnx')
    reason = (
        f'error: PyTorch {torch.__version__} cannot write this network as .onnx; '
        'take .pt2 or a newer PyTorch\n'
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, '', reason)


def test_an_export_that_answers_otherwise_leaves_no_file(tmp_path, run, monkeypatch):
    """The written weights are those of another network."""
    write, other = exporter.write_weights, exporter.PatchScorer(models.hyperiqa(), None)
    monkeypatch.setattr(
        exporter, 'write_weights', lambda network, path, metadata: write(other, path, metadata)
    )
    with pytest.raises(InputError, match='the exported network differs by .*; nothing was written'):
        export(run / 'best.pth', tmp_path / 'network.safetensors')
    assert not list(tmp_path.iterdir())


def test_a_graph_that_answers_nan_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, 'answers_of', lambda path: lambda value: np.array(np.nan))
    own = demo.Scorer(run / 'best.pth', 'cpu', patches=1)
    with pytest.raises(InputError, match=r'differs by nan from .* \(300, 400, 3\)'):
        exporter.refuse_other_scores(tmp_path / 'x.onnx', own, exporter.example_photos())


def test_bad_options_give_one_line(tmp_path, run, in_process, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)  # as one that is not installed
    for out, reason in (
        ('network.bin', 'network.bin must end in .pt2, .onnx, .safetensors'),
        (
            'network.onnx',
            'network.onnx needs a package that is missing here: '
            'pip install onnx onnxscript onnxruntime',
        ),
        ('absent/network.pt2', 'absent/network.pt2 cannot be written: '),
        (run / 'network.pt2', 'network.pt2 is in the run folder'),
    ):
        done = in_process(export_main, run / 'best.pth', out)
        assert done.returncode == 2 and reason in done.stderr and 'Traceback' not in done.stderr
