"""Agreement between predicted and subjective scores."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # it imports its parts when they are first used, which --help need not wait for
from numpy.typing import ArrayLike

RESAMPLES = 2000  # of a bootstrap: 50 of them are beyond each end of a 95 % interval
FEWEST = 3  # contents of a bootstrap: two scores are always perfectly correlated
FEWEST_LEFT_OUT = 5  # contents of a jackknife: with fewer, the standard error itself is a guess
FEWEST_ROUNDS = 3  # of a t-test: two differences hardly show how much they vary
SAME = 1e-9  # correlations that are closer than this differ only by rounding
RESAMPLED_AT_ONCE = 2_000_000  # images drawn in one step; limits the memory to about 100 MB


class NoIntervalError(Exception):
    """There is no interval; the message is the reason."""


class TestedImages(NamedTuple):
    """The N test images of a round, by columns.

    Images of one content are not independent, so intervals resample contents. The content of an
    image that shares it with no other is the image's name.
    """

    images: Sequence[str]  # names
    contents: Sequence[str]
    subjective: np.ndarray
    predicted: np.ndarray
    facts: Mapping[str, Sequence[Any]] = {}  # further columns, such as the distortion type


def pooled(rounds: Sequence[TestedImages]) -> TestedImages:
    """The images of all rounds as if one round had tested them."""
    facts = {}
    for name in rounds[0].facts:
        facts[name] = [value for tested in rounds for value in tested.facts[name]]
    return TestedImages(
        images=[name for tested in rounds for name in tested.images],
        contents=[content for tested in rounds for content in tested.contents],
        subjective=np.concatenate([tested.subjective for tested in rounds]),
        predicted=np.concatenate([tested.predicted for tested in rounds]),
        facts=facts,
    )


def srcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Spearman's rank-order correlation coefficient of two (N,) arrays.

    Returns:
        nan if either array is constant or not finite.
    """
    return correlation(scipy.stats.spearmanr, predicted, subjective)


