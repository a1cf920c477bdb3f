"""The folder of one round.

split.json          names of the images of each part, and a digest of the labels
last.pth            everything that a resume needs; an epoch counts once this file is in place
best.pth            the best epoch's plain state_dict, with the meaning of images and scores to
                    the network
history.csv         one row per epoch
predictions.csv, curves.png, scatter.png, worst.png
predictions_<name>.csv    of each other database
result.json         the metrics at the best epoch, with intervals; written last: it marks the round
                    as finished
"""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import PIL
import scipy
import torch
import torchvision
from PIL.Image import Image

from experiment.options import title_of
from experiment.record import Record, record_path, refuse_other_options
from experiment.results import metrics_of_row, without_nan, write_predictions
from experiment.run_folder import (
    has_begun,
    is_finished,
    refuse_fewer_epochs,
    refuse_other_images,
    round_path,
    run_lock,
)
from experiment.splits import SplitRecord
from util import checkpoints, distributed, plots
from util.checkpoints import Content
from util.errors import InputError, first_line, machine_fault, rank
from util.files import allocate, locked, remove_abandoned, write_json, write_table, write_whole
from util.meaning import Meaning
from util.metrics import TestedImages, metrics_of


def surroundings(device: str) -> Record:
    """The facts for config.json on which a run's numbers may depend in addition to its options."""
    return {
        'command': sys.argv,
        'commit': project_commit(),
        'device': distributed.device_name(device),
        'processes': distributed.world_size(),
        'versions': {
            'python': platform.python_version(),
            'pillow': PIL.__version__,
            'torch': torch.__version__,
            'torchvision': torchvision.__version__,
            'numpy': numpy.__version__,
            'scipy': scipy.__version__,
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
        },
    }


def project_commit() -> str | None:
    """The commit of this project, with a + if its files were changed since.

    None outside a git checkout.
    """
    command = ['git', '-C', str(Path(__file__).parent), 'describe']
    # The full hash of the commit, never the name of a tag.
    command += ['--always', '--abbrev=40', '--exclude=*', '--dirty=+']
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None


