"""The record of a run, its config.json, which only this file finds, reads, compares and writes."""

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import folders
from experiment.options import default_options
from util.errors import InputError, log
from util.files import is_run, read_json, write_json
from util.frames import FORMAT, is_shown_differently

Record = dict[str, Any]  # the content of a config.json: see `write_record`
CHECKPOINTS = ('best.pth', 'last.pth')  # of a round
ROUND_NAME = re.compile('round_([0-9]{2,9})')  # of a round's folder: round_01, ... round_1000
VERSION = 2  # of the form of config.json; earlier versions wrote no number
# Options that a resumed run may change: where things are and how fast they go. The results depend
# on them by rounding at most.
FREE_OPTIONS = {
    'data_root',
    'image_root',
    'csv',
    'output',
    'resume',
    'rounds',
    'device',
    'compile',
    'num_workers',
    'cache',
    'test_batch_size',
    'list_datasets',
}
# Options that a resumed run may raise. It may also lower them, but not below the epochs and rounds
# that are trained already (see `refuse_fewer`). Neither the learning rates nor a finished round
# depend on how many epochs or rounds there are.
LENGTHS = {'epochs', 'train_test_num'}
# `model` in a record is a Meaning (see `util/meaning.py`). A resumed run may not change these
# fields of it.
FIXED_MEANING = ('resize', 'exif_rotation', 'score_range', 'higher_is_better', 'srgb')


def record_path(run: Path | str) -> Path:
    return Path(run) / 'config.json'


def checkpoint_in_run(checkpoint: Path | str) -> Path | None:
    """The path of a checkpoint in a round's folder, if it is a round's best.pth or last.pth.

    A link is looked at under its own path first, and then under that of the file it points to.
    """
    for path in places_of(checkpoint):
        is_written_by_run = path.name in CHECKPOINTS and ROUND_NAME.fullmatch(path.parent.name)
        if is_written_by_run and is_run(path.parents[1]):
            return path
    return None


def record_of(checkpoint: Path | str) -> Path | None:
    """The config.json of a checkpoint's run, or the copy next to it; None if there is none."""
    path = checkpoint_in_run(checkpoint)
    if path:
        return record_path(path.parents[1])
    for path in places_of(checkpoint):
        folder = path.parent
        # A file directly in the folder of a run with rounds could come from anywhere.
        if is_run(folder) and not any(folder.glob('round_*')):
            return record_path(folder)
    return None


def places_of(checkpoint: Path | str) -> list[Path]:
    return [Path(os.path.abspath(checkpoint)), Path(os.path.realpath(checkpoint))]


def read_record(path: Path) -> Record:
    """The content of a run's config.json, in the form of this version.

    Returns:
        a dict; its `options` are the run's, and its `model` is the Meaning of its networks.

    Raises:
        InputError: the file is missing or damaged, or is not a run's.
    """
    record = read_json(path)
    if not isinstance(record.get('options'), dict) or not isinstance(record.get('model'), dict):
        raise InputError(
            f'{path} does not have the options of a run; put the file back as the run wrote it'
        )
    return upgrade(record)


def upgrade(record: Record) -> Record:
    """A config.json's content in the form of this version, whatever version wrote it."""
    options = dict(record['options'])
    model = dict(record['model'])

    # Versions before --fit_scale recorded two options in another way.
    if 'fit_scale' not in options:
        # `random` was the default then. Now it is None, so that a table's own sets are used.
        if options.get('split') == 'random':
            options['split'] = None
        # They recorded the GPU that the program had chosen, and not the user's choice.
        if str(options.get('device')).startswith('cuda:'):
            options['device'] = 'cuda'

    # The title and range of the labels were added to `model` later than the rest.
    entry = folders.DATABASES.get(options.get('dataset', ''))
    if entry:
        model = {'title': entry.title, 'label_range': entry.score_range, **model}
    # Runs that did not record it converted no image to sRGB.
    model.setdefault('srgb', None)

    # A run that is older than an option behaved as with the option's default of today.
    for name, default in default_options().items():
        options.setdefault(name, default)
    # Earlier versions did not record how they read pictures, which was FORMAT 3 of util/frames.py,
    # nor the type of --amp, which was bfloat16 on every device.
    record = {'frames': 3, 'amp_type': 'bfloat16', **record}
    return {**record, 'options': options, 'model': model}


def options_of_run(path: Path, without: set[str]) -> dict[str, Any]:
    """The options of the run with the config.json `path`, as its command line gave them.

    Args:
        without: options to leave out. `data_root` is always kept.
    """
    options = read_record(path)['options']
    kept = {name: value for name, value in options.items() if name not in without}
    # With --csv, the table is recorded as `data_root`, and the given --data_root as `image_root`.
    recorded_as = 'image_root' if options['csv'] else 'data_root'
    kept['data_root'] = options.get(recorded_as)
    return kept


