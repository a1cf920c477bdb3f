"""Agreement between predicted and subjective scores."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

RESAMPLES = 2000
FEWEST = 5  # contents of a jackknife
UNDEFINED = 'there are fewer than 3 test images, or a correlation is undefined'
RESAMPLED_AT_ONCE = 2_000_000  # images, which bounds the memory to some 100 MB


class NoIntervalError(Exception):
    """There is no interval; the message is the reason."""


class TestedImages(NamedTuple):
    """The test images of a round, in columns of N: names, contents, subjective scores, predictions, and further `facts`.

    Images of one content are not independent, so intervals resample contents; an image that is one of its own has its name.
    """

    images: Sequence[str]
    contents: Sequence[str]
    subjective: np.ndarray
    predicted: np.ndarray
    facts: Mapping[str, Sequence[Any]] = {}


def srcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Spearman's rank-order correlation coefficient of two (N,) arrays; nan where either is constant or not finite."""
    return correlation(stats.spearmanr, predicted, subjective)


def plcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Pearson's linear correlation coefficient of two (N,) arrays, without a mapping; nan as for `srcc`."""
    return correlation(stats.pearsonr, predicted, subjective)


def mae(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Mean absolute error of two (N,) arrays, in the scores' unit; nan without images."""
    return (
        float(np.abs(np.subtract(predicted, subjective)).mean()) if np.size(predicted) else math.nan
    )


def correlation(
    function: Callable[[np.ndarray, np.ndarray], Any], predicted: ArrayLike, subjective: ArrayLike
) -> float:
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    defined = all(
        np.isfinite(scores).all() and np.ptp(scores) > 0
        for scores in (predicted, subjective)
        if scores.size
    )
    return float(function(predicted, subjective)[0]) if defined and predicted.size > 1 else math.nan


CORRELATIONS = {'SRCC': srcc, 'PLCC': plcc}


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
    ends = (
        (subjective.max(), subjective.min()) if slope >= 0 else (subjective.min(), subjective.max())
    )
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
    """Every metric of two (N,) arrays by name; RMSE and PLCC_logistic after the fitted logistic, MAE before it."""
    parameters = fit_logistic(predicted, subjective)
    predicted, subjective = np.asarray(predicted, np.float64), np.asarray(subjective, np.float64)
    mapped = (
        np.full(len(predicted), math.nan)
        if parameters is None
        else logistic(predicted, *parameters)
    )
    return {
        'SRCC': srcc(predicted, subjective),
        'PLCC': plcc(predicted, subjective),
        'KRCC': correlation(stats.kendalltau, predicted, subjective),
        'RMSE': float(np.sqrt(np.mean((mapped - subjective) ** 2))) if len(mapped) else math.nan,
        'PLCC_logistic': plcc(mapped, subjective),
        'MAE': mae(predicted, subjective),
    }


def by_type(tested: TestedImages) -> dict[str, dict[str, dict[str, float]]]:
    """Under `types`, the number of images, at least 3, and the SRCC of each distortion type; nothing where none is known."""
    types = np.array(tested.facts.get('type', []))
    kept = {name: types == name for name in np.unique(types).tolist()}
    found = {
        name: {'images': int(of.sum()), 'SRCC': of_kept(tested, srcc)(of)}
        for name, of in kept.items()
        if name and of.sum() > 2
    }
    return (
        {'types': {name: values for name, values in found.items() if math.isfinite(values['SRCC'])}}
        if found
        else {}
    )


def intervals(rounds: Sequence[TestedImages]) -> dict[str, Any]:
    """95 % intervals of the SRCC and PLCC of a round, or of their medians over several rounds, as [low, high] each.

    Of a round with several images of one content it is a jackknife (see `jackknife`) of Fisher's z. Otherwise it is the middle
    of 2,000 bootstrap resamples from a fixed seed. Each draws as many contents as all rounds have tested, with replacement, so
    an image that several rounds tested counts equally often in each; and as many rounds as there are, since training varies
    too. So the interval is for other images and other rounds of the same kind.

    Returns:
        `SRCC_interval`, `PLCC_interval` and the `interval_method`; or the reason, under `no_interval`, why there is none.
    """
    try:
        if len(rounds) == 1 and has_groups(rounds[0]):
            method, values = (
                'jackknife of the contents',
                [of_kept(rounds[0], metric) for metric in CORRELATIONS.values()],
            )
            ends = [
                np.tanh(jackknife(rounds[0].contents, value, np.arctanh)).tolist()
                for value in values
            ]
        else:
            method, ends = (
                'bootstrap',
                [median_interval(resamples) for resamples in resampled(rounds)],
            )
            if np.isnan(ends).any():
                raise NoIntervalError(UNDEFINED)
    except NoIntervalError as reason:
        return {'no_interval': str(reason)}
    return {
        **{f'{name}_interval': interval for name, interval in zip(CORRELATIONS, ends)},
        'interval_method': method,
    }


def has_groups(tested: TestedImages) -> bool:
    """Whether several images are of one content."""
    return len(set(tested.contents)) < len(tested.images)


def of_kept(
    tested: TestedImages, metric: Callable[[Any, Any], float]
) -> Callable[[np.ndarray], float]:
    """`metric` as a function of which images are kept, (N,) bool."""
    return lambda kept: metric(tested.predicted[kept], tested.subjective[kept])


def jackknife(
    contents: Sequence[str],
    value: Callable[[np.ndarray], float],
    transform: Callable[[Any], Any] = np.asarray,
) -> list[float]:
    """95 % interval of `transform` of a value, from that value without each content, with (number of contents - 1) degrees.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11.

    Args:
        value: of the images that are kept, (N,) bool.

    Raises:
        NoIntervalError: there are fewer than FEWEST contents, or a value is undefined or infinite once transformed.
    """
    names, of_images = np.unique(contents, return_inverse=True)
    count = len(names)
    if count < FEWEST:
        raise NoIntervalError(
            f'{count} content{"s are" if count > 1 else " is"} too few (at least {FEWEST})'
        )
    with np.errstate(divide='ignore'):
        whole, *parts = transform(
            np.array([value(of_images != k) for k in range(-1, count)])
        )  # no image is of content -1
    if not np.isfinite([whole, *parts]).all():
        raise NoIntervalError('a correlation is undefined or perfect')
    error = math.sqrt((count - 1) * np.var(parts))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return [whole - half, whole + half]


def corrected_t(differences: Sequence[float], ratio: float) -> tuple[list[float], float]:
    """95 % interval and two-sided p of the mean difference between two methods in rounds that draw from the same images.

    The corrected resampled t-test: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003).

    Args:
        ratio: images that a round tests / images that it trains on, its validation part included.
    """
    count, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) * math.sqrt(1 / count + ratio)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return [mean - half, mean + half], p


