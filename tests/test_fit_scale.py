"""Weights that answer in another unit or direction than the labels are seen before training."""

import helpers
import numpy as np
import pytest
import torch
import torchvision
from helpers import QUICK

import models


@pytest.fixture
def make_solver(make_database, tmp_path):
    """make_solver(slope, **options): its initial weights give slope * score of a random network."""
    root = make_database('livec', images=10)

    def make(slope=1.0, train=range(8), **options):
        torch.manual_seed(5)
        model = models.hyperiqa()
        with torch.no_grad():
            for parameter in (*model.fc5w_fc.parameters(), *model.fc5b_fc.parameters()):
                parameter.mul_(slope)
        torch.save(model.state_dict(), tmp_path / 'start.pth')
        options = {'weights': str(tmp_path / 'start.pth'), 'test_patch_num': 1, **options}
        return helpers.make_solver(root, train, [8, 9], epochs=0, **options)

    return make


def test_the_line_names_unit_and_remedy_and_changes_nothing(make_solver, capsys):
    solver = make_solver(0.01)
    before = {name: value.clone() for name, value in solver.model_hyper.state_dict().items()}
    state = torch.get_rng_state()
    solver.train()
    err = capsys.readouterr().err
    assert 'on 8 training images its scores are ' in err and 'the labels 90 to 160, SRCC ' in err
    assert err.rstrip().endswith('; --fit_scale fits them to the labels before training')
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(before[name], value) for name, value in solver.model_hyper.state_dict().items()
    )


@pytest.mark.parametrize('normalize', [False, True])
def test_the_fit_is_least_squares_and_folded_into_the_weights(make_solver, normalize):
    plain, fitted = (
        make_solver(fit_scale=fit, normalize_scores=normalize) for fit in (False, True)
    )
    fitted.train()
    data = plain.loader(plain.database, range(10), istrain=False)
    before, after = plain.predict(data), fitted.predict(data)
    slope, offset = np.polyfit(before, after, 1)
    assert after == pytest.approx(slope * before + offset, abs=2e-3 * np.ptp(after) + 1e-3)
    assert (
        abs(after[:8].mean() - plain.train_data.scores.mean()) < 15
    )  # of labels 90 ... 160, before near 0


def test_what_cannot_be_fitted_is_refused(make_solver, program, tmp_path):
    with pytest.raises(ValueError, match='so there is nothing to fit; give other --weights'):
        make_solver(0.0, fit_scale=True).train()
    # Two patches of one image have two scores and one label.
    with pytest.raises(ValueError, match='the labels 90 to 90, .* or leave it out'):
        make_solver(train=[0, 0], fit_scale=True).train()
    options = ('--dataset', 'livec', '--data_root', 'livec', *QUICK, '--fit_scale')
    done = program(*options)
    assert done.returncode == 2 and '--fit_scale goes with --weights FILE' in done.stderr
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / 'resnet.pth')
    done = program(*options, '--weights', 'resnet.pth')
    assert (
        done.returncode == 2
        and 'resnet.pth contains only a ResNet-50, which gives no scores' in done.stderr
    )
