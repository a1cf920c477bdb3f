"""The folder that a run leaves behind: where its parts are, and whether a run may use it.

A finished epoch is never lost, and every file appears whole or not at all.

config.json      every option, the meaning of images and scores to the network, package versions,
                 device; see `experiment/record.py`
left_out.csv     listed images that --skip_missing left out
round_01/        a round's files, see `experiment/round_folder.py`
results.json     every round's result, and their median with intervals, mean and deviation
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from experiment.options import MOST_ROUNDS
from experiment.record import (
    Record,
    continue_record,
    read_record,
    record_path,
    refuse_other_options,
    write_record,
)
from experiment.splits import Job, SplitRecord, split_record
from util.errors import InputError, restarted
from util.files import is_locked, locked, read_json

# A round that has one of these files has finished an epoch.
RESULTS = ('last.pth', 'best.pth', 'history.csv', 'predictions.csv', 'result.json')


def check_run(config: Any, job: Job) -> Record | None:
    """Refuse the run folder `config.output` if this run may neither make nor continue it.

    Nothing is written.

    Returns:
        the record of the run that is continued, or None for a new run.

    Raises:
        InputError: the folder has a run, and this run neither resumes it nor adds rounds to it; or
            that run has other options or images; or the folder has files, but no run; or it cannot
            be made.
    """
    folder = Path(config.output)
    refuse_unwritable(folder)
    if not record_path(folder).exists():
        refuse_other_files(folder)
        return None
    with run_lock(folder):
        return check_locked_run(config, job)


def check_locked_run(config: Any, job: Job) -> Record | None:
    """As `check_run`, for a folder with a config.json whose lock this process has."""
    folder = Path(config.output)
    # Until an epoch is finished there is nothing to lose, so the run may start again.
    if not is_under_way(folder):
        return None

    # Other processes may run other rounds in the same folder, without --resume.
    begun = [number for number in config.rounds or [] if round_path(folder, number).exists()]
    adds_rounds = config.rounds and not begun
    if not config.resume and not adds_rounds:
        found = f'the run folder {folder} exists already'
        if restarted():
            raise InputError(
                f'{found}: torchrun has restarted the processes after a failure, which is reported '
                'further up; with --resume a restart continues the run'
            )
        raise InputError(f'{found}; --resume continues it, --output DIR names another one')
    path = record_path(folder)
    refuse_other_options(path, {'options': vars(config), 'model': job.meaning._asdict()})
    refuse_fewer(config)
    record = read_record(path)
    places = [round_path(folder, number) for number in range(1, len(job.splits) + 1)]
    trains_nothing = all(is_finished(place, config.epochs) for place in places)
    for place, split in zip(places, job.splits):
        refuse_other_images(
            place / 'split.json',
            split_record(split, job.database),
            has_same_rows=record.get('labels') == job.database.digest_in_any_order,
            trains_nothing=trains_nothing,
        )
    return record


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the round in `folder` has a result for this number of epochs."""
    path = folder / 'result.json'
    return path.exists() and read_json(path).get('epochs') == epochs


def record_to_continue(folder: Path | str) -> Record | None:
    """The record of the run that a run in `folder` would continue; None for a new run."""
    path = record_path(folder)
    if not path.exists():
        return None
    with run_lock(folder):
        return read_record(path) if is_under_way(Path(folder)) else None


def run_lock(run: Path | str) -> AbstractContextManager[bool]:
    """The lock of a run: for a process that begins or continues it, or gathers its results.

    A process must have it in order to take or test the lock of a round. Otherwise a round could be
    taken between another process's check of the run and its write. Also, a test takes the round's
    lock for a moment, which another process could mistake for a round that is being trained.
    """
    return locked(Path(run) / '.lock')


def refuse_fewer(config: Any) -> None:
    """Refuse fewer epochs or rounds than the run in `config.output` has trained."""
    for number in range(1, MOST_ROUNDS + 1):
        path = round_path(config.output, number)
        if not has_begun(path):
            continue
        if number > config.train_test_num:
            raise InputError(
                f'--train_test_num: {path} has been trained; give {number} or more, '
                'or --output DIR for a new run'
            )
        refuse_fewer_epochs(config.epochs, trained_epochs(path), path)


def refuse_fewer_epochs(epochs: int, trained: int, path: Path) -> None:
    """Refuse to end the round in the folder `path` after fewer epochs than it has trained."""
    if epochs < trained:
        raise InputError(
            f'--epochs: {path} has trained {trained} epochs; give {trained} or more, '
            'or --output DIR for a new run'
        )


