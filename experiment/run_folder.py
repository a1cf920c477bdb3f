"""The folder that a run leaves behind, so that nothing finished is ever lost. Every file appears whole or not at all.

config.json            every option, what an image and a score mean to the network, package versions, device
left_out.csv           listed images that --skip_missing left out
round_01/              a round's files, see `experiment/round_folder.py`
results.json           every round's result, and their median with intervals, mean and deviation
"""

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from experiment.options import read_record, refuse_other_options, title_of
from experiment.splits import SplitRecord
from util.errors import InputError, log
from util.files import (
    is_locked,
    locked,
    named,
    read_json,
    reading,
    remove_abandoned,
    write_json,
    write_table,
)
from util.metrics import CORRELATIONS, TestedImages, intervals
from util.tables import read_rows

RESULTS = (
    'last.pth',
    'best.pth',
    'history.csv',
    'predictions.csv',
    'result.json',
)  # that a round has once it is under way
PREDICTION_COLUMNS = ('image', 'content', 'score', 'prediction')
METRICS = ('SRCC', 'PLCC', 'KRCC', 'RMSE', 'PLCC_logistic', 'MAE')
INTERVALS = ('SRCC_interval', 'PLCC_interval', 'interval_method', 'no_interval')
ON_OTHERS = ('SRCC', 'PLCC', 'KRCC', 'types', *INTERVALS)
CHOSEN = 'chosen on these images'


def check_run(
    config: Any, model: dict[str, Any], splits: list[SplitRecord]
) -> dict[str, Any] | None:
    """Refuse a run folder `config.output` that this run may not make or continue; nothing is written.

    Args:
        model: what an image and a score mean to the networks of this run; demo.py reads it.
        splits: the record of each round's split.

    Returns:
        the record of the run that is continued, or None.

    Raises:
        InputError: it exists and `config.resume` is not set, it was made with other options or images, or it is no run folder.
    """
    folder = Path(config.output)
    path = folder / 'config.json'
    existing = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place)
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f'the folder {folder} cannot be made: {existing} cannot be written; --output DIR names another place'
        )
    # other options may not start a run anew of which an epoch was finished, or in which a process works
    results = [file for file in folder.glob('round_*/*') if file.name in RESULTS]
    if path.exists() and (results or any(map(is_locked, folder.glob('round_*/.lock')))):
        adds_rounds = config.rounds and not any(
            round_path(folder, k).exists() for k in config.rounds
        )
        if not config.resume and not adds_rounds:
            raise InputError(
                f'the run folder {folder} exists already; --resume continues it, --output DIR names another one'
            )
        refuse_other_options(path, {'options': vars(config), 'model': model})
        for number, split in enumerate(splits, start=1):
            refuse_other_images(round_path(folder, number) / 'split.json', split)
        return read_record(path)
    if (
        not path.exists()
        and folder.exists()
        and any(not entry.name.startswith('.') for entry in folder.iterdir())
    ):
        raise InputError(
            f'{folder} holds files, but it is not a run folder; --output DIR names another one'
        )
    return None


def open_run(
    config: Any, model: dict[str, Any], splits: list[SplitRecord], surroundings: dict[str, Any]
) -> None:
    """Make or continue the run folder `config.output`; arguments and errors as of `check_run`, which is called again.

    Args:
        surroundings: what the numbers may depend on beside the options.
    """
    folder = Path(config.output)
    path = folder / 'config.json'
    if check_run(config, model, splits):
        before = read_json(path)
        was, here = (
            f'{of.get("device")} with PyTorch {of.get("versions", {}).get("torch")}'
            for of in (before, surroundings)
        )
        if was != here:
            log(
                f'this run was made on {was} and continues on {here}, where the last digits can differ'
            )
        grown = {'epochs': config.epochs, 'train_test_num': config.train_test_num}
        if before['options'] != before['options'] | grown:
            before['options'] |= grown
            write_json(path, before)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for split in folder.glob('round_*/split.json'):
        split.unlink()
    write_json(path, {'options': vars(config), 'model': model, **surroundings})


def round_path(run: Path | str, round_number: int) -> Path:
    return Path(run) / f'round_{round_number:02d}'


def round_index_of(folder: Path) -> int:
    """The 0-based round of a round's folder."""
    number = folder.name.removeprefix('round_')
    if not number.isdigit():
        raise InputError(
            f'{folder} is not the folder of a round, as that of runs/koniq-seed0/round_01/best.pth'
        )
    return int(number) - 1


def project_commit() -> str | None:
    """The commit of this project, with + behind it where its files were changed since; None outside a git checkout."""
    command = (
        'git',
        '-C',
        str(Path(__file__).parent),
        'describe',
        '--always',
        '--abbrev=40',
        '--exclude=*',
        '--dirty=+',
    )
    with suppress(OSError):  # there is no git
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None


