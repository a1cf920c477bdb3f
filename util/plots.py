"""The pictures of a run folder, as the bytes of PNG files."""

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

if (
    'ipykernel' not in sys.modules
):  # with a backend that only a notebook's own process has, matplotlib cannot be imported
    os.environ.pop('MPLBACKEND', None)
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from util.metrics import TestedImages, fit_logistic, logistic, plcc, srcc

SMALLEST_SQUARE = 128
ROW = 5  # images in worst.png
BLUE, ORANGE, GREEN, GREY = '#1f77b4', '#e6701a', '#2a9d5c', '#777777'


def curves(history: Sequence[Mapping[str, Any]], title: str, best_epoch: int | None) -> bytes:
    """Correlations, training loss and both learning rates against the epoch; the best epoch, 1-based, is marked."""
    lines = {
        'correlation': {
            'test_srcc': BLUE,
            'test_plcc': ORANGE,
            'train_srcc': GREY,
            'val_srcc': GREEN,
        },
        'mean absolute error': {'train_loss': GREY},
        'learning rate': {'hypernet_lr': BLUE, 'backbone_lr': ORANGE},
    }
    figure = Figure(figsize=(8, 8.5), layout='constrained')
    figure.suptitle(title)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    for axis, (unit, columns) in zip(axes, lines.items()):
        for column, colour in columns.items():
            if column in history[-1]:
                values = [float(row.get(column, math.nan)) for row in history]
                style = (
                    '--' if column == 'backbone_lr' else '-'
                )  # it covers the other one where they are equal
                label = (
                    column.replace('_', ' ')
                    .replace('srcc', 'SRCC')
                    .replace('plcc', 'PLCC')
                    .replace(' lr', '')
                )
                axis.plot(
                    range(1, len(values) + 1),
                    values,
                    style,
                    marker='o',
                    markersize=4,
                    color=colour,
                    label=label,
                )
        if best_epoch:
            label = f'best epoch {best_epoch}' if axis is axes[0] else None
            axis.axvline(best_epoch, color='black', linestyle=':', zorder=1, label=label)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend(loc='best')
    if float(history[0].get('hypernet_lr', 0)) > 0:
        axes[-1].set_yscale('log')
    axes[-1].set_xlabel('epoch')
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return png(figure)


