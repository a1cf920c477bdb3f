"""Compare finished runs, image by image.

    python compare.py runs/koniq-seed0 runs/koniq-mine [--csv FILE] [--plot FILE]
    python compare.py runs/*

Prints each run's SRCC and PLCC, and for two runs their differences on the same test images. An
interval of a difference is narrower than those of the two values, since both runs see the same easy
and difficult images. The conclusion that it allows depends on the rounds that both runs have
finished:

- one round: only the test images, since a single training of each says nothing about the methods
- rounds with different test images: the mean difference, with the corrected resampled t-test of
  Nadeau and Bengio (2003)
- rounds with the same test images: the median difference, by drawing images and rounds
"""

import argparse
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import folders
from experiment.options import Parser, default_options
from experiment.record import FREE_OPTIONS, Record, read_record, record_path
from experiment.report import is_chosen_on_test, with_intervals
from experiment.results import Result, read_history, read_predictions, read_round, unequal_epochs
from experiment.run_folder import round_path, rounds_in
from experiment.splits import SplitRecord
from util import metrics, plots
from util.errors import InputError, boundary, log
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
FOLDS = 'all folds'
# Characters of the columns in the printed comparison.
NAME_WIDTH = 11
SRCC_WIDTH = 40
Row = dict[str, Any]  # of the comparison, with COLUMNS
Pair = tuple[TestedImages, TestedImages]  # a round's test images in both runs


class Run(NamedTuple):
    """The finished rounds of a run that have a test part, each by its 1-based number."""

    name: str
    record: Record
    tested: dict[int, TestedImages]  # as predicted in the best epoch
    results: dict[int, Result]
    histories: dict[int, dict[str, list[float]]]  # the columns of history.csv
    splits: dict[int, SplitRecord]


def main(argv: list[str] | None = None) -> None:
    with boundary():
        options = parse_options(argv)
        # Before the work, so that it is not lost for an output that cannot be written.
        if options.csv:
            check_output(options.csv, ['.csv'], header=','.join(COLUMNS))
        if options.plot:
            check_output(options.plot, ['.png'])
        runs = read_runs(options.runs)
        print_runs(runs)
        if len(runs) == 2:
            rows = compare(*runs)
            print_comparison(rows)
            print(f'  {verdict(rows)}')
            if options.csv:
                write_table(options.csv, COLUMNS, rows)
            if options.plot:
                write_whole(options.plot, draw(runs, rows))


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
    has_output = options.csv or options.plot
    if len(options.runs) < 2 or (len(options.runs) > 2 and has_output):
        raise InputError('give two run folders, or more of them without --csv and --plot')
    return options


