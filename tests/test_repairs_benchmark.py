"""The arms of benchmarks/repairs.py behave as the original, on real steps of their optimizers."""

import csv
import functools
import io
import math
import shutil
import sys

import databases
import helpers
import pytest
import torch
from helpers import PROJECT, QUICK, history
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(PROJECT / 'benchmarks'))
import repairs

from HyerIQASolver import learning_rates
from util import plots

LR, RATIO = 1e-4, 10


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('livec')
    databases.livec(folder, images=8)
    return folder


@pytest.fixture
def steps():
    """(optimizer, rates, whether it has moments) at each step of an optimizer."""
    seen = []

    def record(optimizer, args, kwargs):
        seen.append(
            (optimizer, [group['lr'] for group in optimizer.param_groups], bool(optimizer.state))
        )

    hook = register_optimizer_step_pre_hook(record)
    yield seen
    hook.remove()


def make_solver(root, undone):
    arm = functools.partial(repairs.UndoneSolver, undone=undone)
    return helpers.make_solver(root, [0], [2], kind=arm, lr=LR, lr_ratio=RATIO)


def values(solver):
    return {
        name: parameter.detach().clone()
        for name, parameter in solver.model_hyper.named_parameters()
    }


def test_the_arms_are_all_that_are_distinct():
    """Without a second Adam, nothing reads the hypernetwork's parameters again."""
    combinations = [tuple(k + 1 for k in range(3) if bits >> k & 1) for bits in range(8)]
    assert {
        undone if 2 in undone else tuple(k for k in undone if k != 3) for undone in combinations
    } == set(repairs.ARMS.values())


@pytest.mark.slow
@pytest.mark.parametrize('undone', [*repairs.ARMS.values(), (3,)])
def test_an_epoch_after_the_rates_fell(root, steps, undone):
    """Epoch 0 at the first rates; then those of epoch 7 (0-based), also after a restart."""
    solver = make_solver(root, undone)
    solver.train_epoch(0)
    solver.set_learning_rates(*learning_rates(6, LR, RATIO))
    state, before = solver.state_dict(), values(solver)
    restored = make_solver(root, undone)
    restored.load_state_dict(state)
    for continued in (solver, restored):
        continued.train_epoch(1)
    first, *later = steps
    assert first[1] == pytest.approx([LR * RATIO, LR]) and not first[2]
    for optimizer, rates, has_moments in later:
        assert rates == pytest.approx([LR, LR if 1 in undone else LR / 10])
        assert has_moments == (2 not in undone)
        assert len(optimizer.param_groups[0]['params']) == (0 if {2, 3} <= set(undone) else 26)
    assert (later[0][0] is first[0]) == (2 not in undone)
    still = {name for name, value in values(solver).items() if torch.equal(value, before[name])}
    hypernet = {name for name in before if not name.startswith('res.')}
    assert still == (hypernet if {2, 3} <= set(undone) else set())


def test_nothing_undone_is_the_product(root):
    ours = make_solver(root, ())
    product = helpers.make_solver(root, [0], [2], lr=LR, lr_ratio=RATIO)
    for solver in (ours, product):
        solver.config.epochs = 2
        solver.train()
    assert [{**row, 'seconds': 0} for row in ours.history] == [
        {**row, 'seconds': 0} for row in product.history
    ]


