"""Training and testing of HyperIQA, with the three repairs of its training loop.

1. The backbone's learning rate decays too (`learning_rates`).
2. One Adam is made in the constructor and lives through the run; its learning rates are set in place (`set_learning_rates`).
3. `hypernet_params` is a list, so the hypernetwork's parameters are still there after the optimizer has read them once.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import models
from data_loader import DataLoader
from folders import OpenDatabase
from util import checkpoints, distributed
from util.distributed import say
from util.errors import InputError
from util.labels import Settings
from util.metrics import plcc, srcc
from util.options import with_defaults

# PyTorch has no error of its own for the CPU's memory, nor oneDNN and cuBLAS for theirs
OUT_OF_MEMORY = ('out of memory', 'allocate memory', 'create a memory object', 'create a primitive', 'ALLOC_FAILED')


def learning_rates(epoch: int, lr: float, lr_ratio: float) -> tuple[float, float]:
    """Learning rates that follow the finished 0-based `epoch`: (hypernetwork, backbone)."""
    backbone = lr / 10 ** (epoch // 6)
    return (backbone if epoch > 8 else backbone * lr_ratio), backbone


class HyperIQASolver:
    """One round: a network, its optimizer, and the training and test part of a database.

    Args:
        config: the script's options as attributes; what is absent has its default (`util.options.with_defaults`).
        path: the database's folder, or the file of a CSV of one's own.
        train_idx, test_idx, val_idx: positions of the units of each part (see `folders.OpenDatabase`), or of the images where
            `opened` is given; where there are validation units, they choose the best epoch instead of the test units,
            and without either the last epoch is the best.
        round_index: 0-based; the initial weights and the drawn patches depend on it and on `config.seed`.
        opened: the database with its frames, if they are open already.

    Attributes:
        model_hyper: the `models.HyperNet`.
        solver: the one Adam; `param_groups[0]` is the hypernetwork, `[1]` the backbone with the LDA heads.
        hypernet_params: list of the parameters outside the backbone.
        score_range: (low, high) that the network's 0..1 stands for with `config.normalize_scores`, else (0, 1).
        history: a dict for each finished epoch, with the columns of history.csv.
        best: the best epoch's row and its test images' `scores`, or None.
        data_wait: the share of its time that the latest pass over data waited for a batch.
    """

    def __init__(
        self,
        config: Namespace | SimpleNamespace,
        path: Path | str,
        train_idx: Sequence[int],
        test_idx: Sequence[int],
        *,
        val_idx: Sequence[int] = (),
        round_index: int = 0,
        opened: OpenDatabase | None = None,
    ) -> None:
        self.config = config = with_defaults(config)
        config.device = distributed.pick_device(config.device, config.deterministic)
        self.device = torch.device(config.device)
        self.lr = config.lr
        self.lrratio = config.lr_ratio
        self.weight_decay = config.weight_decay
        self.round_index = round_index
        if opened is None:
            opened = OpenDatabase(config.dataset, path, config.resize, Settings.of(config))
            opened.open_frames(config.patch_size, config.cache)
            train_idx, test_idx, val_idx = map(opened.images, (train_idx, test_idx, val_idx))
        self.score_range = opened.score_range if config.normalize_scores else (0, 1)
        self.train_data = self.loader(opened, train_idx, istrain=True)
        self.test_data = self.loader(opened, test_idx, istrain=False)
        self.val_data = self.loader(opened, val_idx, istrain=False) if val_idx else None
        self.selected_on = 'val_srcc' if val_idx else 'test_srcc' if test_idx else None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None

        # a seed of its own for every round, so that a round's weights do not depend on which rounds ran before it
        torch.manual_seed((1000 * config.seed + round_index) % 2**64)
        self.model_hyper = models.hyperiqa()
        checkpoints.load_weights(self.model_hyper, config.weights)
        # convolutions of the CPU and of tensor cores are fastest on channels-last memory; the numbers are the same
        self.model_hyper.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        if config.compile:
            self.model_hyper.compile()
        self.train_model = distributed.wrap(self.model_hyper)

        backbone_params = list(self.model_hyper.res.parameters())
        backbone_ids = set(map(id, backbone_params))
        # Repair 3: a list. The original's `filter` is empty once an optimizer has read it, so from the second epoch on
        # the hypernetwork stood still.
        self.hypernet_params = [p for p in self.model_hyper.parameters() if id(p) not in backbone_ids]
        # Repair 2: the only place that makes an Adam. The original made one after every epoch and lost the moments.
        self.solver = torch.optim.Adam(
            [{'params': self.hypernet_params, 'lr': self.lr * self.lrratio}, {'params': backbone_params, 'lr': self.lr}],
            weight_decay=self.weight_decay,
            fused=True,  # one pass over all parameters, several times faster than a loop over 355 tensors
        )

    def loader(self, database: OpenDatabase, images: Iterable[int], istrain: bool) -> DataLoader:
        """The patches of the `images` (positions) of an open database, as many and in such batches as the options say."""
        return DataLoader(
            database.key,
            database.path,
            images,
            self.config.patch_size,
            self.config.train_patch_num if istrain else self.config.test_patch_num,
            self.config.batch_size if istrain else self.config.test_batch_size,
            istrain,
            seed=self.config.seed,
            round_index=self.round_index,
            device=self.device,
            num_workers=self.config.num_workers,
            opened=database,
        )

    def train(self, save: Callable[[dict[str, Any]], None] | None = None) -> tuple[float, float]:
        """Train the epochs that are not in `history` yet, printing a table row for each.

        Args:
            save: is given the `state_dict` of the solver after every epoch, or None to keep nothing.

        Returns:
            SRCC and PLCC on the test part in the best epoch; nan without one.
        """
        print(''.join(title.rjust(width) for title, width, _, _ in self.columns), flush=True)
        for row in self.history:
            self.print_row(row)
        for epoch in range(len(self.history), self.config.epochs):
            if self.out_of_patience(epoch):
                break
            row, test_scores = self.run_epoch(epoch)
            if not math.isfinite(row['train_loss']) or not self.is_finite():
                loss = row['train_loss']
                reason = 'weights are not finite' if math.isfinite(loss) else f'the training loss is {loss}'
                say(f'epoch {epoch + 1}: {reason}, so this round stops here; a lower --lr may help')
                break
            if self.is_best(row):
                self.best = {**row, 'scores': torch.from_numpy(test_scores)}
            self.history.append(row)
            self.print_row(row)
            self.set_learning_rates(*learning_rates(epoch, self.lr, self.lrratio))
            if save:
                save(self.state_dict())
        return (self.best['test_srcc'], self.best['test_plcc']) if self.best else (math.nan, math.nan)

    def out_of_patience(self, epoch: int) -> bool:
        """Whether `config.patience` epochs before the 0-based `epoch` brought no better one; says so."""
        best_epoch = self.best['epoch'] if self.best else 0
        if not self.config.patience or epoch - best_epoch < self.config.patience:
            return False
        which = f'epoch {best_epoch} was best' if self.best else 'no epoch had one'
        say(f'{self.config.patience} epochs without a better {self.selected_on}, so this round stops here; {which}')
        return True

    def run_epoch(self, epoch: int) -> tuple[dict[str, float], np.ndarray]:
        """Train and test the 0-based `epoch`: its row of the history, and the test images' scores (images,)."""
        started = time.monotonic()
        hypernet_lr, backbone_lr = (group['lr'] for group in self.solver.param_groups)
        train_loss, train_srcc = self.train_epoch(epoch)
        row = {'epoch': epoch + 1, 'train_loss': train_loss, 'train_srcc': train_srcc}
        test_scores = self.predict(self.test_data)
        row['test_srcc'] = srcc(test_scores, self.test_data.scores)
        row['test_plcc'] = plcc(test_scores, self.test_data.scores)
        row |= {'hypernet_lr': hypernet_lr, 'backbone_lr': backbone_lr}
        if self.val_data is not None:
            row['val_srcc'], row['val_plcc'] = self.test(self.val_data)
        return row | {'seconds': round(time.monotonic() - started, 3)}, test_scores

    def is_finite(self) -> bool:
        """Whether no weight has become nan or infinite."""
        return all(bool(value.isfinite().all()) for value in self.model_hyper.parameters())

    def is_best(self, row: dict[str, float]) -> bool:
        if self.selected_on is None:
            return True
        return is_better(row[self.selected_on], self.best[self.selected_on] if self.best else math.nan)

    @property
    def columns(self) -> list[tuple[str, int, str, str]]:
        """Title, width, format and history column of the printed table."""
        columns = [
            ('Epoch', 5, 'd', 'epoch'),
            ('Train_Loss', 12, '.3f', 'train_loss'),
            ('Train_SRCC', 12, '.4f', 'train_srcc'),
            ('Test_SRCC', 11, '.4f', 'test_srcc'),
            ('Test_PLCC', 11, '.4f', 'test_plcc'),
        ]
        return columns + ([('Val_SRCC', 10, '.4f', 'val_srcc')] if self.val_data is not None else [])

    def print_row(self, row: dict[str, float]) -> None:
        print(''.join(format(row[column], form).rjust(width) for _, width, form, column in self.columns), flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors and plain types."""
        return {
            'model': self.model_hyper.state_dict(),
            'optimizer': self.solver.state_dict(),
            'history': self.history,
            'best': self.best,
            'rng': torch.get_rng_state(),
            'cuda_rng': torch.cuda.get_rng_state_all() if self.device.type == 'cuda' else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the epoch that `state_dict` was called in."""
        self.model_hyper.load_state_dict(state['model'])
        self.solver.load_state_dict(state['optimizer'])
        self.history, self.best = state['history'], state['best']
        torch.set_rng_state(state['rng'])
        if self.device.type == 'cuda' and len(state['cuda_rng']) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state['cuda_rng'])

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Train the 0-based `epoch`: (mean absolute error, SRCC) over its patches, each as predicted when it was trained on."""
        self.model_hyper.train()
        self.train_data.set_epoch(epoch)
        predicted = torch.zeros(len(self.train_data.patches.image), device=self.device)
        with self.memory_for('training', 'batch_size', 'lower it, in a new run'):
            for rows, count, patches, scores in self.progress(self.train_data, f'epoch {epoch + 1}'):
                predicted[rows] = self.train_step(patches, scores, count)
        predicted = distributed.sum_over_ranks(predicted).cpu()
        subjective = torch.from_numpy(self.train_data.patch_scores)
        return F.l1_loss(predicted, subjective).item(), srcc(predicted, subjective)

    def train_step(self, patches: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
        """One step of the optimizer on this rank's patches (B, 3, 224, 224), of the `count` that all ranks have.

        Returns:
            the scores (B,) that were predicted before the step.
        """
        low, high = self.score_range
        if not len(patches):  # fewer patches than ranks: this one takes part with a gradient of zero
            patches = patches.new_zeros((1, *patches.shape[1:]))
        output = self.forward(self.train_model, patches)[: len(scores)]
        # summed here and divided by the size of the whole batch, since the gradients are averaged over the ranks
        loss = F.l1_loss(output, (scores - low) / (high - low), reduction='sum') * distributed.world_size() / count
        self.solver.zero_grad()
        loss.backward()
        self.solver.step()
        return low + (high - low) * output.detach()

    def test(self, data: DataLoader) -> tuple[float, float]:
        """(SRCC, PLCC) of the mean score of each image of `data`, a `DataLoader` with `istrain` false."""
        predicted = self.predict(data)
        return srcc(predicted, data.scores), plcc(predicted, data.scores)

    def predict(self, data: DataLoader) -> np.ndarray:
        """The mean score over its patches of each image of `data`, in the labels' unit: a float64 array (images,)."""
        low, high = self.score_range
        self.model_hyper.eval()
        distributed.copy_buffers(self.model_hyper)
        predicted = torch.zeros(len(data.patches.image), device=self.device)
        with torch.inference_mode(), self.memory_for('testing', 'test_batch_size', 'lower it'):
            for rows, _, patches, _ in self.progress(data, 'test'):
                if len(patches):
                    predicted[rows] = self.forward(self.model_hyper, patches)
        predicted = distributed.sum_over_ranks(predicted).cpu().double().view(-1, data.patch_num).mean(1)
        return (low + (high - low) * predicted).numpy()

    @contextmanager
    def memory_for(self, work: str, option: str, remedy: str) -> Iterator[None]:
        """Tell in one line that the memory does not suffice for the body, and which `option` decides how much it needs."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise
            kept = '' if self.config.evaluate else '; finished epochs are kept, and --resume continues after the last one'
            raise InputError(
                f'out of memory while {work} with --{option} {getattr(self.config, option)}: {remedy}, or free memory{kept}'
            )

    def forward(self, model: torch.nn.Module, patches: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            return models.predict_scores(model, patches)

    def set_learning_rates(self, hypernet_lr: float, backbone_lr: float) -> None:
        # Repair 1: both rates are set, the backbone's too, which the original left at its first value for the whole run;
        # in place, so that Adam and its moments stay.
        self.solver.param_groups[0]['lr'] = hypernet_lr
        self.solver.param_groups[1]['lr'] = backbone_lr

    def progress(self, data: DataLoader, title: str) -> Iterator[tuple[slice, int, torch.Tensor, torch.Tensor]]:
        """Yields (rows of this rank's patches, size of the whole batch, patches, scores) for each batch of `data`.

        A progress bar on stderr, if that is a terminal, shows images/s and the share of the time that data was waited for.
        """
        started, waited = time.monotonic(), 0.0
        batches = iter(data)
        with tqdm(
            total=len(data.patches.image), desc=title, unit='img', leave=False, disable=True if distributed.rank() else None
        ) as bar:
            for rows, count in data.batches:
                asked = time.monotonic()
                patches, scores = next(batches)
                waited += time.monotonic() - asked
                self.data_wait = waited / (time.monotonic() - started)
                bar.set_postfix_str(f'data wait {self.data_wait:.0%}', refresh=False)
                yield rows, count, patches, scores
                bar.update(count)


def is_better(value: float, best: float) -> bool:
    """Whether `value` is higher than `best`; nan is never better, and anything is better than nan."""
    return value > best or (math.isnan(best) and not math.isnan(value))
