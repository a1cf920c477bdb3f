"""A trained network is tested again, or on other databases; its scores keep their meaning."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import scipy.io
import torch
from helpers import QUICK, best_row, history, link_run, own_images, own_table, read_table
from scipy.stats import spearmanr

import demo
import train_test_IQA
from experiment.command_line import parse_options
from experiment.record import refuse_other_options
from experiment.report import print_medians
from folders import OpenDatabase
from util import checkpoints, files
from util.errors import InputError

MODEL = {'resize': None, 'exif_rotation': False, 'score_range': None, 'higher_is_better': True}


@pytest.mark.slow
def test_images_of_ones_own_with_normalised_scores_tested_on_another_database(
    program, make_database, tmp_path, capsys
):
    """The scores are a DMOS, so agreement with LIVE Challenge (a MOS) has the other sign."""
    file = own_images(tmp_path, count=8, score='dmos')
    make_database('livec', images=6)
    done = program(
        '--dataset',
        'csv',
        '--csv',
        file,
        *QUICK,
        '--epochs',
        1,
        '--normalize_scores',
        '--test_on',
        'livec=livec',
        '--output',
        'run',
        '--resize',
        240,
        250,
        '--test_patch_num',
        1,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'run' / 'round_01'
    row = best_row(history(tmp_path / 'run'))
    assert float(row['train_loss']) > 1  # in the unit of the labels, 10 ... 80
    record = json.loads((tmp_path / 'run' / 'config.json').read_text())['model']
    assert record == {
        'title': 'your images',
        'label_range': [10, 80],
        'higher_is_better': False,
        'score_range': [10, 80],
        'resize': [240, 250],
        'exif_rotation': True,
        'srgb': True,
    }
    across = json.loads((tmp_path / 'run' / 'results.json').read_text())['rounds']['1']['test_on'][
        'livec'
    ]
    assert {'images', 'SRCC', 'PLCC', 'KRCC', 'MAE'} <= set(across)
    assert f'On LIVE Challenge (6 images): SRCC {across["SRCC"]:.4f} [' in done.stdout
    assert f'On LIVE Challenge: median SRCC {across["SRCC"]:.4f}' in done.stdout

    alone = program('--evaluate', folder / 'best.pth', '--test_on', 'livec=livec')
    assert alone.stdout in done.stdout and alone.stdout.startswith('On LIVE Challenge (6 images)')
    again = program('--evaluate', folder / 'best.pth')
    assert again.stdout.startswith(f'test_srcc {row["test_srcc"]}\ntest_plcc {row["test_plcc"]}\n')
    assert f'{len(read_table(folder / "predictions.csv"))} test images: SRCC ' in again.stdout
    evaluated = sorted((tmp_path / 'evaluations').iterdir())
    for made, name in zip(evaluated, ('predictions_livec.csv', 'predictions.csv')):
        assert (made / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((evaluated[0] / 'result.json').read_text())['databases'] == {'livec': across}
    refused = program('--evaluate', folder / 'best.pth', '--output', folder)
    assert refused.returncode == 2 and 'is in the run folder' in refused.stderr
    repeated = program('--evaluate', folder / 'best.pth', '--test_on', f'csv={file}')
    assert 'images are of the training database' in repeated.stderr

    rows = read_table(folder / 'predictions_livec.csv')
    assert [row['image'] for row in rows] == [
        f'Images/{k}.{"bmp" if k % 2 else "JPG"}' for k in range(3, 9)
    ]
    assert [float(row['score']) for row in rows] == [10 * k for k in range(9, 15)]
    predicted = np.array([float(row['prediction']) for row in rows])
    assert spearmanr(predicted, range(6)).statistic == pytest.approx(-across['SRCC'])
    # the sign is turned for the correlations only
    errors = np.abs(predicted - [float(row['score']) for row in rows])
    assert errors.mean() == pytest.approx(across['MAE'])
    assert_plain_checkpoint_is_tested_on_tables(folder / 'best.pth', file, program)

    assert_demo_scores_in_the_labels_unit(folder / 'best.pth', tmp_path / 'mine' / '3.png', capsys)


def assert_plain_checkpoint_is_tested_on_tables(checkpoint, file, program):
    """Of two tables of the same images the second has its scores the other way around."""
    elsewhere = checkpoint.parents[2] / 'downloaded.pth'
    shutil.copy(checkpoint, elsewhere)
    turned = file.with_name('turned.csv')
    lines = file.read_text().splitlines()
    turned.write_text(
        '\n'.join(['name,mos', *(f'{k}.png,{100 - k}' for k in range(len(lines) - 1))])
    )
    options = ('--test_patch_num', 1, '--device', 'cpu', '--cache', 'none')
    done = program(
        '--evaluate',
        elsewhere,
        '--test_on',
        f'csv={file}',
        f'csv={turned}',
        '--higher_is_better',
        *options,
    )
    assert done.returncode == 0, done.stderr
    first, second = (
        float(re.search(r'SRCC ([-.\d]+)', line)[1]) for line in done.stdout.splitlines()
    )
    assert [line.split(':')[0] for line in done.stdout.splitlines()] == [
        'On labels (8 images)',
        'On turned (8 images)',
    ]
    assert first == -second != 0
    assert 'scores on the scale of the labels of your images: 10 to 80, lower' in done.stderr


def test_another_place_of_the_other_databases_does_not_matter_to_resume_and_another_name_does(
    tmp_path,
):
    path = tmp_path / 'config.json'
    record = {'options': {'test_on': [['livec', 'livec', 'here']]}, 'model': MODEL}
    files.write_json(path, record)
    refuse_other_options(path, {**record, 'options': {'test_on': [['livec', 'livec', 'there']]}})
    with pytest.raises(InputError, match=r"--test_on was \['livec'\], is \['mine'\]"):
        refuse_other_options(
            path, {**record, 'options': {'test_on': [['mine', 'csv', 'here/mine.csv']]}}
        )


def test_a_switch_of_the_run_can_be_left_when_it_is_evaluated(tmp_path):
    options = vars(parse_options(['--amp', '--device', 'cpu']))
    files.write_json(tmp_path / 'config.json', {'options': options, 'model': MODEL})
    for extra, expected in (((), True), (('--no-amp',), False)):
        evaluate = [
            '--evaluate',
            str(tmp_path / 'round_01' / 'best.pth'),
            '--device',
            'cpu',
            *extra,
        ]
        assert parse_options(evaluate).amp is expected


def test_names_of_an_own_table_still_start_at_data_root_when_the_run_is_evaluated(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'b.csv').write_text('image,x\n')
    given = parse_options(
        [
            '--dataset',
            'csv',
            '--csv',
            'a/b.csv',
            '--data_root',
            'photos',
            '--columns',
            'score=x',
            '--device',
            'cpu',
        ]
    )
    files.write_json(tmp_path / 'config.json', {'options': vars(given), 'model': MODEL})
    config = parse_options(
        ['--evaluate', str(tmp_path / 'round_01' / 'best.pth'), '--device', 'cpu']
    )
    assert (config.data_root, config.image_root, config.columns) == (
        'a/b.csv',
        'photos',
        {'score': 'x'},
    )


def assert_demo_scores_in_the_labels_unit(checkpoint, picture, capsys):
    def score(path):
        with pytest.raises(SystemExit) as exit:
            demo.main(
                ['--checkpoint', str(path), '--device', 'cpu', '--patches', '2', str(picture)]
            )
        assert exit.value.code == 0
        return float(capsys.readouterr().out.split('\t')[1])

    in_own_unit = score(checkpoint)
    content = checkpoints.read_checkpoint(checkpoint)
    meaning = {**checkpoints.facts_in(content), 'score_range': None}
    plain = checkpoint.parents[2] / 'plain.pth'
    checkpoints.write_weights(plain, content, meaning)
    assert in_own_unit == pytest.approx(10 + 70 * score(plain), abs=0.01)


@pytest.mark.slow
def test_training_on_all_keeps_the_last_epoch(program, make_database, tmp_path):
    make_database('livec', images=4)
    done = program(
        '--dataset', 'livec', '--data_root', 'livec', *QUICK, '--train_on_all', '--output', 'run'
    )
    assert done.returncode == 0, done.stderr
    assert (
        'Trained on all 4 images; the last epoch, 2, is kept' in done.stdout
        and 'nan' not in done.stdout
    )
    assert 'demo.py' in done.stderr and 'compare.py' not in done.stderr
    folder = tmp_path / 'run' / 'round_01'
    best, last = (torch.load(folder / name, weights_only=True) for name in ('best.pth', 'last.pth'))
    assert all(torch.equal(value, last['model'][name]) for name, value in best.items())
    assert list(json.loads((folder / 'split.json').read_text())) == ['train', 'labels']
    assert json.loads((tmp_path / 'run' / 'results.json').read_text())['rounds']['1']['epoch'] == 2
    refused = program('--evaluate', folder / 'best.pth')
    assert refused.returncode == 2 and 'was trained without a test part' in refused.stderr


def test_test_on_what_is_trained_on_is_a_warning(make_database, program, tmp_path):
    make_database('livec', images=10)
    (tmp_path / 'mine.csv').write_text('image,score\nlivec/Images/3.bmp,1\nlivec/Images/5.bmp,2\n')
    options = (
        '--dataset',
        'livec',
        '--data_root',
        'livec',
        *QUICK,
        '--weights',
        'gone.pth',
    )  # ends before any training
    done = program(*options, '--test_on', 'livec=livec', 'csv=mine.csv')
    assert (
        done.returncode == 2
        and done.stderr.splitlines()[-1] == 'error: --weights: there is no file gone.pth'
    )
    for start in ('livec: 10 of its 10', 'mine: 2 of its 2'):
        assert f'warning: --test_on {start} images are of the training database' in done.stderr


def test_the_table_that_a_run_was_trained_on_is_known_in_any_folder(tmp_path, monkeypatch, capsys):
    """By its rows: the path in the record starts at the folder in which the run began."""
    rows = ''.join(f'{k}.png,{k}\n' for k in range(4))
    names = [f'{k}.png' for k in range(4)]
    train = own_table(tmp_path / 'here', f'image,score\n{rows}', images=names, name='labels.csv')
    other = own_table(tmp_path, f'image,score\n{rows}9.png,9\n', images=[*names, '9.png'])
    database = OpenDatabase('csv', train)
    record = {'options': {'csv': 'labels.csv', 'dataset': 'csv'}, 'model': {}}
    folder = tmp_path / 'run' / 'round_01'
    folder.mkdir(parents=True)
    files.write_json(
        tmp_path / 'run' / 'config.json', {**record, 'labels': database.digest_in_any_order}
    )
    for table, is_known in ((train, True), (other, False)):
        config = parse_options(
            ['--evaluate', str(folder / 'best.pth'), '--test_on', f'csv={table}']
        )
        train_test_IQA.prepare_test_on_others(config, folder / 'best.pth', database.meaning(False))
        warned = (
            'some or all of its 4 images are of the training database' in capsys.readouterr().err
        )
        assert warned == is_known


def test_the_other_databases_have_medians_without_a_test_part_too(capsys):
    rounds = {'1': {'SRCC': math.nan}, '2': {'SRCC': math.nan}}
    on_others = {'mine': {'SRCC': 0.5, 'PLCC': 0.4}}
    for result in rounds.values():
        result.update(chosen_on='test', epochs=2)
    print_medians({'rounds': rounds, 'median': {'SRCC': math.nan, 'test_on': on_others}})
    assert capsys.readouterr().out == 'On mine: median SRCC 0.5000, median PLCC 0.4000\n'


def test_evaluating_outside_a_run_folder_is_refused(program, tmp_path):
    torch.save({}, tmp_path / 'loose.pth')
    done = program('--evaluate', 'loose.pth')
    assert done.returncode == 2 and done.stderr.startswith(
        'error: --evaluate: loose.pth is not the best.pth or last.pth of a run; '
    )


def test_an_evaluation_has_a_folder_of_its_own(program, finished_run, tmp_path):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    link_run(finished_run / 'run', tmp_path / 'run')
    best = 'run/round_01/best.pth'
    weights = checkpoints.digest(torch.load(tmp_path / best))
    for folder in ('new/EV', f'evaluations/run-round_01-{weights[:8]}'):
        options = ('--output', folder) if folder == 'new/EV' else ()
        done = program('--evaluate', best, *options)
        assert done.returncode == 0 and f'Results: {folder}/result.json; ' in done.stderr
        result = json.loads((tmp_path / folder / 'result.json').read_text())
        assert (result['checkpoint'], result['weights']) == (best, weights)
        assert list(result['databases']) == ['livec']
        metrics = result['databases']['livec']
        printed = f'test_srcc {metrics["SRCC"]}\ntest_plcc {metrics["PLCC"]}\n'
        assert done.stdout.startswith(printed) and f'MAE {metrics["MAE"]:.4g} ' in done.stdout
        predictions = (tmp_path / folder / 'predictions.csv').read_bytes()
        assert predictions == (tmp_path / 'run' / 'round_01' / 'predictions.csv').read_bytes()
    assert_nothing_is_replaced(program, tmp_path, best)


def assert_nothing_is_replaced(program, folder, best):
    """A further evaluation goes beside the first; a folder with files and a run's are refused."""
    before = contents(folder)
    for output, reason in (
        ('new/EV', 'error: new/EV has files already'),
        ('run', 'error: run is in the run folder'),
        ('run/round_01/EV', 'error: run/round_01/EV is in the run folder'),
    ):
        done = program('--evaluate', best, '--output', output)
        assert done.returncode == 2 and done.stderr.startswith(reason)
        assert done.stderr.count('\n') == 1 and '--output DIR names' in done.stderr
    assert contents(folder) == before
    assert program('--evaluate', best).returncode == 0
    after = contents(folder)
    assert before.items() <= after.items()
    (first,) = (name for name in before if name.startswith('evaluations/') and 'result' in name)
    assert set(after) - set(before) == {
        first.replace('/result.json', '-2/result.json'),
        first.replace('/result.json', '-2/predictions.csv'),
    }


