"""What each of the three repairs buys: the repaired training loop beside the loop with repairs undone.

    python benchmarks/repairs.py                                        # the demo database, three rounds, 18 trainings
    python benchmarks/repairs.py --dataset koniq --data_root DIR --device cuda --amp --output runs/repairs-koniq

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
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import HyerIQASolver
import train_test_IQA
from util import plots
from util.errors import boundary
from util.files import write_whole
from util.options import parse_options

ARMS = {
    'repaired': (),
    'original': (1, 2, 3),
    'without_1': (1,),
    'without_2': (2,),
    'without_1_2': (1, 2),
    'without_2_3': (2, 3),
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
        self.set_learning_rates(0, 0)  # the Adam that an epoch leaves; its rates come with the state
        super().load_state_dict(state)


def main(argv: list[str]) -> None:
    """Train what is left of every arm, round by round, and print the comparison."""
    options = [*DEFAULTS, *argv]
    with boundary():
        config = parse_options(options)
    output = Path(config.output)
    for number in config.rounds or range(1, config.train_test_num + 1):
        for arm, undone in ARMS.items():
            print(f'\n{arm}', flush=True)
            with patch.object(HyerIQASolver, 'HyperIQASolver', type('ArmSolver', (UndoneSolver,), {'undone': undone})):
                train_test_IQA.main([*options, '--output', str(output / arm), '--resume', '--rounds', str(number)])
    with boundary():
        report(output)


def report(output: Path) -> None:
    """Print the table of the arms and their comparisons with the repaired loop; draw comparison.png."""
    repaired, *others = runs = compare.read_runs([output / arm for arm in ARMS])
    print(f'\nTest SRCC; late: epochs {LATE} and after; mean over rounds, lowest and highest in brackets\n')
    print('| loop | rounds | best epoch | last epoch | late mean | late deviation |\n|---|---|---|---|---|---|')
    for run in runs:
        cells = [spread(values) for values in zip(*map(figures, curves_of(run)))]
        print(f'| {run.name} | {len(run.rounds)} | {" | ".join(cells)} |')
    comparisons = [compare.compare(repaired, other) for other in others]
    for comparison in comparisons:
        compare.print_comparison(comparison)
    figure = Figure(figsize=(9, 6), layout='constrained')
    plots.draw_curves(figure.subplots(), {run.name: curves_of(run) for run in runs})
    write_whole(output / 'comparison.png', plots.png(figure))
    print('\nUndoing repair 3 without repair 2 changes nothing, so two of the eight combinations are left out.', flush=True)


def curves_of(run: compare.Run) -> list[list[float]]:
    """The test SRCC of every epoch, of each round."""
    return [history['test_srcc'] for history in run.histories.values()]


def figures(curve: list[float]) -> tuple[float, float, float, float]:
    """Best, last, late mean and late deviation of a round's test SRCC by epoch."""
    late = curve[LATE - 1 :] or curve[-1:]
    best = max((value for value in curve if not math.isnan(value)), default=math.nan)
    return best, curve[-1], statistics.fmean(late), statistics.pstdev(late)


def spread(values: tuple[float, ...]) -> str:
    return f'{statistics.fmean(values):.3f} ({min(values):.3f}, {max(values):.3f})'


if __name__ == '__main__':
    main(sys.argv[1:])