def plcc(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Pearson's linear correlation coefficient of two (N,) arrays, without a mapping.

    Returns:
        nan if either array is constant or not finite.
    """
    return correlation(scipy.stats.pearsonr, predicted, subjective)


def mae(predicted: ArrayLike, subjective: ArrayLike) -> float:
    """Mean absolute error of two (N,) arrays, in the unit of the scores; nan without images."""
    if np.size(predicted) == 0:
        return math.nan
    return float(np.abs(np.subtract(predicted, subjective)).mean())


def correlation(
    function: Callable[[np.ndarray, np.ndarray], Any], predicted: ArrayLike, subjective: ArrayLike
) -> float:
    predicted = np.asarray(predicted, np.float64)
    subjective = np.asarray(subjective, np.float64)
    # scipy warns of a constant array, for which nan is a plain result here.
    if predicted.size < 2 or not varies(predicted) or not varies(subjective):
        return math.nan
    return float(function(predicted, subjective)[0])


def varies(scores: np.ndarray) -> bool:
    """Whether an array is finite and not constant."""
    return bool(np.isfinite(scores).all() and np.ptp(scores) > 0)


CORRELATIONS = {'SRCC': srcc, 'PLCC': plcc}


def logistic(x: np.ndarray, high: float, low: float, centre: float, width: float) -> np.ndarray:
    """The four-parameter logistic by which the Video Quality Experts Group maps predictions.

    VQEG, "Final report from the Video Quality Experts Group on the validation of objective models
    of video quality assessment", phase I (2000), annex.
    """
    return (high - low) * scipy.special.expit((x - centre) / np.abs(width)) + low


def fit_logistic(predicted: ArrayLike, subjective: ArrayLike) -> np.ndarray | None:
    """Fit `logistic` from predictions to scores, two (N,) arrays, by least squares.

    Returns:
        its four parameters, or None if there is no fit.
    """
    predicted = np.asarray(predicted, np.float64)
    subjective = np.asarray(subjective, np.float64)
    slope = srcc(predicted, subjective)
    # Four parameters need more than four images.
    if len(predicted) < 5 or math.isnan(slope):
        return None
    # The fit starts from a curve that rises or falls as the scores do.
    high, low = subjective.max(), subjective.min()
    if slope < 0:
        high, low = low, high
    # The solver steps in proportion to each parameter, so a centre that is near 0 would stay there.
    # The centre of standardised predictions starts at exactly 0, and for 0 the solver has a fixed
    # step.
    mean = predicted.mean()
    deviation = predicted.std()
    standardised = (predicted - mean) / deviation
    start = (high, low, 0, 0.25)  # 0.25: the usual quarter of a standard deviation
    try:
        with warnings.catch_warnings():
            # curve_fit warns if it cannot compute the covariance, which is not used here.
            warnings.simplefilter('ignore', scipy.optimize.OptimizeWarning)
            fitted = scipy.optimize.curve_fit(
                logistic, standardised, subjective, start, maxfev=20000
            )
    except RuntimeError:  # no convergence
        return None
    high, low, centre, width = fitted[0]
    return np.array([high, low, mean + deviation * centre, deviation * width])


def all_metrics(predicted: ArrayLike, subjective: ArrayLike) -> dict[str, float]:
    """Every metric of two (N,) arrays, by name.

    RMSE and PLCC_logistic are of the predictions that the fitted logistic has mapped, the others of
    the predictions themselves.
    """
    parameters = fit_logistic(predicted, subjective)
    if parameters is None:
        rmse = math.nan
        plcc_logistic = math.nan
    else:
        mapped = logistic(np.asarray(predicted), *parameters)
        rmse = float(np.sqrt(np.mean((mapped - subjective) ** 2)))
        plcc_logistic = plcc(mapped, subjective)
    return {
        'SRCC': srcc(predicted, subjective),
        'PLCC': plcc(predicted, subjective),
        'KRCC': correlation(scipy.stats.kendalltau, predicted, subjective),
        'RMSE': rmse,
        'PLCC_logistic': plcc_logistic,
        'MAE': mae(predicted, subjective),
    }


def metrics_of(tested: TestedImages) -> dict[str, Any]:
    """Every metric of the images, with the intervals, and the SRCC of each distortion type."""
    return {
        **all_metrics(tested.predicted, tested.subjective),
        **intervals([tested]),
        **by_type(tested),
    }


def by_type(tested: TestedImages) -> dict[str, dict[str, dict[str, float]]]:
    """The SRCC and the number of images of each distortion type with at least 3 images.

    Returns:
        {'types': {type: {'images': count, 'SRCC': value}}}, or {} if no type has enough images.
    """
    types = np.array(tested.facts.get('type', []))
    found = {}
    for name in np.unique(types).tolist():
        kept = types == name
        value = srcc(tested.predicted[kept], tested.subjective[kept])
        # '' stands for an unknown type. Two images give an SRCC of 1 or -1. Images that
        # all have the same score give none.
        if name and kept.sum() > 2 and math.isfinite(value):
            found[name] = {'images': int(kept.sum()), 'SRCC': value}
    return {'types': found} if found else {}


def intervals(rounds: Sequence[TestedImages]) -> dict[str, Any]:
    """95 % intervals of the SRCC and PLCC of a round, or of their medians over several rounds.

    For one round with several images of a content it is a jackknife of Fisher's z over contents.

    Otherwise it is the middle 95 % of 2,000 bootstrap resamples from a fixed seed. Each resample
    draws, with replacement, as many contents as all rounds have tested together, so an image that
    several rounds tested is drawn equally often in each. It also draws as many rounds as there are,
    since training varies too. So the interval is for other images and rounds of the same kind.

    Returns:
        `SRCC_interval` and `PLCC_interval`, each [low, high], and `interval_method`; or, under
        `no_interval`, the reason why there is none.
    """
    try:
        refuse_few_contents(rounds)
        refuse_undefined_or_perfect(medians(rounds).values())
        if uses_jackknife(rounds):
            method = 'jackknife of the contents'
            ends = [fisher_interval(rounds[0], metric) for metric in CORRELATIONS.values()]
        else:
            method = 'bootstrap'
            ends = [median_interval(resamples) for resamples in resampled(rounds)]
    except NoIntervalError as reason:
        return {'no_interval': str(reason)}
    srcc_interval, plcc_interval = ends
    return {
        'SRCC_interval': srcc_interval,
        'PLCC_interval': plcc_interval,
        'interval_method': method,
    }


def medians(rounds: Sequence[TestedImages]) -> dict[str, float]:
    """The median SRCC and PLCC over rounds; nan if that of a round is undefined."""
    found = {}
    for metric, function in CORRELATIONS.items():
        values = [function(tested.predicted, tested.subjective) for tested in rounds]
        found[metric] = float(np.median(values))
    return found


def uses_jackknife(rounds: Sequence[TestedImages]) -> bool:
    """Whether the interval is a jackknife: for one round with several images of a content.

    A round by content may test only a handful of contents. For so few contents the percentiles of
    bootstrap resamples are too narrow; the t distribution of the jackknife is wider for fewer.
    """
    return len(rounds) == 1 and has_groups(rounds[0])


def has_groups(tested: TestedImages) -> bool:
    """Whether several images have the same content."""
    return len(set(tested.contents)) < len(tested.images)


def refuse_few_contents(rounds: Sequence[TestedImages]) -> None:
    """Raise NoIntervalError if a round has too few contents for the interval over `rounds`."""
    least = FEWEST_LEFT_OUT if uses_jackknife(rounds) else FEWEST
    for tested in rounds:
        noun = 'content' if has_groups(tested) else 'test image'
        refuse_few(len(set(tested.contents)), noun, least)


def refuse_few(count: int, noun: str, least: int) -> None:
    if count < least:
        are = ' is' if count == 1 else 's are'
        raise NoIntervalError(f'{count} {noun}{are} too few (at least {least})')


def refuse_undefined_or_perfect(correlations: Iterable[float]) -> None:
    """Raise NoIntervalError if a correlation is undefined or perfect.

    Every resample of a perfect correlation is perfect too, and the interval would have no width.
    """
    for value in correlations:
        if math.isnan(value):
            raise NoIntervalError('a correlation is undefined')
        if 1 - abs(value) < SAME:
            raise NoIntervalError('a correlation is perfect')


def of_kept(
    tested: TestedImages, metric: Callable[[Any, Any], float]
) -> Callable[[np.ndarray], float]:
    """Return `metric` of the kept images as a function of a mask, (N,) bool, True if kept."""
    return lambda kept: metric(tested.predicted[kept], tested.subjective[kept])


def fisher_interval(tested: TestedImages, metric: Callable[[Any, Any], float]) -> list[float]:
    """The jackknife interval of a correlation, by way of Fisher's z.

    z is closer to normal than a correlation, and an interval of it never leaves -1 to 1.
    """
    of_z = jackknife(tested.contents, of_kept(tested, metric), np.arctanh)
    return np.tanh(of_z).tolist()


def jackknife(
    contents: Sequence[str],
    value: Callable[[np.ndarray], float],
    transform: Callable[[Any], Any] = np.asarray,
) -> list[float]:
    """95 % interval of `transform` of a value, by leaving out each content in turn.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11.

    Args:
        contents: of each image.
        value: is given a mask of the images that are kept, (N,) bool.

    Raises:
        NoIntervalError: without one of the contents the value is undefined, or infinite once
            transformed.
    """
    names, of_images = np.unique(contents, return_inverse=True)
    count = len(names)
    whole = value(np.full(len(of_images), True))
    parts = [value(of_images != k) for k in range(count)]
    with np.errstate(divide='ignore'):  # z of a perfect correlation is infinite
        values = transform(np.array([whole, *parts]))
    if not np.isfinite(values).all():
        raise NoIntervalError('without one of the contents a correlation is undefined or perfect')
    centre = values[0]
    # The parts share all contents but one each, so they differ much less than independent values
    # would. The factor count - 1 makes up for that.
    error = math.sqrt((count - 1) * np.var(values[1:]))
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    return [centre - half, centre + half]


def corrected_t(differences: Sequence[float], ratio: float) -> tuple[list[float], float]:
    """Test the mean difference of two methods over rounds that draw from the same images.

    The corrected resampled t-test: Nadeau and Bengio, "Inference for the Generalization Error",
    Machine Learning 52 (2003).

    Args:
        ratio: the number of images that a round tests, divided by the number that it trains on,
            validation included.

    Returns:
        its 95 % interval and its two-sided p.

    Raises:
        NoIntervalError: there are fewer than FEWEST_ROUNDS rounds, or a difference is nan, or all
            are the same and not 0.
    """
    count = len(differences)
    refuse_few(count, 'round', FEWEST_ROUNDS)
    mean = float(np.mean(differences))
    if math.isnan(mean):
        raise NoIntervalError('a correlation is undefined')
    # The rounds train on many of the same images, so they are not independent, and 1 / count would
    # make the error of the mean too small. The ratio is Nadeau and Bengio's correction.
    error = float(np.std(differences, ddof=1)) * math.sqrt(1 / count + ratio)
    if np.ptp(differences) < SAME:
        if abs(mean) > SAME:
            raise NoIntervalError('the difference is the same in all rounds')
        return [0.0, 0.0], 1.0  # the two methods predict alike
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, count - 1))
    return [mean - half, mean + half], p


def median_interval(values: np.ndarray) -> list[float]:
    """95 % interval of the median over rounds, from `values` (rounds, RESAMPLES).

    Each resample draws as many rounds as there are, with replacement. Resamples in which the metric
    is undefined are left out.

    Raises:
        NoIntervalError: the metric is undefined in all resamples.
    """
    # A seed other than that of `drawn_counts`, so that rounds and contents are drawn independently.
    rng = np.random.RandomState(1)
    rounds = rng.randint(len(values), size=(RESAMPLES, len(values)))
    of_drawn = values[rounds, np.arange(RESAMPLES)[:, None]]  # (RESAMPLES, rounds)
    found = np.median(of_drawn, axis=1)
    found = found[np.isfinite(found)]
    if len(found) == 0:
        raise NoIntervalError('a correlation is undefined in every resample')
    return np.percentile(found, (2.5, 97.5)).tolist()


def resampled(rounds: Sequence[TestedImages]) -> np.ndarray:
    """Resample the contents of all rounds together.

    Rounds with the same images then have the same resamples, and their differences are paired.

    Returns:
        (2, rounds, RESAMPLES), the SRCC and PLCC of each round in every resample.
    """
    contents = sorted({content for tested in rounds for content in tested.contents})
    columns = [np.searchsorted(contents, tested.contents) for tested in rounds]
    blocks = []
    for counts in drawn_counts(len(contents)):
        # An image is in a resample as often as its content.
        block = [
            weighted_correlations(tested, counts[:, column])
            for tested, column in zip(rounds, columns)
        ]
        blocks.append(block)
    return np.concatenate(blocks, axis=2).swapaxes(0, 1)


def drawn_counts(units: int) -> Iterator[np.ndarray]:
    """Yields (resamples, units) arrays with how often each unit was drawn, RESAMPLES rows in all.

    The numbers drawn do not depend on how many rows are drawn at once.
    """
    rng = np.random.RandomState(0)
    rows_at_once = max(1, RESAMPLED_AT_ONCE // max(1, units))
    for start in range(0, RESAMPLES, rows_at_once):
        rows = min(rows_at_once, RESAMPLES - start)
        drawn = rng.randint(units, size=(rows, units))
        # The units of each row get numbers of their own, so that one call counts all rows.
        numbers = drawn + units * np.arange(rows)[:, None]
        counts = np.bincount(numbers.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units)


def weighted_correlations(tested: TestedImages, counts: np.ndarray) -> list[np.ndarray]:
    """SRCC and PLCC, (B,) each, of B resamples of N images.

    Args:
        counts: (B, N), how often each image is in each resample.
    """
    predicted, subjective = tested.predicted, tested.subjective
    if math.isnan(srcc(predicted, subjective)):
        undefined = np.full(len(counts), math.nan)
        return [undefined, undefined]
    of_ranks = weighted_pearson(
        resampled_ranks(predicted, counts), resampled_ranks(subjective, counts), counts
    )
    # Standardised, so that whether a resample counts as constant does not depend on the unit.
    of_scores = weighted_pearson(standardised(predicted), standardised(subjective), counts)
    return [of_ranks, of_scores]


def standardised(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean()) / scores.std()


def resampled_ranks(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B, N): the rank of each image in each resample, without sorting the resamples.

    Ties share their mean rank. All ranks are lower by a half, which changes no correlation.
    """
    # An image's mean rank: the images with lower scores, and half of those with its own score.
    values, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind='stable')
    starts = np.searchsorted(group[order], np.arange(len(values)))
    tied = np.add.reduceat(counts[:, order], starts, axis=1)  # (B, values), images with each score
    return (tied.cumsum(1) - tied / 2)[:, group]


