"""The three repairs, each by a test that fails when only that repair is undone, on real epochs."""

import functools
import io
import json
import math
import os
import resource
from contextlib import redirect_stdout
from types import SimpleNamespace

import databases
import forked
import helpers
import numpy as np
import pytest
import torch
from helpers import LIVEC, open_database, tensors
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rounds
import train_test_IQA
from experiment.command_line import parse_options
from HyerIQASolver import HyperIQASolver, is_better, learning_rates
from util.errors import SMALLER
from util.metrics import plcc, srcc

ONE_ROUND = (*LIVEC, '--epochs', 1)


@pytest.fixture(scope='module')
def make_solver(tmp_path_factory):
    """make_solver(**options): a solver with four training and two test images."""
    root = tmp_path_factory.mktemp('livec')
    databases.livec(root)

    return functools.partial(helpers.make_solver, root)


def training_of(solver):
    """Train; return the optimizers' groups before each step, what is printed, and the result."""
    seen = []

    def record(optimizer, args, kwargs):
        states = [optimizer.state[p] for group in optimizer.param_groups for p in group['params']]
        seen.append(
            SimpleNamespace(
                optimizer=optimizer,
                rates=[group['lr'] for group in optimizer.param_groups],
                step={int(state['step']) if state else 0 for state in states},
                momentum=sum(
                    state['exp_avg'].abs().sum().item() if state else 0 for state in states
                ),
            )
        )

    hook, printed, adam = register_optimizer_step_pre_hook(record), io.StringIO(), solver.solver
    with redirect_stdout(printed):
        returned = solver.train()
    hook.remove()
    return SimpleNamespace(
        solver=solver,
        adam=adam,
        steps=seen,
        lines=printed.getvalue().splitlines(),
        returned=returned,
    )


@pytest.fixture(scope='module')
def trained(make_solver):
    """A training through the whole schedule, one patch an epoch, at rates of its own."""
    return training_of(make_solver((0,), (2, 3, 4), epochs=16, lr=3e-4, lr_ratio=4))


def table_of_rates(lr, lr_ratio):
    return (
        [(lr * lr_ratio, lr)] * 7
        + [(lr * lr_ratio / 10, lr / 10)] * 3
        + [(lr / 10, lr / 10)] * 3
        + [(lr / 100, lr / 100)] * 3
    )


def test_repair_1_both_learning_rates_follow_the_table(trained):
    assert [tuple(step.rates) for step in trained.steps] == [
        pytest.approx(row) for row in table_of_rates(3e-4, 4)
    ]


def test_the_table_of_the_default_rates():
    config = parse_options(['--device', 'cpu'])
    rates = [learning_rates(epoch, config.lr, config.lr_ratio) for epoch in range(15)]
    assert rates == [pytest.approx(row) for row in table_of_rates(2e-5, 10)[1:]]


def test_repair_2_one_adam_and_its_moments_live_through_the_run(trained):
    adam, steps = trained.adam, trained.steps
    assert type(adam) is torch.optim.Adam
    assert trained.solver.solver is adam and all(step.optimizer is adam for step in steps)
    assert [step.step for step in steps] == [{k} for k in range(16)]  # a step an epoch
    assert steps[0].momentum == 0 and all(step.momentum > 0 for step in steps[1:])


def test_repair_3_every_parameter_trains_in_every_epoch(make_solver):
    solver = make_solver((0, 1), lr=1e-3, lr_ratio=10)
    names = {id(p): name for name, p in solver.model_hyper.named_parameters()}
    hypernet = [name for name in names.values() if not name.startswith('res.')]
    for epoch in range(3):
        assert isinstance(solver.hypernet_params, list)
        assert [names[id(p)] for p in solver.hypernet_params] == hypernet
        before = {name: p.detach().clone() for name, p in solver.model_hyper.named_parameters()}
        solver.train_epoch(epoch)
        solver.set_learning_rates(*learning_rates(epoch, solver.lr, solver.lrratio))
        unchanged = [
            name
            for name, p in solver.model_hyper.named_parameters()
            if torch.equal(p, before[name])
        ]
        assert unchanged == []


