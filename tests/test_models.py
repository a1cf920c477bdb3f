"""The network is the original's: names, shapes and numbers (parity/), in every memory format."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import fill
from torch.nn import functional as F

import models

PARITY = Path(__file__).parent / 'parity'
GOLDEN = json.loads((PARITY / 'golden_11.json').read_text())


@pytest.fixture(scope='module')
def network():
    model = models.hyperiqa()
    model.load_state_dict(fill.fill(model.state_dict()))
    return model


@pytest.fixture(scope='module')
def patches():
    return fill.images(GOLDEN['seed'], len(GOLDEN['eval_scores']))


def approx(value):
    return pytest.approx(value, rel=1e-4)


def test_state_dict_has_the_names_shapes_and_types_of_the_original(network):
    lines = [line.split('\t') for line in (PARITY / 'state_dict.tsv').read_text().splitlines()]
    own = [
        [name, 'x'.join(map(str, value.shape)) or 'scalar', str(value.dtype).removeprefix('torch.')]
        for name, value in network.state_dict().items()
    ]
    assert own == lines


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_scores_and_generated_weights_equal_the_original(network, patches, memory_format):
    network.to(memory_format=memory_format).eval()
    with torch.inference_mode():
        paras = network(patches.to(memory_format=memory_format))
        scores = models.TargetNet(paras)(paras['target_in_vec'])
    # the reference scores are printed with six decimals, which is coarser than 1e-4 of a score
    assert scores.tolist() == pytest.approx(GOLDEN['eval_scores'], rel=1e-4, abs=5e-7)
    assert list(paras) == list(GOLDEN['paras'])
    for name, expected in GOLDEN['paras'].items():
        assert list(paras[name].shape) == expected['shape']
        assert paras[name].double().mean().item() == approx(expected['mean'])
        assert paras[name].double().std().item() == approx(expected['std'])


def test_training_loss_and_scores_equal_the_original(network, patches):
    network.to(memory_format=torch.contiguous_format).train()
    with torch.no_grad():
        scores = models.predict_scores(network, patches)
    assert scores.tolist() == approx(GOLDEN['train_scores'])
    assert F.l1_loss(scores, torch.tensor(GOLDEN['target'])).item() == approx(GOLDEN['train_loss'])


def test_gradients_equal_the_original(network, patches):
    """In float64, since float32 gradients of the first layers differ by 2e-3 between CPUs.

    What is left is the rounding of the reference, which was computed in float32.
    """
    model = copy.deepcopy(network).double().train()
    loss = F.l1_loss(models.predict_scores(model, patches.double()), torch.tensor(GOLDEN['target']))
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {name: parameters[name].grad.norm().item() for name in GOLDEN['grad_norm']}
    assert gradients == pytest.approx(GOLDEN['grad_norm'], rel=5e-4)


def test_target_fc_equals_a_grouped_convolution():
    torch.manual_seed(0)
    weight, bias, vector = torch.randn(5, 7, 11, 1, 1), torch.randn(5, 7), torch.randn(5, 11, 1, 1)
    grouped = F.conv2d(
        vector.view(1, 55, 1, 1), weight.view(35, 11, 1, 1), bias.view(35), groups=5
    ).view(5, 7, 1, 1)
    torch.testing.assert_close(models.TargetFC(weight, bias)(vector), grouped)


def test_one_patch_gives_one_score(network):
    network.eval()
    with torch.inference_mode():
        assert models.predict_scores(network, torch.zeros(1, 3, 224, 224)).shape == (1,)


def test_another_patch_size_is_refused_with_the_reason(network):
    with pytest.raises(ValueError, match='224, not 256x256: .*7x7'):
        network(torch.zeros(1, 3, 256, 256))


def test_target_network_stays_in_float32_under_autocast(network, patches):
    network.eval()
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert models.predict_scores(network, patches).dtype == torch.float32


def test_initialisation_follows_the_paper():
    torch.manual_seed(0)
    model = models.hyperiqa()
    for name in (
        'res.lda4_fc',
        'fc1w_conv',
        'fc3b_fc',
        'fc5w_fc',
    ):  # Kaiming-normal: deviation sqrt(2 / fan-in)
        layer = model.get_submodule(name)
        deviation = (2 / layer.weight[0].numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert 0 < layer.bias.abs().max() <= layer.weight[0].numel() ** -0.5  # PyTorch's default
    assert model.conv1[0].weight.abs().max() <= 2048**-0.5


@pytest.mark.cuda
def test_scores_on_cuda_equal_the_original(network, patches):
    """In a process of its own, since it turns TF32 off."""
    code = (
        'import sys, torch; sys.path[:0] = [".", "tests"]; import models; from parity import fill\n'
        'torch.backends.cudnn.allow_tf32 = False\n'
        'model = models.hyperiqa()\n'
        'model.load_state_dict(fill.fill(model.state_dict())); model.cuda().eval()\n'
        'with torch.inference_mode():\n'
        '    print(*models.predict_scores(model, fill.images(11, 4).cuda()).tolist())'
    )
    printed = subprocess.run(
        [sys.executable, '-c', code],
        cwd=PARITY.parent.parent,
        check=True,
        text=True,
        capture_output=True,
    ).stdout
    assert [float(word) for word in printed.split()] == pytest.approx(
        GOLDEN['eval_scores'], rel=1e-3
    )
