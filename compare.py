"""Compare what runs have left behind, image by image.

    python compare.py runs/koniq-seed0 runs/koniq-mine [--csv FILE] [--plot FILE]
    python compare.py runs/*

Prints each run's SRCC and PLCC, and for two runs the difference of their SRCC: in every round on the same test images, with its
interval, and over the rounds. An interval of a difference is narrower than those of the two values, since both runs see the
same easy and difficult images.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from util import plots
from util.errors import InputError, boundary
from util.files import check_output, named, write_table, write_whole
from util.metrics import TestedImages, intervals, median_interval, plcc, resampled, srcc
from util.options import Parser, read_record
from util.run_folder import read_columns, read_predictions, round_path, rounds_in

COLUMNS = ('first', 'second', 'round', 'first_srcc', 'second_srcc', 'difference', 'low', 'high')


class Run(NamedTuple):
    """The finished rounds of a run by their 1-based number: test images, and the test SRCC of every epoch."""

    name: str
    rounds: dict[int, TestedImages]
    curves: dict[int, list[float]]


class Comparison(NamedTuple):
    """Two runs on the same test images: `rows` with COLUMNS, one for each round, and last of all one for their median."""

    first: Run
    second: Run
    rows: list[dict[str, Any]]
    p: float


def main(argv: list[str] | None = None) -> None:
    with boundary():
        options = parse_options(argv)
        if options.csv:
            check_output(options.csv, ['.csv'], ','.join(COLUMNS))
        if options.plot:
            check_output(options.plot, ['.png'])
        runs = read_runs(options.runs)
        print_runs(runs)
        if len(runs) == 2:
            comparison = compare(*runs)
            print_comparison(comparison)
            if options.csv:
                write_table(options.csv, COLUMNS, comparison.rows)
            if options.plot:
                curves = {run.name: list(run.curves.values()) for run in runs}
                write_whole(options.plot, plots.comparison(curves, comparison.rows))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser('Compare runs on the same test images.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='two run folders or more')
    parser.add_argument('--csv', metavar='FILE', help='write every difference as a table too')
    parser.add_argument('--plot', metavar='FILE', help='draw the test SRCC by epoch and the differences as a PNG')
    options = parser.parse_args(argv)
    if len(options.runs) < 2 or (len(options.runs) > 2 and (options.csv or options.plot)):
        raise InputError('give two run folders; more without --csv and --plot')
    return options


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The runs in the folders `paths`, by the shortest names that differ.

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
    read = {number: read_predictions(round_path(folder, number) / 'predictions.csv') for number in rounds_in(folder)}
    rounds = {number: tested for number, tested in read.items() if tested.images}
    if not rounds:
        raise InputError(f'{folder} holds no finished round with test images; its command with --resume finishes it')
    return Run(name, rounds, {number: read_curve(round_path(folder, number) / 'history.csv') for number in rounds})


def read_curve(path: Path) -> list[float]:
    """The test SRCC of every epoch."""
    columns = read_columns(path)
    with named(path, 'a table'):
        return [float(value) for value in columns['test_srcc']]


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


def same_images(number: int, first: Run, second: Run) -> tuple[TestedImages, TestedImages]:
    """The test images of a round in two runs, those of the second in the order of the first."""
    one, other = first.rounds[number], second.rounds[number]
    refused = f'{first.name} and {second.name} cannot be compared: in round {number}'
    for run, names, others in ((first, one.images, set(other.images)), (second, other.images, set(one.images))):
        alone = [name for name in names if name not in others]
        if alone:
            what = f'{run.name} alone tests {len(alone)} of its {len(names)} images, the first of them {alone[0]}'
            raise InputError(f'{refused} {what}; --split FILE gives a run the split.json of another')
    position = {name: k for k, name in enumerate(other.images)}
    order = [position[name] for name in one.images]
    differ = [name for name, a, b in zip(one.images, one.subjective, other.subjective[order]) if a != b]
    if differ:
        raise InputError(f'{refused} the labels of {len(differ)} images differ, the first of them {differ[0]}')
    return one, TestedImages(one.images, one.contents, one.subjective, other.predicted[order])


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
        name = 'round ' * (row is not median) + row['round']
        print(f'  {name:9s} {row["difference"]:+.4f} {shown((row["low"], row["high"]), "+.4f")}')
    wins, losses = (sum(sign * row['difference'] > 0 for row in rounds) for sign in (1, -1))
    ahead = f'{first} is ahead in {wins}, {second} in {losses}'
    print(f'  of {len(rounds)} rounds {ahead}; Wilcoxon signed-rank p {comparison.p:.3g}')
    print(f'  {verdict(comparison)}', flush=True)


def verdict(comparison: Comparison) -> str:
    """One sentence, which calls a run better only where the interval of the median difference leaves out 0."""
    first, second = comparison.first.name, comparison.second.name
    low, high = (comparison.rows[-1][end] for end in ('low', 'high'))
    if low > 0:
        return f'{first} is better than {second}: the interval of the median difference is above 0'
    if high < 0:
        return f'{second} is better than {first}: the interval of the median difference is below 0'
    reason = 'holds 0' if low <= 0 <= high else 'is not defined'
    return f'No difference between {first} and {second} is shown: the interval of the median {reason}'


def shown(interval: Sequence[float], form: str) -> str:
    return f'[{interval[0]:{form}}, {interval[1]:{form}}]'


if __name__ == '__main__':
    main()