def draw(runs: list[Run], rows: list[Row]) -> bytes:
    """Draw the comparison of two runs. Returns the bytes of a PNG file."""
    curves = {}
    for run in runs:
        curves[run.name] = [history['test_srcc'] for history in run.histories.values()]
    differences = [row for row in rows if row['metric'] == 'SRCC' and row['round'] != LAST]
    return plots.comparison(curves, differences)


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The runs in the folders `paths`, named by their folders, or by their paths if two are alike.

    Folders that cannot be compared are left out, with a line for each.

    Raises:
        InputError: a folder is given twice, or fewer than two are left.
    """
    run_folders = [Path(path).resolve() for path in paths]
    if len(set(run_folders)) < len(run_folders):
        raise InputError('a run is given twice; give different run folders')
    names = [folder.name for folder in run_folders]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    runs = []
    left_out = []
    for folder, name in zip(run_folders, names):
        try:
            runs.append(read_run(folder, name))
        except InputError as reason:
            left_out.append(str(reason))
    if len(runs) < 2:
        raise InputError('; '.join(left_out))
    for reason in left_out:
        log(f'left out: {reason}')
    return runs


def read_run(folder: Path, name: str) -> Run:
    """The run in `folder`.

    Raises:
        InputError: it is no run, a file in it is damaged, it has no finished round with test
            images, or its rounds were not trained with the same --epochs.
    """
    path = record_path(folder)
    if not folder.exists():
        raise InputError(f'there is no folder {folder}')
    if not path.exists():
        raise InputError(f'{folder} has no config.json, so it is no run')
    run = Run(name, read_record(path), tested={}, results={}, histories={}, splits={})
    if run.record['options']['train_on_all']:
        raise InputError(f'{folder} was trained on all images, so it has no test')
    for number in rounds_in(folder):
        path = round_path(folder, number)
        run.tested[number] = read_predictions(path / 'predictions.csv')
        run.results[number] = read_round(path)
        run.histories[number] = read_history(path)
        run.splits[number] = read_json(path / 'split.json')
    inequality = unequal_epochs(run.results)
    if inequality:
        raise InputError(f'{folder}: {inequality}')
    if not run.tested:
        raise InputError(
            f'{folder} has no finished round with test images; --resume {folder} finishes it'
        )
    return run


def compare(first: Run, second: Run) -> list[Row]:
    """The differences in SRCC and PLCC, first run minus second, in the rounds both have finished.

    Returns:
        rows with COLUMNS, those of SRCC and then those of PLCC: one for each round, one for their
        'mean', 'median' or 'all folds' if there are several, and one for the last epochs. Without
        an interval a row has no `low`, `high` and `p`, and `reason` may say why.

    Raises:
        InputError: they share no round, or the test images or labels of a round differ.
    """
    numbers = sorted(first.tested.keys() & second.tested.keys())
    if not numbers:
        raise InputError(f'{first.name} and {second.name} have finished no round in common')
    pairs = [same_images(number, first, second) for number in numbers]
    # Those of both runs, since the second may train on fewer images than the first.
    splits = [run.splits[number] for run in (first, second) for number in numbers]
    ratio = tested_per_trained(splits)  # for the corrected t-test
    tested = [one for one, _ in pairs]
    image_sets = {frozenset(one.images) for one in tested}
    is_redrawn = len(image_sets) > 1
    paired = paired_resamples(pairs)
    is_folds = len(numbers) > 1 and is_all_folds(first) and is_all_folds(second)
    if is_folds:
        # Every image is tested once, so all folds together are one test.
        all_folds = (metrics.pooled(tested), metrics.pooled([other for _, other in pairs]))
        paired_of_folds = paired_resamples([all_folds])

    rows = []
    # The first axis of the resamples has the metrics in this order.
    for k, metric in enumerate(metrics.CORRELATIONS):
        resamples = paired[k]
        of_rounds = []
        for number, pair, resamples_of_round in zip(numbers, pairs, resamples):
            of_rounds.append(row_of_round(metric, number, pair, resamples_of_round))
        at_last = rows_at_last(metric, numbers, first, second)
        if len(numbers) == 1:
            summary = at_last
        elif is_folds:
            of_folds = row_of_round(metric, FOLDS, all_folds, paired_of_folds[k, 0])
            summary = [of_folds, row_of_mean(LAST, at_last, ratio)]
        elif is_redrawn:
            # Each round draws new training and test images. The t-test is made for that.
            mean = row_of_mean('mean', of_rounds, ratio)
            summary = [mean, row_of_mean(LAST, at_last, ratio)]
        else:
            # All rounds have the same test images, so the bootstrap draws them. The last epochs get
            # no interval: only the best epoch's predictions are kept, and can be resampled.
            median = row_of_median(of_rounds, tested, resamples)
            summary = [median, row_over(LAST, at_last, np.median)]
        for row in of_rounds + summary:
            rows.append({'first': first.name, 'second': second.name, 'metric': metric, **row})
    return rows


def paired_resamples(pairs: Sequence[Pair]) -> np.ndarray:
    """The difference of each pair in each resample: (metrics, pairs, RESAMPLES).

    All are resampled together, so that a resample draws the same images in both runs.
    """
    # (metrics, rounds of the first run and then of the second, RESAMPLES)
    resamples = metrics.resampled([one for one, _ in pairs] + [other for _, other in pairs])
    return resamples[:, : len(pairs)] - resamples[:, len(pairs) :]


def rows_at_last(metric: str, numbers: list[int], first: Run, second: Run) -> list[Row]:
    """The difference of each round's last epochs, which were not chosen on the test images."""
    rows = []
    for number in numbers:
        one = first.results[number]['last_epoch'][metric]
        other = second.results[number]['last_epoch'][metric]
        rows.append(row_of(LAST, one, other))
    return rows


def same_images(number: int, first: Run, second: Run) -> Pair:
    """A round's test images in two runs, those of the second in the order of the first.

    Raises:
        InputError: the images or their labels differ.
    """
    one = first.tested[number]
    other = second.tested[number]
    start = f'{first.name} and {second.name} cannot be compared: in round {number}'
    unshared = sorted(set(one.images) ^ set(other.images))
    if unshared:
        raise InputError(
            f'{start} {len(unshared)} images are tested by only one of them, the first is '
            f'{unshared[0]}; --split RUN trains a run on the splits of another'
        )
    position = {name: k for k, name in enumerate(other.images)}
    order = [position[name] for name in one.images]
    differing = np.flatnonzero(one.subjective != other.subjective[order])
    if len(differing):
        raise InputError(
            f'{start} the labels of {len(differing)} images differ, the first of them '
            f'{one.images[differing[0]]}'
        )
    # The first run's contents stand for both, so that both are resampled alike.
    return one, TestedImages(one.images, one.contents, one.subjective, other.predicted[order])


