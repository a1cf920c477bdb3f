"""The pictures of a run folder, as the bytes of PNG files."""

# ruff: noqa: E402

import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

# matplotlib does not come up with a notebook's MPLBACKEND that is not installed here; a file needs none, so it is set after.
backend, first = os.environ.pop('MPLBACKEND', ''), 'matplotlib' not in sys.modules
import matplotlib

if backend:
    os.environ['MPLBACKEND'] = backend
if backend and first:
    with suppress(ValueError):
        matplotlib.rcParams['backend'] = backend
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL.Image import Image
from PIL.Image import new as new_image

from util.metrics import Round, fit_logistic, logistic, plcc, srcc

SMALLEST_SQUARE = 128
BLUE, ORANGE, GREEN, GREY = '#1f77b4', '#e6701a', '#2a9d5c', '#777777'


def curves(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Correlations, training loss and both learning rates against the epoch."""
    figure = Figure(figsize=(8, 8.5), layout='constrained')
    correlation, loss, rates = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    epochs = [int(row['epoch']) for row in history]

    def draw(axis: Axes, column: str, label: str, **style: Any) -> None:
        axis.plot(epochs, [float(row[column]) for row in history], marker='o', markersize=4, label=label, **style)

    draw(correlation, 'test_srcc', 'test SRCC', color=BLUE)
    draw(correlation, 'test_plcc', 'test PLCC', color=ORANGE)
    draw(correlation, 'train_srcc', 'train SRCC', color=GREY)
    if 'val_srcc' in history[0]:
        draw(correlation, 'val_srcc', 'validation SRCC', color=GREEN)
    correlation.set_ylabel('correlation')
    draw(loss, 'train_loss', 'train loss', color=GREY)
    loss.set_ylabel('mean absolute error')
    draw(rates, 'hypernet_lr', 'hypernetwork', color=BLUE)
    draw(rates, 'backbone_lr', 'backbone', color=ORANGE, linestyle='--')
    if any(float(row['hypernet_lr']) > 0 for row in history):
        rates.set_yscale('log')
    rates.set_ylabel('learning rate')
    rates.set_xlabel('epoch')
    rates.xaxis.get_major_locator().set_params(integer=True)
    for axis in (correlation, loss, rates):
        axis.grid(alpha=0.3)
        axis.legend(loc='best')
    return png(figure)


def scatter(predicted: ArrayLike, subjective: ArrayLike, title: str) -> bytes:
    """Predicted against subjective scores, (N,) each, with the fitted logistic."""
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    figure = Figure(figsize=(6, 5.5), layout='constrained')
    axis = figure.subplots()
    axis.scatter(predicted, subjective, s=14, alpha=0.6, color=BLUE, linewidths=0, label=f'{len(predicted)} test images')
    parameters = fit_logistic(predicted, subjective)
    if parameters is not None:
        x = np.linspace(predicted.min(), predicted.max(), 200)
        axis.plot(x, logistic(x, *parameters), color=ORANGE, label='fitted logistic')
    axis.set_xlabel('predicted score')
    axis.set_ylabel('subjective score')
    axis.set_title(f'{title}: SRCC {srcc(predicted, subjective):.4f}, PLCC {plcc(predicted, subjective):.4f}')
    axis.grid(alpha=0.3)
    axis.legend(loc='best')
    return png(figure)


def worst(tested: Round, picture_of: Callable[[int], Image], title: str) -> bytes:
    """The ten test images whose predictions are most above, and the ten most below, their subjective scores.

    Args:
        picture_of: a picture, at most some hundred pixels a side, of the image at a position in `tested`.
    """
    error = tested.predicted - tested.subjective
    order = np.argsort(error)
    columns, rows = 5, 2
    high = [k for k in order[::-1][: columns * rows] if error[k] > 0]
    low = [k for k in order[: columns * rows] if error[k] < 0]
    figure = Figure(figsize=(11, 10.6))
    halves: Any = figure.subfigures(2, 1)
    for half, images, word in zip(halves, (high, low), ('high', 'low')):
        half.suptitle(f'{title}: predictions that are most too {word}', fontsize=11, y=0.985)
        axes = half.subplots(rows, columns)
        half.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.09, hspace=0.32, wspace=0.06)
        for axis in axes.flat:
            axis.axis('off')
        for axis, k in zip(axes.flat, images):
            axis.imshow(padded(picture_of(k)))
            text = f'{shortened(tested.images[k])}\nscore {tested.subjective[k]:.4g}, predicted {tested.predicted[k]:.4g}'
            axis.text(0.5, -0.03, text, transform=axis.transAxes, ha='center', va='top', fontsize=8, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # names may be in any script
        return png(figure)


def comparison(
    curves: Mapping[str, Sequence[Sequence[float]]], differences: Mapping[str, Sequence[Mapping[str, Any]]]
) -> bytes:
    """Test SRCC by epoch, and the differences between runs.

    Args:
        curves: for each run the test SRCC of every epoch of each round: drawn as its mean, in a band from lowest to highest.
        differences: for each pair of runs the rows of its rounds and, last, of their median (see compare.COLUMNS).
    """
    figure = Figure(figsize=(11, max(4.5, 1.2 + 0.55 * len(differences))), layout='constrained')
    by_epoch, by_pair = figure.subplots(1, 2)
    for name, rounds in curves.items():
        epochs = min(map(len, rounds))  # a round may have stopped early
        values, x = np.array([values[:epochs] for values in rounds]), np.arange(1, epochs + 1)
        (line,) = by_epoch.plot(x, values.mean(0), marker='o', markersize=3, label=f'{name} (n = {len(rounds)})')
        by_epoch.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    late = [value for rounds in curves.values() for values in rounds for value in values[len(values) // 2 :]]
    if np.isfinite(late).all():
        by_epoch.set_ylim(bottom=3 * min(late) - 2 * max(late) - 0.01)  # the first epochs would take the whole axis
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    by_epoch.set_xlabel('epoch')
    by_epoch.set_ylabel('test SRCC: mean and range of the rounds')
    by_epoch.legend(loc='lower right', fontsize=8)
    for k, rows in enumerate(differences.values()):
        for offset, row in zip(np.linspace(-0.3, 0.3, len(rows)), rows):
            style = {'color': ORANGE, 'linewidth': 2.5} if row is rows[-1] else {'color': BLUE, 'linewidth': 1}
            by_pair.plot([row['low'], row['high']], [k + offset] * 2, **style)
            by_pair.plot([row['difference']], [k + offset], marker='o', markersize=4, color=style['color'])
    by_pair.axvline(0, color=GREY, linewidth=1)
    by_pair.set_yticks(range(len(differences)), list(differences), fontsize=8)
    by_pair.set_ylim(len(differences) - 0.5, -0.5)
    by_pair.set_xlabel('difference of SRCC: rounds, and their median in orange')
    for axis in (by_epoch, by_pair):
        axis.grid(alpha=0.3)
    return png(figure)


def padded(picture: Image) -> np.ndarray:
    """The picture in the middle of a white square, so that all of a table are drawn to one scale."""
    side = max(*picture.size, SMALLEST_SQUARE)
    square = new_image('RGB', (side, side), 'white')
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def shortened(name: str) -> str:
    """The end of a name, in characters that can be drawn."""
    name = name.encode(errors='replace').decode()
    return name if len(name) <= 30 else f'…{name[-29:]}'


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
