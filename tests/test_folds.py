"""--split folds tests every image once, and the predictions of all rounds are one result."""

import json
import shutil

import numpy as np
import pytest
from helpers import LIVEC, read_table
from PIL import Image
from scipy import stats

import compare
from experiment import results
from experiment.command_line import parse_options
from experiment.splits import fold
from folders import OpenDatabase
from util import files

FOLDS = (*LIVEC, '--split', 'folds', '--epochs', 1)


def options_of(*words):
    return parse_options([str(word) for word in words])


@pytest.mark.parametrize('val_ratio', [0, 0.25])
def test_each_image_is_tested_in_one_round_and_otherwise_trained_on(make_database, val_ratio):
    database = OpenDatabase('livec', make_database('livec', images=11))
    config = options_of(*FOLDS, '--train_test_num', 3, '--val_ratio', val_ratio)
    splits = [fold(config, database, k) for k in range(3)]
    everything = list(range(len(database.samples)))
    tested = [k for split in splits for k in split['test']]
    assert sorted(tested) == everything
    assert [len(split['test']) for split in splits] == [4, 4, 3]
    for split in splits:
        assert sorted(split['train'] + split['val'] + split['test']) == everything
        assert len(split['val']) == round(val_ratio * (11 - len(split['test'])))
    assert splits[0]['test'] != sorted(splits[0]['test'])
    other_seed = options_of(*FOLDS, '--train_test_num', 3, '--seed', 1)
    assert fold(other_seed, database, 0)['test'] != splits[0]['test']


def test_a_content_is_in_one_fold(make_database):
    database = OpenDatabase('tid2013', make_database('tid2013'))
    config = options_of('--dataset', 'tid2013', '--split', 'folds', '--train_test_num', 2)
    tested = [set(database.contents(fold(config, database, k)['test'])) for k in range(2)]
    assert not tested[0] & tested[1]
    assert tested[0] | tested[1] == set(database.contents(range(len(database.samples))))


@pytest.mark.parametrize('count', [1, 12])
def test_a_number_of_folds_that_cannot_be_is_refused(make_database, program, count):
    make_database('livec', images=11)
    done = program(*FOLDS, '--train_test_num', count, '--check')
    assert done.returncode == 2 and 'give 2 to 11' in done.stderr


@pytest.mark.slow
def test_the_predictions_of_all_folds_are_one_result(make_database, tmp_path, program, in_process):
    make_database('livec', images=8)
    three = (*FOLDS, '--train_test_num', 3)
    # One of them in a command of its own, as on another machine.
    first = program(*three, '--rounds', 2, '--output', 'run')
    assert first.returncode == 0 and 'All folds' not in first.stdout
    assert not (tmp_path / 'run' / 'predictions.csv').exists()
    done = program('--resume', 'run')
    assert done.returncode == 0, done.stderr

    rows = read_table(tmp_path / 'run' / 'predictions.csv')
    names = [row['image'] for row in rows]
    assert len(set(names)) == len(names) == 8
    of_rounds = []
    for number in (1, 2, 3):
        of_rounds += read_table(tmp_path / 'run' / f'round_0{number}' / 'predictions.csv')
    assert rows == of_rounds
    predicted = [float(row['prediction']) for row in rows]
    scores = [float(row['score']) for row in rows]
    pooled = json.loads((tmp_path / 'run' / 'results.json').read_text())['pooled']
    assert pooled['images'] == 8
    assert pooled['SRCC'] == pytest.approx(stats.spearmanr(predicted, scores)[0])
    assert pooled['PLCC'] == pytest.approx(stats.pearsonr(predicted, scores)[0])
    assert pooled['MAE'] == pytest.approx(np.abs(np.subtract(predicted, scores)).mean())
    assert pooled['SRCC_interval'][0] < pooled['SRCC'] < pooled['SRCC_interval'][1]
    assert f'All folds: SRCC {pooled["SRCC"]:.4f} [' in done.stdout
    # Somebody who may not write into the folder has them too.
    gathered, _ = results.gathered(tmp_path / 'run', 3, is_folds=True)
    assert gathered['pooled'] == pooled
    with Image.open(tmp_path / 'run' / 'curves.png') as picture:
        assert picture.width == 880

    more = program('--resume', 'run', '--train_test_num', 4)
    assert more.returncode == 2 and '--train_test_num was 3, is 4' in more.stderr

    # The pooled predictions of two such runs are compared.
    shutil.copytree(tmp_path / 'run', tmp_path / 'other')
    for number in (1, 2, 3):
        path = tmp_path / 'other' / f'round_0{number}' / 'predictions.csv'
        table = read_table(path)
        for row in table:
            row['prediction'] = -float(row['prediction'])
        files.write_table(path, list(table[0]), table)
    compared = in_process(compare.main, 'run', 'other', '--csv', 'd.csv')
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.splitlines()[-1].endswith('on the images of all folds')
    row = next(row for row in read_table(tmp_path / 'd.csv') if row['round'] == 'all folds')
    assert float(row['first_value']) == pytest.approx(pooled['SRCC'])


def test_the_picture_of_a_run_needs_a_test_part(make_database, tmp_path, program, finished_run):
    assert (finished_run / 'run' / 'curves.png').exists()
    make_database('livec', images=3)
    assert program(*LIVEC, '--epochs', 1, '--train_on_all', '--output', 'all').returncode == 0
    assert (tmp_path / 'all' / 'results.json').exists()
    assert not (tmp_path / 'all' / 'curves.png').exists()
