"""Metrics on known curves; intervals agree with scipy and theory, and cover what they claim."""

import json
import math

import numpy as np
import pytest
from helpers import link_run, read_table
from scipy import stats

from experiment.report import print_medians, print_round, with_intervals
from experiment.results import gather_results, read_predictions, write_predictions
from util import metrics
from util.metrics import TestedImages, all_metrics, intervals, plcc, srcc


def round_of(predicted, subjective, contents=None):
    names = [f'{k}.jpg' for k in range(len(predicted))]
    return TestedImages(
        names,
        names if contents is None else contents,
        np.asarray(subjective, float),
        np.asarray(predicted, float),
    )


def normal(rng, images, correlation):
    """Predictions and scores of a bivariate normal."""
    x, noise = rng.standard_normal((2, images))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def test_a_resample_has_the_correlations_of_its_images_written_out():
    rng = np.random.RandomState(0)
    predicted, subjective = normal(rng, 25, 0.7)
    subjective = subjective.round()  # with ties of its own
    counts = next(metrics.drawn_counts(25))
    got = metrics.weighted_correlations(round_of(predicted, subjective), counts)
    assert counts.shape == (metrics.RESAMPLES, 25) and (counts.sum(1) == 25).all()
    for b in range(40):
        images = np.repeat(np.arange(25), counts[b])
        assert got[0][b] == pytest.approx(srcc(predicted[images], subjective[images]), abs=1e-12)
        assert got[1][b] == pytest.approx(plcc(predicted[images], subjective[images]), abs=1e-12)


def test_intervals_agree_with_scipys_bootstrap():
    data = normal(np.random.RandomState(1), 150, 0.8)
    own = intervals([round_of(*data)])
    for name, metric in (('SRCC', stats.spearmanr), ('PLCC', stats.pearsonr)):
        scipys = stats.bootstrap(
            data,
            lambda a, b, metric=metric: metric(a, b)[0],
            n_resamples=1000,
            vectorized=False,
            paired=True,
            method='percentile',
            random_state=2,
        ).confidence_interval
        assert own[f'{name}_interval'] == pytest.approx(list(scipys), abs=0.015)


def test_the_interval_of_a_normal_plcc_is_fishers():
    data = normal(np.random.RandomState(2), 2000, 0.6)
    centre = math.atanh(plcc(*data))
    fisher = [math.tanh(centre + sign * 1.96 / math.sqrt(1997)) for sign in (-1, 1)]
    assert intervals([round_of(*data)])['PLCC_interval'] == pytest.approx(fisher, abs=0.006)


@pytest.mark.parametrize('clustered', [False, True])
def test_of_200_draws_90_to_99_percent_of_the_intervals_contain_the_truth(clustered):
    """Clustered: 40 contents of two images; the errors of a content are alike, so only 40 count."""
    rng = np.random.RandomState(3)
    truths = {'SRCC_interval': 6 / math.pi * math.asin(0.7 / 2), 'PLCC_interval': 0.7}
    held = dict.fromkeys(truths, 0)
    for _ in range(200):
        data = normal(rng, 40 if clustered else 60, 0.7)
        contents = [f'scene{k // 2}' for k in range(80)] if clustered else None
        values = intervals(
            [
                round_of(
                    *(np.repeat(column, 2) if clustered else column for column in data), contents
                )
            ]
        )
        for name, truth in truths.items():
            held[name] += values[name][0] <= truth <= values[name][1]
    assert all(180 <= count <= 198 for count in held.values()), held


def test_intervals_are_the_same_at_every_call_and_in_whatever_blocks_they_are_computed(monkeypatch):
    rounds = [round_of(*normal(np.random.RandomState(k), 30, 0.7)) for k in range(3)]
    before = intervals(rounds)
    monkeypatch.setattr(metrics, 'RESAMPLED_AT_ONCE', 30 * 7)
    assert intervals(rounds) == before


def test_the_interval_over_rounds_counts_the_images_once_and_the_rounds_too():
    rng = np.random.RandomState(4)
    one = round_of(*normal(rng, 40, 0.7))
    assert intervals([one] * 5) == intervals(
        [one]
    )  # five looks at the same images and predictions tell nothing new
    others = [
        one._replace(predicted=one.predicted + spread * rng.standard_normal(40))
        for spread in (0.1, 0.5, 1, 1.5, 2)
    ]
    both = [intervals(rounds)['SRCC_interval'] for rounds in ([one] * 5, others)]
    assert both[1][1] - both[1][0] > both[0][1] - both[0][0]