def test_the_lda_heads_belong_to_the_backbones_group(make_solver):
    solver = make_solver()
    groups = [{id(p) for p in group['params']} for group in solver.solver.param_groups]
    expected = {True: 0, False: 0}
    for name, p in solver.model_hyper.named_parameters():
        backbone = name.startswith('res.')
        assert id(p) in groups[backbone] and id(p) not in groups[not backbone]
        expected[backbone] += 1
    assert [len(groups[0]), len(groups[1])] == [expected[False], expected[True]]
    assert [group['weight_decay'] for group in solver.solver.param_groups] == [5e-4, 5e-4]


def test_train_returns_the_best_epoch_and_prints_every_epoch(trained):
    assert trained.lines[0].split()[:5] == [
        'Epoch',
        'Train_Loss',
        'Train_SRCC',
        'Test_SRCC',
        'Test_PLCC',
    ]
    assert [line.split()[0] for line in trained.lines[1:]] == [str(epoch) for epoch in range(1, 17)]
    assert round(trained.returned[0], 4) == max(
        float(line.split()[3]) for line in trained.lines[1:]
    )


def test_test_averages_the_patches_of_each_image(make_solver):
    solver = make_solver(test_patch_num=3, batch_size=2)
    solver.model_hyper.eval()
    with torch.inference_mode():
        single = np.array(
            [
                solver.forward(solver.model_hyper, patch[None]).item()
                for patches, _ in solver.test_data
                for patch in patches
            ]
        )
    means = single.reshape(2, 3).mean(1)
    assert solver.predict(solver.test_data) == pytest.approx(means, rel=1e-5)
    assert solver.test(solver.test_data) == (srcc(means, [130, 140]), plcc(means, [130, 140]))


def test_the_validation_columns_are_of_the_validation_part(make_solver):
    """The same training tests the same images as its validation part and as its test part."""
    part, other = (2, 3, 4), (1, 5)
    rows = []
    for parts in ({'test': other, 'val': part}, {'test': part}):
        solver = make_solver((0,), epochs=1, **parts)
        solver.train()
        rows.append(solver.history[0])
    assert (rows[0]['val_srcc'], rows[0]['val_plcc']) == (
        rows[1]['test_srcc'],
        rows[1]['test_plcc'],
    )
    assert rows[0]['val_plcc'] != rows[0]['test_plcc']


def test_a_last_batch_of_one_patch_trains(make_solver):
    loss, _ = make_solver(batch_size=3).train_epoch(0)
    assert math.isfinite(loss)


def test_same_seed_same_weights_and_another_seed_or_round_others(make_database):
    root = make_database('livec')

    def first_weights(seed, round_index):
        solver = helpers.make_solver(root, [0], [1], round_index=round_index, seed=seed)
        return solver.model_hyper.conv1[0].weight

    assert torch.equal(first_weights(0, 0), first_weights(0, 0))
    assert not torch.equal(first_weights(0, 0), first_weights(1, 0))
    assert not torch.equal(first_weights(0, 0), first_weights(0, 1))


def test_a_path_and_an_open_database_make_the_same_solver(make_database):
    """The call of the original: HyperIQASolver(config, path, train_idx, test_idx)."""
    root = make_database('livec')
    config = SimpleNamespace(dataset='livec', weights='none', device='cpu')
    for place in (root, open_database('livec', root)):
        solver = HyperIQASolver(config, place, [2, 0], [3])
        assert solver.train_data.scores.tolist() == [110, 90]
        assert solver.test_data.scores.tolist() == [120]


def test_nan_is_never_the_best():
    assert is_better(-0.3, math.nan) and is_better(0.2, -0.3)
    assert (
        not is_better(math.nan, math.nan)
        and not is_better(math.nan, -0.9)
        and not is_better(0.1, 0.1)
    )


