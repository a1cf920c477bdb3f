"""Compare what runs have left behind, image by image.

    python compare.py runs/koniq-seed0 runs/koniq-mine [RUN ...] [--csv FILE] [--plot FILE]

Prints each run's SRCC and PLCC, and for each pair of runs the difference of their SRCC: in every round on the same test
images, with its interval, and over the rounds. An interval of a difference is narrower than those of the two values, since
both runs see the same easy and difficult images.
"""

from util import program  # before the others, see there

# isort: split
import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from util.errors import InputError
from util.files import read_table, refuse_unwritable, write_table, write_whole
from util.metrics import Round, intervals, median_interval, plcc, resampled, srcc
from util.run_folder import read_predictions, read_record, round_path, rounds_in

COLUMNS = ('first', 'second', 'round', 'first_srcc', 'second_srcc', 'difference', 'low', 'high')


class Run(NamedTuple):
    """The finished rounds of a run by their 1-based number: test images, and the test SRCC of every epoch."""

    name: str
    rounds: dict[int, Round]
    curves: dict[int, list[float]]


class Comparison(NamedTuple):
    """Two runs on the same test images: `rows` with COLUMNS, one for each round, and last of all one for their median."""

    first: Run
    second: Run
    rows: list[dict[str, Any]]
    p: float


def main(argv: list[str] | None = None) -> None:
    with program.boundary():
        options = parse_options(argv)
        for path, start in ((options.csv, ','.join(COLUMNS).encode()), (options.plot, b'\x89PNG')):
            if path:
                refuse_unwritable(path, start=start)
        runs = read_runs(options.runs)
        print_runs(runs)
        comparisons = [compare(first, second) for first, second in itertools.combinations(runs, 2)]
        for comparison in comparisons:
            print_comparison(comparison)
        if options.csv:
            write_table(options.csv, COLUMNS, [row for comparison in comparisons for row in comparison.rows])
        if options.plot:
            write_picture(options.plot, runs, comparisons)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare runs on the same test images.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='two run folders or more')
    parser.add_argument('--csv', metavar='FILE', help='write every difference as a table too')
    parser.add_argument('--plot', metavar='FILE', help='draw the test SRCC by epoch and the differences as a PNG')
    options = program.parse(parser, argv)
    if len(options.runs) < 2:
        parser.error('give two run folders or more')
    return options


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The runs in the folders `paths`, named as shortly as tells them apart.

    Raises:
        InputError: a folder is no run folder, holds no finished round with a test part, or is given twice.
    """
    folders = [Path(path).resolve() for path in paths]
    if len(set(folders)) < len(folders):
        raise InputError('a run is given twice; give different run folders')
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [read_run(folder, name) for folder, name in zip(folders, names)]


def read_run(folder: Path, name: str) -> Run:
    read_record(folder / 'config.json')
    finished = [number for number in rounds_in(folder) if (round_path(folder, number) / 'result.json').exists()]
    read = {number: read_predictions(round_path(folder, number) / 'predictions.csv') for number in finished}
    rounds = {number: tested for number, tested in read.items() if tested.images}
    if not rounds:
        raise InputError(f'{folder} holds no finished round with test images; its command with --resume finishes it')
    return Run(name, rounds, {number: read_curve(round_path(folder, number) / 'history.csv') for number in rounds})


def read_curve(path: Path) -> list[float]:
    """The test SRCC of every epoch."""
    try:
        return [float(row['test_srcc']) for row in read_table(path)]
    except (KeyError, ValueError) as error:
        raise InputError(f'{path} is not the history of a run: {error}')


def compare(first: Run, second: Run) -> Comparison:
    """The difference of the SRCC of two runs, first less second, in the rounds that both have finished.

    Raises:
        InputError: they share no round, or the test images or scores of a round differ.
    """
    numbers = sorted(first.rounds.keys() & second.rounds.keys())
    if not numbers:
        raise InputError(f'{first.name} and {second.name} have finished no round in common')
    pairs = [same_images(number, first, second) for number in numbers]
    values = resampled([tested for pair in pairs for tested in pair])[0]
    differences = values[::2] - values[1::2]
    rows: list[list[Any]] = []
    for number, pair, resamples in zip(numbers, pairs, differences):
        one, other = (srcc(tested.predicted, tested.subjective) for tested in pair)
        rows.append([first.name, second.name, str(number), one, other, one - other, *median_interval(resamples[None])])
    medians = np.median([row[3:6] for row in rows], axis=0).tolist()
    p = signed_rank_p([row[5] for row in rows])
    rows.append([first.name, second.name, 'median', *medians, *median_interval(differences)])
    return Comparison(first, second, [dict(zip(COLUMNS, row)) for row in rows], p)


def same_images(number: int, first: Run, second: Run) -> tuple[Round, Round]:
    """The test images of a round in two runs, those of the second in the order of the first."""
    one, other = first.rounds[number], second.rounds[number]
    position = {name: k for k, name in enumerate(other.images)}
    for run, names, others in ((first, one.images, position.keys()), (second, other.images, set(one.images))):
        alone = [name for name in names if name not in others]
        if alone:
            raise InputError(
                f'{first.name} and {second.name} cannot be compared: in round {number} {run.name} alone tests {len(alone)} of '
                f'its {len(names)} images, the first of them {alone[0]}; --split FILE gives a run the split.json of another'
            )
    order = [position[name] for name in one.images]
    differ = [name for name, a, b in zip(one.images, one.subjective, other.subjective[order]) if a != b]
    if differ:
        raise InputError(
            f'{first.name} and {second.name} cannot be compared: in round {number} the labels of {len(differ)} images differ, '
            f'the first of them {differ[0]}'
        )
    return one, Round(one.images, one.contents, one.subjective, other.predicted[order])


def signed_rank_p(differences: list[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that the differences of the rounds are symmetric about 0."""
    changed = [difference for difference in differences if difference]
    return float(stats.wilcoxon(changed).pvalue) if changed and not any(map(math.isnan, changed)) else 1.0


