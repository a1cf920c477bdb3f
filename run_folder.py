"""The folder that a run leaves behind, so that nothing it earned is ever lost.

    config.json            every option, package versions, device
    round_01/split.json    names of the images of each part
    round_01/history.csv   a row an epoch
    round_01/best.pth      the best epoch's plain state_dict
    round_01/last.pth      everything that a resume needs
    round_01/predictions.csv, curves.png, scatter.png
    results.json           every round's metrics at its best epoch, and their median, mean and deviation

Every file appears whole or not at all. `last.pth` is the truth: an epoch counts once it is renamed into place. A round is
finished once it has its predictions.csv, and the results are computed from those files alone.
"""
import csv
import io
import json
import math
import os
import platform
from pathlib import Path

import numpy as np
import torch

import plots
from errors import InputError
from metrics import all_metrics
from models import read_checkpoint

# Options that a resumed run may change: where things are and how fast they go, not what is computed.
FREE_OPTIONS = {'data_root', 'output', 'resume', 'evaluate', 'device', 'num_workers', 'cache'}


def write_whole(path, content):
    """Write the bytes `content` to `path`, which holds either its old or its new content whatever happens meanwhile.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old content is untouched.
    """
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(beside, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror}; what it held before is untouched. '
                         f'Make room, then continue with --resume')
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder):
    """Make a rename in `folder` last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path, content):
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode())


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read: {error}')


def write_table(path, rows):
    """Write a list of dicts with the same keys as CSV; floats keep every digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_table(path):
    try:
        with open(path, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}')


def open_run(config):
    """The run folder `config.output` as a path, made or continued.

    Raises:
        InputError: it exists and `config.resume` is not set, it was made with other options, or it is no run folder.
    """
    folder = Path(config.output)
    record = folder / 'config.json'
    if record.exists():
        if not config.resume:
            raise InputError(f'the run folder {folder} exists already; --resume continues it, '
                             f'--output DIR names another one')
        refuse_other_options(record, config)
    elif folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir()):
        raise InputError(f'{folder} holds files, but it is not a run folder; --output DIR names another one')
    else:
        make_folder(folder)
        write_json(record, {'options': vars(config), 'versions': versions(), 'device': device_name(config.device)})
    return folder


def refuse_other_options(record, config):
    before, now = read_options(record), vars(config)
    names = sorted((before.keys() | now.keys()) - FREE_OPTIONS)
    differ = [f'--{name} was {before.get(name)}, is {now.get(name)}' for name in names if before.get(name) != now.get(name)]
    if differ:
        raise InputError(f'{record.parent} was made with other options: {"; ".join(differ)}; '
                         f'give the same ones, or --output DIR for a new run')


def read_options(record):
    """The options in a config.json as a dict."""
    options = read_json(record).get('options')
    if not isinstance(options, dict):
        raise InputError(f'{record} holds no options; it is not the record of a run')
    return options


def make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'the folder {folder} cannot be made: {error.strerror}; --output DIR names another place')


def versions():
    import PIL
    import scipy
    import torchvision
    return {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__,
            'numpy': np.__version__, 'scipy': scipy.__version__, 'pillow': PIL.__version__}


def device_name(device):
    """What a reader of the numbers should know of `device`: the GPU's name, or how many CPU threads."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'{torch.get_num_threads()} threads'


class RoundFolder:
    """One round's files.

    Args:
        run: the run folder.
        round_index: 0-based.
        parts: names of the images of each part, by the part's name; a folder made for others is refused.
    """

    def __init__(self, run, round_index, parts):
        self.path = Path(run) / f'round_{round_index + 1:02d}'
        make_folder(self.path)
        for abandoned in self.path.glob('.*.tmp'):
            abandoned.unlink()
        split = self.path / 'split.json'
        if not split.exists():
            write_json(split, parts)
        elif read_json(split) != parts:
            raise InputError(f'{split} names other images than the database has now; restore its files, '
                             f'or start a new run with --output DIR')

    @property
    def finished(self):
        return (self.path / 'predictions.csv').exists()

    def restore(self, solver):
        """Put `solver` where the last finished epoch left it, if there is one.

        Raises:
            InputError: last.pth is damaged or of something else; nothing in the folder is changed.
        """
        path = self.path / 'last.pth'
        if not path.exists():
            return
        state = read_checkpoint(path)
        try:
            solver.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f'{path} is not the checkpoint of this round ({str(error).splitlines()[0]}); '
                             f'put the right file back, or remove {self.path} to start the round anew')
        self.write_derived(state)

    def save(self, state):
        """Record a finished epoch; `state` is the solver's `state_dict`."""
        write_whole(self.path / 'last.pth', serialised(state))
        self.write_derived(state)

    def write_derived(self, state):
        """The files that follow from last.pth, which a kill may have left one epoch behind it."""
        history = state['history']
        if state['best'] and state['best']['epoch'] == history[-1]['epoch']:
            write_whole(self.path / 'best.pth', serialised(state['model']))
        write_table(self.path / 'history.csv', history)
        write_whole(self.path / 'curves.png', plots.curves(history))

    def finish(self, names, subjective, predicted, title):
        """Write the test images' scores at the best epoch, and their picture."""
        write_whole(self.path / 'scatter.png', plots.scatter(predicted, subjective, title))
        write_table(self.path / 'predictions.csv', [
            {'image': name, 'score': float(score), 'prediction': float(prediction)}
            for name, score, prediction in zip(names, subjective, predicted, strict=True)])


def serialised(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def best_row(history, selected_on):
    """The first row of `history` with the highest value of the column `selected_on`, or None if all are nan."""
    rows = [row for row in history if not math.isnan(float(row[selected_on]))]
    return max(rows, key=lambda row: float(row[selected_on])) if rows else None


def selection_column(history):
    """The best epoch is chosen on the validation part if there is one, else on the test part as the original does."""
    return 'val_srcc' if 'val_srcc' in history[0] else 'test_srcc'


def summarise(run):
    """Compute results.json from the rounds that are finished and write it.

    Returns:
        dict: `rounds` maps the 1-based round to its metrics; `median`, `mean` and `std` are over them.
    """
    rounds = {}
    for path in sorted(Path(run).glob('round_*/predictions.csv')):
        predictions, history = read_table(path), read_table(path.with_name('history.csv'))
        best = best_row(history, selection_column(history))
        rounds[str(int(path.parent.name.removeprefix('round_')))] = {
            'epoch': int(best['epoch']),
            **all_metrics([float(row['prediction']) for row in predictions], [float(row['score']) for row in predictions])}
    results = {'rounds': rounds, **statistics(list(rounds.values()))}
    write_json(Path(run) / 'results.json', without_nan(results))
    return results


def statistics(rounds):
    names = [name for name in rounds[0] if name != 'epoch'] if rounds else []
    return {title: {name: float(function([metrics[name] for metrics in rounds])) for name in names}
            for title, function in (('median', np.median), ('mean', np.mean), ('std', np.std))}


def without_nan(content):
    """`content` with null for nan, which JSON does not have."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content
