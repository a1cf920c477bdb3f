"""What each of the three repairs buys: the repaired training loop beside the loop with repairs undone.

    python benchmarks/repairs.py                                        # the demo database, three rounds, 18 trainings
    python benchmarks/repairs.py --dataset koniq --data_root DIR --device cuda --amp --output runs/repairs-koniq
    python benchmarks/repairs.py --report DIR    # only the table and arms.png, of run folders or of their history.csv alone

All options are those of train_test_IQA.py; `--output` holds a run folder for each arm, and the same command continues after an
interruption. In a round every arm has the same split, patches and initial weights.

Undoing means what the original does: (1) the backbone's learning rate stays; (2) a new Adam after every epoch; (3) the
hypernetwork's parameters are a filter object, which is empty once an optimizer has read it. With one Adam for the whole run
nothing reads them a second time, so undoing repair 3 without repair 2 changes nothing: of the eight combinations six are
distinct, the repaired loop and five others.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import HyerIQASolver
import train_test_IQA
from experiment.command_line import parse_options
from experiment.results import read_history
from util import plots
from util.errors import InputError, boundary
from util.files import write_whole

ARMS = {
    'repaired': (),
    'original': (1, 2, 3),
    'without_1': (1,),
    'without_2': (2,),
    'without_1_2': (1, 2),
    'without_2_3': (2, 3),
}
NAMES = {
    'repaired': 'repaired',
    'original': 'original (all three undone)',
    'without_1': 'backbone rate stays (1)',
    'without_2': 'new Adam every epoch (2)',
    'without_1_2': '1 and 2 undone',
    'without_2_3': '2 and 3 undone',
}
LATE = 8  # the first epoch after the first fall of the rates
DEFAULTS = ('--dataset', 'demo', '--train_test_num', '3', '--output', 'runs/repairs')


class UndoneSolver(HyerIQASolver.HyperIQASolver):
    """The solver with the repairs `undone` undone."""

    undone: tuple[int, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if 3 in self.undone:
            self.hypernet_params = filter(lambda p: True, self.hypernet_params)  # type: ignore[assignment]
            self.solver = self.new_adam(self.lr * self.lrratio, self.lr)

    def new_adam(self, hypernet_lr: float, backbone_lr: float) -> torch.optim.Adam:
        groups = [
            {'params': self.hypernet_params, 'lr': hypernet_lr},
            {'params': self.model_hyper.res.parameters(), 'lr': backbone_lr},
        ]
        return torch.optim.Adam(groups, weight_decay=self.weight_decay, fused=True)

    def set_learning_rates(self, hypernet_lr: float, backbone_lr: float) -> None:
        backbone_lr = self.lr if 1 in self.undone else backbone_lr
        if 2 in self.undone:
            self.solver = self.new_adam(hypernet_lr, backbone_lr)
        else:
            super().set_learning_rates(hypernet_lr, backbone_lr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_learning_rates(
            0, 0
        )  # the Adam that an epoch leaves; its rates come with the state
        super().load_state_dict(state)


def main(argv: list[str]) -> None:
    """Train what is left of every arm, round by round, and report; with --report alone only report."""
    if argv[:1] == ['--report'] and len(argv) == 2:
        with boundary():
            report(Path(argv[1]))
        return
    options = [*DEFAULTS, *argv]
    with boundary():
        config = parse_options(options)
    output = Path(config.output)
    for number in config.rounds or range(1, config.train_test_num + 1):
        for arm, undone in ARMS.items():
            print(f'\n{NAMES[arm]}', flush=True)
            with patch.object(
                HyerIQASolver,
                'HyperIQASolver',
                type('ArmSolver', (UndoneSolver,), {'undone': undone}),
            ):
                train_test_IQA.main(
                    [*options, '--output', str(output / arm), '--resume', '--rounds', str(number)]
                )
    with boundary():
        report(output)


def report(output: Path) -> None:
    """Print the table of the arms in `output` and draw arms.png; compare the arms where their predictions are there too."""
    arms = histories_of(output)
    print(arms_table(arms))
    curves = {
        NAMES[arm]: [history['test_srcc'] for history in rounds] for arm, rounds in arms.items()
    }
    write_whole(output / 'arms.png', plots.png(draw_arms(curves)))
    if all((output / arm / 'config.json').exists() for arm in arms):
        compare_arms([output / arm for arm in arms])


def histories_of(output: Path) -> dict[str, list[dict[str, list[float]]]]:
    """The columns of the history.csv of each round, by arm.

    Raises:
        InputError: there are fewer than two arms, or the repaired loop is not among them.
    """
    found = {
        arm: [read_history(path) for path in sorted(output.glob(f'{arm}/round_*'))] for arm in ARMS
    }
    arms = {arm: rounds for arm, rounds in found.items() if rounds}
    if 'repaired' not in arms or len(arms) < 2:
        raise InputError(
            f'{output} has no repaired/round_01/history.csv and no other arm beside it ({", ".join(ARMS)})'
        )
    return arms


def arms_table(arms: dict[str, list[dict[str, list[float]]]]) -> str:
    """A Markdown table of the arms: the mean over rounds, and of several rounds the lowest and highest in brackets."""
    lines = [
        f'Test SRCC by arm. Late epochs are epoch {LATE} and after; gap: training SRCC less test SRCC in the last epoch.',
        '',
        '| loop | rounds | best epoch (chosen on the test images) | last epoch | late mean | late deviation | gap |',
        '|---|---|---|---|---|---|---|',
    ]
    for arm, rounds in arms.items():
        cells = [spread(values) for values in zip(*map(figures, rounds))]
        lines.append(f'| {NAMES[arm]} | {len(rounds)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def compare_arms(folders: list[Path]) -> None:
    """Compare each arm with the repaired loop; of several rounds the p are adjusted for the number of comparisons."""
    runs = [run._replace(name=NAMES[run.name]) for run in compare.read_runs(folders)]
    comparisons = [compare.compare(runs[0], other) for other in runs[1:]]
    for comparison in comparisons:
        compare.print_comparison(comparison)
    if len(comparisons) > 1 and all(
        'p' in compare.main_row(rows) for rows in comparisons
    ):  # several rounds of each arm
        print(
            f'\np of the mean difference, adjusted by Holm for {len(comparisons)} comparisons; the intervals are single'
        )
        for run, rows, p in zip(
            runs[1:], comparisons, holm([compare.main_row(rows)['p'] for rows in comparisons])
        ):
            sign = 'higher' if compare.main_row(rows)['difference'] > 0 else 'lower'
            found = f'repaired is significantly {sign}' if p < 0.05 else 'no significant difference'
            print(f'  {run.name:28} {p:.3f}  {found}')
    if len(runs) == len(ARMS):
        print(
            '\nUndoing repair 3 without repair 2 changes nothing, so two of the eight combinations are left out.'
        )


def holm(values: Sequence[float]) -> list[float]:
    """The p `values` adjusted for their number by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(values)
    steps = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def draw_arms(curves: dict[str, list[list[float]]]) -> Figure:
    """The first two arms in a large panel, each other one in a small panel before the mean of the first.

    Args:
        curves: for each arm the test SRCC of every epoch of each round.
    """
    first, second, *others = curves
    figure = Figure(figsize=(11, 8 if others else 5.5), layout='constrained')
    several = any(len(rounds) > 1 for rounds in curves.values())
    figure.suptitle(
        'Test SRCC by epoch' + ': mean of the rounds (thick) and each round (thin)' * several
    )
    panels: list[Any] = [[first] * len(others), others] if others else [[first]]
    axes = figure.subplot_mosaic(
        panels, height_ratios=(2, 1)[: len(panels)], sharex=True, sharey=True
    )
    draw_rounds(axes[first], curves[second], plots.ORANGE)
    draw_mean(axes[first], curves[second], plots.ORANGE, second)
    draw_rounds(axes[first], curves[first], plots.BLUE)
    draw_mean(axes[first], curves[first], plots.BLUE, first)
    axes[first].legend(loc='lower right', reverse=True)
    for name in others:
        draw_mean(axes[name], curves[first], '#bbbbbb', f'{first}, mean')
        draw_rounds(axes[name], curves[name], plots.GREEN)
        draw_mean(axes[name], curves[name], plots.GREEN)
        axes[name].set_title(name, fontsize=10)
    if others:
        axes[others[0]].legend(loc='lower right', fontsize=8)
    for axis in axes.values():
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.tick_params(labelbottom=True)
        axis.set_xlabel('epoch')
        axis.grid(alpha=0.3)
    late = [
        value
        for rounds in curves.values()
        for curve in rounds
        for value in curve[LATE - 1 :]
        if math.isfinite(value)
    ]
    if late:  # the first epochs would take the whole axis
        low, high = min(late), max(late)
        axes[first].set_ylim(low - 0.4 * (high - low) - 0.001, high + 0.2 * (high - low) + 0.001)
    return figure


