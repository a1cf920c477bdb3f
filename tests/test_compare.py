"""compare.py compares what runs left behind, and claims no more than its intervals show."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import databases
import numpy as np
import pytest
from helpers import PROJECT, read_table
from PIL import Image
from scipy import stats

import compare
from experiment.command_line import parse_options
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
        result = {'epoch': 1, 'epochs': 10, **metrics.all_metrics(predicted, subjective)}
        files.write_json(path / 'result.json', result)
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
    assert median['difference'] == np.median([row['difference'] for row in rounds])
    assert 'low' not in last
    done = in_process(compare.main, *runs)
    assert 'a is better than b on these test images, by the median of the rounds' in done.stdout


def test_one_round_is_about_its_images_alone(in_process, tmp_path):
    runs = [
        make_run(tmp_path / name, noise, 1, contents=IMAGES)
        for name, noise in (('a', 0.2), ('b', 1.5))
    ]
    row, last = rows_of(runs)
    assert row['low'] > 0 and 'p' not in row and 'low' not in last
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
    a, b = (run.tested[1] for run in compare.read_runs(runs))
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
    assert 'no interval of SRCC and PLCC: 2 contents are too few (at least 5) (round 1)' in printed
    assert 'no verdict on a and b' in printed
    assert 'better' not in printed and 'nan' not in printed


def predict(run, number, predictions):
    """Replace the predictions of a round, in the order of its images' scores, lowest first."""
    path = run / f'round_0{number}' / 'predictions.csv'
    rows = sorted(read_table(path), key=lambda row: float(row['score']))
    for row, prediction in zip(rows, predictions, strict=True):
        row['prediction'] = prediction
    files.write_table(path, list(rows[0]), rows)


def assert_no_verdict(done, reason):
    """That the rounds' summary has no interval, for that reason, as printed and in d.csv."""
    assert done.returncode == 0, done.stderr
    assert f'no interval of SRCC and PLCC: {reason}' in done.stdout
    last_line = done.stdout.splitlines()[-1]
    assert last_line == '  no verdict on a and b: their difference has no interval'
    for row in read_table(Path('d.csv')):
        if row['round'] in ('mean', 'median'):
            assert row['low'] == row['high'] == row['p'] == ''


@pytest.mark.parametrize('settings', [{}, SAME])
def test_two_rounds_are_too_few_for_an_interval_over_rounds(in_process, tmp_path, settings):
    runs = [
        make_run(tmp_path / name, noise, 2, **settings) for name, noise in (('a', 0.2), ('b', 2))
    ]
    done = in_process(compare.main, *runs, '--csv', 'd.csv')
    assert_no_verdict(done, '2 rounds are too few (at least 3)')
    # Each round has an interval over its own images.
    rounds = [row for row in read_table(tmp_path / 'd.csv') if row['round'].isdigit()]
    assert len(rounds) == 4 and all(float(row['low']) < float(row['high']) for row in rounds)
    last = [row for row in read_table(tmp_path / 'd.csv') if row['round'] == 'last epoch']
    assert [row['low'] + row['high'] + row['p'] for row in last] == ['', '']


@pytest.mark.parametrize('settings', [{}, SAME])
@pytest.mark.parametrize('contents', [20, IMAGES])
def test_a_round_whose_correlation_is_undefined_leaves_no_verdict(
    in_process, tmp_path, settings, contents
):
    runs = [
        make_run(tmp_path / name, noise, contents=contents, **settings)
        for name, noise in (('a', 0.2), ('b', 2))
    ]
    predict(runs[1], 3, [2.5] * IMAGES)
    done = in_process(compare.main, *runs, '--csv', 'd.csv', '--plot', 'p.png')
    summary = 'median' if settings else 'mean'
    assert_no_verdict(done, f'a correlation is undefined (round 3, {summary}')
    assert 'SRCC nan, PLCC nan (no interval: a correlation is undefined)' in done.stdout
    assert f'  {summary:11}{"undefined":40}undefined\n' in done.stdout


@pytest.mark.parametrize('rounds', [1, 3])
def test_the_difference_to_a_perfect_correlation_has_no_interval(in_process, tmp_path, rounds):
    runs = [
        make_run(tmp_path / name, noise, rounds, contents=IMAGES, **SAME)
        for name, noise in (('a', 0), ('b', 2))
    ]
    assert_no_verdict(in_process(compare.main, *runs, '--csv', 'd.csv'), 'a correlation is perfect')


def test_two_contents_are_too_few_for_the_median_too(in_process, tmp_path):
    runs = [
        make_run(tmp_path / name, noise, contents=2, **SAME) for name, noise in (('a', 1), ('b', 2))
    ]
    done = in_process(compare.main, *runs, '--csv', 'd.csv')
    assert_no_verdict(done, '2 contents are too few (at least 3) (median)')


