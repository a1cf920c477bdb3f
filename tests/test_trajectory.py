"""The original's own training: 20 real Adam steps in float64, with the schedule between them.

`parity/trajectory_21.json` was computed by the original's code with only the three repairs; its
recipe is in the file. The environment variable HYPERIQA_TRAJECTORY names another file of this form.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity import fill

from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver, learning_rates

GOLDEN = json.loads(
    Path(
        os.environ.get('HYPERIQA_TRAJECTORY')
        or Path(__file__).parent / 'parity' / 'trajectory_21.json'
    ).read_text()
)
LR, LR_RATIO = 2e-5, 10


def norms(solver, start):
    """The L2 norms of each group: the way of its weights from `start`, and its two moments."""
    found = {}
    for name, parameters in (
        ('hypernet', solver.hypernet_params),
        ('backbone', list(solver.model_hyper.res.parameters())),
    ):
        states = [solver.solver.state[p] for p in parameters]
        columns = {
            'moved': [p.detach() - start[id(p)] for p in parameters],
            'exp_avg': [state['exp_avg'] for state in states],
            'exp_avg_sq': [state['exp_avg_sq'] for state in states],
        }
        for column, tensors in columns.items():
            found[f'{column}_{name}'] = (
                torch.stack([tensor.norm() for tensor in tensors]).norm().item()
            )
    return found


@pytest.mark.slow
def test_the_trajectory_of_the_original_is_ours(monkeypatch):
    """Each of the 20 epochs is one step of two patches, so the whole schedule is passed."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)  # TargetNet casts to float32
    monkeypatch.setattr(
        HyperIQASolver, 'loader', lambda *arguments, **options: None
    )  # no database is needed
    database = OpenDatabase.__new__(OpenDatabase)  # it has read nothing
    config = SimpleNamespace(dataset='demo', weights='none', device='cpu', lr=LR, lr_ratio=LR_RATIO)
    solver = HyperIQASolver(config, database, [], [], score_range=(0, 1))
    solver.model_hyper.load_state_dict(fill.fill(solver.model_hyper.state_dict()))
    solver.model_hyper.double().train()
    start = {id(p): p.detach().clone() for p in solver.model_hyper.parameters()}
    for step, expected in enumerate(GOLDEN['losses']):
        seed = 1000 * GOLDEN['seed'] + step
        patches = (
            fill.images(seed, GOLDEN['batch'])
            .double()
            .contiguous(memory_format=torch.channels_last)
        )
        scores = torch.from_numpy(
            (1 + 4 * np.random.RandomState(seed + 5000).random_sample(GOLDEN['batch'])).astype(
                np.float32
            )
        )
        assert [group['lr'] for group in solver.solver.param_groups] == GOLDEN['learning_rates'][
            step
        ]
        predicted = solver.train_step(patches, scores, GOLDEN['batch'])
        assert (predicted - scores).abs().mean().item() == pytest.approx(expected, rel=1e-8), (
            f'loss of step {step + 1}'
        )
        if str(step + 1) in GOLDEN['norms']:
            assert norms(solver, start) == pytest.approx(
                GOLDEN['norms'][str(step + 1)], rel=1e-8
            ), f'after step {step + 1}'
        solver.set_learning_rates(*learning_rates(step, LR, LR_RATIO))