in_float16 = functools.partial(HyperIQASolver, amp_type=torch.float16)


@pytest.fixture
def float16_on_a_cpu():
    """PyTorch's own convolutions: those of oneDNN take a minute for a step on some CPUs."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def types_of_outputs(solver):
    """(whether it trains, the type) of the first layer's output at each call from now on."""
    seen = []
    hook = lambda layer, inputs, output: seen.append((layer.training, output.dtype))  # noqa: E731
    solver.model_hyper.res.conv1.register_forward_hook(hook)
    return seen


@pytest.mark.parametrize('amp, dtype', [(False, torch.float32), (True, torch.bfloat16)])
def test_amp_computes_in_its_type_in_training_and_in_testing(make_solver, amp, dtype):
    solver = make_solver((0,), (4,), amp=amp)
    seen = types_of_outputs(solver)
    solver.train_epoch(0)
    solver.predict(solver.test_data)
    assert seen == [(True, dtype), (False, dtype)]


def test_the_state_of_a_round_has_that_of_the_scaler(make_solver):
    solver = make_solver((0,), (), amp=True, kind=in_float16)
    solver.scaler.load_state_dict({**solver.scaler.state_dict(), 'scale': 4096.0})
    state = solver.state_dict()
    resumed = make_solver((0,), (), amp=True, kind=in_float16)
    resumed.load_state_dict(state)
    assert resumed.scaler.get_scale() == 4096
    # Of an earlier version, and so in bfloat16.
    earlier = {name: value for name, value in state.items() if name != 'scaler'}
    make_solver((0,), (), amp=True).load_state_dict(earlier)