def refuse_other_images(path: Path, split: SplitRecord, remedy: str = 'give --output DIR') -> None:
    """Refuse the split.json of a round if it is there and is of other images than `split`, or of other labels.

    Args:
        remedy: what to do beside putting the old files back.
    """
    if not path.exists():
        return
    before = {'labels': split['labels'], **read_json(path)}  # the first versions wrote no digest
    changed = [part for part in before | split if before.get(part) != split.get(part)]
    if changed == ['labels']:
        what = 'the scores, contents or sets of the labels have changed'
        raise InputError(f'{what} since {path} was made; restore the label file, or {remedy}')
    if changed:
        raise InputError(
            f'{path} names other images than the database has now; restore its files, or {remedy}'
        )


def write_predictions(path: Path, tested: TestedImages) -> None:
    values = (tested.images, tested.contents, tested.subjective.tolist(), tested.predicted.tolist())
    columns = {**dict(zip(PREDICTION_COLUMNS, values)), **tested.facts}
    write_table(
        path,
        list(columns),
        [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)],
    )


def read_columns(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file that a run wrote, by their names."""
    rows = read_rows(path)
    header = rows[0].cells if rows else []
    return {name: [row.cells[k] for row in rows[1:]] for k, name in enumerate(header)}


def read_predictions(path: Path) -> TestedImages:
    """What `write_predictions` wrote.

    Raises:
        InputError: the file is something else.
    """
    columns = read_columns(path)
    with named(path, 'a table'):
        images, contents, scores, predictions = (columns.pop(name) for name in PREDICTION_COLUMNS)
        return TestedImages(
            images,
            contents,
            np.array(scores, np.float64),
            np.array(predictions, np.float64),
            columns,
        )


def summarise(run: Path | str) -> dict[str, Any]:
    """Gather the results of the rounds that are finished into results.json, one process at a time.

    Returns:
        `rounds` maps the 1-based round to its metrics; `median`, `mean` and `std` are over them, and `median` has intervals
        (see `metrics.intervals`). Metrics on the other databases are under `test_on`, by the database's name.

    Raises:
        InputError: `run` is no run folder.
    """
    run = Path(run)
    options = read_record(run / 'config.json')['options']
    with named(run / 'config.json', 'JSON'):
        last = int(options['train_test_num'])
    writable = os.access(run, os.W_OK)  # another user's run is only read
    with locked(run / '.lock') if writable else nullcontext():
        finished = {
            number: round_path(run, number) for number in rounds_in(run) if 1 <= number <= last
        }
        rounds = {
            str(number): {**read_result(path / 'result.json'), **of_history(path)}
            for number, path in finished.items()
        }
        results = {'rounds': rounds, **statistics(list(rounds.values()))}
        if rounds and not any(
            result.keys().isdisjoint(INTERVALS) for result in rounds.values()
        ):  # the first versions had none
            tested = [read_predictions(path / 'predictions.csv') for path in finished.values()]
            for result, images in zip(rounds.values(), tested):
                if (
                    'no_interval' not in result and 'interval_method' not in result
                ):  # an earlier version's
                    result.pop('SRCC_interval'), result.pop('PLCC_interval')
                    result |= intervals([images])
            results['median'] |= intervals(tested)
        if writable:
            remove_abandoned(run)
            write_json(run / 'results.json', without_nan(results))
    return results


def of_history(path: Path) -> dict[str, Any]:
    """What a summary adds to the result of the round in the folder `path`: the test of its last epoch, which nothing chose."""
    history = read_history(path)
    last = {name: history[f'test_{name.lower()}'][-1] for name in CORRELATIONS}
    return {'last_epoch': last, 'chosen_on': 'validation' if 'val_srcc' in history else 'test'}


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of the history.csv in the round's folder `path`."""
    columns = read_columns(path / 'history.csv')
    with named(path / 'history.csv', 'a table'):
        history = {
            name: [float(value or 'nan') for value in column] for name, column in columns.items()
        }
        if not history['test_srcc'] or not history['test_plcc']:
            raise ValueError('it has no epoch')
        return history


def rounds_in(run: Path) -> list[int]:
    """The numbers of the finished rounds whose folders are in `run` under their exact names."""
    numbers = [
        int(path.name[6:]) for path in run.iterdir() if re.fullmatch(r'round_[0-9]{2,9}', path.name)
    ]
    return sorted(
        number for number in numbers if (round_path(run, number) / 'result.json').exists()
    )


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result.json, with nan for null where a metric is undefined.

    Raises:
        InputError: it lacks a metric, or one is no number.
    """
    with reading(path, 'JSON') as file:
        result = json.load(
            file,
            object_hook=lambda pairs: {k: math.nan if v is None else v for k, v in pairs.items()},
        )
        of_all = [result, *result.get('test_on', {}).values()]
        values = [result[name] for name in ('epoch', 'epochs', *METRICS[:5])]
        values += [metrics[name] for metrics in of_all for name in METRICS if name in metrics]
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(
                'it is not as a run writes it; once it is removed, --resume writes it again'
            )
    return result


def statistics(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """{'median': ..., 'mean': ..., 'std': ...} of every metric over the rounds' results.

    Each has those of the last epochs in `last_epoch`, and in `test_on` those of every other database.
    """
    functions: dict[str, Callable[..., Any]] = {'median': np.median, 'mean': np.mean, 'std': np.std}
    return {
        title: over(rounds, function) if rounds else {} for title, function in functions.items()
    }


def over(results: list[dict[str, Any]], function: Callable[..., Any]) -> dict[str, Any]:
    """`function` of every metric that all `results` have, and of those of the last epochs, other databases and types."""
    names = [name for name in METRICS if all(name in result for result in results)]
    found: dict[str, Any] = {
        name: float(function([result[name] for result in results])) for name in names
    }
    if 'last_epoch' in results[0]:
        found['last_epoch'] = over([result['last_epoch'] for result in results], function)
    for part in ('test_on', 'types'):
        names = list(dict.fromkeys(name for result in results for name in result.get(part, {})))
        if names:
            found[part] = {
                name: over([r[part][name] for r in results if name in r.get(part, {})], function)
                for name in names
            }
    return found


def without_nan(content: Any) -> Any:
    """`content` with null for nan, which JSON does not have."""
    return json.loads(json.dumps(content), parse_constant=lambda constant: None)


def print_round(result: dict[str, Any] | None, split: SplitRecord) -> None:
    """Print a round's result, None where no epoch had one; `split` names the images of its parts."""
    if result is None:
        print('Best test SRCC nan, PLCC nan', flush=True)
    elif 'test' not in split:
        print(
            f'Trained on all {len(split["train"])} images; the last epoch, {result["epoch"]}, is kept',
            flush=True,
        )
    else:
        is_val = result['chosen_on'] == 'validation'
        notes = [f'epoch {result["epoch"]}'] + [CHOSEN] * (not is_val)
        print(
            f'Best {"validation epoch: " * is_val}test {with_intervals(result, notes=notes)}',
            flush=True,
        )
        print(f'Last epoch: test {with_intervals(result["last_epoch"])}', flush=True)
    print_on_others((result or {}).get('test_on', {}))


def print_medians(results: dict[str, Any]) -> None:
    """Print the medians over the rounds of a results.json; nothing where no round has a test part."""
    median, rounds = results['median'], results['rounds'].values()
    if not rounds:
        print('Testing median SRCC nan, median PLCC nan', flush=True)
    elif not all(math.isnan(result['SRCC']) for result in rounds):
        notes = [f'of {len(rounds)} rounds'] * (len(rounds) > 1) + [CHOSEN] * any(
            r['chosen_on'] == 'test' for r in rounds
        )
        print(f'Testing median {with_intervals(median, "median ", notes)}', flush=True)
        print(f'Last epochs: median {with_intervals(median["last_epoch"], "median ")}', flush=True)
        print_on_others(median.get('test_on', {}), 'median ')


def print_on_others(results: dict[str, dict[str, Any]], word: str = '') -> None:
    """Print the metrics on other databases, each after `word`."""
    for name, metrics in results.items():
        count = f' ({metrics["images"]} images)' if 'images' in metrics else ''
        print(f'On {title_of(name)}{count}: {word}{with_intervals(metrics, word)}', flush=True)


def with_intervals(result: dict[str, Any], word: str = '', notes: Sequence[str] = ()) -> str:
    """'SRCC 0.8797 [0.831, 0.916], PLCC ... (notes)': the metrics and the 95 % intervals that there are.

    Args:
        word: stands before each metric but the first.
        notes: what else to report; why there is no interval is added.
    """
    shown = []
    for metric in ('SRCC', 'PLCC', 'MAE'):
        interval = result.get(f'{metric}_interval')
        ends = ' [{:.3f}, {:.3f}]'.format(*interval) if interval else ''
        if metric in result:
            shown.append(f'{metric} {result[metric]:{".4g" if metric == "MAE" else ".4f"}}{ends}')
    notes = [
        *notes,
        *(f'no interval: {result[name]}' for name in ('no_interval',) if name in result),
    ]
    return f', {word}'.join(shown) + f' ({"; ".join(notes)})' * bool(notes)