def contents(folder):
    """The content of every file below a folder that is no checkpoint and is not hidden, by name."""
    found = {}
    for path in folder.rglob('*'):
        if path.is_file() and path.suffix != '.pth' and not path.name.startswith('.'):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.slow
def test_evaluate_refuses_other_labels_and_takes_a_link(program, finished_run, tmp_path):
    shutil.copytree(finished_run / 'livec', tmp_path / 'livec')
    link_run(finished_run / 'run', tmp_path / 'run')
    (tmp_path / 'link').symlink_to(tmp_path / 'run' / 'round_01')
    (tmp_path / 'best.pth').symlink_to(tmp_path / 'run' / 'round_01' / 'best.pth')
    for checkpoint in ('link/best.pth', 'best.pth'):
        done = program('--evaluate', checkpoint)
        assert done.returncode == 0 and done.stdout.startswith('test_srcc '), done.stderr
    file = tmp_path / 'livec' / 'Data' / 'AllMOS_release.mat'
    scipy.io.savemat(file, {'AllMOS_release': 200 - scipy.io.loadmat(file)['AllMOS_release']})
    done = program('--evaluate', 'run/round_01/best.pth')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert (
        'the scores, contents, sets or order of the labels have changed since' in done.stderr
        and '--test_on' in done.stderr
    )
    summary = program('--summarize', 'run')
    assert summary.returncode == 0
    for result in (tmp_path / 'run').glob('round_*/result.json'):
        result.unlink()
    assert program('--summarize', 'run').returncode == 3