@pytest.mark.slow
def test_float16_resumes_to_the_same_weights_and_scale(make_solver, float16_on_a_cpu):
    def half_precision():
        return make_solver((0,), (), epochs=2, amp=True, kind=in_float16)

    whole = half_precision()
    # A step whose gradients fit doubles the scale after this many; PyTorch's own number is 2000.
    whole.scaler.set_growth_interval(2)
    states = []
    whole.train(lambda state: states.append(io.BytesIO()) or torch.save(state, states[-1]))
    states[0].seek(0)
    resumed = half_precision()
    resumed.load_state_dict(torch.load(states[0], weights_only=True))
    resumed.train()
    assert whole.scaler.get_scale() == resumed.scaler.get_scale() == 2048
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    ours, theirs = whole.model_hyper.state_dict(), resumed.model_hyper.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_step_that_the_scaler_skips_is_no_divergence(make_solver, float16_on_a_cpu):
    solver = make_solver((0,), (4,), epochs=1, amp=True, kind=in_float16)
    seen = types_of_outputs(solver)
    before = {name: p.detach().clone() for name, p in solver.model_hyper.named_parameters()}
    overflowing = {**solver.scaler.state_dict(), 'scale': 2.0**40}
    solver.scaler.load_state_dict(overflowing)
    solver.train()
    assert seen == [(True, torch.float16), (False, torch.float16)]
    assert [row['epoch'] for row in solver.history] == [1]
    assert solver.scaler.get_scale() == 2.0**39
    after = dict(solver.model_hyper.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_records_its_type_of_amp_and_keeps_it(make_database, tmp_path, program):
    """The record of a run that began on a GPU without bfloat16, which this machine may lack."""
    make_database('livec', images=10)
    done = program(*ONE_ROUND, '--amp', '--train_test_num', 1, '--output', 'run')
    assert done.returncode == 0, done.stderr
    path = tmp_path / 'run' / 'config.json'
    record = json.loads(path.read_text())
    assert record['amp_type'] == 'bfloat16'
    path.write_text(json.dumps({**record, 'amp_type': 'float16'}))
    assert program('--resume', 'run').returncode == 0
    assert rounds.amp_type_of_run(path) == torch.float16
    config = parse_options(['--evaluate', 'run/round_01/best.pth'])
    job = train_test_IQA.prepare_test(config)
    job.database.open_frames(224)
    assert rounds.solver_of_test(config, job).amp_type == torch.float16
    del record['amp_type']  # as of an earlier version
    path.write_text(json.dumps(record))
    assert rounds.amp_type_of_run(path) == torch.bfloat16


@pytest.mark.cuda
@pytest.mark.parametrize('options', [{}, {'amp': True}, {'amp': True, 'compile': True}])
def test_an_epoch_on_cuda_is_that_of_the_cpu(make_solver, options):
    solver = make_solver(device='cuda', **options)
    loss, _ = solver.train_epoch(0)
    scores = solver.predict(solver.test_data)
    expected_loss, _ = make_solver().train_epoch(0)
    assert loss == pytest.approx(expected_loss, rel=1e-2) and np.isfinite(scores).all()


@pytest.mark.cuda
def test_deterministic_runs_on_cuda_give_the_same_bytes(make_database, script, tmp_path):
    make_database('livec', images=10)  # two of them are tested on
    for run in ('first', 'second'):
        done = script(
            'train_test_IQA.py', *ONE_ROUND, '--device', 'cuda', '--deterministic', '--output', run
        )
        assert done.returncode == 0, done.stderr
    assert tensors(tmp_path / 'first' / 'round_01' / 'last.pth') == tensors(
        tmp_path / 'second' / 'round_01' / 'last.pth'
    )


@pytest.mark.slow
def test_compile_makes_two_graphs_whatever_the_last_batches_are(make_solver, monkeypatch):
    """Dynamo captures the graphs and hands them to PyTorch's own eager backend, which is fast."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        'compile',
        lambda module, **how: compile_module(module, backend='eager', **how),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for patches in (4, 3, 5):  # last batches of 1, none and 2 patches
        solver = make_solver(
            (0,),
            (4,),
            compile=True,
            batch_size=3,
            test_batch_size=3,
            train_patch_num=patches,
            test_patch_num=patches,
        )
        solver.train_epoch(0)
        solver.predict(solver.test_data)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 2


@pytest.mark.slow
def test_deterministic_changes_no_byte_on_the_cpu_and_is_kept_by_evaluate(
    killed_run, program, tmp_path, monkeypatch
):
    """Beside a run without it after the same epoch."""
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    (tmp_path / 'livec').symlink_to(killed_run.parent / 'livec')
    try:
        done = program(*ONE_ROUND, '--deterministic', '--output', 'with')
        assert done.returncode == 0, done.stderr
        assert (
            torch.are_deterministic_algorithms_enabled() and os.environ['CUBLAS_WORKSPACE_CONFIG']
        )
    finally:
        torch.use_deterministic_algorithms(False)
    last = tmp_path / 'with' / 'round_01' / 'last.pth'
    assert tensors(last) == tensors(killed_run / 'round_01' / 'last.pth')
    assert parse_options(['--evaluate', str(last)]).deterministic
    torch.use_deterministic_algorithms(False)
    refused = program(*ONE_ROUND, '--output', 'with', '--resume')
    assert refused.returncode == 2 and '--deterministic was True, is False' in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        ('--train_patch_num', 350, '--batch_size', 2000, '--test_patch_num', 1),
        ('--test_patch_num', 1000, '--test_batch_size', 2000),
    ],
)
def test_out_of_memory_is_one_line_that_names_the_options(finished_run, tmp_path, options):
    """8 GB is twice what the imports map; the first layer's output of 6.4 GB does not fit."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    arguments = (*ONE_ROUND, '--output', 'run', *options)
    process = forked.program(
        train_test_IQA.main, *arguments, folder=tmp_path, limits={resource.RLIMIT_AS: 8_000_000_000}
    )
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    last = errors.splitlines()[-1]
    assert last.startswith('error: out of memory: ') and last.endswith(SMALLER)
    assert 'Traceback' not in errors
