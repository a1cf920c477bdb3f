"""Compare what runs have left behind, image by image.

    python compare.py runs/koniq-seed0 runs/koniq-mine [--csv FILE] [--plot FILE]
    python compare.py runs/*

Prints each run's SRCC and PLCC, and for two runs their differences on the same test images. An interval of a difference is
narrower than those of the two values, since both runs see the same easy and difficult images. What it is about depends on the
rounds that both runs have finished:

- one round: the test images alone, since a single training of each says nothing about the methods
- rounds with different test images: the mean difference, with the corrected resampled t-test of Nadeau and Bengio (2003)
- rounds with the same test images: the median difference, by drawing images and rounds
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import folders
from experiment.options import Parser, with_defaults
from experiment.record import FREE_OPTIONS, read_record
from experiment.report import with_intervals
from experiment.results import read_history, read_predictions
from experiment.run_folder import round_path, rounds_in
from util import metrics, plots
from util.errors import InputError, boundary
from util.files import check_output, read_json, write_table, write_whole
from util.metrics import TestedImages

COLUMNS = (
    'first',
    'second',
    'metric',
    'round',
    'first_value',
    'second_value',
    'difference',
    'low',
    'high',
    'p',
)
LAST = 'last epoch'


class Run(NamedTuple):
    """The finished rounds of a run by their 1-based number: test images at the best epoch, epochs, and parts of the split."""

    name: str
    record: dict[str, Any]
    rounds: dict[int, TestedImages]
    histories: dict[int, dict[str, list[float]]]
    splits: dict[int, dict[str, Any]]


def main(argv: list[str] | None = None) -> None:
    with boundary():
        options = parse_options(argv)
        if options.csv:
            check_output(options.csv, ['.csv'], ','.join(COLUMNS) + '\n')
        if options.plot:
            check_output(options.plot, ['.png'])
        runs = read_runs(options.runs)
        print_runs(runs)
        if len(runs) == 2:
            rows = compare(*runs)
            print_comparison(rows)
            if options.csv:
                write_table(options.csv, COLUMNS, rows)
            if options.plot:
                curves = {
                    run.name: [history['test_srcc'] for history in run.histories.values()]
                    for run in runs
                }
                shown = [row for row in rows if row['metric'] == 'SRCC' and row['round'] != LAST]
                write_whole(options.plot, plots.comparison(curves, shown))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser('Compare runs on the same test images.', __doc__)
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='RUN',
        help='two run folders: their difference; more: a table of them',
    )
    parser.add_argument('--csv', metavar='FILE', help='write every difference as a table too')
    parser.add_argument(
        '--plot', metavar='FILE', help='draw the test SRCC by epoch and the differences as a PNG'
    )
    options = parser.parse_args(argv)
    if len(options.runs) < 2 or (len(options.runs) > 2 and (options.csv or options.plot)):
        raise InputError('give two run folders; more without --csv and --plot')
    return options


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The runs in the folders `paths`, by the shortest names that differ.

    Raises:
        InputError: a folder is no run folder, has no finished round with a test part, or is given twice.
    """
    folders = [Path(path).resolve() for path in paths]
    if len(set(folders)) < len(folders):
        raise InputError('a run is given twice; give different run folders')
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [read_run(folder, name) for folder, name in zip(folders, names)]


def read_run(folder: Path, name: str) -> Run:
    record = read_record(folder / 'config.json')
    paths = {number: round_path(folder, number) for number in rounds_in(folder)}
    read = {number: read_predictions(path / 'predictions.csv') for number, path in paths.items()}
    rounds = {number: tested for number, tested in read.items() if tested.images}
    if not rounds:
        raise InputError(
            f'{folder} has no finished round with test images; --resume {folder} finishes it'
        )
    histories = {number: read_history(paths[number]) for number in rounds}
    return Run(
        name,
        record,
        rounds,
        histories,
        {number: read_json(paths[number] / 'split.json') for number in rounds},
    )