def median_interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of the median over rounds of `values` (rounds, RESAMPLES), each of which is of as many drawn rounds.

    Resamples in which the metric is undefined are left out; where it is undefined in all of them, nan.
    """
    drawn = np.random.RandomState(1).randint(len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[drawn, np.arange(RESAMPLES)[:, None]], axis=1)
    medians = medians[np.isfinite(medians)]
    return np.percentile(medians, (2.5, 97.5)).tolist() if len(medians) else [math.nan, math.nan]


def resampled(rounds: Sequence[TestedImages]) -> np.ndarray:
    """(2, rounds, RESAMPLES): SRCC and PLCC of each round in every resample of the contents of all rounds."""
    contents = sorted({content for tested in rounds for content in tested.contents})
    columns = [np.searchsorted(contents, tested.contents) for tested in rounds]
    blocks = [
        [
            weighted_correlations(tested, counts[:, column])
            for tested, column in zip(rounds, columns)
        ]
        for counts in drawn_counts(len(contents))
    ]
    return np.concatenate(blocks, axis=2).swapaxes(0, 1)


def drawn_counts(units: int) -> Iterator[np.ndarray]:
    """Yields (resamples, units) arrays, RESAMPLES rows in all: how often each unit was drawn."""
    rng = np.random.RandomState(0)
    block = max(1, RESAMPLED_AT_ONCE // max(1, units))
    for start in range(0, RESAMPLES, block):
        rows = np.arange(min(block, RESAMPLES - start))[:, None]
        drawn = rng.randint(units, size=(len(rows), units)) + units * rows
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def weighted_correlations(tested: TestedImages, counts: np.ndarray) -> list[np.ndarray]:
    """SRCC and PLCC, (B,) each, of B resamples of N images, where resample b holds image n `counts[b, n]` times."""
    columns = (tested.predicted, tested.subjective)
    if len(set(tested.contents)) < 3 or math.isnan(srcc(*columns)):
        return [np.full(len(counts), math.nan)] * 2
    ranks = (resampled_ranks(scores, counts) for scores in columns)
    standardised = ((scores - scores.mean()) / scores.std() for scores in columns)
    return [weighted_pearson(x, y, counts) for x, y in (ranks, standardised)]


def resampled_ranks(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B, N): the rank of each image in each resample, without sorting again; ties share their mean rank, less a half."""
    values, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind='stable')
    starts = np.searchsorted(group[order], np.arange(len(values)))
    held = np.add.reduceat(counts[:, order], starts, axis=1)
    return (held.cumsum(1) - held / 2)[:, group]


def weighted_pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,): Pearson's correlation of each resample; nan where one of `x`, `y`, (N,) or (B, N), is constant in it."""
    images = np.maximum(
        counts.sum(1), 1
    )  # a resample of the contents of all rounds may hold none of this one
    x, y = (
        z - (np.einsum('bn,bn->b', counts, np.broadcast_to(z, counts.shape)) / images)[:, None]
        for z in (x, y)
    )
    xx, yy, xy = (np.einsum('bn,bn,bn->b', counts, a, b) for a, b in ((x, x), (y, y), (x, y)))
    defined = np.minimum(xx, yy) > 1e-9 * images
    return np.clip(
        np.divide(xy, np.sqrt(xx * yy), out=np.full(len(counts), math.nan), where=defined), -1, 1
    )
