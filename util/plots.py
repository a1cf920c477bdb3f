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

# A notebook sets a backend for all programs that it starts. Only its own process has that backend,
# and in others the import of matplotlib would fail.
if 'ipykernel' not in sys.modules:
    os.environ.pop('MPLBACKEND', None)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from util.files import SOFTWARE
from util.metrics import TestedImages, fit_logistic, logistic, plcc, srcc

SMALLEST_SQUARE = 128
ROW = 5  # images in a row of worst.png
BLUE, ORANGE, GREEN, GREY = '#1f77b4', '#e6701a', '#2a9d5c', '#777777'
# The axes of curves.png, by unit: columns of the history, each with its label and colour.
CURVES = {
    'correlation': {
        'test_srcc': ('test SRCC', BLUE),
        'test_plcc': ('test PLCC', ORANGE),
        'train_srcc': ('train SRCC', GREY),
        'val_srcc': ('val SRCC', GREEN),
    },
    'mean absolute error': {'train_loss': ('train loss', GREY)},
    'learning rate': {'hypernet_lr': ('hypernet', BLUE), 'backbone_lr': ('backbone', ORANGE)},
}


def curves(history: Sequence[Mapping[str, Any]], title: str, best_epoch: int | None) -> bytes:
    """Draw correlations, training loss and learning rates by epoch.

    Args:
        history: the rows of history.csv.
        best_epoch: 1-based; it is marked.
    """
    figure = Figure(figsize=(8, 8.5), layout='constrained')
    figure.suptitle(title)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    epochs = range(1, len(history) + 1)
    for axis, (unit, columns) in zip(axes, CURVES.items()):
        for column, (label, colour) in columns.items():
            if column not in history[-1]:  # as val_srcc in a round without validation
                continue
            # Rows of an earlier version can lack a column.
            values = [float(row.get(column, math.nan)) for row in history]
            # The backbone's rate is dashed, because it covers the other one where both are equal.
            style = '--' if column == 'backbone_lr' else '-'
            axis.plot(epochs, values, style, marker='o', markersize=4, color=colour, label=label)
        if best_epoch:
            # One entry in a legend is enough, so only the first axis has a label.
            label = f'best epoch {best_epoch}' if axis is axes[0] else None
            axis.axvline(best_epoch, color='black', linestyle=':', zorder=1, label=label)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend()
    # The rates fall by factors of ten, but a rate of 0 has no logarithm.
    if float(history[0].get('hypernet_lr', 0)) > 0:
        axes[-1].set_yscale('log')
    number_epochs(axes[-1])
    return png(figure)


def number_epochs(axis: Axes) -> None:
    """Label the x axis with whole epochs."""
    axis.set_xlabel('epoch')
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def run_curves(curves: Sequence[Sequence[float]], best_epochs: Sequence[int], name: str) -> bytes:
    """Draw the test SRCC of each round, thin, and their median, thick.

    Args:
        curves: (epochs,) of each round.
        best_epochs: of each round, 1-based; they are marked.
        name: of the run.
    """
    figure = Figure(figsize=(8, 5), layout='constrained')
    axis = figure.subplots()
    for curve, epoch in zip(curves, best_epochs):
        axis.plot(range(1, len(curve) + 1), curve, color=BLUE, linewidth=0.8, alpha=0.5)
        axis.plot(epoch, curve[epoch - 1], 'o', color=ORANGE, markersize=5)
    # zip ends with the last epoch that all rounds have.
    median = [np.median(values) for values in zip(*curves)]
    axis.plot(range(1, len(median) + 1), median, color=BLUE, linewidth=2.5, zorder=1)
    axis.set_title(f'{shortened(name, 60)}: rounds (thin), median (thick), best epochs (dots)')
    number_epochs(axis)
    axis.set_ylabel('test SRCC')
    axis.grid(alpha=0.3)
    return png(figure)