def compare(first: Run, second: Run) -> list[dict[str, Any]]:
    """The differences of the SRCC and PLCC of two runs, first less second, in the rounds that both have finished.

    Returns:
        rows with COLUMNS, for SRCC and then PLCC: one for each round, of two or more rounds one for their 'mean' or 'median',
        and one for the last epochs. Without an interval `low` and `high` are nan, and `reason` may say why.

    Raises:
        InputError: they share no round, or the test images or scores of a round differ.
    """
    numbers = sorted(first.rounds.keys() & second.rounds.keys())
    if not numbers:
        raise InputError(f'{first.name} and {second.name} have finished no round in common')
    pairs = [same_images(number, first, second) for number in numbers]
    is_drawn = len({frozenset(one.images) for one, _ in pairs}) > 1
    splits = [run.splits[number] for run in (first, second) for number in numbers]
    ratio = float(
        np.mean(
            [
                len(split['test']) / (len(split['train']) + len(split.get('val', [])))
                for split in splits
            ]
        )
    )
    resamples = metrics.resampled([tested for pair in pairs for tested in pair])
    rows = []
    for metric, values in zip(metrics.CORRELATIONS, resamples[:, ::2] - resamples[:, 1::2]):
        found = [row_of_round(metric, *row) for row in zip(numbers, pairs, values)]
        last = [
            row_of(
                LAST, *(run.histories[k][f'test_{metric.lower()}'][-1] for run in (first, second))
            )
            for k in numbers
        ]
        if len(pairs) == 1:
            found += last
        elif is_drawn:
            found += [row_of_mean(found, ratio), {**row_of_mean(last, ratio), 'round': LAST}]
        else:
            found += [row_of_median(found, values), {**row_of_median(last), 'round': LAST}]
        rows += [
            {'first': first.name, 'second': second.name, 'metric': metric, **row} for row in found
        ]
    return rows


def same_images(number: int, first: Run, second: Run) -> tuple[TestedImages, TestedImages]:
    """The test images of a round in two runs, those of the second in the order of the first."""
    one, other = first.rounds[number], second.rounds[number]
    refused = f'{first.name} and {second.name} cannot be compared: in round {number}'
    alone = sorted(set(one.images) ^ set(other.images))
    if alone:
        what = f'{len(alone)} images are tested by one of them alone, the first is {alone[0]}'
        raise InputError(f'{refused} {what}; --split RUN trains a run on the splits of another')
    position = {name: k for k, name in enumerate(other.images)}
    order = [position[name] for name in one.images]
    differ = [
        name for name, a, b in zip(one.images, one.subjective, other.subjective[order]) if a != b
    ]
    if differ:
        raise InputError(
            f'{refused} the labels of {len(differ)} images differ, the first of them {differ[0]}'
        )
    return one, TestedImages(one.images, one.contents, one.subjective, other.predicted[order])


def row_of(name: str, one: float, other: float) -> dict[str, Any]:
    return dict(zip(COLUMNS[3:9], (name, one, other, one - other, math.nan, math.nan)))


def row_of_round(
    metric: str, number: int, pair: tuple[TestedImages, TestedImages], resamples: np.ndarray
) -> dict[str, Any]:
    """The difference in a round, with its interval over the test images: no interval is about trainings."""
    one, other = (metrics.of_kept(tested, metrics.CORRELATIONS[metric]) for tested in pair)
    everything = np.full(len(pair[0].images), True)
    row = row_of(str(number), one(everything), other(everything))
    try:
        if metrics.has_groups(pair[0]):
            low, high = metrics.jackknife(pair[0].contents, lambda kept: one(kept) - other(kept))
        else:
            low, high = metrics.median_interval(resamples[None])
        return {**row, 'low': low, 'high': high}
    except metrics.NoIntervalError as reason:
        return {**row, 'reason': str(reason)}


def row_of_mean(rows: list[dict[str, Any]], ratio: float) -> dict[str, Any]:
    """The mean over rounds that draw from the same images."""
    one, other = (
        float(np.mean([row[name] for row in rows])) for name in ('first_value', 'second_value')
    )
    (low, high), p = metrics.corrected_t([row['difference'] for row in rows], ratio)
    return {**row_of('mean', one, other), 'low': low, 'high': high, 'p': p}


def row_of_median(
    rows: list[dict[str, Any]], resamples: np.ndarray | None = None
) -> dict[str, Any]:
    """The median over rounds with the same test images; its interval is over images and rounds."""
    row = {
        name: float(np.median([row[name] for row in rows]))
        for name in ('first_value', 'second_value', 'difference')
    }
    low, high = (
        metrics.median_interval(resamples) if resamples is not None else (math.nan, math.nan)
    )
    return {**row, 'round': 'median', 'low': low, 'high': high}


