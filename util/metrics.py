"""Agreement between predicted and subjective scores."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats


def srcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Spearman's rank-order correlation coefficient of two (N,) arrays; nan where either is constant or not finite."""
    return correlation(stats.spearmanr, predicted, subjective)


def plcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Pearson's linear correlation coefficient of two (N,) arrays, without a mapping; nan as for `srcc`."""
    return correlation(stats.pearsonr, predicted, subjective)


def correlation(function: Callable[[np.ndarray, np.ndarray], Any], predicted: ArrayLike, subjective: ArrayLike) -> float:
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    defined = all(np.isfinite(scores).all() and np.ptp(scores) > 0 for scores in (predicted, subjective) if scores.size)
    return float(function(predicted, subjective)[0]) if defined and predicted.size > 1 else math.nan


def logistic(x: np.ndarray, high: float, low: float, centre: float, width: float) -> np.ndarray:
    """The four-parameter logistic that the Video Quality Experts Group maps predictions to scores with.

    VQEG, "Final report from the Video Quality Experts Group on the validation of objective models of video quality
    assessment", phase I (2000), annex.
    """
    return (high - low) * special.expit((x - centre) / np.abs(width)) + low


def fit_logistic(predicted: ArrayLike, subjective: ArrayLike) -> np.ndarray | None:
    """The least-squares parameters of `logistic` from predictions to scores, two (N,) arrays; None where there is no fit."""
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    slope = srcc(predicted, subjective)
    if len(predicted) < 5 or math.isnan(slope):
        return None
    ends = (subjective.max(), subjective.min()) if slope >= 0 else (subjective.min(), subjective.max())
    mean, deviation = predicted.mean(), predicted.std()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', optimize.OptimizeWarning)
            # standardised, since the solver takes steps in proportion to a parameter, and a mean near 0 would stay there
            high, low, centre, width = optimize.curve_fit(
                logistic, (predicted - mean) / deviation, subjective, (*ends, 0, 0.25), maxfev=20000
            )[0]
            return np.array([high, low, mean + deviation * centre, deviation * width])
    except RuntimeError:  # no convergence
        return None


def all_metrics(predicted: ArrayLike, subjective: ArrayLike) -> dict[str, float]:
    """Every metric of two (N,) arrays by name; RMSE and PLCC_logistic after the fitted logistic, in the scores' unit."""
    parameters = fit_logistic(predicted, subjective)
    if parameters is None:
        rmse = plcc_logistic = math.nan
    else:
        mapped = logistic(np.asarray(predicted, np.float64), *parameters)
        rmse = float(np.sqrt(np.mean((mapped - np.asarray(subjective)) ** 2)))
        plcc_logistic = plcc(mapped, subjective)
    return {
        'SRCC': srcc(predicted, subjective),
        'PLCC': plcc(predicted, subjective),
        'KRCC': correlation(stats.kendalltau, predicted, subjective),
        'RMSE': rmse,
        'PLCC_logistic': plcc_logistic,
    }
