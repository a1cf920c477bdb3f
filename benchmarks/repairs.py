"""Train the repaired loop and loops with repairs undone, and compare them.

examples:
  python benchmarks/repairs.py                               the demo database, 18 trainings
  python benchmarks/repairs.py --dataset koniq --data_root DIR --device cuda --amp
  python benchmarks/repairs.py --csv FILE --arms repaired original
  python benchmarks/repairs.py --report DIR                  print the table and draw arms.png again

All other options are those of train_test_IQA.py; without them the demo database is trained on, in
three rounds, into runs/repairs. The folder of `--output` gets a run folder for each arm, and the
same command continues after an interruption. In a round every arm has the same split, patches and
initial weights. `--report` needs the run folders, or only their history.csv files.

With a repair undone the loop does what the original does:

1. The backbone's learning rate stays.
2. A new Adam is made after every epoch.
3. The hypernetwork's parameters are a `filter` object, which is empty once an optimizer has read
   it.

With one Adam for the whole run nothing reads the `filter` object a second time, so undoing repair 3
without repair 2 changes nothing. Of the eight combinations six are distinct: the repaired loop and
five others.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
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
import rounds
import train_test_IQA
from experiment.command_line import parse_options
from experiment.options import Parser
from experiment.results import read_history
from experiment.run_folder import round_path
from HyerIQASolver import HyperIQASolver
from util import plots
from util.errors import InputError, boundary, log
from util.files import check_output, refuse_other_content, write_whole

# The numbers of the repairs that each arm undoes.
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
DEFAULTS = ('--train_test_num', '3', '--output', 'runs/repairs')

History = dict[str, list[float]]  # the columns of a history.csv


class UndoneSolver(HyperIQASolver):
    """The solver with the repairs undone whose numbers are in `undone`."""

    def __init__(self, *args: Any, undone: Sequence[int], **options: Any) -> None:
        super().__init__(*args, **options)
        self.undone = undone
        if 3 in undone:
            hypernet_params = filter(lambda p: True, self.hypernet_params)
            self.hypernet_params = hypernet_params  # type: ignore[assignment]
            # The original's first Adam reads the object too, and so empties it.
            self.solver = self.new_adam(self.lr * self.lrratio, self.lr)

    def new_adam(self, hypernet_lr: float, backbone_lr: float) -> torch.optim.Adam:
        """An Adam as in the repaired loop, of `hypernet_params` as it is: a list or a `filter`."""
        groups = [
            {'params': self.hypernet_params, 'lr': hypernet_lr},
            {'params': self.model_hyper.res.parameters(), 'lr': backbone_lr},
        ]
        return torch.optim.Adam(groups, weight_decay=self.weight_decay, fused=True)

    def set_learning_rates(self, hypernet_lr: float, backbone_lr: float) -> None:
        """Called by the solver after each epoch."""
        if 1 in self.undone:
            backbone_lr = self.lr
        if 2 in self.undone:
            self.solver = self.new_adam(hypernet_lr, backbone_lr)
        else:
            super().set_learning_rates(hypernet_lr, backbone_lr)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # The state was saved after an epoch. With 2 and 3 undone the Adam had lost the
        # hypernetwork's parameters by then, so such an Adam is made first. Its rates are those of
        # the state.
        self.set_learning_rates(0, 0)
        super().load_state_dict(state)


def main(argv: list[str]) -> None:
    """Train what is left of every arm, round by round, and report; with --report only report."""
    # Training is outside of this boundary, since `train_test_IQA.main` has one of its own.
    with boundary():
        own, options = parse_own_options(argv)
        if own.report:
            report(own.report)
            return
        config = parse_options(options)
        # Before hours of training, and not only at its end.
        refuse_other_content(Path(config.output) / 'arms.png')
    output = Path(config.output)
    failed = False
    for number in config.rounds or range(1, config.train_test_num + 1):
        for arm in own.arms:
            print(f'\n{NAMES[arm]}', flush=True)
            place = ['--output', str(output / arm), '--resume', '--rounds', str(number)]
            history = round_path(output / arm, number) / 'history.csv'
            # If `options` has an --output too, the last one counts.
            failed |= not train_arm([*options, *place], ARMS[arm], history)
    with boundary():
        report(output)
    if failed:
        sys.exit(2)


def parse_own_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """`--arms` and `--report`, and the options for train_test_IQA.py.

    Raises:
        InputError: an arm is unknown, the repaired loop is missing, or --report is not the only
            option.
    """
    parser = Parser(
        'Train the repaired loop and loops with repairs undone, and compare them.', __doc__
    )
    parser.add_argument(
        '--arms',
        nargs='+',
        choices=ARMS,
        metavar='ARM',
        help=f'train only these: repaired and others of {", ".join(ARMS)} (default: all)',
    )
    parser.add_argument(
        '--report',
        type=Path,
        metavar='DIR',
        help='train nothing; print the table of the arms in DIR and draw DIR/arms.png',
    )
    own, options = parser.parse_known_args(argv)
    if own.report and (options or own.arms):
        raise InputError('--report takes no other option')
    own.arms = own.arms or list(ARMS)
    if 'repaired' not in own.arms or len(own.arms) < 2:
        raise InputError('--arms needs repaired, to which the others are compared, and another arm')
    # The two may be written as --dataset=NAME and --csv=FILE.
    names_database = any(word.startswith(('--dataset', '--csv')) for word in options)
    if not names_database:
        options = ['--dataset', 'demo', *options]
    return own, [*DEFAULTS, *options]


def train_arm(options: list[str], undone: Sequence[int], history: Path) -> bool:
    """Train one round of an arm.

    A loop that diverges must not stop the others. A fault of the command or the database shows
    before the first epoch, and stops every arm.

    Args:
        undone: the numbers of the repairs that are undone.
        history: the round's history.csv.

    Returns:
        whether it was finished; False if it failed after its first epoch.
    """
    # rounds.py makes its solvers by the name HyperIQASolver in its own module.
    solver = partial(UndoneSolver, undone=undone)
    with patch.object(rounds, 'HyperIQASolver', solver):
        try:
            train_test_IQA.main(options)
        except SystemExit as end:
            # 2 is the exit code of every fault.
            if end.code != 2 or not history.exists():
                raise
            return False
    return True


def report(output: Path) -> None:
    """Print the table of the arms in a folder, draw arms.png and say where it is.

    The arms are also compared image by image if their run folders are there.
    """
    arms = histories_of(output)
    check_output(output / 'arms.png', ['.png'])
    print(arms_table(arms))
    curves = {}
    for arm, histories in arms.items():
        curves[NAMES[arm]] = [history['test_srcc'] for history in histories]
    write_whole(output / 'arms.png', plots.png(draw_arms(curves)))
    print(f'\nPicture: {output / "arms.png"}')
    folders = [output / arm for arm in arms]
    if all((folder / 'config.json').exists() for folder in folders):
        compare_arms(folders)


def histories_of(output: Path) -> dict[str, list[History]]:
    """The history of each round, by arm.

    Raises:
        InputError: there are fewer than two arms, or the repaired loop is not among them.
    """
    arms = {}
    for arm in ARMS:
        histories = [read_history(path) for path in sorted(output.glob(f'{arm}/round_*'))]
        if histories:
            arms[arm] = histories
    if 'repaired' not in arms or len(arms) < 2:
        raise InputError(
            f'{output} needs repaired/round_01/history.csv and another arm ({", ".join(ARMS)})'
        )
    return arms


# The table.


def arms_table(arms: Mapping[str, list[History]]) -> str:
    """A Markdown table of the arms: the mean over rounds.

    With several rounds the lowest and highest value are in brackets.
    """
    lines = [
        f'Test SRCC by arm. Late mean and late deviation are those of epoch {LATE} and after; '
        'the gap is the training SRCC minus the test SRCC of the last epoch.',
        '',
        '| loop | rounds | best epoch (chosen on the test images) | last epoch '
        '| late mean | late deviation | gap |',
        '|---|---|---|---|---|---|---|',
    ]
    for arm, histories in arms.items():
        figures_of_rounds = [figures(history) for history in histories]
        cells = [spread(values) for values in zip(*figures_of_rounds)]
        lines.append(f'| {NAMES[arm]} | {len(histories)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def figures(history: History) -> tuple[float, float, float, float, float]:
    """A round's figures, in the order of the table's columns.

    Returns:
        the test SRCC of the best and of the last epoch, its mean and standard deviation over the
        late epochs (nan in a shorter run), and the last epoch's training SRCC minus its test SRCC.
    """
    curve = history['test_srcc']
    late = curve[LATE - 1 :]
    late_mean = statistics.fmean(late) if late else math.nan
    late_deviation = statistics.pstdev(late) if late else math.nan
    best = max((value for value in curve if not math.isnan(value)), default=math.nan)
    gap = history['train_srcc'][-1] - curve[-1]
    return best, curve[-1], late_mean, late_deviation, gap


def spread(values: Sequence[float]) -> str:
    """The mean of a figure over rounds, and with several rounds its lowest and highest value.

    Empty if the figure is undefined in a round.
    """
    if any(math.isnan(value) for value in values):
        return ''
    mean = f'{statistics.fmean(values):.4f}'
    if len(values) == 1:
        return mean
    return f'{mean} ({min(values):.4f}, {max(values):.4f})'


# The comparison.


def compare_arms(folders: Sequence[Path]) -> None:
    """Compare each arm with the repaired loop, the first one.

    The p of several comparisons are adjusted for their number, and only the adjusted p decide.
    """
    runs = []
    for folder in folders:
        try:
            runs.append(compare.read_run(folder, NAMES[folder.name]))
        except InputError as reason:
            log(f'left out: {reason}')
    if len(runs) < 2 or runs[0].name != NAMES['repaired']:
        return
    repaired, *others = runs
    comparisons = [compare.compare(repaired, other) for other in others]
    # A comparison has a p only if both runs have several rounds.
    main_rows = [compare.main_row(rows) for rows in comparisons]
    with_p = [row for row in main_rows if 'p' in row]
    is_adjusted = len(with_p) > 1
    for rows, row in zip(comparisons, main_rows):
        compare.print_comparison(rows)
        if not (is_adjusted and 'p' in row):
            print(f'  {compare.verdict(rows)}')
    if is_adjusted:
        print_adjusted(with_p)
    if len(folders) == len(ARMS):
        print(
            '\nUndoing repair 3 without repair 2 changes nothing, '
            'so two of the eight combinations are left out.'
        )


def print_adjusted(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the p of the comparisons, adjusted for their number."""
    print(
        f'\np of the mean difference, adjusted by Holm for {len(rows)} comparisons; '
        'the intervals are not adjusted'
    )
    width = max(map(len, NAMES.values())) + 1
    for row, p in zip(rows, holm([row['p'] for row in rows])):
        if p >= 0.05:
            found = 'no significant difference'
        elif row['difference'] > 0:
            found = 'repaired is significantly higher'
        else:
            found = 'repaired is significantly lower'
        print(f'  {row["second"]:{width}} {p:.3f}  {found}')


