"""Training and testing of HyperIQA, with the three repairs of its training loop.

The file keeps the original's name, in which the "p" of Hyper is missing.

1. The backbone's learning rate decays too (`learning_rates`).
2. One Adam is made in the constructor and used until the round ends; its learning rates are set in
   place (`set_learning_rates`).
3. `hypernet_params` is a list, so the hypernetwork's parameters are still there after the optimizer
   has read them once.
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
from data_loader import SCALE_STREAM, Batch, DataLoader
from experiment.options import with_defaults
from folders import OpenDatabase
from scoring.trained import meaning_of
from util import checkpoints, distributed
from util.checkpoints import Content
from util.errors import InputError, log
from util.labels import Settings
from util.metrics import mae, plcc, srcc, varies
from util.progress import duration, progress

COLUMNS = {  # of the printed table: title, width and format
    'epoch': ('Epoch', 5, 'd'),
    'train_loss': ('Train_Loss', 12, '.3f'),
    'train_srcc': ('Train_SRCC', 12, '.4f'),
    'test_srcc': ('Test_SRCC', 11, '.4f'),
    'test_plcc': ('Test_PLCC', 11, '.4f'),
    'val_srcc': ('Val_SRCC', 10, '.4f'),
    'test_mae': ('Test_MAE', 10, '.4g'),
    'time': ('Time', 12, 's'),
    'left': ('Left', 12, 's'),
}
SCALE_IMAGES = 200  # images used to compare the initial weights' scores with the labels
FIT_SUGGESTED_FROM = 2  # --fit_scale is suggested if it divides the error by more than this


def learning_rates(epoch: int, lr: float, lr_ratio: float) -> tuple[float, float]:
    """Return the learning rates (hypernetwork, backbone) of the epochs that follow.

    This is the original's schedule. With its rates (2e-5 and ratio 10), and epochs counted from 1:

        epochs     hypernetwork  backbone
        1 to 7     2e-4          2e-5
        8 to 10    2e-5          2e-6
        11 to 13   2e-6          2e-6
        14 to 16   2e-7          2e-7

    Args:
        epoch: the one that has just ended, counted from 0. For example, 6 is the seventh epoch,
            after which the rates of epoch 8 in the table are set.
        lr, lr_ratio: the options: the backbone's first rate, and by how much the hypernetwork's is
            higher.
    """
    # epoch // 6 is 1 from the 7th epoch on (epoch 6), and 2 from the 13th on (epoch 12).
    backbone = lr / 10 ** (epoch // 6)
    # From the 10th epoch on (epoch 9) both are equal.
    hypernet = backbone if epoch >= 9 else backbone * lr_ratio
    return hypernet, backbone


def patch_losses(predicted: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the loss (B,) of each patch: the absolute error, as in the paper.

    Args:
        predicted, scores: (B,), both in the unit of the network's output or both in the labels'.
    """
    return F.l1_loss(predicted, scores, reduction='none')