def test_equal_differences_in_all_rounds_have_no_t():
    with pytest.raises(metrics.NoIntervalError, match='the difference is the same in all rounds'):
        metrics.corrected_t([0.5, 0.3 + 0.2, 0.4 + 0.1], 0.25)
    assert metrics.corrected_t([0, 0, 0], 0.25) == ([0, 0], 1)


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
    low, high = metrics.intervals(list(compare.read_runs(runs)[0].tested.values()))['SRCC_interval']
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
        (tmp_path / 'empty', 'has no config.json, so it is no run'),
        (tmp_path / 'missing', 'there is no folder '),
        (unfinished, 'has no finished round with test images; --resume'),
        (broken, "predictions.csv cannot be read as a table: 'content'"),
    ):
        done = in_process(compare.main, run, other)
        assert done.returncode == 2 and reason in done.stderr and done.stderr.count('\n') == 1
    assert in_process(compare.main, run).returncode == 2


def test_what_has_no_finished_test_is_named_and_the_others_are_compared(in_process, tmp_path):
    runs = [make_run(tmp_path / name, noise) for name, noise in (('a', 0.2), ('b', 1.5))]
    unfinished = make_run(tmp_path / 'unfinished', rounds=1)
    (unfinished / 'round_01' / 'result.json').unlink()
    on_all = make_run(tmp_path / 'on_all', options={'train_on_all': True})
    (tmp_path / 'notes.txt').touch()
    network = tmp_path / 'network'
    network.mkdir()
    files.write_json(network / 'config.json', {'model_type': 'resnet'})  # of another tool
    others = {
        unfinished: f'has no finished round with test images; --resume {unfinished} finishes it',
        on_all: 'was trained on all images, so it has no test',
        tmp_path / 'notes.txt': 'has no config.json, so it is no run',
        network / 'config.json': 'does not have the options of a run; put the file back as the run '
        'wrote it',
    }
    alone = in_process(compare.main, *runs)
    folders = [unfinished, on_all, tmp_path / 'notes.txt', network]
    done = in_process(compare.main, *runs, *folders)
    assert (done.returncode, done.stdout) == (0, alone.stdout)
    assert done.stderr.splitlines() == [f'left out: {path} {why}' for path, why in others.items()]
    # One is not enough.
    done = in_process(compare.main, runs[0], *folders)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert all(f'{path} {why}' in done.stderr for path, why in others.items())


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


def test_a_table_and_a_picture_replace_only_their_own_kind_outside_of_runs(in_process, tmp_path):
    runs = [make_run(tmp_path / name, noise) for name, noise in (('a', 0.3), ('b', 0.4))]
    mine = databases.picture(tmp_path / 'mine.png')
    (tmp_path / 'labels.csv').write_text('image,score\na.png,1\n')
    before = mine.read_bytes()
    for output, reason in (
        (('--plot', 'mine.png'), 'mine.png exists and is no such output of this project'),
        (('--csv', 'labels.csv'), 'labels.csv exists and is no such output of this project'),
        (('--csv', 'a/x.csv'), 'a/x.csv is in the run folder'),
        (('--plot', 'b/round_01/x.png'), 'b/round_01/x.png is in the run folder'),
    ):
        done = in_process(compare.main, *runs, *output)
        assert done.returncode == 2 and done.stderr.startswith(f'error: {reason}')
        assert done.stderr.count('\n') == 1 and not done.stdout
    assert mine.read_bytes() == before
    assert (tmp_path / 'labels.csv').read_text() == 'image,score\na.png,1\n'
    assert not list(tmp_path.glob('[ab]/**/x.*'))
    for _ in range(2):
        done = in_process(compare.main, *runs, '--csv', 'own.csv', '--plot', 'own.png')
        assert done.returncode == 0


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


def test_the_options_of_a_run_can_be_typed_again(in_process, tmp_path):
    words = (
        "--csv 'my labels.csv' --columns image=0 'score=mean opinion' content= --higher_is_better "
        '--amp --resize 512 384 --weight_decay 0 --lr 0.0001 --train_test_num 3 '
        "--split train=a.txt 'test=b c.txt' --test_on koniq=data/koniq csv=other/mine.csv"
    )
    recorded = vars(parse_options(shlex.split(words)))
    runs = [
        make_run(tmp_path / 'a', options=recorded),
        make_run(tmp_path / 'b', options={**recorded, 'csv': 'other labels.csv'}),
    ]
    header, *lines = in_process(compare.main, *runs).stdout.splitlines()
    for line, table in zip(lines, ('my labels.csv', 'other labels.csv')):
        typed = shlex.split(line[header.index('options') :])
        expected = {**recorded, 'csv': table, 'data_root': table}
        assert vars(parse_options(typed)) == expected


def test_one_epoch_was_not_chosen(in_process, tmp_path):
    runs = [make_run(tmp_path / name) for name in 'ab']
    assert 'chosen' in in_process(compare.main, *runs).stdout
    for path in tmp_path.glob('*/round_*/result.json'):
        files.write_json(path, {**files.read_json(path), 'epochs': 1})
    assert 'chosen' not in in_process(compare.main, *runs).stdout


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