def weighted_pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,): Pearson's correlation in each resample of `x` and `y`, (N,) or (B, N) each.

    Returns:
        nan for a resample in which `x` or `y` is constant.
    """
    # The contents of all rounds are resampled, so a resample may have no image of this round. The
    # maximum keeps `centred` from dividing by 0.
    images = np.maximum(counts.sum(1), 1)
    x = centred(x, counts, images)
    y = centred(y, counts, images)
    xx = np.einsum('bn,bn,bn->b', counts, x, x)
    yy = np.einsum('bn,bn,bn->b', counts, y, y)
    xy = np.einsum('bn,bn,bn->b', counts, x, y)
    # Rounding can leave a constant a variance above 0, but far below this limit.
    is_defined = np.minimum(xx, yy) > 1e-9 * images
    found = np.full(len(counts), math.nan)
    np.divide(xy, np.sqrt(xx * yy), out=found, where=is_defined)
    # Rounding can put a perfect correlation just outside of -1 to 1.
    return np.clip(found, -1, 1)


def centred(z: np.ndarray, counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(B, N): `z`, (N,) or (B, N), minus its mean in each resample.

    Args:
        images: (B,), the number of images in each resample.
    """
    totals = np.einsum('bn,bn->b', counts, np.broadcast_to(z, counts.shape))
    return z - (totals / images)[:, None]