def trained_epochs(folder: Path) -> int:
    """The number of epochs in a round's history.csv, whose cells are not read."""
    path = folder / 'history.csv'
    if not path.exists():
        return 0
    # The first line is the header.
    return max(0, len(path.read_bytes().splitlines()) - 1)


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written."""
    # The folder itself, or the nearest one above it that is there.
    existing = folder.absolute()
    while not os.path.exists(existing):
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f'the folder {folder} cannot be made: {existing} cannot be written; '
            '--output DIR names another place'
        )


def is_under_way(folder: Path) -> bool:
    """Whether a run in `folder` has finished an epoch, or a process works on it."""
    if any(map(has_begun, folder.glob('round_*'))):
        return True
    return any(is_locked(path) for path in folder.glob('round_*/.lock'))


def has_begun(folder: Path) -> bool:
    """Whether the round in `folder` has finished an epoch."""
    return any((folder / name).exists() for name in RESULTS)


def rounds_of(config: Any) -> list[int]:
    """The 1-based numbers of the rounds that this command runs."""
    return list(config.rounds or range(1, config.train_test_num + 1))


def starts_from_weights(config: Any) -> bool:
    """Whether a round of this command is still to start from `config.weights`."""
    if config.weights == 'none':
        return False
    folders = [round_path(config.output, number) for number in rounds_of(config)]
    return not all(map(has_begun, folders))


def refuse_other_files(folder: Path) -> None:
    """Refuse a folder without a config.json if there are files in it."""
    if folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir()):
        raise InputError(
            f'{folder} has files, but it is not a run folder; --output DIR names another one'
        )


def open_run(config: Any, job: Job, surroundings: Record) -> None:
    """Make or continue the run folder `config.output`.

    Args:
        surroundings: as of `write_record`.

    Raises:
        InputError: as in `check_run`, or the initial weights are not those that the run began with.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        # Another process may have begun this run since the first check.
        if record_path(folder).exists() and check_locked_run(config, job):
            continue_record(config, surroundings)
            return
        # A run that finished no epoch may have left the splits of other options.
        for path in folder.glob('round_*/split.json'):
            path.unlink()
        write_record(config, job.meaning._asdict(), surroundings)


def checkpoint_in(path: Path | str) -> Path:
    """The best.pth of the only finished round if `path` is a run folder; else `path` itself.

    Raises:
        InputError: several rounds of the run are finished, or none.
    """
    run = Path(path)
    if not record_path(run).exists():
        return run
    found = [round_path(run, number) / 'best.pth' for number in rounds_in(run)]
    if not found:
        raise InputError(f'{run} has no finished round; --resume {run} finishes it')
    if len(found) > 1:
        raise InputError(f'{run} has several networks; name one: {", ".join(map(str, found))}')
    return found[0]


def round_path(run: Path | str, round_number: int) -> Path:
    return Path(run) / f'round_{round_number:02d}'


def round_index_of(folder: Path) -> int:
    """The 0-based round of a round's folder."""
    return int(folder.name.removeprefix('round_')) - 1


def rounds_in(run: Path) -> list[int]:
    """The numbers of the finished rounds in `run`.

    A folder counts only under its exact name, so that round_1 and round_01 are not both round 1.
    """
    numbers = range(1, MOST_ROUNDS + 1)
    return [number for number in numbers if (round_path(run, number) / 'result.json').exists()]


def refuse_other_images(
    path: Path,
    split: SplitRecord,
    remedy: str = 'give --output DIR',
    *,
    has_same_rows: bool = False,
    trains_nothing: bool = False,
) -> None:
    """Refuse a round whose split.json differs from `split`.

    Args:
        path: the split.json; without one, nothing is refused.
        remedy: the advice in messages, apart from putting the old files back.
        has_same_rows: whether the labels have the same rows as before, in any order.
        trains_nothing: whether no epoch is trained any more, so that the order of the rows does not
            matter.

    Raises:
        InputError: the split.json is of other images or labels.
    """
    if not path.exists():
        return
    # The first versions wrote no digest of the labels.
    before = {'labels': split['labels'], **read_json(path)}
    parts = before | split
    changed = [part for part in parts if before.get(part) != split.get(part)]
    if 'labels' in changed and has_same_rows:
        # A random split draws positions of rows, and patches are drawn in the order of the images.
        if trains_nothing:
            return
        raise InputError(
            f'the rows of the labels are in another order than when {path} was made; '
            f'put them back into it, or {remedy}'
        )
    if changed == ['labels']:
        raise InputError(
            f'the scores, contents, sets or order of the labels have changed since {path} was '
            f'made; restore the label file, or {remedy}'
        )
    if changed:
        raise InputError(
            f'{path} names other images than the database has now, or in another order; '
            f'restore its files, or {remedy}'
        )