@pytest.mark.slow
def test_the_command_trains_the_arms_alike_reports_them_and_continues(root, tmp_path, capsys):
    arms = ['repaired', 'original', 'without_1']
    database = ['--dataset', 'livec', '--data_root', root]
    output = ['--output', tmp_path / 'arms', '--arms', *arms]
    options = [str(option) for option in [*database, *QUICK, '--epochs', 1, *output]]
    repairs.main(options)
    printed = capsys.readouterr().out
    rows = [line.split(' | ')[0] for line in printed.splitlines() if line.startswith('| ')]
    assert rows == ['| loop', *(f'| {repairs.NAMES[arm]}' for arm in arms)]
    assert printed.count('on the same test images, with') == 2
    picture = tmp_path / 'arms' / 'arms.png'
    assert f'Picture: {picture}\n' in printed and picture.exists()
    runs = [tmp_path / 'arms' / arm for arm in arms]
    firsts = [
        history(run)[0] for run in runs
    ]  # nothing is undone before the end of the first epoch
    assert all({**row, 'seconds': 0} == {**firsts[0], 'seconds': 0} for row in firsts)
    assert len({(run / 'round_01' / 'split.json').read_text() for run in runs}) == 1
    # After the epoch the original has a new Adam, which has seen no step and no hypernetwork.
    states = [torch.load(run / 'round_01' / 'last.pth')['optimizer'] for run in runs]
    assert [bool(state['state']) for state in states] == [True, False, True]
    assert [len(state['param_groups'][0]['params']) for state in states] == [26, 0, 26]

    last = runs[-1] / 'round_01' / 'last.pth'
    (runs[-1] / 'round_01' / 'result.json').unlink()
    before = last.stat().st_mtime_ns
    repairs.main(options)
    assert last.stat().st_mtime_ns == before and (runs[-1] / 'round_01' / 'result.json').exists()

    # An arm that cannot be finished is left out, and those after it are finished.
    for run in runs[1:]:
        (run / 'round_01' / 'result.json').unlink()
    (runs[1] / 'round_01' / 'last.pth').write_bytes(b'damaged')
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        repairs.main(options)
    done = capsys.readouterr()
    assert end.value.code == 2
    assert (runs[-1] / 'round_01' / 'result.json').exists()
    assert f'left out: {runs[1]} has no finished round' in done.err
    assert 'minus backbone rate stays' in done.out and 'minus original' not in done.out


@pytest.mark.parametrize('epochs, rounds', [(16, 3), (16, 1), (1, 2)])
def test_each_arm_is_drawn_by_its_name_and_the_first_two_together(tmp_path, epochs, rounds):
    assert repairs.NAMES.keys() == repairs.ARMS.keys()
    assert len(set(repairs.NAMES.values())) == len(repairs.NAMES) and not any(
        '_' in name for name in repairs.NAMES.values()
    )
    curve = [0.1 + 0.8 * (epoch > 2) for epoch in range(epochs)]
    curves = {
        name: [[value + k / 100 for value in curve] for _ in range(rounds)]
        for k, name in enumerate(repairs.NAMES.values())
    }
    figure = repairs.draw_arms(curves)
    assert Image.open(io.BytesIO(plots.png(figure))).width > 1000
    main, *others = figure.axes
    assert {text.get_text() for text in main.get_legend().get_texts()} == set(list(curves)[:2])
    assert [axis.get_title() for axis in others] == list(curves)[2:]
    for axis, name in zip(others, list(curves)[2:]):
        behind, *thin, front = axis.lines
        assert list(behind.get_ydata()) == pytest.approx(curves['repaired'][0])
        assert list(front.get_ydata()) == pytest.approx(curves[name][0]) and len(thin) == rounds
    assert list(main.lines[-1].get_ydata()) == pytest.approx(curves['repaired'][0])
    low, high = main.get_ylim()
    assert epochs == 1 or 0.8 < low < 0.9 < 0.95 < high < 1  # the late epochs fill the panels


def test_figures_of_a_curve():
    curve = [0.5, 0.9, 0.7, 0.7, 0.7, 0.7, 0.7, 0.8, 0.6]
    trained = [0.5] * 8 + [0.95]
    assert repairs.figures({'test_srcc': curve, 'train_srcc': trained}) == pytest.approx(
        (0.9, 0.6, 0.7, 0.1, 0.35)
    )
    assert repairs.figures({'test_srcc': [0.3, 0.2], 'train_srcc': [0, 0.4]}) == pytest.approx(
        (0.3, 0.2, math.nan, math.nan, 0.2), nan_ok=True
    )


def test_a_run_without_late_epochs_has_empty_columns_for_them():
    short = {'test_srcc': [0.3, 0.2], 'train_srcc': [0, 0.4]}
    table = repairs.arms_table({'repaired': [short], 'original': [short]})
    assert '| repaired | 1 | 0.3000 | 0.2000 |  |  | 0.2000 |' in table


@pytest.mark.parametrize(
    'options, error',
    [
        (['--report', 'arms', '--amp'], '--report takes no other option'),
        (['--report', 'arms', '--arms', 'repaired', 'original'], '--report takes no other option'),
        (['--arms', 'original'], '--arms needs repaired'),
        (['--arms', 'repaired', 'orignal'], "invalid choice: 'orignal'"),
        # Another table in the place of the demo database.
        (['--csv', 'nosuch.csv'], 'error: there is no file nosuch.csv'),
    ],
)
def test_a_wrong_option_is_one_line(in_process, options, error):
    done = in_process(lambda words: repairs.main(words), *options)
    assert done.returncode == 2 and error in done.stderr and done.stderr.count('error: ') == 1