def scatter(predicted: ArrayLike, subjective: ArrayLike, title: str) -> bytes:
    """Predicted against subjective scores, (N,) each, with y = x and the fitted logistic."""
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    figure = Figure(figsize=(6, 5.5), layout='constrained')
    axis = figure.subplots()
    size = np.clip(180 / len(predicted) ** 0.5, 8, 36)
    axis.scatter(
        predicted,
        subjective,
        size,
        BLUE,
        alpha=0.3 + size / 60,
        linewidths=0,
        label=f'{len(predicted):,} images',
    )
    low, high = max(predicted.min(), subjective.min()), min(predicted.max(), subjective.max())
    if low <= high:  # a line through a point of both ranges leaves the axes as they are
        axis.axline((low, low), slope=1, color=GREY, linestyle='--', linewidth=1, label='y = x')
    parameters = fit_logistic(predicted, subjective)
    if parameters is not None:
        x = np.linspace(predicted.min(), predicted.max(), 200)
        axis.plot(x, logistic(x, *parameters), color=ORANGE, label='fitted logistic')
    axis.set_xlabel('predicted score')
    axis.set_ylabel('subjective score')
    correlations = f'SRCC {srcc(predicted, subjective):.4f}, PLCC {plcc(predicted, subjective):.4f}'
    metrics = with_minus(f'{correlations}, MAE {np.abs(predicted - subjective).mean():.3g}')
    axis.set_title(f'{title}\n{metrics}', fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(loc='best')
    return png(figure)


def worst(tested: TestedImages, picture_of: Callable[[int], Image.Image], title: str) -> bytes:
    """The test images whose predictions are most above, and most below, their subjective scores.

    Of each kind at most ten and at most a quarter of all images; more than a row of them only in full rows.

    Args:
        picture_of: a picture, at most some hundred pixels a side, of the image at a position in `tested`.
    """
    error = tested.predicted - tested.subjective
    most = min(2 * ROW, max(1, len(error) // 4))
    rows: list[tuple[str, list[int]]] = []
    for heading, sign in (('Most overestimated', 1), ('Most underestimated', -1)):
        images = [k for k in np.argsort(-sign * error)[:most].tolist() if sign * error[k] > 0]
        starts = range(0, len(images) // ROW * ROW or len(images), ROW)
        rows += [('' if start else heading, images[start : start + ROW]) for start in starts]
    columns = max((len(images) for _, images in rows), default=1)
    figure = Figure(figsize=(max(4.6, 2.2 * columns), 0.5 + 2.9 * len(rows)), layout='constrained')
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(
        len(rows) or 1,
        columns,
        squeeze=False,
        subplot_kw={'xticks': (), 'yticks': (), 'frame_on': False},
    )
    for axes, (heading, images) in zip(grid, rows):
        axes[0].set_title(heading, loc='left', fontsize=11, fontweight='bold')
        for axis, k in zip(axes, images):
            axis.imshow(padded(picture_of(k)))
            numbers = f'score {tested.subjective[k]:.4g}, predicted {tested.predicted[k]:.4g}\nerror {error[k]:+.3g}'
            axis.set_xlabel(f'{shortened(tested.images[k])}\n{with_minus(numbers)}', fontsize=8)
    return png(figure)


def comparison(
    curves: Mapping[str, Sequence[Sequence[float]]], differences: Sequence[Mapping[str, Any]]
) -> bytes:
    """Test SRCC by epoch, and the differences between two runs.

    Args:
        curves: for each run the test SRCC of every epoch of each round: drawn as its mean, in a band from lowest to highest.
        differences: the rows of the rounds and, last, of what sums them up (see compare.COLUMNS).
    """
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    by_epoch, by_round = axes = figure.subplots(1, 2)
    for name, rounds in curves.items():
        epochs = min(map(len, rounds))  # a round may have stopped early
        values, x = np.array([values[:epochs] for values in rounds]), np.arange(1, epochs + 1)
        label = f'{shortened(name, 50)} (n = {len(rounds)})'
        (line,) = by_epoch.plot(x, values.mean(0), marker='o', markersize=3, label=label)
        by_epoch.fill_between(
            x, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0
        )
    late = [
        value
        for rounds in curves.values()
        for values in rounds
        for value in values[len(values) // 2 :]
    ]
    if np.isfinite(late).all():  # the first epochs may take the whole axis
        by_epoch.set_ylim(bottom=max(by_epoch.get_ylim()[0], 3 * min(late) - 2 * max(late) - 0.01))
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    by_epoch.set_xlabel('epoch')
    by_epoch.set_ylabel('test SRCC: mean and range of the rounds')
    for k, row in enumerate(differences):
        kind = None if k else 'rounds with 95 % interval'  # in the legend once
        colour, width, label = (
            (ORANGE, 2.5, row['round']) if row is differences[-1] else (BLUE, 1, kind)
        )
        ends = [row['low'], row['difference'], row['high']]
        by_round.plot(
            ends,
            [k] * 3,
            marker='o',
            markersize=4,
            markevery=[1],
            color=colour,
            linewidth=width,
            label=label,
        )
    by_round.axvline(0, color=GREY, linewidth=1)
    by_round.set_yticks(range(len(differences)), [row['round'] for row in differences], fontsize=8)
    by_round.invert_yaxis()
    by_round.set_ylabel('round')
    by_round.set_xlabel(
        'SRCC of ' + '\nless that of '.join(shortened(name, 50) for name in curves), fontsize=8
    )
    for axis, columns in zip(axes, (1, 2)):
        axis.grid(alpha=0.3)
        axis.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=columns, fontsize=8)
    return png(figure)


def score_map(
    scores: np.ndarray, y: np.ndarray, x: np.ndarray, photo: Image.Image, title: str, unit: str
) -> bytes:
    """A photo under the scores of its patches, which `Scorer.map` describes; `unit` stands beside the colour bar."""
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axis = figure.subplots()
    # made smaller, which is all that can be seen
    axis.imshow(
        photo.reduce(max(1, max(photo.size) // 1000)), extent=(0, photo.width, photo.height, 0)
    )
    middles = ((centres[1:] + centres[:-1]) / 2 for centres in (x, y))
    edges = [[0, *middle, side] for middle, side in zip(middles, photo.size)]
    figure.colorbar(axis.pcolormesh(*edges, scores, alpha=0.45), label=unit)
    axis.set_title(shortened(title, 80))
    axis.set_axis_off()
    figure.supxlabel(
        'Content moves these scores as much as quality does: read halves, not objects.', fontsize=9
    )
    return png(figure)


def padded(picture: Image.Image) -> np.ndarray:
    """The picture in the middle of a white square, so that all of a table are drawn to one scale."""
    side = max(*picture.size, SMALLEST_SQUARE)
    square = Image.new('RGB', (side, side), 'white')
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def shortened(name: str, length: int = 30) -> str:
    """The end of a name, in characters that can be drawn, and with no $ that would begin a formula."""
    name = name.encode(errors='replace').decode()
    return (name if len(name) <= length else f'…{name[1 - length :]}').replace('$', r'\$')


def with_minus(numbers: str) -> str:
    return numbers.replace('-', '\N{MINUS SIGN}')


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # names may be in any script
        figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
