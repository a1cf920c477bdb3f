"""The results of a run: read from its rounds, and computed over them."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiment.record import read_record, record_path
from experiment.run_folder import round_path, rounds_in, run_lock
from util.errors import InputError
from util.files import (
    as_input_error,
    reading,
    remove_abandoned,
    write_json,
    write_table,
    write_whole,
)
from util.metrics import CORRELATIONS, SAME, TestedImages, intervals, metrics_of, pooled
from util.tables import read_rows

Result = dict[str, Any]  # the content of a round's result.json
Results = dict[str, Any]  # the content of results.json
PREDICTION_COLUMNS = ('image', 'content', 'score', 'prediction')
REQUIRED = ('SRCC', 'PLCC', 'KRCC', 'RMSE', 'PLCC_logistic')
METRICS = (*REQUIRED, 'MAE')  # the first versions computed no MAE
INTERVALS = ('SRCC_interval', 'PLCC_interval', 'interval_method', 'no_interval')


def gather_results(run: Path | str) -> Results:
    """Gather the results of the finished rounds into results.json, one process at a time.

    Returns:
        `rounds` maps the 1-based round to its metrics. `median`, `mean` and `std` are over the
        rounds, and `median` has intervals (see `metrics.intervals`). Metrics on the other
        databases are under `test_on`, by the database's name. When all folds of --split folds are
        finished, `pooled` has the metrics of all their predictions together, and these are written.

    Raises:
        InputError: `run` is no run folder.
    """
    run = Path(run)
    path = record_path(run)
    options = read_record(path)['options']
    # A damaged record may have no such number.
    with as_input_error(path, 'JSON'):
        last = int(options['train_test_num'])
    is_folds = options['split'] == 'folds'
    # Another user's run is only read.
    if not os.access(run, os.W_OK):
        results, _ = gathered(run, last, is_folds)
        return results
    with run_lock(run):
        results, all_folds = gathered(run, last, is_folds)
        remove_abandoned(run)
        if all_folds:
            write_predictions(run / 'predictions.csv', all_folds)
        write_json(run / 'results.json', without_nan(results))
        draw_curves(results, run)
    return results


def draw_curves(results: Results, run: Path) -> None:
    """Draw the test SRCC of the finished rounds as the curves.png of a run."""
    curves = []
    best_epochs = []
    for number, result in results['rounds'].items():
        if not math.isnan(result['SRCC']):  # a run that trains on all images has no test part
            curves.append(read_history(round_path(run, int(number)))['test_srcc'])
            best_epochs.append(result['epoch'])
    if not curves:
        return
    # Here and not at the top, since matplotlib takes half a second to import, which --help would
    # wait for.
    from util import plots

    picture = plots.run_curves(curves, best_epochs, run.resolve().name)
    write_whole(run / 'curves.png', picture)


def gathered(run: Path, last: int, is_folds: bool) -> tuple[Results, TestedImages | None]:
    """The results of the finished rounds up to number `last`, as `gather_results` returns them.

    Returns:
        the results, and the test images of all folds together; None until all are finished.
    """
    folders = {str(number): round_path(run, number) for number in rounds_in(run) if number <= last}
    rounds = {number: read_round(folder) for number, folder in folders.items()}
    # With unequal epochs there are no statistics: they would mix shorter and longer trainings.
    averaged = [] if unequal_epochs(rounds) else list(rounds.values())
    results = {'rounds': rounds, **statistics(averaged)}
    # The first versions computed no intervals. If there is such a round, the median has none.
    tested: list[TestedImages] = []
    if rounds and all(result.keys() & set(INTERVALS) for result in rounds.values()):
        tested = [read_predictions(folder / 'predictions.csv') for folder in folders.values()]
        add_intervals(results, tested)
    all_folds = None
    # Folds with different numbers of epochs, which have no median, are not pooled.
    if is_folds and len(tested) == last and results['median']:
        all_folds = pooled(tested)
        results['pooled'] = {'images': len(all_folds.images), **metrics_of(all_folds)}
    return results, all_folds


def add_intervals(results: Results, tested: list[TestedImages]) -> None:
    """Add to `results` the intervals of the medians over the rounds with the images `tested`."""
    for result, images in zip(results['rounds'].values(), tested):
        # An interval takes half a second, so one that this version has computed is kept.
        if has_old_interval(result):
            for name in INTERVALS:
                result.pop(name, None)
            result.update(intervals([images]))
    if results['median']:
        results['median'].update(intervals(tested))


def has_old_interval(result: Result) -> bool:
    """Whether a round has no interval, or one of an earlier version that is perhaps wrong."""
    if 'interval_method' not in result or 'SRCC_interval' not in result:
        return True
    low, high = result['SRCC_interval']
    return high - low < SAME  # earlier versions gave perfect correlations an interval too


def unequal_epochs(rounds: Mapping[Any, Result]) -> str:
    """A sentence about rounds that were not trained with the same --epochs, or ''."""
    numbers: dict[int, list[str]] = {}
    for number, result in rounds.items():
        numbers.setdefault(result['epochs'], []).append(str(number))
    if len(numbers) < 2:
        return ''
    shown = [f'round {", ".join(numbers[epochs])}: {epochs}' for epochs in sorted(numbers)]
    return (
        f'the rounds have different --epochs ({"; ".join(shown)}); '
        f'--resume RUN --epochs {max(numbers)} makes them equal'
    )


def statistics(rounds: list[Result]) -> Results:
    """{'median': ..., 'mean': ..., 'std': ...} of every metric over the rounds' results.

    Each includes the metrics of the last epochs in `last_epoch`, and those on every other database
    in `test_on`. Without rounds all three are empty.
    """
    return {
        'median': over(rounds, np.median),
        'mean': over(rounds, np.mean),
        'std': over(rounds, np.std),
    }


def over(results: list[Result], function: Callable[..., Any]) -> Result:
    """`function` of every metric that all `results` have.

    Where a value is a dict, as for the last epochs, the other databases and the distortion types,
    the same is done with its metrics. A database or a type may be missing in some of the rounds.
    """
    found: Result = {}
    # `dict.fromkeys` drops repetitions and keeps the order.
    for name in dict.fromkeys(name for result in results for name in result):
        values = [result[name] for result in results if name in result]
        if all(isinstance(value, dict) for value in values):
            found[name] = over(values, function)
        elif name in METRICS and len(values) == len(results):
            found[name] = float(function(values))
    return found


def read_result(path: Path) -> Result:
    """The content of a result.json, with nan for null where a metric is undefined.

    Raises:
        InputError: a metric is missing or is not a number.
    """
    with reading(path, 'JSON') as file:
        result = json.load(file, object_hook=with_nan)
        values = [result[name] for name in ('epoch', 'epochs', *REQUIRED)]
        values.append(result.get('MAE', 0))
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(
                'it is not as a run writes it; once it is removed, --resume writes it again'
            )
    return result


def with_nan(content: Result) -> Result:
    """`content` with nan for None."""
    return {name: math.nan if value is None else value for name, value in content.items()}


def without_nan(content: Any) -> Any:
    """`content` with None for nan, which JSON does not have."""
    # `dumps` writes nan as NaN, and `loads` asks `parse_constant` for its value.
    return json.loads(json.dumps(content), parse_constant=lambda constant: None)


def read_round(folder: Path) -> Result:
    """The result of the finished round in `folder`.

    Added to it are `chosen_on`, the part whose SRCC chose the best epoch (with --train_on_all it
    says 'test' too), and `last_epoch`, the test SRCC and PLCC of the last epoch.
    """
    result = read_result(folder / 'result.json')
    history = read_history(folder)
    if result['epoch'] not in range(1, len(history['test_srcc']) + 1):
        raise InputError(
            f'{folder}: result.json and history.csv are of different epochs; put back the one that '
            'was changed'
        )
    # Computed anew, since earlier versions did not write it. `read_history` ends with the last
    # epoch of this result.
    result['last_epoch'] = metrics_of_row({name: cells[-1] for name, cells in history.items()})
    result['chosen_on'] = 'validation' if 'val_srcc' in history else 'test'
    return result


def metrics_of_row(row: Mapping[str, float]) -> Result:
    """The test SRCC and PLCC in a row of a history."""
    return {metric: row[f'test_{metric.lower()}'] for metric in CORRELATIONS}


def read_history(folder: Path) -> dict[str, list[float]]:
    """The columns of the history.csv in a round's folder.

    While a finished round is being extended, the epochs that its result does not include are left
    out.
    """
    epochs = None  # all
    result = folder / 'result.json'
    if result.exists():
        epochs = read_result(result)['epochs']
    path = folder / 'history.csv'
    columns = read_columns(path)
    history = {}
    with as_input_error(path, 'a table'):
        for name, cells in columns.items():
            # A column that a later version added is empty for the earlier epochs.
            history[name] = [float(cell or 'nan') for cell in cells[:epochs]]
        if not history['test_srcc'] or not history['test_plcc']:
            raise ValueError('it has no epoch')
    return history


def read_columns(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file that a run wrote, by their names."""
    rows = [row.cells for row in read_rows(path)]  # all of one length
    columns = zip(*rows)
    # The header is the first cell of each column.
    return {name: cells for name, *cells in columns}


def write_predictions(path: Path, tested: TestedImages) -> None:
    """Write the test images with their scores and predictions, one a row."""
    scores = tested.subjective.tolist()
    predictions = tested.predicted.tolist()
    values = (tested.images, tested.contents, scores, predictions)
    columns = dict(zip(PREDICTION_COLUMNS, values))
    columns.update(tested.facts)
    # One dict for each image.
    rows = [dict(zip(columns, cells)) for cells in zip(*columns.values(), strict=True)]
    write_table(path, list(columns), rows)


def read_predictions(path: Path) -> TestedImages:
    """The test images in a file of `write_predictions`.

    Raises:
        InputError: the file is something else.
    """
    columns = read_columns(path)
    with as_input_error(path, 'a table'):
        images, contents, scores, predictions = (columns.pop(name) for name in PREDICTION_COLUMNS)
        # The other columns are facts about the images, such as the type of distortion.
        return TestedImages(
            images,
            contents,
            subjective=np.array(scores, np.float64),
            predicted=np.array(predictions, np.float64),
            facts=columns,
        )