PHOTOS = PROJECT / 'benchmarks' / 'results' / 'livec'


def test_the_report_needs_history_files_alone(tmp_path, capsys):
    for arm in ('repaired', 'original'):
        (tmp_path / arm / 'round_01').mkdir(parents=True)
        shutil.copy(PHOTOS / arm / 'round_01' / 'history.csv', tmp_path / arm / 'round_01')
    repairs.main(['--report', str(tmp_path)])
    assert (
        '| repaired | 1 | 0.8557 | 0.8503 | 0.8509 | 0.0032 | 0.0297 |' in capsys.readouterr().out
    )
    assert (tmp_path / 'arms.png').exists()
    shutil.rmtree(tmp_path / 'original')
    with pytest.raises(SystemExit) as end:
        repairs.main(['--report', str(tmp_path)])
    assert end.value.code == 2 and 'and another arm' in capsys.readouterr().err


def test_the_picture_of_the_arms_replaces_only_an_earlier_one(tmp_path, capsys):
    for arm in ('repaired', 'original'):
        shutil.copytree(PROJECT / 'benchmarks' / 'results' / 'livec' / arm, tmp_path / arm)
    for _ in range(2):
        repairs.main(['--report', str(tmp_path)])
    mine = databases.picture(tmp_path / 'arms.png').read_bytes()
    for options in (['--report', str(tmp_path)], ['--output', str(tmp_path)]):
        with pytest.raises(SystemExit) as end:
            repairs.main(options)
        assert end.value.code == 2 and 'arms.png exists and is no such' in capsys.readouterr().err
    assert (tmp_path / 'arms.png').read_bytes() == mine


def test_an_arm_with_fewer_rounds_is_compared_without_the_adjusted_p(tmp_path, capsys):
    for arm in ('repaired', 'original', 'without_1'):
        shutil.copytree(PROJECT / 'benchmarks' / 'results' / 'demo' / arm, tmp_path / arm)
    repairs.main(['--report', str(tmp_path)])
    printed = capsys.readouterr().out
    assert 'adjusted by Holm for 2 comparisons' in printed
    # Each pair has one verdict, the adjusted one.
    assert 'better' not in printed and printed.count(' significant') == 2
    for number in (2, 3):
        shutil.rmtree(tmp_path / 'without_1' / f'round_0{number}')
    repairs.main(['--report', str(tmp_path)])
    printed = capsys.readouterr().out
    assert 'one training each says nothing about the methods' in printed and 'Holm' not in printed


def test_holms_step_down():
    assert repairs.holm([0.04, 0.01, 0.03]) == pytest.approx(
        [0.06, 0.03, 0.06]
    )  # worked out by hand
    assert repairs.holm([0.5, 0.9]) == [1, 1] and repairs.holm([0.2]) == [0.2]


@pytest.mark.parametrize('folder', ['livec', 'demo'])
def test_the_tables_in_the_docs_are_derived_from_the_results(folder):
    results = (PROJECT / 'docs' / 'results.md').read_text()
    table = repairs.arms_table(repairs.histories_of(PROJECT / 'benchmarks' / 'results' / folder))
    assert all(line in results for line in table.splitlines() if line.startswith('| '))


@pytest.mark.parametrize('name', ['cpu', 'start_cpu', 'h200'])
def test_the_tables_of_speed_are_those_of_the_results(name):
    lines = (PROJECT / 'docs' / 'speed.md').read_text().splitlines()
    speed = [
        [cell.strip() for cell in line[1:-1].split('|')] for line in lines if line.startswith('|')
    ]
    with open(PROJECT / 'benchmarks' / 'results' / f'throughput_{name}.csv', newline='') as file:
        rows = list(csv.reader(file))[1:]
    assert all(row in speed for row in rows)


def test_the_readmes_table_of_photos_is_that_of_the_results():
    readme = (PROJECT / 'README.md').read_text()
    table = repairs.arms_table(repairs.histories_of(PHOTOS))
    assert all(line in readme for line in table.splitlines() if line.startswith('| '))
