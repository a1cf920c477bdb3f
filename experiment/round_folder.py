"""One round's files.

split.json          names of the images of each part, and a digest of the labels
last.pth            everything that a resume needs; an epoch counts once this file is renamed into place
best.pth            the best epoch's plain state_dict
history.csv         one row per epoch
predictions.csv, curves.png, scatter.png, worst.png
predictions_<name>.csv    of each other database
result.json         the metrics at the best epoch, with intervals; written last: it marks the round as finished
"""

import hashlib
import json
import platform
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy
import PIL
import scipy
import torch
import torchvision
from PIL.Image import Image

from experiment.options import title_of
from experiment.run_folder import (
    project_commit,
    read_result,
    refuse_other_images,
    round_path,
    without_nan,
    write_predictions,
)
from experiment.splits import SplitRecord
from util import checkpoints, distributed, plots
from util.errors import InputError, first_line, rank
from util.files import locked, remove_abandoned, write_json, write_table, write_whole
from util.metrics import TestedImages, all_metrics, by_type, intervals


def surroundings(device: str) -> dict[str, Any]:
    """What the numbers of a run may depend on beside its options, for config.json."""
    versions: dict[str, Any] = {'python': platform.python_version(), 'pillow': PIL.__version__}
    versions |= {
        module.__name__: module.__version__ for module in (torch, torchvision, numpy, scipy)
    }
    versions |= {'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}
    return {
        'command': sys.argv,
        'commit': project_commit(),
        'device': distributed.device_name(device),
        'versions': versions,
    }


class RoundFolder:
    """The files of a round; under torchrun all ranks read them and the first alone writes.

    Args:
        config: the run's options.
        round_index: 0-based.
        split: the record of the round's split; a folder made for another one is refused.

    Raises:
        InputError: the folder cannot be written, was made for other images, or another process runs this round.
    """

    def __init__(self, config: Any, round_index: int, split: SplitRecord) -> None:
        self.path = round_path(config.output, round_index + 1)
        self.epochs = config.epochs
        self.title = f'{title_of(config.dataset)}, seed {config.seed}, round {round_index + 1}'
        # of a last.pth; that the options are the same too is known from config.json
        self.owner = {
            'round': round_index + 1,
            'split': hashlib.sha256(json.dumps(split).encode()).hexdigest(),
        }
        self.lock = ExitStack()
        if rank() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            alone = self.lock.enter_context(
                locked(self.path / '.lock', f'{self.path} is being trained by another process')
            )
            remove_abandoned(self.path, owned=alone)
            path = self.path / 'split.json'
            refuse_other_images(path, split)
            if not path.exists():
                write_json(path, split)
        distributed.wait()

    def close(self) -> None:
        """Let another process, or this one again, run the round."""
        self.lock.close()

    @property
    def finished(self) -> bool:
        """Whether the round's result is there, of as many epochs as are asked for now."""
        path = self.path / 'result.json'
        return path.exists() and read_result(path)['epochs'] >= self.epochs

    def restore(self, load_state_dict: Callable[[dict[str, Any]], None]) -> None:
        """Give the state that the last finished epoch left, if there is one, to `load_state_dict`.

        Raises:
            InputError: last.pth is gone, damaged, or of something else; nothing in the folder is changed.
        """
        path = self.path / 'last.pth'
        if not path.exists():
            if (self.path / 'history.csv').exists():
                raise InputError(
                    f'{path} is gone, without which the round cannot continue; {self.remedy}'
                )
            return
        state = checkpoints.read_checkpoint(path)
        try:
            owner = state.get('owner', self.owner)  # the first versions kept none
            if any(owner.get(name, mine) != mine for name, mine in self.owner.items()):
                raise ValueError('it belongs to another round, or to another split')
            load_state_dict(state)
        except Exception as error:  # an edited state can raise anything where it does not fit
            raise InputError(
                f'{path} is not the checkpoint of this round ({first_line(error)}); {self.remedy}'
            )
        if rank() == 0:
            self.write_derived(state)

    @property
    def remedy(self) -> str:
        return f'put the right file back, or remove {self.path} to start the round anew'

    def save(self, state: dict[str, Any]) -> None:
        """Record a finished epoch; `state` is the solver's `state_dict`.

        last.pth comes first, since the other files follow from it: a kill in between loses none of them.
        """
        if rank() == 0:
            if is_best_last(state):
                state['best']['weights'] = checkpoints.digest(state['model'])
            write_whole(
                self.path / 'last.pth', checkpoints.serialised({**state, 'owner': self.owner})
            )
            self.write_derived(state)
        distributed.wait()

    def write_derived(self, state: dict[str, Any]) -> None:
        """The files that follow from last.pth, which a kill may have left one epoch behind it."""
        if is_best_last(state):
            # on the CPU, so that a plain torch.load works where there is no GPU
            weights = {name: value.cpu() for name, value in state['model'].items()}
            write_whole(self.path / 'best.pth', checkpoints.serialised(weights))
        history = state[
            'history'
        ]  # of which epochs of an earlier version lack the columns that it did not know
        write_table(
            self.path / 'history.csv',
            list(dict.fromkeys(name for row in history for name in row)),
            history,
        )
        best_epoch = (state['best'] or {}).get('epoch')
        write_whole(self.path / 'curves.png', plots.curves(history, self.title, best_epoch))

    def check_best(self, best: dict[str, Any]) -> None:
        """Refuse to end the round with a best.pth that is not the weights of its best epoch.

        Raises:
            InputError: it is gone, damaged or another network's.
        """
        try:
            weights = checkpoints.read_checkpoint(self.path / 'best.pth')
            if (
                'weights' in best and checkpoints.digest(weights) != best['weights']
            ):  # the first versions kept no digest
                raise InputError('best.pth is of other weights')
        except InputError as error:
            raise InputError(
                f'the weights of the best epoch, {best["epoch"]}, are lost ({error}); {self.remedy}'
            )

    def finish(
        self,
        best: dict[str, Any],
        tested: TestedImages,
        thumbnail: Callable[[int], Image],
        on_others: dict,
    ) -> None:
        """Write the test images' scores at the best epoch and their pictures, and last of all the round's result.

        Args:
            best: the solver's best epoch.
            tested: the test images with their predictions in it.
            thumbnail: a small picture of the image at a position in `tested`.
            on_others: metrics on other databases, by the database's name.
        """
        if rank() == 0:
            self.check_best(best)
            if tested.images:
                title = f'{self.title}, epoch {best["epoch"]}'
                write_whole(
                    self.path / 'scatter.png',
                    plots.scatter(tested.predicted, tested.subjective, title),
                )
                write_whole(self.path / 'worst.png', plots.worst(tested, thumbnail, title))
            write_predictions(self.path / 'predictions.csv', tested)
            result = {
                'epoch': best['epoch'],
                'epochs': self.epochs,
                **all_metrics(tested.predicted, tested.subjective),
            }
            result |= {**intervals([tested]), **by_type(tested)}
            if on_others:
                result['test_on'] = on_others
            write_json(self.path / 'result.json', without_nan(result))
        distributed.wait()


def is_best_last(state: dict[str, Any]) -> bool:
    return bool(state['best']) and state['best']['epoch'] == state['history'][-1]['epoch']
