"""The folder that a run leaves behind, so that nothing it earned is ever lost.

    config.json            every option, what an image and a score mean to the network, package versions, device
    round_01/split.json    names of the images of each part
    round_01/history.csv   a row an epoch
    round_01/best.pth      the best epoch's plain state_dict
    round_01/last.pth      everything that a resume needs
    round_01/predictions.csv, curves.png, scatter.png
    round_01/result.json   the metrics at the best epoch, on other databases too; written last: it marks the round as finished
    results.json           every round's result, and their median, mean and deviation

Every file appears whole or not at all. `last.pth` is the truth: an epoch counts once it is renamed into place. torch and
matplotlib are imported where they are used, since the results of a run are summarised without them.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from util import distributed
from util.errors import InputError
from util.files import locked, make_folder, read_json, try_lock, write_json, write_table, write_whole

# Options that a resumed run may change: where things are and how fast they go, not what is computed.
FREE_OPTIONS = {'data_root', 'csv', 'output', 'resume', 'rounds', 'device', 'num_workers', 'cache'}


def check_run(config: argparse.Namespace, model: dict[str, Any], parts: list[dict[str, list[str]]]) -> None:
    """Refuse a run folder `config.output` that this run may not make or continue; nothing is written.

    Args:
        model: what an image and a score mean to the networks of this run; demo.py reads it.
        parts: for each round, the names of the images of each part.

    Raises:
        InputError: it exists and `config.resume` is not set, it was made with other options or images, or it is no run folder.
    """
    folder = Path(config.output)
    path = folder / 'config.json'
    if path.exists() and not is_untouched(folder):
        if not config.resume and not is_joined(folder, config):
            raise InputError(f'the run folder {folder} exists already; --resume continues it, --output DIR names another one')
        refuse_other_options(path, {'options': vars(config), 'model': model})
        for number, names in enumerate(parts, start=1):
            refuse_other_images(round_path(folder, number) / 'split.json', names)
    if not path.exists() and folder.exists() and any(not entry.name.startswith('.') for entry in folder.iterdir()):
        raise InputError(f'{folder} holds files, but it is not a run folder; --output DIR names another one')


def open_run(config: argparse.Namespace, model: dict[str, Any], parts: list[dict[str, list[str]]]) -> None:
    """Make or continue the run folder `config.output`; arguments and errors as of `check_run`."""
    check_run(config, model, parts)
    folder = Path(config.output)
    path = folder / 'config.json'
    if path.exists() and not is_untouched(folder):
        return
    make_folder(folder)
    for split in folder.glob('round_*/split.json'):
        split.unlink()
    record = {'options': vars(config), 'model': model, **surroundings(config.device)}
    write_json(path, record)


def is_untouched(folder: Path) -> bool:
    """Whether no epoch was ever finished in the run folder and no process works in it: other options may start it anew."""
    if any(folder.glob('round_*/last.pth')):
        return False
    locks = [try_lock(path) for path in folder.glob('round_*/.lock')]
    for lock in locks:
        if lock:
            lock.close()
    return None not in locks


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
    differ = [
        f'--{name} was {before["options"].get(name)}, is {now["options"].get(name)}'
        for name in sorted((before['options'].keys() | now['options'].keys()) - FREE_OPTIONS)
        if before['options'].get(name) != now['options'].get(name)
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


def read_record(path: Path) -> dict[str, Any]:
    """The content of a config.json."""
    record = read_json(path)
    if not isinstance(record.get('options'), dict) or not isinstance(record.get('model'), dict):
        raise InputError(f'{path} holds no options; it is not the record of a run')
    return record


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


def refuse_other_images(split: Path, parts: dict[str, list[str]]) -> None:
    """Refuse the split.json of a round if it is there and names other images than `parts`."""
    if split.exists() and read_json(split) != parts:
        raise InputError(
            f'{split} names other images than the database has now; restore its files, or start a new run with --output DIR'
        )


class RoundFolder:
    """One round's files; under torchrun all ranks read them and the first alone writes.

    Args:
        run: the run folder.
        round_index: 0-based.
        parts: names of the images of each part, by the part's name; a folder made for others is refused.

    Raises:
        InputError: the folder cannot be written, was made for other images, or another process runs this round.
    """

    def __init__(self, run: Path | str, round_index: int, parts: dict[str, list[str]]) -> None:
        self.path = round_path(run, round_index + 1)
        if distributed.rank() == 0:
            make_folder(self.path)
            self.lock = try_lock(self.path / '.lock')
            if self.lock is None:
                raise InputError(f'{self.path} is being trained by another process')
            self.prepare(parts)
        distributed.wait()

    def prepare(self, parts: dict[str, list[str]]) -> None:
        for abandoned in self.path.glob('.*.tmp'):
            abandoned.unlink()
        split = self.path / 'split.json'
        refuse_other_images(split, parts)
        if not split.exists():
            write_json(split, parts)

    @property
    def finished(self) -> bool:
        return (self.path / 'result.json').exists()

    def restore(self, load_state_dict: Callable[[dict[str, Any]], None]) -> None:
        """Give the state that the last finished epoch left, if there is one, to `load_state_dict`.

        Raises:
            InputError: last.pth is damaged or of something else; nothing in the folder is changed.
        """
        from util.checkpoints import read_checkpoint

        path = self.path / 'last.pth'
        if not path.exists():
            return
        state = read_checkpoint(path)
        try:
            load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f'{path} is not the checkpoint of this round ({str(error).splitlines()[0]}); '
                f'put the right file back, or remove {self.path} to start the round anew'
            )
        if distributed.rank() == 0:
            self.write_derived(state)

    def save(self, state: dict[str, Any]) -> None:
        """Record a finished epoch; `state` is the solver's `state_dict`."""
        from util.checkpoints import serialised

        if distributed.rank() == 0:
            write_whole(self.path / 'last.pth', serialised(state))
            self.write_derived(state)
        distributed.wait()

    def write_derived(self, state: dict[str, Any]) -> None:
        """The files that follow from last.pth, which a kill may have left one epoch behind it."""
        from util import plots
        from util.checkpoints import serialised

        history = state['history']
        if state['best'] and state['best']['epoch'] == history[-1]['epoch']:
            write_whole(self.path / 'best.pth', serialised(state['model']))
        write_table(self.path / 'history.csv', list(history[0]), history)
        write_whole(self.path / 'curves.png', plots.curves(history))

    def finish(
        self, best: dict[str, Any], names: list[str], subjective: np.ndarray, title: str, across: dict[str, dict[str, float]]
    ) -> None:
        """Write the test images' scores at the best epoch and their picture, and last of all the round's result.

        Args:
            best: the solver's best epoch.
            names, subjective: of the test images, (N,) each.
            title: of the picture.
            across: metrics on other databases, by the database's name.
        """
        from util import plots
        from util.metrics import all_metrics

        predicted = best['scores'].numpy()
        if names:
            write_whole(self.path / 'scatter.png', plots.scatter(predicted, subjective, title))
        rows = [
            {'image': name, 'score': float(score), 'prediction': float(prediction)}
            for name, score, prediction in zip(names, subjective, predicted, strict=True)
        ]
        write_table(self.path / 'predictions.csv', ['image', 'score', 'prediction'], rows)
        result = {'epoch': best['epoch'], **all_metrics(predicted, subjective), **({'test_on': across} if across else {})}
        write_json(self.path / 'result.json', without_nan(result))


