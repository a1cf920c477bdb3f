"""compare.py tells runs apart by what they left behind, and claims no more than its intervals show."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import PROJECT, read_table
from PIL import Image

import compare
from util import files

IMAGES, ROUNDS = 40, 3


def make_run(folder, noise=0.5, rounds=ROUNDS, seed=0, scores=lambda k, y: y, names='{}.jpg'):
    """A run folder with predictions of `rounds` rounds whose errors have the deviation `noise`."""
    folder.mkdir(parents=True)
    model = {'resize': None, 'exif_rotation': False, 'score_range': None, 'higher_is_better': True}
    files.write_json(folder / 'config.json', {'options': {'train_test_num': rounds}, 'model': model})
    for k in range(1, rounds + 1):
        path = folder / f'round_0{k}'
        path.mkdir()
        subjective = np.random.RandomState(k).uniform(1, 5, IMAGES)
        predicted = subjective + noise * np.random.RandomState((k, seed)).standard_normal(IMAGES)
        rows = [
            {'image': names.format(i), 'content': f'scene{i // 2}', 'score': score, 'prediction': prediction}
            for i, (score, prediction) in enumerate(zip(scores(k, subjective), predicted))
        ]
        rows = [rows[i] for i in np.random.RandomState(seed).permutation(IMAGES)]  # the order of rows must not matter
        files.write_table(path / 'predictions.csv', list(rows[0]), rows)
        curve = [{'epoch': epoch, 'test_srcc': 0.9 - noise / epoch} for epoch in range(1, 5 + k)]
        files.write_table(path / 'history.csv', list(curve[0]), curve)
        files.write_json(path / 'result.json', {'epoch': 1})
    return folder


def test_runs_of_equal_predictions_differ_by_exactly_nothing(in_process, tmp_path):
    one, other = make_run(tmp_path / 'one'), make_run(tmp_path / 'other')
    done = in_process(compare.main, one, other, '--csv', 'table.csv')
    assert done.returncode == 0, done.stderr
    rows = read_table(tmp_path / 'table.csv')
    assert [row['round'] for row in rows] == ['1', '2', '3', 'median']
    assert all(float(row[name]) == 0 for row in rows for name in ('difference', 'low', 'high'))
    assert 'No difference between one and other is shown' in done.stdout and 'p 1\n' in done.stdout


def test_the_run_with_smaller_errors_is_better_in_whatever_order_they_are_given(in_process, tmp_path):
    good, bad = make_run(tmp_path / 'good', 0.2), make_run(tmp_path / 'bad', 1.5, seed=1)
    for runs in ((good, bad), (bad, good)):
        done = in_process(compare.main, *runs, '--csv', 'table.csv')
        assert 'good is better than bad: the interval' in done.stdout and 'p 0.25\n' in done.stdout
        *rounds, median = read_table(tmp_path / 'table.csv')
        for row in (*rounds, median):
            assert float(row['low']) < float(row['difference']) < float(row['high'])
        differences = [float(row['difference']) for row in rounds]
        assert float(median['difference']) == sorted(differences)[1] and (differences[0] > 0) == (runs[0] == good)


def ends(row):
    return row['low'], row['high']


def test_the_paired_interval_is_narrower_than_those_of_the_runs(tmp_path):
    runs = compare.read_runs([make_run(tmp_path / 'a', 0.6, rounds=1), make_run(tmp_path / 'b', 0.61, rounds=1)])
    low, high = ends(compare.compare(*runs).rows[0])
    own_low, own_high = compare.intervals(list(runs[0].rounds.values()))['SRCC_interval']
    assert high - low < (own_high - own_low) / 4


def test_the_verdict_says_better_exactly_where_the_interval_leaves_out_0(tmp_path):
    said = set()
    for seed in range(12):
        runs = [
            make_run(tmp_path / f'{name}{seed}', noise, 1, 10 * seed + (name == 'b'))
            for name, noise in (('a', 0.5), ('b', 0.8))
        ]
        comparison = compare.compare(*compare.read_runs(runs))
        low, high = ends(comparison.rows[-1])
        better = 'better' in compare.verdict(comparison)
        assert better == (not low <= 0 <= high)
        said.add(better)
    assert said == {True, False}
    undefined = comparison._replace(rows=[{**comparison.rows[-1], 'low': float('nan'), 'high': float('nan')}])
    assert 'better' not in compare.verdict(undefined)


@pytest.mark.parametrize(
    'change, reason',
    [
        ({'names': 'x{}.jpg'}, 'in round 1 one alone tests 40 of its 40 images, the first of them '),
        ({'scores': lambda k, y: y + (k == 2)}, 'in round 2 the labels of 40 images differ, the first of them '),
    ],
)
def test_runs_whose_test_images_differ_are_refused(in_process, tmp_path, change, reason):
    done = in_process(compare.main, make_run(tmp_path / 'one'), make_run(tmp_path / 'other', **change))
    assert done.returncode == 2 and done.stderr.startswith('error: one and other cannot be compared: ')
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
        (unfinished, 'holds no finished round with test images; its command with --resume'),
        (broken, "predictions.csv cannot be read as a table: 'content'"),
    ):
        done = in_process(compare.main, run, other)
        assert done.returncode == 2 and reason in done.stderr and done.stderr.count('\n') == 1
    assert in_process(compare.main, run).returncode == 2


def test_only_rounds_that_both_have_finished_are_compared(in_process, tmp_path):
    runs = [make_run(tmp_path / name, noise, rounds) for name, noise, rounds in (('a', 0.3, 3), ('b', 0.4, 2), ('c', 0.5, 3))]
    done = in_process(compare.main, *runs[:2], '--csv', 'table.csv', '--plot', 'picture.png')
    assert done.returncode == 0, done.stderr
    assert [row['round'] for row in read_table(tmp_path / 'table.csv')] == ['1', '2', 'median']
    with Image.open(tmp_path / 'picture.png') as picture:
        assert picture.width > 1000
    of_three = in_process(compare.main, *runs)
    assert of_three.returncode == 0 and [line.split()[0] for line in of_three.stdout.splitlines()[1:]] == ['a', 'b', 'c']
    assert in_process(compare.main, *runs, '--csv', 'other.csv').returncode == 2


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    names = [run.name for run in compare.read_runs([make_run(tmp_path / 'a' / 'run'), make_run(tmp_path / 'b' / 'run')])]
    assert names == [str(tmp_path / 'a' / 'run'), str(tmp_path / 'b' / 'run')]


def test_torch_is_not_imported(tmp_path):
    runs = [str(make_run(tmp_path / name)) for name in 'ab']
    code = (
        f'import compare, sys; compare.main({[*runs, "--plot", str(tmp_path / "p.png")]!r}); assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], cwd=PROJECT, check=True, capture_output=True)


def test_a_real_run_can_be_compared(in_process, finished_run, tmp_path):
    """Its rounds test two images each, for which no interval is defined."""
    done = in_process(compare.main, finished_run / 'run', make_run(tmp_path / 'other'))
    assert done.returncode == 2 and 'cannot be compared: in round 1 run alone tests 2 of its 2 images' in done.stderr
    rows = compare.compare(*[compare.read_run(finished_run / 'run', name) for name in 'ab']).rows
    best = [json.loads((finished_run / 'run' / f'round_0{k}' / 'result.json').read_text())['SRCC'] for k in (1, 2)]
    assert [row['first_srcc'] for row in rows[:-1]] == best and rows[-1]['difference'] == 0
