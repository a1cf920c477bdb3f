"""The folder that a run leaves behind, so that nothing it earned is ever lost.

    config.json            every option, what an image and a score mean to the network, package versions, device
    round_01/split.json    names of the images of each part, and a digest of the labels
    round_01/history.csv   a row an epoch
    round_01/best.pth      the best epoch's plain state_dict
    round_01/last.pth      everything that a resume needs
    round_01/predictions.csv, curves.png, scatter.png, worst.png
    round_01/predictions_<name>.csv    of each other database
    left_out.csv           listed images that --skip_missing left out
    round_01/result.json   the metrics at the best epoch, with intervals; written last: it marks the round as finished
    results.json           every round's result, and their median with intervals, mean and deviation

Every file appears whole or not at all. `last.pth` is the truth: an epoch counts once it is renamed into place. torch,
matplotlib and scipy are imported where they are used, since `--help` and errors in the command line need none of them.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from util import distributed
from util.errors import InputError
from util.files import (
    locked,
    make_folder,
    read_json,
    read_table,
    refuse_unmakeable,
    remove_abandoned,
    try_lock,
    write_json,
    write_table,
    write_whole,
)
from util.program import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from util.metrics import Round

# Options that a resumed run may change: where things are and how fast they go, not what is computed.
FREE_OPTIONS = {
    'data_root',
    'image_root',
    'csv',
    'output',
    'resume',
    'rounds',
    'device',
    'num_workers',
    'cache',
    'test_batch_size',
}
# Options that say which weights a state leads to: a last.pth of others is refused.
STATE_OPTIONS = (
    *('dataset', 'seed', 'weights', 'lr', 'lr_ratio', 'weight_decay', 'batch_size', 'train_patch_num', 'test_patch_num'),
    *('resize', 'normalize_scores', 'amp'),
)
HISTORY_COLUMNS = {'epoch', 'train_loss', 'train_srcc', 'test_srcc', 'test_plcc', 'hypernet_lr', 'backbone_lr', 'seconds'}
PREDICTION_COLUMNS = ('image', 'content', 'score', 'prediction')
METRICS = ('SRCC', 'PLCC', 'KRCC', 'RMSE', 'PLCC_logistic')
Parts = dict[str, Any]


def check_run(config: argparse.Namespace, model: dict[str, Any], parts: list[Parts]) -> None:
    """Refuse a run folder `config.output` that this run may not make or continue; nothing is written.

    Args:
        model: what an image and a score mean to the networks of this run; demo.py reads it.
        parts: for each round, the names of the images of each part, and the digest of the labels.

    Raises:
        InputError: it exists and `config.resume` is not set, it was made with other options or images, or it is no run folder.
    """
    folder = Path(config.output)
    path = folder / 'config.json'
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder} is a file, not a run folder; --output DIR names another one')
    refuse_unmakeable(folder)
    if is_earned(folder):
        if not config.resume and not is_joined(folder, config):
            raise InputError(f'the run folder {folder} exists already; --resume continues it, --output DIR names another one')
        refuse_other_options(path, {'options': vars(config), 'model': model})
        for number, names in enumerate(parts, start=1):
            refuse_other_images(round_path(folder, number) / 'split.json', names)
    if not path.exists() and folder.exists() and any(not entry.name.startswith('.') for entry in folder.iterdir()):
        raise InputError(f'{folder} holds files, but it is not a run folder; --output DIR names another one')


def open_run(config: argparse.Namespace, model: dict[str, Any], parts: list[Parts]) -> None:
    """Make or continue the run folder `config.output`; arguments and errors as of `check_run`."""
    check_run(config, model, parts)
    folder = Path(config.output)
    path = folder / 'config.json'
    record = {'options': vars(config), 'model': model, **surroundings(config.device)}
    if is_earned(folder):
        before = read_record(path)
        if before.get('device') != record['device']:
            distributed.say(
                f'this run was made on {before.get("device")} and goes on on {record["device"]}: '
                f'sums are added in another order there, so the last digits can differ'
            )
        if before['options'].get('epochs') != config.epochs:
            before['options']['epochs'] = config.epochs
            write_json(path, before)
        return
    make_folder(folder)
    for split in folder.glob('round_*/split.json'):
        split.unlink()
    write_json(path, record)


def is_earned(folder: Path) -> bool:
    """Whether the folder holds a run that other options may not start anew: an epoch was finished, or a process works in it."""
    if not (folder / 'config.json').exists():
        return False
    earned = ('last.pth', 'best.pth', 'history.csv', 'predictions.csv', 'result.json')
    if any((path / name).exists() for path in folder.glob('round_*') for name in earned):
        return True
    locks = [try_lock(path) for path in folder.glob('round_*/.lock')]
    for lock in locks:
        if lock:
            lock.close()
    return None in locks


def is_joined(folder: Path, config: argparse.Namespace) -> bool:
    """Whether this process adds rounds of its own, by `--rounds`, to the folder of another one."""
    return bool(config.rounds) and not any(round_path(folder, k).exists() for k in config.rounds)


def round_path(run: Path | str, round_number: int) -> Path:
    return Path(run) / f'round_{round_number:02d}'


def round_index_of(folder: Path) -> int:
    """The 0-based round of a round's folder."""
    number = folder.name.removeprefix('round_')
    if not number.isdigit():
        raise InputError(
            f'{folder} is not the folder of a round; the checkpoint must lie in a run folder, '
            f'as in runs/koniq-seed0/round_01/best.pth'
        )
    return int(number) - 1