def summarise(run: Path | str) -> dict[str, Any]:
    """Gather the results of the rounds that are finished into results.json, one process at a time.

    Returns:
        `rounds` maps the 1-based round to its metrics; `median`, `mean` and `std` are over them. Metrics on the
        other databases are under `test_on`, by the database's name.

    Raises:
        InputError: `run` is no run folder.
    """
    run = Path(run)
    read_record(run / 'config.json')
    with locked(run / '.lock'):
        rounds = {
            str(round_index_of(path.parent) + 1): with_nan(read_json(path)) for path in sorted(run.glob('round_*/result.json'))
        }
        results = {'rounds': rounds, **statistics(list(rounds.values()))}
        write_json(run / 'results.json', without_nan(results))
    return results


def statistics(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """{'median': ..., 'mean': ..., 'std': ...} over the rounds' results, with the same nesting."""

    def over_rounds(function: Callable[..., Any], results: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: over_rounds(function, [result[name] for result in results])
            if isinstance(value, dict)
            else float(function([result[name] for result in results]))
            for name, value in results[0].items()
            if name != 'epoch'
        }

    return {
        title: over_rounds(function, rounds) if rounds else {}
        for title, function in (('median', np.median), ('mean', np.mean), ('std', np.std))
    }


def without_nan(content: Any) -> Any:
    """`content` with null for nan, which JSON does not have."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


def with_nan(content: Any) -> Any:
    """The content that `without_nan` was made from."""
    if isinstance(content, dict):
        return {key: with_nan(value) for key, value in content.items()}
    return math.nan if content is None else content