def print_runs(runs: list[Run]) -> None:
    """Print a line for each run, the highest SRCC first."""
    lines = []
    for run in runs:
        rounds = list(run.rounds.values())
        values = [
            [metric(r.predicted, r.subjective) for r in rounds]
            for metric in metrics.CORRELATIONS.values()
        ]
        median = dict(zip(metrics.CORRELATIONS, np.median(values, axis=1).tolist()))
        last = f'{np.median([history["test_srcc"][-1] for history in run.histories.values()]):.4f}'
        found = with_intervals({**median, **metrics.intervals(rounds)})
        lines.append(
            (median['SRCC'], (run.name, str(len(rounds)), found, last, *facts_of(run.record)))
        )
    table = [
        ('run', 'rounds', 'median over rounds', LAST, 'commit', 'options that are not the default')
    ]
    table += [cells for _, cells in sorted(lines, key=lambda line: -np.nan_to_num(line[0], nan=-2))]
    widths = [max(map(len, column)) for column in zip(*table)]
    print('\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in table))
    if not all('val' in split for run in runs for split in run.splits.values()):
        print(
            'Best epochs were chosen on these test images, which is optimistic; the last epoch was not chosen.'
        )


def facts_of(record: dict[str, Any]) -> tuple[str, str]:
    """The commit that made a run, and its options that differ from the defaults."""
    options, defaults = record['options'], vars(with_defaults(SimpleNamespace()))
    defaults |= folders.DATABASES[options.get('dataset', defaults['dataset'])].defaults
    differing = {
        name: options[name]
        for name in options
        if options[name] != defaults.get(name) and options[name]
    }
    shown = [f'--{name} {value}' for name, value in differing.items() if name not in FREE_OPTIONS]
    return (record.get('commit') or '')[:7], ' '.join(shown)


def print_comparison(rows: list[dict[str, Any]]) -> None:
    first, second = rows[0]['first'], rows[0]['second']
    print(
        f'\n{first} less {second} on the same test images, with 95 % intervals\n  {"":11}{"SRCC":40}PLCC'
    )
    half = len(rows) // 2
    for row, beside in zip(rows[:half], rows[half:]):
        name = 'round ' * row['round'].isdigit() + row['round']
        print(f'  {name:11}{shown(row):40}{shown(beside)}'.rstrip())
    differences = [row['difference'] for row in rows[:half] if row['round'].isdigit()]
    if len(differences) > 1:
        wins, losses = (
            sum(sign * difference > 0 for difference in differences) for sign in (1, -1)
        )
        print(
            f'  SRCC: {first} is ahead in {wins} and {second} in {losses} of {len(differences)} rounds'
        )
    print(f'  {verdict(rows)}', flush=True)


def main_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the SRCC that the verdict is about."""
    return [row for row in rows if row['metric'] == 'SRCC'][-2]


def verdict(rows: list[dict[str, Any]]) -> str:
    """One sentence, which calls a run better only where the interval of the SRCC's difference leaves out 0."""
    row = main_row(rows)
    first, second = row['first'], row['second']
    found = f'no significant difference between {first} and {second}'
    if math.isnan(row['low']):
        found = f'{first} and {second} cannot be distinguished (no interval: {row.get("reason", metrics.UNDEFINED)})'
    elif row['low'] > 0 or row['high'] < 0:
        found = (
            f'{first} is better than {second}'
            if row['low'] > 0
            else f'{second} is better than {first}'
        )
    if row['round'].isdigit():
        return f'{found} on these test images; one training each says nothing about the methods'
    if row['round'] == 'median':
        return f'{found} on these test images, by the median of the rounds'
    return f'{found}, by the mean of the rounds (p {row["p"]:.2g})'


def shown(row: dict[str, Any]) -> str:
    """'+0.0123 [-0.0010, +0.0256] p 0.07', as far as it is known."""
    interval = '' if math.isnan(row['low']) else f' [{row["low"]:+.4f}, {row["high"]:+.4f}]'
    return f'{row["difference"]:+.4f}{interval}' + (f' p {row["p"]:.2g}' if 'p' in row else '')


if __name__ == '__main__':
    main()