def scatter(predicted: ArrayLike, subjective: ArrayLike, title: str) -> bytes:
    """Draw predicted against subjective scores, (N,) each, with y = x and the fitted logistic."""
    predicted = np.asarray(predicted, np.float64)
    subjective = np.asarray(subjective, np.float64)
    figure = Figure(figsize=(6, 5.5), layout='constrained')
    axis = figure.subplots()
    # With more images the dots are smaller and fainter, since they would cover one another.
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
    # y = x is drawn through the lowest value that both scores reach: a point outside of the ranges
    # would extend the axes. Without such a value it is left out.
    low = max(predicted.min(), subjective.min())
    high = min(predicted.max(), subjective.max())
    if low <= high:
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
    axis.legend()
    return png(figure)


def worst(tested: TestedImages, picture_of: Callable[[int], Image.Image], title: str) -> bytes:
    """Draw the test images whose predictions are furthest above, and below, their labels.

    Args:
        picture_of: returns the picture at a position in `tested`, with at most a few hundred pixels
            a side.
    """
    error = tested.predicted - tested.subjective
    rows = rows_of('Most overestimated', error) + rows_of('Most underestimated', -error)
    columns = max((len(images) for _, images in rows), default=1)
    width = max(4.6, 2.2 * columns)  # the title needs 4.6 inches
    figure = Figure(figsize=(width, 0.5 + 2.9 * len(rows)), layout='constrained')
    figure.suptitle(title, fontsize=11)
    empty = {'xticks': (), 'yticks': (), 'frame_on': False}
    grid = figure.subplots(max(1, len(rows)), columns, squeeze=False, subplot_kw=empty)
    for axes, (heading, images) in zip(grid, rows):
        axes[0].set_title(heading, loc='left', fontsize=11, fontweight='bold')
        for axis, k in zip(axes, images):
            axis.imshow(padded(picture_of(k)))
            numbers = with_minus(
                f'score {tested.subjective[k]:.4g}, predicted {tested.predicted[k]:.4g}\n'
                f'error {error[k]:+.3g}'
            )
            axis.set_xlabel(f'{shortened(tested.images[k])}\n{numbers}', fontsize=8)
    return png(figure)


