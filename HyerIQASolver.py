"""Training and testing of HyperIQA, with the three repairs of its training loop.

1. The backbone's learning rate decays too (`learning_rates`).
2. One Adam is made in the constructor and lives through the run; its learning rates are set in place (`set_learning_rates`).
3. `hypernet_params` is a list, so the hypernetwork's parameters are still there after the optimizer has read them once.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import models
from data_loader import SCALE_STREAM, DataLoader, draw_patches
from experiment.options import with_defaults
from folders import OpenDatabase
from util import checkpoints, distributed
from util.errors import InputError, log
from util.labels import Settings
from util.metrics import mae, plcc, srcc
from util.progress import duration, progress

COLUMNS = {  # of the printed table: title and format
    'epoch': ('Epoch', '5d'),
    'train_loss': ('  Train_Loss', '12.3f'),
    'train_srcc': ('  Train_SRCC', '12.4f'),
    'test_srcc': ('  Test_SRCC', '11.4f'),
    'test_plcc': ('  Test_PLCC', '11.4f'),
    'val_srcc': ('  Val_SRCC', '10.4f'),
    'test_mae': ('  Test_MAE', '10.4g'),
    'time': ('        Time', '>12s'),
    'left': ('        Left', '>12s'),
}
SCALE_IMAGES = 200  # on which the unit of a trained network's scores is looked at


def learning_rates(epoch: int, lr: float, lr_ratio: float) -> tuple[float, float]:
    """Learning rates that follow the finished 0-based `epoch`: (hypernetwork, backbone)."""
    backbone = lr / 10 ** (epoch // 6)
    return (backbone if epoch > 8 else backbone * lr_ratio), backbone


class HyperIQASolver:
    """One round: a network, its optimizer, and the training and test part of a database.

    Args:
        config: the script's options as attributes; what is absent has its default (`experiment.options.with_defaults`).
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
    """

    def __init__(
        self,
        config: Any,
        path: Path | str,
        train_idx: Sequence[int],
        test_idx: Sequence[int],
        *,
        val_idx: Sequence[int] = (),
        round_index: int = 0,
        opened: OpenDatabase | None = None,
    ) -> None:
        self.config = config = with_defaults(config)
        if config.deterministic:
            distributed.make_deterministic()
        self.device = torch.device(distributed.pick_device(config.device))
        self.lr, self.lrratio, self.weight_decay = config.lr, config.lr_ratio, config.weight_decay
        self.round_index = round_index
        if opened is None:
            opened = OpenDatabase(config.dataset, path, config.resize, Settings.of(config))
            opened.open_frames(config.patch_size, config.cache)
            train_idx, test_idx, val_idx = map(opened.images, (train_idx, test_idx, val_idx))
        self.score_range = opened.score_range if config.normalize_scores else (0, 1)
        self.opened = opened
        self.train_data = self.loader(opened, train_idx, istrain=True)
        self.test_data = self.loader(opened, test_idx, istrain=False)
        self.val_data = self.loader(opened, val_idx, istrain=False) if val_idx else None
        self.selected_on = 'val_srcc' if val_idx else 'test_srcc' if test_idx else 'epoch'
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None

        # A seed of its own for every round, so that a round's weights do not depend on which rounds ran before it.
        torch.manual_seed((1000 * config.seed + round_index) % 2**64)
        self.model_hyper = models.hyperiqa()
        self.layout = checkpoints.load_weights(self.model_hyper, config.weights)
        # The numbers depend on the memory format: in fp32 training on a CPU, batch norm's variance at batch 96 is off by 7e-4
        # with channels last, by 1.7e-7 in the plain layout.
        memory_format = distributed.memory_format(self.device)
        self.model_hyper.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]  # not in its stub
        if config.compile:
            self.model_hyper.compile(dynamic=False)
        self.train_model = distributed.wrap(self.model_hyper)

        # Repair 3: a list. The original's `filter` object is empty once the first optimizer has read it, so that from the
        # second epoch on the hypernetwork was in no optimizer and did not train.
        self.hypernet_params = [
            p for name, p in self.model_hyper.named_parameters() if not name.startswith('res.')
        ]
        backbone_params = list(self.model_hyper.res.parameters())
        # Repair 2: the only place that makes an Adam. The original made a new one after every epoch and lost the moments,
        # so that each epoch began with steps of the full learning rate in the direction of single gradients.
        self.solver = torch.optim.Adam(
            [
                {'params': self.hypernet_params, 'lr': self.lr * self.lrratio},
                {'params': backbone_params, 'lr': self.lr},
            ],
            weight_decay=self.weight_decay,
            fused=True,  # one pass over all parameters, several times faster than a loop over the 196 tensors
        )

    def loader(self, database: OpenDatabase, images: Iterable[int], istrain: bool) -> DataLoader:
        """The patches of the `images` (positions) of an open database, as many and in such batches as the options ask for."""
        config = self.config
        sizes = (
            (config.train_patch_num, config.batch_size)
            if istrain
            else (config.test_patch_num, config.test_batch_size)
        )
        options: dict[str, Any] = {
            'seed': config.seed,
            'round_index': self.round_index,
            'num_workers': config.num_workers,
        }
        options |= {'device': self.device, 'opened': database}
        return DataLoader(
            database.key, database.path, images, config.patch_size, *sizes, istrain, **options
        )

    def train(
        self, save: Callable[[dict[str, Any]], None] | None = None, later: int = 0
    ) -> tuple[float, float]:
        """Train the epochs that are not in `history` yet, printing a table row for each.

        Args:
            save: is given the `state_dict` of the solver after every epoch, or None to keep nothing.
            later: how many epochs of later rounds follow, for the estimate of the time left.

        Returns:
            SRCC and PLCC on the test part in the best epoch; nan without one.
        """
        if not self.history and self.layout in checkpoints.WITH_SCORES:
            self.check_scale()
        print(''.join(title for title, _ in self.columns.values()), flush=True)
        for row in self.history:
            self.print_row(row)
        for epoch in range(len(self.history), self.config.epochs):
            best = self.best['epoch'] if self.best else 0
            stale = epoch - best
            if 0 < self.config.patience <= stale:
                log(
                    f'{stale} epochs without a better {self.selected_on}; epoch {best} was best: this round stops here'
                )
                break
            row, test_scores = self.run_epoch(epoch)
            finite = all(bool(value.isfinite().all()) for value in self.model_hyper.parameters())
            if not finite or not math.isfinite(row['train_loss']):
                fault = f'the training loss ({row["train_loss"]:.4g}) or a weight is not finite'
                log(f'epoch {epoch + 1}: {fault}, so this round stops here; a lower --lr may help')
                break
            if is_better(row[self.selected_on], (self.best or {}).get(self.selected_on, math.nan)):
                self.best = {**row, 'scores': torch.from_numpy(test_scores)}
            self.history.append(row)
            seconds = [
                row['seconds'] for row in self.history[1:]
            ]  # the first epoch may have waited for a compiler
            left = np.mean(seconds) * (self.config.epochs - epoch - 1 + later) if seconds else 0
            self.print_row(row, duration(left) if left else '')
            self.set_learning_rates(*learning_rates(epoch, self.lr, self.lrratio))
            if save:
                save(self.state_dict())
        return (
            (self.best['test_srcc'], self.best['test_plcc']) if self.best else (math.nan, math.nan)
        )

    def check_scale(self) -> None:
        """Log which scores the initial weights, of a trained HyperIQA, give to training images, beside those images' labels.

        With `config.fit_scale` fit slope and offset to the labels by least squares and fold them into the last layer's two
        generators, so that nothing that reads the weights later needs to know.

        Raises:
            InputError: with `config.fit_scale`, all scores are equal or one is not finite.
        """
        data = self.loader(self.opened, self.train_data.images[:SCALE_IMAGES], istrain=False)
        seed = (self.config.seed, self.round_index, SCALE_STREAM)
        data.patch_num, data.patches = (
            1,
            draw_patches(seed, data.frames.sizes[data.images], 1, istrain=False),
        )
        scores, labels = self.predict(data), data.scores
        count, (low, high) = len(labels), self.score_range
        varies = bool(np.isfinite(scores).all()) and np.ptp(scores) > 0
        slope, offset = np.polyfit(scores, labels, 1).tolist() if varies else (math.nan, math.nan)
        errors = [
            np.abs(predicted - labels).mean() for predicted in (scores, slope * scores + offset)
        ]
        ranges = f'{scores.min():.4g} to {scores.max():.4g}, the labels {labels.min():.4g} to {labels.max():.4g}'
        what = f'{self.config.weights}: on {count} training images its scores are {ranges}, SRCC {srcc(scores, labels):.3f}'
        if not self.config.fit_scale:
            helps = bool(slope < 0 or errors[1] < errors[0] / 2)
            log(what + '; --fit_scale fits them to the labels before training' * helps)
            return
        if not varies:
            raise InputError(
                f'--fit_scale: {what}, so there is nothing to fit; give other --weights'
            )
        fell = f'the mean absolute error falls from {errors[0]:.4g} to {errors[1]:.4g}'
        log(f'{what}; fitted with slope {slope:.4g} and offset {offset:.4g}: {fell}')
        weight, bias = self.model_hyper.fc5w_fc, self.model_hyper.fc5b_fc
        with torch.no_grad():
            for parameter in (*weight.parameters(), *bias.parameters()):
                parameter.mul_(slope)
            bias.bias.add_((slope * low + offset - low) / (high - low))

    def run_epoch(self, epoch: int) -> tuple[dict[str, float], np.ndarray]:
        """Train and test the 0-based `epoch`: its row of the history, and the test images' scores (images,)."""
        started = time.monotonic()
        train_loss, train_srcc = self.train_epoch(epoch)
        predicted, labels = self.predict(self.test_data), self.test_data.scores
        row = {'epoch': epoch + 1, 'train_loss': train_loss, 'train_srcc': train_srcc}
        row |= {'test_srcc': srcc(predicted, labels), 'test_plcc': plcc(predicted, labels)}
        row['hypernet_lr'], row['backbone_lr'] = (group['lr'] for group in self.solver.param_groups)
        if self.val_data is not None:
            row['val_srcc'], row['val_plcc'] = self.test(self.val_data)
        return row | {
            'seconds': round(time.monotonic() - started, 3),
            'test_mae': mae(predicted, labels),
        }, predicted

    @property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Those of `COLUMNS` whose part this round has."""
        parts = {'test': self.test_data.images, 'val': self.val_data}
        return {
            name: column
            for name, column in COLUMNS.items()
            if parts.get(name.partition('_')[0], True)
        }

    def print_row(self, row: dict[str, float], left: str = '') -> None:
        """Print a row of the history; `left` is the time that all later epochs take."""
        cells: dict[str, Any] = {**row, 'time': duration(row['seconds']), 'left': left}
        text = ''.join(
            format(cells.get(column, math.nan), form) for column, (_, form) in self.columns.items()
        )
        print(text.rstrip(), flush=True)

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
        subjective = torch.from_numpy(self.train_data.patch_scores)

        def loss_so_far() -> str:
            so_far = predicted.cpu()
            seen = so_far != 0
            return f', loss so far {F.l1_loss(so_far[seen], subjective[seen]):.4g}'

        for rows, count, patches, scores in self.batches(
            self.train_data, f'epoch {epoch + 1}', loss_so_far
        ):
            predicted[rows] = self.train_step(patches, scores, count)
        predicted = distributed.sum_over_ranks(predicted).cpu()
        return F.l1_loss(predicted, subjective).item(), srcc(predicted, subjective)

    def train_step(self, patches: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
        """One step of the optimizer on this rank's patches (B, 3, 224, 224), of the `count` that all ranks have.

        Args:
            scores: (B,), or none where the one patch is another rank's (see `DataLoader`).

        Returns:
            the scores (B,) that were predicted before the step.
        """
        low, high = self.score_range
        output = self.forward(self.train_model, patches, count == self.config.batch_size)
        output = output[: len(scores)]  # a patch without a score has a gradient of zero
        # summed here and divided by the size of the whole batch, since the gradients are averaged over the ranks
        loss = (
            F.l1_loss(output, (scores - low) / (high - low), reduction='sum')
            * distributed.world_size()
            / count
        )
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
        with torch.inference_mode():
            for rows, count, patches, scores in self.batches(data, 'test'):
                predicted[rows] = self.forward(self.model_hyper, patches, count == data.batch_size)[
                    : len(scores)
                ]
        predicted = (
            distributed.sum_over_ranks(predicted).cpu().double().view(-1, data.patch_num).mean(1)
        )
        return (low + (high - low) * predicted).numpy()

    def forward(
        self, model: torch.nn.Module, patches: torch.Tensor, is_full: bool = True
    ) -> torch.Tensor:
        """The scores (B,) of patches (B, 3, 224, 224), which are a full batch or the shorter last one of an epoch."""
        # A graph for each length would be compiled in every round, and one for all lengths is slower: two graphs, of a full
        # batch in training and in testing, serve the whole run.
        eager = self.config.compile and not is_full
        stance = torch.compiler.set_stance('force_eager') if eager else nullcontext()
        with stance, torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            return models.predict_scores(model, patches)

    def set_learning_rates(self, hypernet_lr: float, backbone_lr: float) -> None:
        # Repair 1: both rates are set, the backbone's too, which the original left at its first value for the whole run.
        # In place, so that Adam and its moments stay (repair 2).
        self.solver.param_groups[0]['lr'] = hypernet_lr
        self.solver.param_groups[1]['lr'] = backbone_lr

    def batches(self, data: DataLoader, title: str, note: Callable[[], str] = str) -> Iterator[Any]:
        """Yields (rows of this rank's patches, size of the whole batch, patches, scores) for each batch of `data`.

        Args:
            title, note: of the progress on stderr (see `util.progress`).
        """
        batches = ((*batch, *tensors) for batch, tensors in zip(data.batches, data))
        return progress(
            batches, title, len(data.patches.image), 'patches', lambda batch: batch[1], note
        )


def is_better(value: float, best: float) -> bool:
    """Whether `value` is higher than `best`; nan is never better, and anything is better than nan."""
    return value > best or (math.isnan(best) and not math.isnan(value))