def refuse_other_options(path: Path, record: Record) -> None:
    """Refuse to continue the run with the config.json `path` if it was made with other options.

    Args:
        record: the `options` and `model` of the run that would continue it.

    Raises:
        InputError: an option has changed that is neither in FREE_OPTIONS nor in LENGTHS, or images
            or scores mean something else.
    """
    old = read_record(path)
    # As it would be read back: a tuple becomes a list.
    new = upgrade(json.loads(json.dumps(record)))
    if old.get('initial_weights') and new['options']['weights'] != 'none':
        # Their digest is compared (`continue_record`), so the file may have moved.
        new['options']['weights'] = old['options']['weights']
    changes = forbidden_changes(old['options'], new['options'])
    for name in FIXED_MEANING:
        now = new['model'][name]
        # The first versions may not have recorded it.
        before = old['model'].get(name, now)
        if before != now:
            changes.append(f'{name} was {before}, is {now}')
    if changes:
        raise InputError(
            f'{path.parent} was made with other options: {"; ".join(changes)}; '
            'give the same, or --output DIR for a new run'
        )


def refuse_other_pixels(record: Record, databases: Iterable[folders.OpenDatabase]) -> None:
    """Refuse to continue or test a run if this version reads one of its images in another way.

    Args:
        record: the run's.
        databases: those that it uses.

    Raises:
        InputError: there is such an image, and an earlier version began the run.
    """
    if record['frames'] == FORMAT:
        return
    for database in databases:
        for sample in database.samples:
            if is_shown_differently(sample.path, database.srgb):
                raise InputError(
                    f'{sample.path} has other pixels than for the version that began this run '
                    f'(see CHANGES.md); use that version, commit {record.get("commit")}, or start '
                    'a new run with --output DIR'
                )


def forbidden_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The changes of options that forbid a resume, each as '--lr was 2e-05, is 0.001'."""
    changes = []
    may_change = FREE_OPTIONS | LENGTHS
    if old['split'] == 'folds':
        may_change -= {'train_test_num'}  # another number of folds draws other folds
    for name in sorted(old.keys() - may_change):
        before = old[name]
        now = new.get(name)
        if name == 'test_on':
            # The other databases may have moved, so only their names are compared.
            before = [entry[0] for entry in before or []]
            now = [entry[0] for entry in now or []]
        if differs(name, before, now):
            changes.append(f'--{name} was {before}, is {now}')
    return changes


def differs(name: str, before: Any, now: Any) -> bool:
    """Whether the change of an option forbids a resume."""
    # None and 'random' are the same split unless the user's own table names sets. Then the
    # images of the parts differ, which is refused where the splits are compared.
    if name == 'split' and before in (None, 'random') and now in (None, 'random'):
        return False
    # None, False and an empty list all mean that the option is not given.
    return before != now and bool(before or now)


def write_record(config: Namespace, model: dict[str, Any], surroundings: Record) -> None:
    """Write the config.json of a new run in `config.output`.

    Args:
        model: the fields of its Meaning.
        surroundings: what `round_folder.surroundings` returns, the digests of the `labels` and the
            `initial_weights`, and with --amp the `amp_type`.
    """
    record = {
        'version': VERSION,
        'frames': FORMAT,
        'options': vars(config),
        'model': model,
        **surroundings,
    }
    write_json(record_path(config.output), record)


def continue_record(config: Namespace, surroundings: Record) -> None:
    """Bring the config.json in `config.output` up to date when its run is continued.

    Its numbers of epochs and rounds may have changed. Everything else stays as it was at the start.
    If the device, PyTorch, the number of processes or the commit has changed, that is logged.

    Args:
        surroundings: as of `write_record`.

    Raises:
        InputError: the initial weights are not those that the run began with.
    """
    path = record_path(config.output)
    # Not upgraded, so that the file keeps the form of the version that began the run.
    record = read_json(path)
    # Earlier versions recorded no digest.
    before = record.get('initial_weights')
    # None if no round starts now.
    digest = surroundings['initial_weights']
    if before and digest and before != digest:
        raise InputError(
            f'--weights: {config.weights} has other weights than those that {config.output} '
            'began with; put those back or name their file, or give --output DIR for a new run'
        )
    log_other_surroundings(record, surroundings)
    lengths = {name: getattr(config, name) for name in LENGTHS}
    options = {**record['options'], **lengths}
    if options != record['options']:
        write_json(path, {**record, 'options': options})


def log_other_surroundings(record: Record, surroundings: Record) -> None:
    """Log each difference from the run's record that its numbers may depend on."""
    before = computed_on(record)
    now = computed_on(surroundings)
    if before != now:
        log(
            f'this run was made on {before} and continues on {now}, '
            'where the last digits can differ'
        )
    count = surroundings['processes']
    # Earlier versions recorded no number of processes.
    old_count = record.get('processes') or count
    if old_count != count:
        log(
            f'this run was made by {processes(old_count)} and continues with {processes(count)}, '
            'which can change its numbers: see "One round on several GPUs" in docs/training.md'
        )
    old_commit = record.get('commit')
    commit = surroundings['commit']
    if old_commit != commit:
        log(
            f'this run was made by commit {old_commit or "unknown"} and continues with '
            f'{commit or "unknown"}: its epochs may have been trained in different ways'
        )


def processes(count: int) -> str:
    return '1 process' if count == 1 else f'{count} processes'


def computed_on(surroundings: Record) -> str:
    """The device and PyTorch in a record, as users read them."""
    version = surroundings.get('versions', {}).get('torch')
    return f'{surroundings.get("device")} with PyTorch {version}'
