"""compare.py compares what runs left behind, and claims no more than its intervals show."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import PROJECT, read_table
from PIL import Image
from scipy import stats

import compare
from util import files, metrics

IMAGES, TRAINED, ROUNDS = 40, 160, 3


def make_run(
    folder,
    noise=0.5,
    rounds=ROUNDS,
    seed=0,
    scores=lambda k, y: y,
    names='r{k}/{i}.jpg',
    contents=20,
    options=None,
    val=0,
):
    """A run folder with predictions of `rounds` rounds whose errors have the deviation `noise`.

    With `val` the split has a validation part of that many images.
    """
    folder.mkdir(parents=True)
    model = {'resize': None, 'exif_rotation': False, 'score_range': None, 'higher_is_better': True}
    record = {
        'options': {'train_test_num': rounds, **(options or {})},
        'model': model,
        'commit': '81d24733628fb9c016',
    }
    files.write_json(folder / 'config.json', record)
    for k in range(1, rounds + 1):
        path = folder / f'round_0{k}'
        path.mkdir()
        subjective = scores(k, np.random.RandomState(k).uniform(1, 5, IMAGES))
        predicted = subjective + noise * np.random.RandomState((k, seed)).standard_normal(IMAGES)
        rows = [
            {
                'image': names.format(k=k, i=i),
                'content': f'scene{i % contents}',
                'score': score,
                'prediction': prediction,
            }
            for i, (score, prediction) in enumerate(zip(subjective, predicted))
        ]
        rows = [
            rows[i] for i in np.random.RandomState(seed).permutation(IMAGES)
        ]  # the order of rows must not matter
        files.write_table(path / 'predictions.csv', list(rows[0]), rows)
        srccs = [0.9 - noise / epoch for epoch in range(1, 5 + k)]
        curve = [
            {'epoch': epoch, 'test_srcc': value, 'test_plcc': value}
            for epoch, value in enumerate(srccs, start=1)
        ]
        files.write_table(path / 'history.csv', list(curve[0]), curve)
        files.write_json(path / 'result.json', {'epoch': 1})
        split = {'train': [f'train{i}.jpg' for i in range(TRAINED)]}
        if val:
            split['val'] = [f'val{i}.jpg' for i in range(val)]
        split['test'] = [row['image'] for row in rows]
        files.write_json(path / 'split.json', split)
    return folder


def rows_of(runs, metric='SRCC'):
    rows = compare.compare(*compare.read_runs(runs))
    return [row for row in rows if row['metric'] == metric]


SAME = {
    'names': '{i}.jpg',
    'scores': lambda k, y: np.linspace(1, 5, IMAGES),
}  # the same test images in every round


@pytest.mark.parametrize('settings', [{}, SAME, {'rounds': 1}, {'rounds': 1, 'contents': IMAGES}])
def test_runs_of_equal_predictions_differ_by_exactly_nothing(in_process, tmp_path, settings):
    one, other = make_run(tmp_path / 'one', **settings), make_run(tmp_path / 'other', **settings)
    done = in_process(compare.main, one, other, '--csv', 'table.csv')
    assert done.returncode == 0, done.stderr
    rows = read_table(tmp_path / 'table.csv')
    assert len(rows) == 2 * (settings.get('rounds', ROUNDS) + (settings.get('rounds') != 1) + 1)
    assert all(float(row['difference']) == 0 for row in rows)
    assert all(
        float(row[name]) == 0 for row in rows if row['round'].isdigit() for name in ('low', 'high')
    )
    assert 'no significant difference between one and other' in done.stdout
    assert ('(p 1)' in done.stdout) == (not settings)


@pytest.mark.parametrize('val', [0, 40])
def test_the_mean_of_rounds_with_different_images_has_the_corrected_t_interval(tmp_path, val):
    """The ratio is of test images to all others: a validation part counts as training images."""
    runs = [
        make_run(tmp_path / name, noise, 6, seed, val=val)
        for name, noise, seed in (('a', 0.4, 1), ('b', 0.7, 2))
    ]
    for metric in ('SRCC', 'PLCC'):
        *rounds, mean, last = rows_of(runs, metric)
        differences = [row['difference'] for row in rounds]
        root = np.std(differences, ddof=1) * np.sqrt(
            1 / 6 + IMAGES / (TRAINED + val)
        )  # Nadeau and Bengio (2003)
        low, high = stats.t.interval(0.95, 5, np.mean(differences), root)
        assert (mean['low'], mean['high']) == pytest.approx((low, high), abs=1e-12)
        assert mean['p'] == pytest.approx(2 * stats.t.sf(abs(np.mean(differences)) / root, 5))
        assert (mean['round'], last['round']) == ('mean', 'last epoch') and last['low'] < last[
            'difference'
        ] < last['high']


def test_rounds_with_the_same_images_have_the_bootstrap_of_their_median_and_no_p(
    in_process, tmp_path
):
    runs = [
        make_run(tmp_path / name, noise, 4, seed, **SAME)
        for name, noise, seed in (('a', 0.4, 1), ('b', 0.9, 2))
    ]
    *rounds, median, last = rows_of(runs)
    assert (
        median['round'] == 'median'
        and 'p' not in median
        and median['low'] < median['difference'] < median['high']
    )
    assert median['difference'] == np.median([row['difference'] for row in rounds]) and np.isnan(
        last['low']
    )
    done = in_process(compare.main, *runs)
    assert 'a is better than b on these test images, by the median of the rounds' in done.stdout


def test_one_round_is_about_its_images_alone(in_process, tmp_path):
    runs = [
        make_run(tmp_path / name, noise, 1, contents=IMAGES)
        for name, noise in (('a', 0.2), ('b', 1.5))
    ]
    row, last = rows_of(runs)
    assert row['low'] > 0 and 'p' not in row and np.isnan(last['low'])
    sentence = (
        'a is better than b on these test images; one training each says nothing about the methods'
    )
    assert sentence in in_process(compare.main, *runs).stdout
    assert 'p 0' not in in_process(compare.main, *runs).stdout


def test_one_round_with_contents_has_the_jackknife_of_the_difference(tmp_path):
    runs = [
        make_run(tmp_path / name, noise, 1, seed, contents=8)
        for name, noise, seed in (('a', 0.3, 1), ('b', 0.9, 2))
    ]
    a, b = (run.rounds[1] for run in compare.read_runs(runs))
    _, b = compare.same_images(1, *compare.read_runs(runs))
    contents = np.array(a.contents)
    kept = [contents != f'scene{k}' for k in range(8)]
    parts = [
        stats.spearmanr(a.predicted[k], a.subjective[k])[0]
        - stats.spearmanr(b.predicted[k], b.subjective[k])[0]
        for k in kept
    ]
    error = np.sqrt(7 / 8 * sum((part - np.mean(parts)) ** 2 for part in parts))
    row = rows_of(runs)[0]
    expected = stats.t.interval(0.95, 7, row['difference'], error)
    assert (row['low'], row['high']) == pytest.approx(expected, abs=1e-12)


def test_too_few_contents_give_no_interval_and_the_reason(in_process, tmp_path):
    runs = [
        make_run(tmp_path / name, noise, 1, contents=2) for name, noise in (('a', 0.2), ('b', 1.5))
    ]
    printed = in_process(compare.main, *runs).stdout
    assert (
        'no interval: 2 contents are too few (at least 5)' in printed
        and 'better' not in printed
        and 'nan' not in printed
    )


def test_equal_methods_are_rarely_called_different():
    """Rounds that draw 40 of 200 images; trainings of equal methods differ by their own noise."""
    rng = np.random.RandomState(0)
    calls = 0
    for _ in range(300):
        truth, noise = rng.standard_normal(200), rng.standard_normal((2, 200))
        differences = []
        for _ in range(10):
            test = rng.permutation(200)[:40]
            one, other = (truth + kind + 0.7 * rng.standard_normal(200) for kind in noise)
            differences.append(
                stats.spearmanr(one[test], truth[test])[0]
                - stats.spearmanr(other[test], truth[test])[0]
            )
        calls += metrics.corrected_t(differences, 40 / 160)[1] < 0.05
    assert calls <= 30  # 5 % are 15; the uncorrected t-test calls some 100


def test_the_run_with_smaller_errors_is_better_in_whatever_order_they_are_given(
    in_process, tmp_path
):
    good, bad = make_run(tmp_path / 'good', 0.2, 6), make_run(tmp_path / 'bad', 1.5, 6, seed=1)
    for runs in ((good, bad), (bad, good)):
        done = in_process(compare.main, *runs, '--csv', 'table.csv')
        assert 'good is better than bad, by the mean of the rounds (p ' in done.stdout
        *rounds, mean, _ = [
            row for row in read_table(tmp_path / 'table.csv') if row['metric'] == 'SRCC'
        ]
        for row in (*rounds, mean):
            assert float(row['low']) < float(row['difference']) < float(row['high'])
        assert (float(mean['difference']) > 0) == (runs[0] == good)


def test_the_paired_interval_is_narrower_than_those_of_the_runs(tmp_path):
    runs = [
        make_run(tmp_path / name, noise, 1, contents=IMAGES)
        for name, noise in (('a', 0.6), ('b', 0.61))
    ]
    row = rows_of(runs)[0]
    low, high = metrics.intervals(list(compare.read_runs(runs)[0].rounds.values()))['SRCC_interval']
    assert row['high'] - row['low'] < (high - low) / 4


@pytest.mark.parametrize(
    'change, reason',
    [
        (
            {'names': 'x{i}.jpg'},
            'in round 1 80 images are tested by only one of them, the first is ',
        ),
        (
            {'scores': lambda k, y: y + (k == 2)},
            'in round 2 the labels of 40 images differ, the first of them ',
        ),
    ],
)
def test_runs_whose_test_images_differ_are_refused(in_process, tmp_path, change, reason):
    done = in_process(
        compare.main, make_run(tmp_path / 'one'), make_run(tmp_path / 'other', **change)
    )
    assert done.returncode == 2 and done.stderr.startswith(
        'error: one and other cannot be compared: '
    )
    assert reason in done.stderr and done.stderr.count('\n') == 1


def test_a_folder_that_cannot_be_compared_is_told_in_one_line(in_process, tmp_path):
    run = make_run(tmp_path / 'run')
    (tmp_path / 'empty').mkdir()
    unfinished = make_run(tmp_path / 'unfinished', rounds=1)
    (unfinished / 'round_01' / 'result.json').unlink()
    broken = make_run(tmp_path / 'broken')
    (broken / 'round_01' / 'predictions.csv').write_text('image,score\na,1\n')
    for other, reason in (
        (run, 'a run is given twice'),
        (tmp_path / 'empty', 'config.json'),
        (unfinished, 'has no finished round with test images; --resume'),
        (broken, "predictions.csv cannot be read as a table: 'content'"),
    ):
        done = in_process(compare.main, run, other)
        assert done.returncode == 2 and reason in done.stderr and done.stderr.count('\n') == 1
    assert in_process(compare.main, run).returncode == 2


def test_only_rounds_that_both_have_finished_are_compared(in_process, tmp_path):
    runs = [
        make_run(tmp_path / name, noise, rounds)
        for name, noise, rounds in (('a', 0.3, 3), ('b', 0.4, 2), ('c', 0.5, 3))
    ]
    done = in_process(compare.main, *runs[:2], '--csv', 'table.csv', '--plot', 'picture.png')
    assert done.returncode == 0, done.stderr
    assert [row['round'] for row in read_table(tmp_path / 'table.csv')] == 2 * [
        '1',
        '2',
        'mean',
        'last epoch',
    ]
    with Image.open(tmp_path / 'picture.png') as picture:
        assert picture.width > 1000
    assert in_process(compare.main, *runs, '--csv', 'other.csv').returncode == 2


def test_several_runs_are_one_table_the_best_first(in_process, tmp_path):
    options = {'dataset': 'koniq', 'lr': 1e-3, 'seed': 0, 'data_root': 'x'}
    runs = [
        make_run(tmp_path / name, noise, options=options)
        for name, noise in (('bad', 1.5), ('good', 0.2), ('middle', 0.6))
    ]
    header, *lines = in_process(compare.main, *runs).stdout.splitlines()
    assert header.startswith('run') and header.endswith('options that are not the default')
    assert [line.split()[0] for line in lines[:3]] == ['good', 'middle', 'bad']
    assert all(
        line.endswith('81d2473  --train_test_num 3 --dataset koniq --lr 0.001')
        for line in lines[:3]
    )
    assert 'chosen on these test images' in lines[3]


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    names = [
        run.name
        for run in compare.read_runs(
            [make_run(tmp_path / 'a' / 'run'), make_run(tmp_path / 'b' / 'run')]
        )
    ]
    assert names == [str(tmp_path / 'a' / 'run'), str(tmp_path / 'b' / 'run')]


def test_torch_is_not_imported(tmp_path):
    runs = [str(make_run(tmp_path / name)) for name in 'ab']
    options = [*runs, '--plot', str(tmp_path / 'p.png')]
    code = f'import compare, sys; compare.main({options!r}); assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=PROJECT, check=True, capture_output=True)


def test_a_real_run_can_be_compared(in_process, finished_run, tmp_path):
    """Its rounds test two images each, for which no interval is defined."""
    done = in_process(compare.main, finished_run / 'run', make_run(tmp_path / 'other'))
    assert (
        done.returncode == 2
        and 'cannot be compared: in round 1 42 images are tested by only one of them' in done.stderr
    )
    rows = compare.compare(*[compare.read_run(finished_run / 'run', name) for name in 'ab'])
    best = [
        json.loads((finished_run / 'run' / f'round_0{k}' / 'result.json').read_text())['SRCC']
        for k in (1, 2)
    ]
    assert [row['first_value'] for row in rows[:2]] == best and rows[2]['difference'] == 0
