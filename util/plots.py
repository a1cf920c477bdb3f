"""The pictures of a run folder, as the bytes of PNG files."""

# ruff: noqa: E402

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

# With a notebook's MPLBACKEND that is not installed here matplotlib cannot be imported; a file needs none, so it is set after.
backend = '' if 'matplotlib' in sys.modules else os.environ.pop('MPLBACKEND', '')
import matplotlib

if backend:
    os.environ['MPLBACKEND'] = backend
    with suppress(ValueError):
        matplotlib.rcParams['backend'] = backend
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from util.metrics import TestedImages, fit_logistic, logistic, plcc, srcc

SMALLEST_SQUARE = 128
BLUE, ORANGE, GREEN, GREY = '#1f77b4', '#e6701a', '#2a9d5c', '#777777'


def curves(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Correlations, training loss and both learning rates against the epoch."""
    lines = {
        'correlation': {'test_srcc': BLUE, 'test_plcc': ORANGE, 'train_srcc': GREY, 'val_srcc': GREEN},
        'mean absolute error': {'train_loss': GREY},
        'learning rate': {'hypernet_lr': BLUE, 'backbone_lr': ORANGE},
    }
    figure = Figure(figsize=(8, 8.5), layout='constrained')
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for axis, (unit, columns) in zip(axes, lines.items()):
        for column, colour in columns.items():
            if column in history[-1]:
                values = [float(row.get(column, math.nan)) for row in history]
                style = '--' if column == 'backbone_lr' else '-'  # it covers the other one where they are equal
                label = column.replace('_', ' ').replace('srcc', 'SRCC').replace('plcc', 'PLCC').replace(' lr', '')
                axis.plot(range(1, len(values) + 1), values, style, marker='o', markersize=4, color=colour, label=label)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend(loc='best')
    if float(history[0].get('hypernet_lr', 0)) > 0:
        axes[-1].set_yscale('log')
    axes[-1].set_xlabel('epoch')
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
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


def worst(tested: TestedImages, picture_of: Callable[[int], Image.Image], title: str) -> bytes:
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


def comparison(curves: Mapping[str, Sequence[Sequence[float]]], differences: Sequence[Mapping[str, Any]]) -> bytes:
    """Test SRCC by epoch, and the differences between two runs.

    Args:
        curves: for each run the test SRCC of every epoch of each round: drawn as its mean, in a band from lowest to highest.
        differences: the rows of the rounds and, last, of their median (see compare.COLUMNS).
    """
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    by_epoch, by_round = figure.subplots(1, 2)
    draw_curves(by_epoch, curves)
    for k, row in enumerate(differences):
        colour, width = (ORANGE, 2.5) if row is differences[-1] else (BLUE, 1)
        by_round.plot([row['low'], row['high']], [k, k], color=colour, linewidth=width)
        by_round.plot([row['difference']], [k], marker='o', markersize=4, color=colour)
    by_round.axvline(0, color=GREY, linewidth=1)
    by_round.set_yticks(range(len(differences)), [row['round'] for row in differences], fontsize=8)
    by_round.invert_yaxis()
    by_round.set_xlabel('difference of SRCC by round')
    by_round.grid(alpha=0.3)
    return png(figure)


def draw_curves(axis: Axes, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """The test SRCC by epoch of several runs, as in `comparison`."""
    for name, rounds in curves.items():
        epochs = min(map(len, rounds))  # a round may have stopped early
        values, x = np.array([values[:epochs] for values in rounds]), np.arange(1, epochs + 1)
        (line,) = axis.plot(x, values.mean(0), marker='o', markersize=3, label=f'{name} (n = {len(rounds)})')
        axis.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    late = [value for rounds in curves.values() for values in rounds for value in values[len(values) // 2 :]]
    if np.isfinite(late).all():
        axis.set_ylim(bottom=3 * min(late) - 2 * max(late) - 0.01)  # the first epochs would take the whole axis
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel('epoch')
    axis.set_ylabel('test SRCC: mean and range of the rounds')
    axis.grid(alpha=0.3)
    axis.legend(loc='lower right', fontsize=8)


def padded(picture: Image.Image) -> np.ndarray:
    """The picture in the middle of a white square, so that all of a table are drawn to one scale."""
    side = max(*picture.size, SMALLEST_SQUARE)
    square = Image.new('RGB', (side, side), 'white')
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