class HyperIQASolver:
    """One round: a network, its optimizer, and the training and test part of a database.

    Args:
        config: the script's options as attributes; a missing one has its default
            (`experiment.options.with_defaults`).
        path: the database's folder, the user's own table, or an `OpenDatabase` with open frames.
        train_idx, test_idx, val_idx: positions of the units of each part (see
            `folders.OpenDatabase`); with an `OpenDatabase`, positions of images. The best epoch is
            chosen on the validation part, else on the test part; without both it is the last one.
        round_index: 0-based; the initial weights and the drawn patches depend on it and on
            `config.seed`.
        score_range: (low, high), the scores that the network's outputs 0 and 1 stand for. The
            default is the range of the labels with `config.normalize_scores`, else (0, 1): then the
            output is the score.
        weights: initial weights in the place of `config.weights` (see `checkpoints.load_weights`).
        amp_type: the type in which `config.amp` computes; the default is that of the device
            (`distributed.amp_type`).

    Attributes:
        model_hyper: the `models.HyperNet`.
        solver: the one Adam, under the original's name; `param_groups[0]` is the hypernetwork,
            `[1]` the backbone with the LDA heads.
        hypernet_params: list of the parameters outside the backbone.
        database: the `OpenDatabase` of the three parts.
        history: a dict for each finished epoch, with the columns of history.csv.
        best: the best epoch's row and the predicted `scores` of the test images, or None.
    """

    def __init__(
        self,
        config: Any,
        path: Path | str | OpenDatabase,
        train_idx: Sequence[int],
        test_idx: Sequence[int],
        *,
        val_idx: Sequence[int] = (),
        round_index: int = 0,
        score_range: Sequence[float] | None = None,
        weights: Path | str | None = None,
        amp_type: torch.dtype | None = None,
    ) -> None:
        config = with_defaults(config)
        self.config = config
        self.lr = config.lr
        self.lrratio = config.lr_ratio
        self.weight_decay = config.weight_decay
        self.round_index = round_index
        if config.deterministic:
            distributed.make_deterministic()
        self.device = torch.device(distributed.pick_device(config.device))
        self.amp_type = amp_type or distributed.amp_type(str(self.device))

        if isinstance(path, OpenDatabase):
            database = path
        else:
            database = OpenDatabase(config.dataset, path, config.resize, Settings.of(config))
            database.open_frames(config.patch_size, config.cache)
            train_idx = database.images(train_idx)
            test_idx = database.images(test_idx)
            val_idx = database.images(val_idx)
        self.database = database
        self.train_data = self.loader(database, train_idx, istrain=True)
        self.test_data = self.loader(database, test_idx, istrain=False)
        has_val = len(val_idx) > 0
        self.val_data = self.loader(database, val_idx, istrain=False) if has_val else None

        if score_range is None:
            score_range = database.score_range if config.normalize_scores else (0, 1)
        self.score_range = score_range
        if has_val:
            self.selected_on = 'val_srcc'
        elif len(test_idx) > 0:
            self.selected_on = 'test_srcc'
        else:
            self.selected_on = 'epoch'  # it rises with every epoch, so the last one is the best
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] | None = None
        self.weights = weights or config.weights
        self.make_network()
        self.make_optimizer()

    def make_network(self) -> None:
        """Make the network with its initial weights, on the device."""
        # A seed of its own for every round, so that a round's weights do not depend on the rounds
        # that ran before it. There are at most 1000 rounds.
        torch.manual_seed(1000 * self.config.seed + self.round_index)
        self.model_hyper = models.hyperiqa()
        # 'ResNet-50', 'HyperIQA' or 'pyiqa'; '' without a file.
        self.layout = checkpoints.load_weights(self.model_hyper, self.weights)
        # Channels last is the fastest layout. On a CPU in fp32 it is less exact: for 96 patches,
        # the variance in batch norm is off by 7e-4, and in the plain layout by 1.7e-7.
        memory_format = distributed.memory_format(self.device)
        self.model_hyper.to(  # type: ignore[call-overload]  # not in its stub
            self.device, memory_format=memory_format
        )
        if self.config.compile:
            self.model_hyper.compile(dynamic=False)  # a graph for one size of batch, see `forward`
        # The same network; under torchrun it also averages the gradients over the ranks.
        self.train_model = distributed.wrap(self.model_hyper)

    def make_optimizer(self) -> None:
        """Make the one Adam of the round."""
        # Repair 3: a list. The original's `filter` object is empty once the first optimizer has
        # read it, so that from the second epoch on the hypernetwork was in no optimizer and did not
        # train.
        self.hypernet_params = [
            p for name, p in self.model_hyper.named_parameters() if not name.startswith('res.')
        ]
        backbone_params = list(self.model_hyper.res.parameters())
        # Repair 2: the only place that makes an Adam. The original made a new one after every epoch
        # and lost the moments, so that each epoch began with steps of the full learning rate in the
        # direction of single gradients.
        self.solver = torch.optim.Adam(
            [
                {'params': self.hypernet_params, 'lr': self.lr * self.lrratio},
                {'params': backbone_params, 'lr': self.lr},
            ],
            weight_decay=self.weight_decay,
            fused=True,  # one pass over all 196 tensors, several times faster than a loop over them
        )
        # Small gradients are zero in float16, so the loss is scaled up before the backward pass and
        # the gradients down before the step. A step whose gradients overflow is skipped, and the
        # scale is halved. PyTorch's first scale of 65536 would skip the first four steps.
        needs_scale = self.config.amp and self.amp_type == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=1024, enabled=needs_scale)

    def loader(
        self,
        database: OpenDatabase,
        images: Iterable[int],
        istrain: bool,
        *,
        patch_num: int | None = None,
        stream: int | None = None,
    ) -> DataLoader:
        """Return a loader of the images at the positions `images` of an open database.

        Args:
            patch_num: patches per image, in the place of the number that the options set.
            stream: see `DataLoader`.
        """
        config = self.config
        if istrain:
            batch_size = config.batch_size
            patch_num = patch_num or config.train_patch_num
        else:
            batch_size = config.test_batch_size
            patch_num = patch_num or config.test_patch_num
        return DataLoader(
            database.key,
            database,
            images,
            config.patch_size,
            patch_num=patch_num,
            batch_size=batch_size,
            istrain=istrain,
            seed=config.seed,
            round_index=self.round_index,
            stream=stream,
            device=self.device,
            num_workers=config.num_workers,
        )

    def train(
        self, save: Callable[[Content], None] | None = None, epochs_after: int = 0
    ) -> tuple[float, float]:
        """Train the epochs that are not in `history` yet, printing a table row for each.

        Args:
            save: called with the solver's `state_dict` after each epoch.
            epochs_after: how many epochs of later rounds follow, for the estimate of the time left.

        Returns:
            SRCC and PLCC on the test part in the best epoch; nan if there is none.
        """
        starts_with_scores = self.layout in checkpoints.WITH_SCORES
        if starts_with_scores and not self.history:
            self.compare_scales()
        self.print_table()

        for epoch in range(len(self.history), self.config.epochs):
            # Epochs since the best one, or since the start.
            stale = len(self.history) - (self.best['epoch'] if self.best else 0)
            if self.config.patience > 0 and stale >= self.config.patience:
                if self.best:
                    reason = f'no better {self.selected_on} since epoch {self.best["epoch"]}'
                else:
                    reason = f'no epoch has a {self.selected_on}'
                log(f'{reason}: this round stops here')
                break

            row, test_scores = self.run_epoch(epoch)
            # A network that has diverged is not saved, so that the run folder keeps the last epoch
            # that can be continued from.
            if not self.is_finite(row):
                log(
                    f'epoch {epoch + 1}: the training loss ({row["train_loss"]:.4g}) or a weight '
                    'is not finite, so this round stops here; a lower --lr may help'
                )
                break
            # If there is no best epoch yet it is nan, than which any number is better.
            best_value = self.best[self.selected_on] if self.best else math.nan
            if is_better(row[self.selected_on], best_value):
                # A tensor, since checkpoints hold only tensors and plain types.
                self.best = {**row, 'scores': torch.from_numpy(test_scores)}
            self.history.append(row)
            self.print_row(row, self.time_left(epochs_after))
            # Before the save, since the saved state is the start of the next epoch.
            self.set_learning_rates(*learning_rates(epoch, self.lr, self.lrratio))
            if save:
                save(self.state_dict())

        if self.best is None:
            return math.nan, math.nan
        return self.best['test_srcc'], self.best['test_plcc']

    def is_finite(self, row: dict[str, float]) -> bool:
        """Return whether an epoch's training loss and all weights after it are finite numbers."""
        weights_are_finite = all(bool(w.isfinite().all()) for w in self.model_hyper.parameters())
        return weights_are_finite and math.isfinite(row['train_loss'])

    def time_left(self, epochs_after: int) -> str:
        """Return the estimated time of the epochs to come, or '' if it is unknown.

        Args:
            epochs_after: how many epochs of later rounds follow.
        """
        # A round's first epoch may have waited for a compiler, so it is not counted.
        seconds = [row['seconds'] for row in self.history[1:]]
        epochs_left = self.config.epochs - len(self.history) + epochs_after
        if not seconds or epochs_left == 0:
            return ''
        return duration(float(np.mean(seconds)) * epochs_left)

    def compare_scales(self) -> None:
        """Log the initial network's scores of some training images next to the images' labels.

        This shows if a HyperIQA was trained on labels of another unit or direction. With
        `config.fit_scale` its scores are then fitted to the labels.

        Raises:
            InputError: with `config.fit_scale`, all scores or all labels are equal, or a score is
                not finite.
        """
        weights = self.weights
        # What the scores meant where the network was trained.
        meaning = meaning_of(weights, checkpoints.read_trained(weights))
        log(f'{weights}: {meaning.scale_line}')
        images = self.train_data.images[:SCALE_IMAGES]
        # A stream of their own: these patches are neither those of the training nor of the test.
        data = self.loader(self.database, images, istrain=False, patch_num=1, stream=SCALE_STREAM)
        scores = self.predict(data)
        labels = data.scores
        summary = (
            f'{weights}: on {len(labels)} training images its scores are '
            f'{scores.min():.4g} to {scores.max():.4g}, the labels {labels.min():.4g} to '
            f'{labels.max():.4g}, SRCC {srcc(scores, labels):.3f}'
        )
        if not varies(scores) or not varies(labels):
            if self.config.fit_scale:
                raise InputError(
                    f'--fit_scale: {summary}, so there is nothing to fit; give other --weights '
                    'or leave it out'
                )
            log(summary)
            return

        slope, offset = np.polyfit(scores, labels, 1).tolist()
        error = mae(scores, labels)
        error_fitted = mae(slope * scores + offset, labels)
        if self.config.fit_scale:
            self.fold_scale(slope, offset)
            log(
                f'{summary}; fitted with slope {slope:.4g} and offset {offset:.4g}: '
                f'the mean absolute error goes from {error:.4g} to {error_fitted:.4g}'
            )
        elif slope < 0 or error_fitted < error / FIT_SUGGESTED_FROM:
            log(f'{summary}; --fit_scale fits them to the labels before training')
        else:
            log(summary)

    def fold_scale(self, slope: float, offset: float) -> None:
        """Make the network's scores `slope * score + offset`, by changing only its last layer.

        The fit is in the weights then, so nothing that reads them later needs to know of it.
        """
        low, _ = self.score_range
        # These two generate the weight and the bias of the target network's last layer.
        weight_head = self.model_hyper.fc5w_fc
        bias_head = self.model_hyper.fc5b_fc
        # The output y means the score low + range * y. To mean slope * score + offset, it becomes
        # (slope * (low + range * y) + offset - low) / range, which is slope * y + shift.
        shift = self.to_output(slope * low + offset)
        with torch.no_grad():
            for parameter in (*weight_head.parameters(), *bias_head.parameters()):
                parameter.mul_(slope)
            bias_head.bias.add_(shift)

    def run_epoch(self, epoch: int) -> tuple[dict[str, float], np.ndarray]:
        """Train and test the 0-based `epoch`.

        Returns:
            its row of the history, and the score of each test image (images,).
        """
        started = time.monotonic()
        hypernet_lr, backbone_lr = (group['lr'] for group in self.solver.param_groups)
        train_loss, train_srcc = self.train_epoch(epoch)
        predicted = self.predict(self.test_data)
        labels = self.test_data.scores
        row = {  # in the order of the columns of history.csv
            'epoch': epoch + 1,
            'train_loss': train_loss,
            'train_srcc': train_srcc,
            'test_srcc': srcc(predicted, labels),
            'test_plcc': plcc(predicted, labels),
            'hypernet_lr': hypernet_lr,
            'backbone_lr': backbone_lr,
        }
        if self.val_data is not None:
            row['val_srcc'], row['val_plcc'] = self.test(self.val_data)
        row['seconds'] = round(time.monotonic() - started, 3)
        # Last, so that the other columns of history.csv are where they are in older runs.
        row['test_mae'] = mae(predicted, labels)
        return row, predicted

    @property
    def columns(self) -> dict[str, tuple[str, int, str]]:
        """The columns of the printed table, without those of a part that this round lacks."""
        columns = dict(COLUMNS)
        if not self.test_data.images:
            del columns['test_srcc'], columns['test_plcc'], columns['test_mae']
        if self.val_data is None:
            del columns['val_srcc']
        return columns

    def print_table(self) -> None:
        """Print the table's header and the rows of the epochs that are finished already."""
        titles = [f'{title:>{width}}' for title, width, _ in self.columns.values()]
        print(''.join(titles))
        for row in self.history:
            self.print_row(row)

    def print_row(self, row: dict[str, float], left: str = '') -> None:
        """Print a row of the history; `left` is the estimated time of all later epochs."""
        cells: dict[str, Any] = {**row, 'time': duration(row['seconds']), 'left': left}
        text = ''
        for name, (_, width, form) in self.columns.items():
            value = cells.get(name, math.nan)  # rows of earlier versions have fewer columns
            text += format(value, f'>{width}{form}')
        print(text.rstrip())

    def state_dict(self) -> Content:
        """Return everything that the next epoch depends on, as tensors and plain types."""
        on_gpu = self.device.type == 'cuda'
        return {
            'model': self.model_hyper.state_dict(),
            'optimizer': self.solver.state_dict(),
            'scaler': self.scaler.state_dict(),  # empty without float16
            'history': self.history,
            'best': self.best,
            'rng': torch.get_rng_state(),
            'cuda_rng': torch.cuda.get_rng_state_all() if on_gpu else [],
        }

    @property
    def state_size(self) -> int:
        """The bytes of a `state_dict` after the first step, when Adam has its moments."""
        # The weights, and two moments of Adam for each.
        return 3 * sum(value.nbytes for value in self.model_hyper.state_dict().values())

    def load_state_dict(self, state: Content) -> None:
        """Restore a `state_dict`."""
        self.model_hyper.load_state_dict(state['model'])
        self.solver.load_state_dict(state['optimizer'])
        self.scaler.load_state_dict(state.get('scaler', {}))  # earlier versions had none
        self.history = state['history']
        self.best = state['best']
        torch.set_rng_state(state['rng'])
        # With another number of GPUs the states do not fit, and the generators keep the seed that
        # make_network has set.
        if self.device.type == 'cuda' and len(state['cuda_rng']) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state['cuda_rng'])

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Train the 0-based `epoch`.

        Returns:
            mean absolute error and SRCC over its patches, each predicted before it was trained on.
        """
        self.model_hyper.train()
        self.train_data.set_epoch(epoch)
        labels = torch.from_numpy(self.train_data.patch_scores)
        # The predictions stay on the device until the end: reading one in each step would make the
        # host wait for the GPU.
        predicted = torch.zeros(len(labels), device=self.device)
        seen = torch.zeros(len(labels), dtype=torch.bool)  # for the progress line only

        def loss_so_far() -> str:
            loss = patch_losses(predicted.cpu()[seen], labels[seen]).mean()
            return f', loss so far {loss:.4g}'

        for batch in with_progress(self.train_data, f'epoch {epoch + 1}', note=loss_so_far):
            predicted[batch.rows] = self.train_step(batch.patches, batch.scores, batch.size)
            seen[batch.rows] = True
        # Each rank has filled in its own patches; the others are 0.
        predicted = distributed.sum_over_ranks(predicted).cpu()
        return patch_losses(predicted, labels).mean().item(), srcc(predicted, labels)

    def train_step(self, patches: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
        """Do one step of the optimizer.

        Args:
            patches: (B, 3, 224, 224), this rank's part of a batch.
            scores: (B,). On a rank that has no patch of a small batch it is empty; `patches` is
                then a copy of another rank's patch, so that this rank takes part too.
            count: patches of the whole batch, on all ranks.

        Returns:
            the scores that the network gave before the step, of the same shape as `scores`.
        """
        is_full = count == self.config.batch_size  # only full batches are compiled
        output = self.forward(self.train_model, patches, is_full)
        # On a rank without a patch of its own nothing is left, which adds nothing to the gradient.
        output = output[: len(scores)]
        total = patch_losses(output, self.to_output(scores)).sum()
        # The wrapped network divides the gradients by the number of ranks. Undo that, and divide by
        # the size of the whole batch.
        loss = total * distributed.world_size() / count
        self.solver.zero_grad()
        # Without float16, the scaler passes the loss and the step on as they are.
        self.scaler.scale(loss).backward()
        self.scaler.step(self.solver)
        self.scaler.update()
        return self.to_score(output.detach())

    def to_score(self, output: Any) -> Any:
        """Return the network's output in the unit of the labels."""
        low, high = self.score_range
        return low + (high - low) * output

    def to_output(self, score: Any) -> Any:
        """Return the network's output that means `score`."""
        low, high = self.score_range
        return (score - low) / (high - low)

    def test(self, data: DataLoader) -> tuple[float, float]:
        """Return (SRCC, PLCC) of the images of `data`, a `DataLoader` with `istrain` false."""
        predicted = self.predict(data)
        return srcc(predicted, data.scores), plcc(predicted, data.scores)

    def predict(self, data: DataLoader) -> np.ndarray:
        """Score the images of `data`, a `DataLoader` with `istrain` false.

        Returns:
            (images,) float64, the mean over each image's patches, in the unit of the labels.
        """
        self.model_hyper.eval()
        distributed.copy_buffers(self.model_hyper)  # all ranks test with the first one's batch norm
        per_patch = torch.zeros(data.patch_count, device=self.device)
        with torch.inference_mode():
            for batch in with_progress(data, 'test'):
                is_full = batch.size == data.batch_size
                output = self.forward(self.model_hyper, batch.patches, is_full)
                per_patch[batch.rows] = output[: len(batch.scores)]
        # Each rank has filled in its own patches; the others are 0.
        per_patch = distributed.sum_over_ranks(per_patch).cpu().double()
        # The patches of a test come image by image.
        per_image = per_patch.view(-1, data.patch_num).mean(1)
        return self.to_score(per_image).numpy()

    def forward(
        self, model: torch.nn.Module, patches: torch.Tensor, is_full: bool = True
    ) -> torch.Tensor:
        """Return the network's outputs (B,) for patches (B, 3, 224, 224); see `to_score`.

        Args:
            is_full: whether the batch has its full size; a shorter one is not compiled.
        """
        # A compiled graph is for one size of batch; one for all sizes would be slower. So only full
        # batches are compiled: one graph for training and one for testing. The others run as if the
        # network were not compiled ('force_eager').
        is_eager = self.config.compile and not is_full
        stance = torch.compiler.set_stance('force_eager') if is_eager else nullcontext()
        with stance, torch.autocast(self.device.type, self.amp_type, enabled=self.config.amp):
            return models.predict_scores(model, patches)

    def set_learning_rates(self, hypernet_lr: float, backbone_lr: float) -> None:
        """Set the rates of the next epoch."""
        # Repair 1: both rates are set, the backbone's too, which the original left at its first
        # value for the whole run. In place, so that Adam and its moments stay (repair 2).
        self.solver.param_groups[0]['lr'] = hypernet_lr
        self.solver.param_groups[1]['lr'] = backbone_lr


def with_progress(
    data: DataLoader, title: str, note: Callable[[], str] = lambda: ''
) -> Iterator[Batch]:
    """Yield the batches of `data` and show the progress on stderr, with `note` (see `progress`)."""
    return progress(
        data.batches(),
        title,
        total=data.patch_count,
        unit='patches',
        size=lambda batch: batch.size,
        note=note,
    )


def is_better(value: float, best: float) -> bool:
    """Return whether `value` is higher than `best`, which is nan if there is none yet.

    A nan is never better.
    """
    return value > best or (math.isnan(best) and not math.isnan(value))