@pytest.mark.parametrize('per_content', [4, 30])
def test_the_interval_of_grouped_contents_is_the_jackknife_of_fishers_z(per_content):
    rng = np.random.RandomState(5)
    contents = [f'scene{k % 6}' for k in range(6 * per_content + 1)]
    tested = round_of(*normal(rng, len(contents), 0.8), contents)
    z = {
        name: np.arctanh(metric(tested.predicted, tested.subjective))
        for name, metric in (('SRCC', srcc), ('PLCC', plcc))
    }
    found = intervals([tested])
    for name, metric in (('SRCC', srcc), ('PLCC', plcc)):
        kept = [np.array(contents) != f'scene{k}' for k in range(6)]
        parts = np.arctanh([metric(tested.predicted[k], tested.subjective[k]) for k in kept])
        error = np.sqrt(5 / 6 * np.sum((parts - parts.mean()) ** 2))
        expected = np.tanh(stats.t.interval(0.95, 5, z[name], error))
        assert found[f'{name}_interval'] == pytest.approx(expected.tolist(), abs=1e-12)
    assert found['interval_method'] == 'jackknife of the contents'


@pytest.mark.parametrize(
    'predicted, subjective, contents, reason',
    [
        ([], [], None, '0 test images are too few (at least 3)'),
        ([1], [1], None, '1 test image is too few (at least 3)'),
        ([1, 2], [1, 2], None, '2 test images are too few (at least 3)'),
        ([1, 2, 3, 4], [1, 2, 3, 4], None, 'a correlation is perfect'),
        ([4, 3, 2, 1], [1, 2, 3, 9], None, 'a correlation is perfect'),
        ([1, 1, 1, 1], [1, 2, 3, 4], None, 'a correlation is undefined'),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], None, 'a correlation is undefined'),
        ([1, 2, 3, 4], [1, 2, 3, 5], ['a', 'a', 'b', 'b'], '2 contents are too few (at least 5)'),
        ([1, 2, 3, 4], [1, 2, 3, 5], ['a', 'a', 'a', 'a'], '1 content is too few (at least 5)'),
        (range(10), range(10), list('aabbccddee'), 'a correlation is perfect'),
        ([1] * 10, range(10), list('aabbccddee'), 'a correlation is undefined'),
        (
            [0] * 8 + [1, 2],
            range(10),
            list('aabbccddee'),
            'without one of the contents a correlation is undefined or perfect',
        ),
    ],
)
def test_where_there_is_no_interval_the_reason_is_given(predicted, subjective, contents, reason):
    values = intervals([round_of(predicted, subjective, contents)])
    assert values == {'no_interval': reason}
    shown = with_intervals({'SRCC': 0.5, **values})
    assert shown == f'SRCC 0.5000 (no interval: {values["no_interval"]})'


def test_a_resample_of_one_image_alone_is_left_out():
    values = intervals([round_of([0.1, 0.3, 0.7], [1.1, 2.3, 1.9])])
    assert all(
        -1 <= end <= 1 for name in ('SRCC_interval', 'PLCC_interval') for end in values[name]
    )


@pytest.mark.filterwarnings('error')
def test_a_resample_without_any_image_of_a_round_is_left_out():
    rounds = [
        round_of([0.1, 0.7, 0.3, 0.5], [1.1, 2.3, 1.9, 1.7], [f'{k}{n}' for n in range(4)])
        for k in range(5)
    ]
    values = metrics.resampled(rounds)
    assert np.isnan(values[0, 0]).any() and np.isfinite(intervals(rounds)['SRCC_interval']).all()


@pytest.mark.parametrize(
    'change, reason',
    [
        ({'predicted': np.full(40, 0.5)}, 'a correlation is undefined'),
        ({'contents': ['a', 'b'] * 20}, '2 contents are too few (at least 3)'),
    ],
)
def test_a_median_has_no_interval_if_one_of_its_rounds_has_no_correlation(change, reason):
    """Without a check, the resamples that draw only the other rounds would make one."""
    rounds = [round_of(*normal(np.random.RandomState(k), 40, 0.7)) for k in range(3)]
    assert 'SRCC_interval' in intervals(rounds)
    rounds[2] = rounds[2]._replace(**change)
    assert intervals(rounds) == {'no_interval': reason}


def test_a_perfect_median_has_no_interval():
    perfect = round_of(range(10), range(10))
    other = round_of(*normal(np.random.RandomState(0), 10, 0.7))
    assert intervals([perfect, other, perfect]) == {'no_interval': 'a correlation is perfect'}
    assert 'SRCC_interval' in intervals([other, perfect, other])