def tested_per_trained(splits: list[SplitRecord]) -> float:
    """The mean ratio of images tested to images trained on, with validation among the latter."""
    ratios = []
    for split in splits:
        trained = len(split['train']) + len(split.get('val', []))
        ratios.append(len(split['test']) / trained)
    return float(np.mean(ratios))


def row_of(name: str, one: float, other: float) -> Row:
    return {
        'round': name,
        'first_value': one,
        'second_value': other,
        'difference': one - other,
    }


def row_of_round(metric: str, name: object, pair: Pair, resamples: np.ndarray) -> Row:
    """The difference in a round, with an interval over its test images.

    The interval says nothing about other trainings, which one training of each cannot show.

    Args:
        resamples: (RESAMPLES,) the difference in each resample.
    """
    function = metrics.CORRELATIONS[metric]
    one, other = pair
    row = row_of(
        str(name),
        function(one.predicted, one.subjective),
        function(other.predicted, other.subjective),
    )
    try:
        metrics.refuse_few_contents([one])
        metrics.refuse_undefined_or_perfect([row['first_value'], row['second_value']])
        # A round by content may test too few contents for resamples.
        if metrics.uses_jackknife([one]):
            # Without Fisher's z, which suits one correlation and not the difference of two. Each
            # function gives the correlation on the contents that are kept.
            of_one = metrics.of_kept(one, function)
            of_other = metrics.of_kept(other, function)
            low, high = metrics.jackknife(one.contents, lambda kept: of_one(kept) - of_other(kept))
        else:
            # The median over a single round is its value.
            low, high = metrics.median_interval(resamples[None])
    except metrics.NoIntervalError as reason:
        return {**row, 'reason': str(reason)}
    return {**row, 'low': low, 'high': high}


def is_all_folds(run: Run) -> bool:
    """Whether a run has finished all of its --split folds."""
    options = run.record['options']
    return options['split'] == 'folds' and len(run.tested) == options['train_test_num']


def row_of_mean(name: str, rows: list[Row], ratio: float) -> Row:
    """The mean over rounds that draw from the same images, with the corrected t-test.

    Args:
        ratio: see `metrics.corrected_t`.
    """
    row = row_over(name, rows, np.mean)
    try:
        (low, high), p = metrics.corrected_t([row['difference'] for row in rows], ratio)
    except metrics.NoIntervalError as reason:
        return {**row, 'reason': str(reason)}
    return {**row, 'low': low, 'high': high, 'p': p}


def row_over(name: str, rows: list[Row], function: Callable[..., Any]) -> Row:
    """The means or medians over rounds, without an interval."""
    row: Row = {'round': name}
    # The median of the differences, not the difference of the medians: the rounds are paired, and
    # the two medians may be of different rounds.
    for column in ('first_value', 'second_value', 'difference'):
        row[column] = float(function([row_of_one[column] for row_of_one in rows]))
    return row


def row_of_median(rows: list[Row], tested: list[TestedImages], resamples: np.ndarray) -> Row:
    """The median over rounds with the same test images, with an interval over images and rounds.

    Args:
        tested: the test images of each round.
        resamples: (rounds, RESAMPLES) the difference in each round and resample.
    """
    row = row_over('median', rows, np.median)
    try:
        metrics.refuse_few(len(rows), 'round', metrics.FEWEST_ROUNDS)
        metrics.refuse_few_contents(tested)
        metrics.refuse_undefined_or_perfect([row['first_value'], row['second_value']])
        low, high = metrics.median_interval(resamples)
    except metrics.NoIntervalError as reason:
        return {**row, 'reason': str(reason)}
    return {**row, 'low': low, 'high': high}


def print_runs(runs: list[Run]) -> None:
    """Print a line for each run, the highest median SRCC first and undefined ones last."""
    header = ['run', 'rounds', 'median over rounds', LAST, 'commit']
    table = [[*header, 'options that are not the default']]
    for run in sorted(runs, key=rank_of):
        table.append(cells_of(run))
    widths = [max(map(len, column)) for column in zip(*table)]
    for cells in table:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
        print('  '.join(padded).rstrip())
    results: list[Result] = []
    for run in runs:
        results += run.results.values()
    if any(is_chosen_on_test(result) for result in results):
        print(
            'Best epochs were chosen on these test images, which is optimistic; '
            'the last epoch was not chosen.'
        )


def rank_of(run: Run) -> float:
    """The key by which `print_runs` sorts the runs, lowest first."""
    median = metrics.medians(list(run.tested.values()))['SRCC']
    return math.inf if math.isnan(median) else -median


def cells_of(run: Run) -> list[str]:
    """The line of a run in the table of `print_runs`."""
    tested = list(run.tested.values())
    at_best = with_intervals({**metrics.medians(tested), **metrics.intervals(tested)})
    at_last = np.median([result['last_epoch']['SRCC'] for result in run.results.values()])
    commit = run.record.get('commit') or ''
    options = changed_options(run.record['options'])
    return [run.name, str(len(tested)), at_best, f'{at_last:.4f}', commit[:7], options]