def print_runs(runs: list[Run]) -> None:
    width = max(len(run.name) for run in runs)
    print(f'{"":{width}s}  rounds  median SRCC              median PLCC')
    for run in runs:
        rounds = list(run.rounds.values())
        ranges = intervals(rounds)
        cells = []
        for name, metric in (('SRCC', srcc), ('PLCC', plcc)):
            median = float(np.median([metric(tested.predicted, tested.subjective) for tested in rounds]))
            cells.append(f'{median:.4f} {shown(ranges[f"{name}_interval"], ".3f"):16s}')
        print(f'{run.name:{width}s}  {len(rounds):6d}  {"  ".join(cells)}'.rstrip())


def print_comparison(comparison: Comparison) -> None:
    *rounds, median = comparison.rows
    first, second = comparison.first.name, comparison.second.name
    print(f'\n{first} less {second}: SRCC on the same test images')
    for row in comparison.rows:
        print(
            f'  {"round " * (row is not median) + row["round"]:9s} {row["difference"]:+.4f} {shown(interval_of(row), "+.4f")}'
        )
    wins, losses = (sum(sign * row['difference'] > 0 for row in rounds) for sign in (1, -1))
    print(
        f'  of {len(rounds)} rounds {first} is ahead in {wins}, {second} in {losses}; Wilcoxon signed-rank p {comparison.p:.3g}'
    )
    print(f'  {verdict(comparison)}', flush=True)


def verdict(comparison: Comparison) -> str:
    """One sentence, which calls a run better only where the interval of the median difference leaves out 0."""
    first, second = comparison.first.name, comparison.second.name
    low, high = interval_of(comparison.rows[-1])
    if low > 0:
        return f'{first} is better than {second}: the interval of the median difference lies above 0'
    if high < 0:
        return f'{second} is better than {first}: the interval of the median difference lies below 0'
    reason = 'holds 0' if low <= 0 <= high else 'is not defined'
    return f'No difference between {first} and {second} is shown: the interval of the median {reason}'


def interval_of(row: dict[str, Any]) -> tuple[float, float]:
    return row['low'], row['high']


def shown(interval: Sequence[float], form: str) -> str:
    return f'[{interval[0]:{form}}, {interval[1]:{form}}]'


def write_picture(path: Path | str, runs: list[Run], comparisons: list[Comparison]) -> None:
    from util import plots

    curves = {run.name: list(run.curves.values()) for run in runs}
    write_whole(path, plots.comparison(curves, {f'{c.first.name} less\n{c.second.name}': c.rows for c in comparisons}))


if __name__ == '__main__':
    main()