def refuse_other_options(path: Path, record: dict[str, Any]) -> None:
    before, now = read_record(path), json.loads(json.dumps(record))
    for options in (before['options'], now['options']):  # the other databases may have moved: their names count
        options['test_on'] = [entry[0] for entry in options.get('test_on') or []]
    differ = [
        f'--{name} was {before["options"].get(name)}, is {now["options"].get(name)}'
        for name in sorted((before['options'].keys() | now['options'].keys()) - FREE_OPTIONS)
        if differs(name, before['options'].get(name), now['options'].get(name))
    ]
    differ += [
        f'{name} was {value}, is {now["model"].get(name)}'
        for name, value in before['model'].items()
        if value != now['model'].get(name)
    ]
    if differ:
        raise InputError(
            f'{path.parent} was made with other options: {"; ".join(differ)}; give the same ones, or --output DIR for a new run'
        )


def differs(name: str, before: Any, now: Any) -> bool:
    """Whether an option is another than in the run's record, which has none of those that a later version added."""
    if name == 'epochs' and isinstance(before, int):
        return now < before  # more may follow, since the learning rates do not depend on their number
    return before != now and bool(before or now)


def read_record(path: Path) -> dict[str, Any]:
    """The content of a config.json, whose `model` has the entries of `train_test_IQA.model_facts`."""
    record = read_json(path)
    model = record.get('model')
    options = record.get('options')
    if not isinstance(options, dict) or not isinstance(options.get('train_test_num', 1), int) or not isinstance(model, dict):
        raise InputError(f'{path} does not hold the options of a run; put the file back as the run wrote it')
    pairs = [model.get(name) for name in ('resize', 'score_range')]
    flags = [model.get(name) for name in ('exif_rotation', 'higher_is_better')]
    if not all(pair is None or (is_numbers(pair) and len(pair) == 2) for pair in pairs) or not all(
        isinstance(flag, bool) for flag in flags
    ):
        raise InputError(f'{path} was edited: its "model" is {json.dumps(model)[:200]}; put the file back as the run wrote it')
    return record


def is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)