def test_a_run_reports_its_intervals(finished_run):
    results = json.loads((finished_run / 'run' / 'results.json').read_text())
    for number in (1, 2):
        folder = finished_run / 'run' / f'round_0{number}'
        tested = read_predictions(folder / 'predictions.csv')
        assert (
            list(tested.contents) == list(tested.images) and len(tested.images) == 2
        )  # too few for an interval
        result = json.loads((folder / 'result.json').read_text())
        last = read_table(folder / 'history.csv')[-1]
        of_history = {name: float(last[f'test_{name.lower()}']) for name in ('SRCC', 'PLCC')}
        assert results['rounds'][str(number)] == {
            **result,
            'last_epoch': of_history,
            'chosen_on': 'test',
        }
        assert '2 test images are too' in result['no_interval'] and 'SRCC_interval' not in result
    assert '2 test images are too few' in results['median']['no_interval']
    assert 'no_interval' not in results['mean']
    assert 'nan' not in (finished_run / 'stdout.txt').read_text().splitlines()[-1]
    values = {'SRCC': 0.87971, 'SRCC_interval': [0.83061, 0.9158], 'PLCC': 0.9, 'MAE': 3.21987}
    assert (
        with_intervals(values, 'median ')
        == 'SRCC 0.8797 [0.831, 0.916], median PLCC 0.9000, median MAE 3.22'
    )


@pytest.mark.parametrize(
    'written',
    [
        {'no_interval': 'there are fewer than 3 test images, or a correlation is undefined'},
        {
            'SRCC_interval': [1.0, 1.0],
            'PLCC_interval': [0.8, 1.0],
            'interval_method': 'bootstrap',
        },
    ],
)
def test_a_reason_or_a_perfect_interval_of_an_earlier_version_is_replaced(
    finished_run, tmp_path, written
):
    run = link_run(finished_run / 'run', tmp_path / 'run')
    for path in run.glob('round_*/result.json'):
        result = json.loads(path.read_text())
        del result['no_interval']
        path.write_text(json.dumps({**result, **written}))
    for found in gather_results(run)['rounds'].values():
        assert found['no_interval'] == '2 test images are too few (at least 3)'
        assert 'SRCC_interval' not in found and 'interval_method' not in found


def test_one_epoch_is_not_called_chosen(capsys):
    """Of several rounds it is called so if one of them had a choice."""
    result = {'epoch': 1, 'epochs': 1, 'chosen_on': 'test', 'SRCC': 0.5, 'PLCC': 0.5}
    result['last_epoch'] = {'SRCC': 0.5, 'PLCC': 0.5}
    for epochs, is_chosen in ((1, False), (2, True)):
        longer = {**result, 'epochs': epochs}
        print_round(longer, {'train': [], 'test': []})
        print_medians({'rounds': {'1': result, '2': longer}, 'median': result})
        assert capsys.readouterr().out.count('chosen on these images') == 2 * is_chosen


def test_the_intervals_of_an_earlier_version_are_computed_anew(finished_run, tmp_path):
    run = link_run(finished_run / 'run', tmp_path / 'run')
    for number in (1, 2):
        folder = run / f'round_0{number}'
        rng = np.random.RandomState(number)
        predicted, subjective = normal(rng, 40, 0.8)
        tested = TestedImages(
            [f'{k}.jpg' for k in range(40)],
            [f'scene{k // 4}' for k in range(40)],
            subjective,
            predicted,
        )
        write_predictions(folder / 'predictions.csv', tested)
        result = json.loads((folder / 'result.json').read_text())
        del result['no_interval']
        (folder / 'result.json').write_text(
            json.dumps({**result, 'SRCC_interval': [0.1, 0.2], 'PLCC_interval': [0.1, 0.2]})
        )
        found = gather_results(run)['rounds'][str(number)] if number == 2 else {}
    assert {name: found[name] for name in intervals([tested])} == intervals([tested])
    assert found['interval_method'] == 'jackknife of the contents'


def test_metrics_of_no_images_are_nan():
    assert all(value != value for value in all_metrics([], []).values())


def test_logistic_metrics_on_a_known_curve():
    x = np.linspace(-3, 3, 60)
    y = 80 / (1 + np.exp(-(x - 0.5) / 0.7)) + 10
    metrics = all_metrics(x, y)
    assert (
        metrics['RMSE'] < 1e-4
        and metrics['PLCC_logistic'] == pytest.approx(1)
        and metrics['PLCC'] < 0.99
    )
    assert metrics['SRCC'] == pytest.approx(1) and metrics['KRCC'] == pytest.approx(1)
    falling = all_metrics(-x, y)
    assert falling['SRCC'] == pytest.approx(-1) and falling['PLCC_logistic'] == pytest.approx(1)
    assert math.isnan(all_metrics([1, 1, 1, 1, 1], y[:5])['RMSE']) and math.isnan(
        all_metrics([1, 2], [1, 2])['RMSE']
    )


def test_correlations_of_constant_or_nan_scores_are_nan_without_a_warning(recwarn):
    for function in (srcc, plcc):
        assert function([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
        assert math.isnan(function([2, 2, 2], [1, 2, 3])) and math.isnan(
            function([1, math.nan, 3], [1, 2, 3])
        )
        assert math.isnan(function([1], [1]))
    assert not recwarn.list