def draw_rounds(axis: Axes, rounds: list[list[float]], colour: str) -> None:
    for curve in rounds:
        axis.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.8, alpha=0.5)


def draw_mean(axis: Axes, rounds: list[list[float]], colour: str, label: str = '') -> None:
    mean = [
        statistics.fmean(values) for values in zip(*rounds)
    ]  # to the last epoch that all rounds have
    axis.plot(
        range(1, len(mean) + 1),
        mean,
        color=colour,
        linewidth=2.5,
        marker='o',
        markersize=4,
        label=label,
    )


def figures(history: dict[str, list[float]]) -> tuple[float, ...]:
    """Of a round's test SRCC by epoch: best, last, late mean and late deviation; and the gap of the last epoch."""
    curve = history['test_srcc']
    late = curve[LATE - 1 :] or curve[-1:]
    best = max((value for value in curve if not math.isnan(value)), default=math.nan)
    return (
        best,
        curve[-1],
        statistics.fmean(late),
        statistics.pstdev(late),
        history['train_srcc'][-1] - curve[-1],
    )


def spread(values: tuple[float, ...]) -> str:
    mean = f'{statistics.fmean(values):.4f}'
    return f'{mean} ({min(values):.4f}, {max(values):.4f})' if len(values) > 1 else mean


if __name__ == '__main__':
    main(sys.argv[1:])