def changed_options(options: dict[str, Any]) -> str:
    """The options of a run that differ from the defaults of its database, as on a command line."""
    defaults = default_options()
    dataset = options.get('dataset', defaults['dataset'])
    defaults |= folders.DATABASES[dataset].defaults
    words = []
    for name, value in options.items():
        # FREE_OPTIONS do not change the results. But --csv says which table a run was trained on.
        if name in FREE_OPTIONS and name != 'csv':
            continue
        # None and the empty values stand for an option that was not given.
        if value not in (None, {}, []) and value != defaults.get(name):
            words += words_of(name, value)
    return shlex.join(words)


def words_of(name: str, value: Any) -> list[str]:
    """The words that set an option on a command line to a value in a config.json."""
    if name == 'lower_is_better' and value is False:
        return ['--higher_is_better']
    if value is True:
        return [f'--{name}']
    if name == 'columns':
        values = [f'{role}={column}' for role, column in value.items()]
    elif name == 'test_on':
        values = [f'{key}={path}' for _name, key, path in value]
    elif isinstance(value, list):
        values = value
    else:
        values = [value]
    return [f'--{name}', *map(str, values)]


def print_comparison(rows: list[Row]) -> None:
    """Print the rows of `compare`, SRCC next to PLCC, and why intervals are missing."""
    first = rows[0]['first']
    second = rows[0]['second']
    print(f'\n{first} minus {second} on the same test images, with 95 % intervals')
    print(f'  {"":{NAME_WIDTH}}{"SRCC":{SRCC_WIDTH}}PLCC')
    of_srcc = [row for row in rows if row['metric'] == 'SRCC']
    of_plcc = [row for row in rows if row['metric'] == 'PLCC']
    for row, row_of_plcc in zip(of_srcc, of_plcc):
        columns = f'{name_of(row):{NAME_WIDTH}}{shown(row):{SRCC_WIDTH}}{shown(row_of_plcc)}'
        print(f'  {columns}'.rstrip())
    # `dict.fromkeys` drops repetitions and keeps the order.
    for reason in dict.fromkeys(row['reason'] for row in rows if 'reason' in row):
        without = [row for row in rows if row.get('reason') == reason]
        of_metrics = ' and '.join(dict.fromkeys(row['metric'] for row in without))
        names = ', '.join(dict.fromkeys(name_of(row) for row in without))
        print(f'  no interval of {of_metrics}: {reason} ({names})')
    differences = [row['difference'] for row in of_srcc if is_round(row)]
    if len(differences) > 1:
        wins = sum(difference > 0 for difference in differences)
        losses = sum(difference < 0 for difference in differences)
        print(
            f'  SRCC: {first} is ahead in {wins} and {second} in {losses} of {len(differences)} '
            'rounds'
        )


def is_round(row: Row) -> bool:
    """Whether a row of `compare` is about a single round."""
    return row['round'].isdigit()


def name_of(row: Row) -> str:
    return f'round {row["round"]}' if is_round(row) else row['round']


def main_row(rows: list[Row]) -> Row:
    """The row that the verdict is about: the SRCC of all rounds, or of the only one."""
    # `compare` puts it last, except for the row of the last epochs.
    return [row for row in rows if row['metric'] == 'SRCC' and row['round'] != LAST][-1]


def verdict(rows: list[Row]) -> str:
    """One sentence, which calls a run better only if the interval of the difference excludes 0."""
    row = main_row(rows)
    first = row['first']
    second = row['second']
    if 'low' not in row:
        return f'no verdict on {first} and {second}: their difference has no interval'
    if row['low'] > 0:
        found = f'{first} is better than {second}'
    elif row['high'] < 0:
        found = f'{second} is better than {first}'
    else:
        found = f'no significant difference between {first} and {second}'

    # How far the claim goes: only several rounds with different images say something about the
    # methods.
    if is_round(row):
        return f'{found} on these test images; one training each says nothing about the methods'
    if row['round'] == FOLDS:
        return f'{found} on the images of all folds'
    if row['round'] == 'median':
        return f'{found} on these test images, by the median of the rounds'
    return f'{found}, by the mean of the rounds (p {row["p"]:.2g})'


def shown(row: Row) -> str:
    """'+0.0123 [-0.0010, +0.0256] p 0.07', without the parts that do not exist."""
    if math.isnan(row['difference']):
        return 'undefined'
    text = f'{row["difference"]:+.4f}'
    if 'low' in row:
        text += f' [{row["low"]:+.4f}, {row["high"]:+.4f}]'
    if 'p' in row:
        text += f' p {row["p"]:.2g}'
    return text


if __name__ == '__main__':
    main()