def surroundings(device: str) -> dict[str, Any]:
    """What the numbers of a run may depend on beside its options."""
    import PIL
    import scipy
    import torch
    import torchvision

    return {
        'command': sys.argv,
        'commit': project_commit(),
        'device': distributed.device_name(device),
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'torchvision': torchvision.__version__,
            'numpy': np.__version__,
            'scipy': scipy.__version__,
            'pillow': PIL.__version__,
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
        },
    }


def project_commit() -> str | None:
    """The commit of this project, with + behind it where its files were changed since; None outside a git checkout."""
    command = ('git', '-C', str(Path(__file__).parent), 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty=+')
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def refuse_other_images(split: Path, parts: Parts) -> None:
    """Refuse the split.json of a round if it is there and is of other images than `parts`, or of other labels."""
    if not split.exists():
        return
    before = read_json(split)
    labels = before.pop('labels', parts.get('labels'))  # versions before this one wrote none
    if before != {part: names for part, names in parts.items() if part != 'labels'}:
        raise InputError(
            f'{split} names other images than the database has now; restore its files, or start a new run with --output DIR'
        )
    if labels != parts.get('labels'):
        raise InputError(
            f'the scores, contents or sets of the labels are others than when {split} was made, and one result would mix both; '
            f'restore the label file, or start a new run with --output DIR'
        )


class RoundFolder:
    """One round's files; under torchrun all ranks read them and the first alone writes.

    Args:
        config: the run's options.
        round_index: 0-based.
        parts: names of the images of each part, by the part's name, and the digest of the labels; a folder made for
            others is refused.

    Raises:
        InputError: the folder cannot be written, was made for other images, or another process runs this round.
    """

    def __init__(self, config: argparse.Namespace, round_index: int, parts: Parts) -> None:
        self.path = round_path(config.output, round_index + 1)
        self.epochs = config.epochs
        self.owner = {'round': round_index + 1, **{name: getattr(config, name) for name in STATE_OPTIONS}}
        self.owner['split'] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.lock = None
        if distributed.rank() == 0:
            make_folder(self.path)
            self.lock = try_lock(self.path / '.lock')
            if self.lock is None:
                raise InputError(f'{self.path} is being trained by another process')
            remove_abandoned(self.path)
            split = self.path / 'split.json'
            refuse_other_images(split, parts)
            if not split.exists():
                write_json(split, parts)
        distributed.wait()

    @property
    def finished(self) -> bool:
        """Whether the round's result is there, of as many epochs as are asked for now."""
        path = self.path / 'result.json'
        return path.exists() and read_result(path)['epochs'] >= self.epochs

    def close(self) -> None:
        """Let another process, or this one again, run the round."""
        if self.lock:
            self.lock.close()

    def restore(self, load_state_dict: Callable[[dict[str, Any]], None]) -> None:
        """Give the state that the last finished epoch left, if there is one, to `load_state_dict`.

        Raises:
            InputError: last.pth is gone, damaged, or of something else; nothing in the folder is changed.
        """
        from util.checkpoints import read_checkpoint

        path = self.path / 'last.pth'
        if not path.exists():
            if (self.path / 'history.csv').exists():
                raise InputError(f'{path} is gone, without which the round cannot go on; {self.remedy}')
            return
        state = read_checkpoint(path)
        other = [
            f'{name} is {state["owner"][name]}, not {value}'
            for name, value in self.owner.items()
            if isinstance(state.get('owner'), Mapping) and state['owner'].get(name, value) != value
        ]
        if other:
            raise InputError(f'{path} belongs to another round or run ({"; ".join(other)[:300]}); {self.remedy}')
        try:
            load_state_dict(state)
            check_history(state['history'], state['best'])
        except Exception as error:  # an edited state can raise anything where it does not fit
            raise InputError(f'{path} is not the checkpoint of this round ({first_line(error)}); {self.remedy}')
        if distributed.rank() == 0:
            self.write_derived(state)

    @property
    def remedy(self) -> str:
        return f'put the right file back, or remove {self.path} to start the round anew'

    def save(self, state: dict[str, Any]) -> None:
        """Record a finished epoch; `state` is the solver's `state_dict`."""
        from util.checkpoints import digest, serialised

        if distributed.rank() == 0:
            if is_best_last(state):
                state['best']['weights'] = digest(state['model'])
            write_whole(self.path / 'last.pth', serialised({**state, 'owner': self.owner}))
            self.write_derived(state)
        distributed.wait()

    def write_derived(self, state: dict[str, Any]) -> None:
        """The files that follow from last.pth, which a kill may have left one epoch behind it."""
        from util import plots
        from util.checkpoints import serialised

        history = state['history']
        if is_best_last(state):
            write_whole(self.path / 'best.pth', serialised(state['model']))
        write_table(self.path / 'history.csv', list(history[0]), history)
        write_whole(self.path / 'curves.png', plots.curves(history))

    def check_best(self, best: dict[str, Any]) -> None:
        """Refuse to end the round with a best.pth that is not the weights of its best epoch.

        Raises:
            InputError: it is gone, damaged or another network's.
        """
        from util.checkpoints import digest, read_checkpoint

        reason = 'best.pth is of other weights'
        try:
            weights = read_checkpoint(self.path / 'best.pth')
            if 'weights' not in best or digest(weights) == best['weights']:  # versions before this one kept no digest
                return
        except InputError as error:
            reason = str(error)
        raise InputError(
            f'the weights of the best epoch, {best["epoch"]}, are lost ({reason}); what last.pth and history.csv hold is kept; '
            f'{self.remedy}'
        )

    def finish(
        self,
        best: dict[str, Any],
        tested: 'Round',
        picture_of: 'Callable[[int], Image]',
        title: str,
        across: dict[str, dict[str, float]],
    ) -> None:
        """Write the test images' scores at the best epoch and their pictures, and last of all the round's result.

        Args:
            best: the solver's best epoch.
            tested: the test images with their predictions in it.
            picture_of: a small picture of the image at a position in `tested`.
            title: of the pictures.
            across: metrics on other databases, by the database's name.
        """
        from util import plots
        from util.metrics import all_metrics, intervals

        if distributed.rank() > 0:
            return
        self.check_best(best)
        if tested.images:
            write_whole(self.path / 'scatter.png', plots.scatter(tested.predicted, tested.subjective, title))
            write_whole(self.path / 'worst.png', plots.worst(tested, picture_of, title))
        write_predictions(self.path / 'predictions.csv', tested)
        result = {
            'epoch': best['epoch'],
            'epochs': self.epochs,
            **all_metrics(tested.predicted, tested.subjective),
            **intervals([tested]),
            **({'test_on': across} if across else {}),
        }
        write_json(self.path / 'result.json', without_nan(result))


def check_history(history: list[dict[str, float]], best: dict[str, Any] | None) -> None:
    """Raise ValueError unless these are the epochs 1, 2 ... of a round, each with the same columns, and the best of them."""
    columns = HISTORY_COLUMNS | history[0].keys()
    if [row['epoch'] for row in history] != list(range(1, len(history) + 1)):
        raise ValueError('its epochs are not in order')
    if any(row.keys() != columns or not is_numbers(list(row.values())) for row in history):
        raise ValueError('its epochs lack numbers')
    if best and not (best['epoch'] in range(1, len(history) + 1) and best.keys() >= columns and best['scores'].ndim == 1):
        raise ValueError('its best epoch is none of them')


def is_best_last(state: dict[str, Any]) -> bool:
    return bool(state['best']) and state['best']['epoch'] == state['history'][-1]['epoch']


def write_predictions(path: Path, tested: 'Round') -> None:
    columns = (tested.images, tested.contents, tested.subjective.tolist(), tested.predicted.tolist())
    write_table(path, PREDICTION_COLUMNS, [dict(zip(PREDICTION_COLUMNS, row)) for row in zip(*columns, strict=True)])


def read_predictions(path: Path) -> 'Round':
    """What `write_predictions` wrote.

    Raises:
        InputError: the file is something else.
    """
    from util.metrics import Round

    rows = read_table(path)
    try:
        images, contents, scores, predictions = ([row[name] for row in rows] for name in PREDICTION_COLUMNS)
        return Round(images, contents, np.array(scores, np.float64), np.array(predictions, np.float64))
    except (KeyError, ValueError) as error:
        raise InputError(f'{path} is not the table of a run: {error}')


def summarise(run: Path | str) -> dict[str, Any]:
    """Gather the results of the rounds that are finished into results.json, one process at a time.

    Returns:
        `rounds` maps the 1-based round to its metrics; `median`, `mean` and `std` are over them, and `median` has intervals
        (see `metrics.intervals`). Metrics on the other databases are under `test_on`, by the database's name.

    Raises:
        InputError: `run` is no run folder.
    """
    from util.metrics import intervals

    run = Path(run)
    last = read_record(run / 'config.json')['options'].get('train_test_num', 0)
    paths = {number: round_path(run, number) / 'result.json' for number in rounds_in(run) if 1 <= number <= last}
    writable = os.access(run, os.W_OK)  # another user's run is only read
    with locked(run / '.lock') if writable else nullcontext():
        finished = {number: path for number, path in paths.items() if path.exists()}
        rounds = {str(number): read_result(path) for number, path in finished.items()}
        results = {'rounds': rounds, **statistics(list(rounds.values()))}
        if rounds and all(
            'SRCC_interval' in result for result in rounds.values()
        ):  # versions before this one named no contents
            predictions = [read_predictions(path.with_name('predictions.csv')) for path in finished.values()]
            results['median'] |= intervals(predictions)
        if writable:
            remove_abandoned(run)
            write_json(run / 'results.json', without_nan(results))
    return results


def rounds_in(run: Path) -> list[int]:
    """The numbers of the rounds whose folders lie in `run` under their exact names."""
    numbers = [int(path.name[6:]) for path in run.iterdir() if re.fullmatch(r'round_[0-9]{2,9}', path.name)]
    return sorted(number for number in numbers if round_path(run, number).is_dir())


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result.json, with nan for null.

    Raises:
        InputError: it lacks a metric, or one is no number.
    """
    result = with_nan(read_json(path))
    across = result.get('test_on', {})
    whole = all(isinstance(result.get(name), int) for name in ('epoch', 'epochs')) and isinstance(across, dict)
    values = [result.get(name) for name in METRICS]
    for interval in (result.get(f'{name}_interval', [0, 0]) for name in METRICS[:2]):
        values += interval if isinstance(interval, list) and len(interval) == 2 else [None]
    for metrics in across.values() if whole else ():
        values += metrics.values() if isinstance(metrics, dict) else [None]
    if not whole or not all(type(value) in (int, float) and not math.isinf(value) for value in values):
        raise InputError(f'{path} is not as a run writes it; remove it, and the run with --resume writes it again')
    return result


def statistics(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """{'median': ..., 'mean': ..., 'std': ...} over the rounds' results, with the same nesting."""

    def over_rounds(function: Callable[..., Any], results: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: over_rounds(function, [result[name] for result in results])
            if isinstance(value, dict)
            else float(function([result[name] for result in results]))
            for name, value in results[0].items()
            if name not in ('epoch', 'epochs') and not isinstance(value, list) and all(name in result for result in results)
        }

    return {
        title: over_rounds(function, rounds) if rounds else {}
        for title, function in (('median', np.median), ('mean', np.mean), ('std', np.std))
    }


def without_nan(content: Any) -> Any:
    """`content` with null for nan, which JSON does not have."""
    return json.loads(json.dumps(content), parse_constant=lambda constant: None)


def with_nan(content: Any) -> Any:
    """The content that `without_nan` was made from."""
    if isinstance(content, dict):
        return {key: with_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [with_nan(value) for value in content]
    return math.nan if content is None else content