class RoundFolder:
    """The files of a round. Under torchrun all ranks read them, and only the first one writes.

    Args:
        config: the run's options.
        meaning: of images and scores to the networks of this run.
        round_index: 0-based.
        split: the record of the round's split.

    Raises:
        InputError: the folder cannot be written or was made for other images, or another process
            is running this round or has begun the run anew with other options.
    """

    def __init__(self, config: Any, meaning: Meaning, round_index: int, split: SplitRecord) -> None:
        self.path = round_path(config.output, round_index + 1)
        self.model = meaning._asdict()  # called so in config.json
        self.epochs = config.epochs
        self.title = f'{title_of(config.dataset)}, seed {config.seed}, round {round_index + 1}'
        # Kept in last.pth, so that a last.pth from elsewhere is noticed. The options need not be in
        # it, since those of the whole run are compared in config.json.
        self.owner = {
            'round': round_index + 1,
            'split': hashlib.sha256(json.dumps(split).encode()).hexdigest(),
        }
        self.lock = ExitStack()
        self.reserved: Path | None = None
        if rank() == 0:
            with run_lock(config.output):
                # Another process may have begun the run anew since `open_run`.
                record = {'options': vars(config), 'model': self.model}
                refuse_other_options(record_path(config.output), record)
                self.open(split)
        # The other ranks read the folder once it is there.
        distributed.wait()

    def open(self, split: SplitRecord) -> None:
        """Make the folder if it is missing, and lock it until `close`."""
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f'{self.path} is being trained by another process'
        is_locked = self.lock.enter_context(locked(self.path / '.lock', busy))
        # With the lock, nobody else is writing here.
        remove_abandoned(self.path, owned=is_locked)
        path = self.path / 'split.json'
        # A finished round trains no more, so another order of its labels does no harm.
        if not is_finished(self.path, self.epochs):
            refuse_other_images(path, split)
        if not path.exists():
            write_json(path, split)

    def close(self) -> None:
        """Let another process, or this one again, run the round."""
        self.release()
        self.lock.close()

    def reserve(self, size: int) -> None:
        """Take `size` bytes of the disk until the first `save`, whose last.pth takes as many.

        So a full disk, a quota or a limit on file sizes is noticed before an epoch, not after it.

        Raises:
            InputError: there is no room.
        """
        if rank() > 0:
            return
        # Named as a temporary file, so that it is removed if this process is killed.
        self.reserved = self.path / '.reserved.tmp'
        try:
            allocate(self.reserved, size)
        except OSError as error:
            self.release()
            raise InputError(
                f'{self.path}/last.pth has no room for its {size / 1e6:.0f} MB: {error.strerror}; '
                'free some, or name another place with --output'
            )

    def release(self) -> None:
        """Give back the room that `reserve` took, if it did."""
        if self.reserved:
            self.reserved.unlink(missing_ok=True)
            self.reserved = None

    def restore(self, load_state_dict: Callable[[Content], None]) -> None:
        """Call `load_state_dict` with the state after the last finished epoch, if there is one.

        Raises:
            InputError: last.pth is gone, damaged, belongs to something else, or has more epochs
                than this run. Nothing in the folder has been changed then.
        """
        path = self.path / 'last.pth'
        if not path.exists():
            # A round that has begun is never restarted without a word.
            if has_begun(self.path):
                raise InputError(
                    f'{path} is gone, without which the round cannot continue; {self.remedy}'
                )
            return
        state = checkpoints.read_checkpoint(path)
        try:
            # The first versions kept no owner.
            owner = state.get('owner', self.owner)
            for name, own in self.owner.items():
                if owner.get(name, own) != own:
                    raise ValueError('it belongs to another round, or to another split')
            load_state_dict(state)
        except Exception as error:  # a state that does not fit can raise anything
            # The file may be intact where memory runs out.
            if machine_fault(error):
                raise
            raise InputError(
                f'{path} is not the checkpoint of this round ({first_line(error)}); {self.remedy}'
            )
        # `refuse_fewer` reads history.csv, which a kill may have left an epoch behind.
        refuse_fewer_epochs(self.epochs, len(state['history']), self.path)
        if rank() == 0:
            self.write_derived(state)

    @property
    def remedy(self) -> str:
        return f'put the right file back, or remove {self.path} to start the round anew'

    def save(self, state: Content) -> None:
        """Record a finished epoch.

        Args:
            state: the solver's `state_dict`.
        """
        if rank() == 0:
            # The solver keeps the dict `best`, so its later states have the digest too.
            # `check_best` compares it with best.pth at the end of the round.
            if is_best_last(state):
                state['best']['weights'] = checkpoints.digest(state['model'])
            # last.pth comes first: the other files follow from it, so that a kill in between
            # loses none of them.
            content = {
                **state,
                'owner': self.owner,
                checkpoints.FACTS: json.dumps(self.model),
            }
            self.release()
            checkpoints.write_checkpoint(self.path / 'last.pth', content)
            self.write_derived(state)
        distributed.wait()

    def write_derived(self, state: Content) -> None:
        """Write the files that follow from last.pth; a kill may have left them an epoch behind."""
        if is_best_last(state):
            checkpoints.write_weights(self.path / 'best.pth', state['model'], self.model)
        # Epochs of an earlier version may lack newer columns, so each row adds those that it has.
        history = state['history']
        columns = list(dict.fromkeys(name for row in history for name in row))
        write_table(self.path / 'history.csv', columns, history)
        best_epoch = state['best']['epoch'] if state['best'] else None
        write_whole(self.path / 'curves.png', plots.curves(history, self.title, best_epoch))

    def check_best(self, best: dict[str, Any]) -> str:
        """Refuse to end the round if best.pth does not have the weights of its best epoch.

        Returns:
            their digest.

        Raises:
            InputError: it is gone, damaged or another network's.
        """
        try:
            weights = checkpoints.read_checkpoint(self.path / 'best.pth')
            digest = checkpoints.digest(weights)
            # The first versions kept no digest in last.pth.
            if digest != best.get('weights', digest):
                raise InputError('best.pth has other weights')
        except InputError as error:
            raise InputError(
                f'the weights of the best epoch, {best["epoch"]}, are lost ({error}); {self.remedy}'
            )
        return digest

    def finish(
        self,
        best: dict[str, Any],
        last: dict[str, float],
        tested: TestedImages,
        thumbnail: Callable[[int], Image],
        on_others: dict,
    ) -> None:
        """Write the predictions of the best epoch, their pictures, and last the round's result.

        Args:
            best: the solver's best epoch.
            last: the row of the last epoch in the history.
            tested: the test images with their predictions in that epoch.
            thumbnail: gives a small picture of the image at a position in `tested`.
            on_others: metrics on other databases, by the database's name.
        """
        if rank() == 0:
            digest = self.check_best(best)
            # There are no test images after --train_on_all.
            if tested.images:
                title = f'{self.title}, epoch {best["epoch"]}'
                scatter = plots.scatter(tested.predicted, tested.subjective, title)
                write_whole(self.path / 'scatter.png', scatter)
                write_whole(self.path / 'worst.png', plots.worst(tested, thumbnail, title))
            write_predictions(self.path / 'predictions.csv', tested)
            result = {
                'epoch': best['epoch'],
                'epochs': self.epochs,
                # So the checkpoint of this result is recognised wherever it is copied to.
                'weights': digest,
                # Kept here too, since history.csv gets further epochs if the round is extended.
                'last_epoch': metrics_of_row(last),
                **metrics_of(tested),
            }
            if on_others:
                result['test_on'] = on_others
            # Last, since it marks the round as finished.
            write_json(self.path / 'result.json', without_nan(result))
        distributed.wait()


def is_best_last(state: Content) -> bool:
    """Whether the last epoch of a solver's state is its best one."""
    return bool(state['best']) and state['best']['epoch'] == state['history'][-1]['epoch']
