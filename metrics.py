"""Agreement between predicted and subjective scores."""
import math

import numpy as np
from scipy import stats


def srcc(predicted, subjective):
    """Spearman's rank-order correlation coefficient of two (N,) arrays; nan where either is constant or not finite."""
    return correlation(stats.spearmanr, predicted, subjective)


def plcc(predicted, subjective):
    """Pearson's linear correlation coefficient of two (N,) arrays, without a mapping; nan as for `srcc`."""
    return correlation(stats.pearsonr, predicted, subjective)


def correlation(function, predicted, subjective):
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    defined = all(np.isfinite(scores).all() and np.ptp(scores) > 0 for scores in (predicted, subjective) if scores.size)
    return float(function(predicted, subjective)[0]) if defined and predicted.size > 1 else math.nan