def rows_of(heading: str, excess: np.ndarray) -> list[tuple[str, list[int]]]:
    """The rows of worst.png with the images of the largest excess, each with its heading.

    There are at most two rows, with a quarter of all images at most, but with one image at least.

    Args:
        excess: (N,), the error of each prediction, positive in the direction of this heading.
    """
    most = min(2 * ROW, max(1, len(excess) // 4))
    images = [k for k in np.argsort(-excess)[:most].tolist() if excess[k] > 0]
    # A second row is drawn only if it is full, so that the table has no holes.
    if len(images) < 2 * ROW:
        del images[ROW:]
    rows = []
    for start in range(0, len(images), ROW):
        rows.append(('' if start else heading, images[start : start + ROW]))
    return rows


def comparison(
    curves: Mapping[str, Sequence[Sequence[float]]], differences: Sequence[Mapping[str, Any]]
) -> bytes:
    """Draw the test SRCC of two runs by epoch, and the differences between them.

    Args:
        curves: for each run, the test SRCC of every epoch of each round.
        differences: the rows of the rounds and, last, the row that sums them up (see
            compare.COLUMNS).
    """
    figure = Figure(figsize=(11, 4.5), layout='constrained')
    by_epoch, by_round = figure.subplots(1, 2)
    draw_mean_curves(by_epoch, curves)
    draw_differences(by_round, differences)
    names = [shortened(name, 50) for name in curves]
    by_round.set_xlabel('SRCC of ' + '\nminus that of '.join(names), fontsize=8)
    # The legends are above the axes, where a long name covers no curve.
    for axis, columns in ((by_epoch, 1), (by_round, 2)):
        axis.grid(alpha=0.3)
        axis.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=columns, fontsize=8)
    return png(figure)


def draw_mean_curves(axis: Axes, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw each run's mean over its rounds, in a band from the lowest to the highest round."""
    late: list[float] = []
    for name, rounds in curves.items():
        epochs = min(map(len, rounds))  # all rounds have them; one may have stopped early
        values = np.array([of_round[:epochs] for of_round in rounds])
        x = np.arange(1, epochs + 1)
        # The number first: a label that starts with _ would not be in the legend.
        label = f'n = {len(rounds)}: {shortened(name, 50)}'
        (line,) = axis.plot(x, values.mean(0), marker='o', markersize=3, label=label)
        colour = line.get_color()
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        for of_round in rounds:
            late += of_round[len(of_round) // 2 :]
    # Low first SRCCs would take most of the axis. It is cut below the lowest one of the
    # rounds' later halves, by twice the range of these halves.
    if np.isfinite(late).all():
        lowest = min(late) - 2 * (max(late) - min(late)) - 0.01
        axis.set_ylim(bottom=max(axis.get_ylim()[0], lowest))
    number_epochs(axis)
    axis.set_ylabel('test SRCC: mean and range of the rounds')


def draw_differences(axis: Axes, differences: Sequence[Mapping[str, Any]]) -> None:
    """Draw each difference with its interval, the rounds first and their summary last."""
    for k, row in enumerate(differences):
        style: dict[str, Any] = {'color': BLUE, 'linewidth': 1}
        if row is differences[-1]:
            style = {'color': ORANGE, 'linewidth': 2.5, 'label': row['round']}
        elif k == 0:  # in the legend once
            style['label'] = 'rounds (lines: 95 % intervals)'
        # Without an interval there is only the dot.
        ends = [row.get('low', math.nan), row['difference'], row.get('high', math.nan)]
        # Only the difference has a dot.
        axis.plot(ends, [k, k, k], marker='o', markersize=4, markevery=[1], **style)
    axis.axvline(0, color=GREY, linewidth=1)
    names = [row['round'] for row in differences]
    axis.set_yticks(range(len(differences)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_ylabel('round')


def score_map(
    scores: np.ndarray, y: np.ndarray, x: np.ndarray, photo: Image.Image, title: str, unit: str
) -> bytes:
    """Draw a photo under the scores of its patches, which `Scorer.map` describes.

    Args:
        unit: of the scores, for the colour bar.
    """
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axis = figure.subplots()
    # More than about 1000 pixels a side cannot be seen, and would take more time to draw.
    small = photo.reduce(max(1, max(photo.size) // 1000))
    axis.imshow(small, extent=(0, photo.width, photo.height, 0))
    x_edges = edges_between(x, photo.width)
    y_edges = edges_between(y, photo.height)
    mesh = axis.pcolormesh(x_edges, y_edges, scores, alpha=0.45)
    bar = figure.colorbar(mesh, label=unit)
    # The photo shows through the map. With the photo's mean colour behind the bar, the bar has the
    # colours of the map and not paler ones.
    bar.ax.set_facecolor(np.asarray(small).mean((0, 1)) / 255)
    axis.set_title(shortened(title, 80))
    axis.set_axis_off()
    figure.supxlabel(
        'Content moves these scores as much as quality does: read halves, not objects.', fontsize=9
    )
    return png(figure)


def edges_between(centres: np.ndarray, side: int) -> list[float]:
    """The edges of cells that meet midway between `centres` and together fill 0 to `side`."""
    middles = (centres[1:] + centres[:-1]) / 2
    return [0, *middles, side]


def padded(picture: Image.Image) -> np.ndarray:
    """The picture in the middle of a white square, so that all axes draw to one scale."""
    side = max(*picture.size, SMALLEST_SQUARE)
    square = Image.new('RGB', (side, side), 'white')
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def shortened(name: str, length: int = 30) -> str:
    """The end of a name, in characters that can be drawn, and with no $ that starts a formula."""
    name = name.encode(errors='replace').decode()
    if len(name) > length:
        name = f'…{name[1 - length :]}'
    return name.replace('$', r'\$')


def with_minus(numbers: str) -> str:
    return numbers.replace('-', '\N{MINUS SIGN}')


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name can be in a script that the font lacks.
        warnings.filterwarnings('ignore', 'Glyph .* missing')
        figure.savefig(buffer, format='png', dpi=110, metadata={'Software': SOFTWARE})
    return buffer.getvalue()