def holm(values: Sequence[float]) -> list[float]:
    """The p values adjusted for their number by Holm's step-down procedure.

    Holm, Scandinavian Journal of Statistics 6, 1979: the smallest p is multiplied by the number of
    values, the next one by that number minus 1, and so on. The adjusted p keep the order of the p.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0  # of the adjusted p so far
    for rank, k in enumerate(np.argsort(values)):
        factor = len(values) - rank
        largest = max(largest, min(values[k] * factor, 1.0))
        adjusted[k] = largest
    return adjusted


# The picture.


def draw_arms(curves: Mapping[str, list[list[float]]]) -> Figure:
    """Draw the first two arms in a large panel, and each other one in a small panel.

    In a small panel the mean of the first arm stands behind the other one.

    Args:
        curves: for each arm the test SRCC of every epoch of each round.
    """
    first, second, *others = curves  # the names of the arms
    if others:
        # One wide panel for the first two arms, above a panel for each other arm.
        figure = Figure(figsize=(11, 8), layout='constrained')
        panels: Any = [[first] * len(others), others]
        heights = [2, 1]
    else:
        figure = Figure(figsize=(11, 5.5), layout='constrained')
        panels = [[first]]
        heights = [1]
    axes = figure.subplot_mosaic(panels, height_ratios=heights, sharex=True, sharey=True)
    title = 'Test SRCC by epoch'
    if any(len(curves_of_arm) > 1 for curves_of_arm in curves.values()):
        title += ': mean of the rounds (thick) and each round (thin)'
    figure.suptitle(title)

    # The first arm is drawn last, so that its lines are on top. In the legend it is the first.
    large = axes[first]
    draw_rounds(large, curves[second], plots.ORANGE)
    draw_mean(large, curves[second], plots.ORANGE, second)
    draw_rounds(large, curves[first], plots.BLUE)
    draw_mean(large, curves[first], plots.BLUE, first)
    large.legend(loc='lower right', reverse=True)
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
    zoom_to_late_epochs(large, curves)
    return figure


def draw_rounds(axis: Axes, curves: Sequence[list[float]], colour: str) -> None:
    for curve in curves:
        axis.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.8, alpha=0.5)


def draw_mean(axis: Axes, curves: Sequence[list[float]], colour: str, label: str = '') -> None:
    # zip ends with the last epoch that all rounds have.
    mean = [statistics.fmean(values) for values in zip(*curves)]
    epochs = range(1, len(mean) + 1)
    axis.plot(epochs, mean, color=colour, linewidth=2.5, marker='o', markersize=4, label=label)


def zoom_to_late_epochs(axis: Axes, curves: Mapping[str, list[list[float]]]) -> None:
    """Limit the shared y axis to the late epochs: the first ones would take nearly all of it."""
    late = []
    for curves_of_arm in curves.values():
        for curve in curves_of_arm:
            late += [value for value in curve[LATE - 1 :] if math.isfinite(value)]
    if late:
        low = min(late)
        high = max(late)
        margin = high - low
        # There is room for the legend below, and the range is not empty if all values are equal.
        axis.set_ylim(low - 0.4 * margin - 0.001, high + 0.2 * margin + 0.001)


if __name__ == '__main__':
    main(sys.argv[1:])
