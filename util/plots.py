"""The pictures of a run folder, as the bytes of PNG files."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib
except ValueError:  # a notebook's MPLBACKEND, of a module that need not be installed here; a file needs no backend
    del os.environ['MPLBACKEND']
    import matplotlib  # noqa: F401
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from util.metrics import fit_logistic, logistic, plcc, srcc

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


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
