"""What a run trains and tests on: splits that travel, images of one's own, the scores' unit, other databases."""

import json
import re
import shutil
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import PROJECT, QUICK, best_row, history, own_table, read_table
from scipy.stats import spearmanr

import demo
import folders
from experiment.command_line import parse_options
from experiment.record import refuse_other_options
from experiment.splits import asked_splits, draw_splits
from util import files
from util.errors import InputError
from util.metrics import all_metrics

MODEL = {'resize': None, 'exif_rotation': False, 'score_range': None, 'higher_is_better': True}


def own_images(root, count=10, score='score', **columns):
    """`count` pictures with scores 10, 20 ... and further columns in root/mine/labels.csv."""
    lines = [','.join(['image', score, *columns])]
    for k in range(count):
        cells = [f'{k}.png', str(10 * (k + 1)), *(values[k] for values in columns.values())]
        lines.append(','.join(cells))
    names = [f'{k}.png' for k in range(count)]
    text = '\n'.join(lines)
    return own_table(root / 'mine', text, images=names, name='labels.csv', size=(230, 240))


def split_config(dataset, root, **options):
    return SimpleNamespace(
        **{
            'dataset': dataset,
            'data_root': str(root),
            'split': 'random',
            'seed': 0,
            'val_ratio': 0,
            'train_test_num': 2,
            'train_on_all': False,
            'columns': None,
            **options,
        }
    )


def drawn(dataset, root, **options):
    """Names of the images in each part, for each round."""
    database = folders.OpenDatabase(dataset, root)
    splits = draw_splits(split_config(dataset, root, **options), database)
    return [{part: database.names(split[part]) for part in split} for split in splits]


def test_the_official_split_is_that_of_the_labels(make_database):
    root = make_database('koniq_sets')
    file = root / 'koniq10k_distributions_sets.csv'
    file.write_text(
        file.read_text().replace('training', 'validation', 1)
    )  # two of each part or more
    database = folders.OpenDatabase('koniq', root)
    first, second = drawn('koniq', root, split='official')
    assert (
        first
        == second
        == {
            part: database.names(
                k for k, sample in enumerate(database.samples) if sample.official_set == part
            )
            for part in ('train', 'val', 'test')
        }
    )
    assert first['train'] and first['val'] and first['test']
    with pytest.raises(InputError, match='--split official: LIVE Challenge has no official sets'):
        drawn('livec', make_database('livec', images=10), split='official')


def test_a_split_of_another_run_is_taken_as_it_is(make_database, tmp_path):
    root = make_database('livec', images=10)
    _, second = drawn('livec', root)
    files.write_json(tmp_path / 'split.json', second)
    assert drawn('livec', root, split=str(tmp_path / 'split.json')) == [second, second]
    for change, reason in (
        ({'train': ['Images/none.bmp']}, 'names 1 images that are not in .*none.bmp'),
        ({'val': second['test'][:1]}, 'twice; an image belongs to one part'),
        (
            {'test': []},
            'in round 1, the test part needs two different scores for an SRCC .images: 0',
        ),
    ):
        files.write_json(tmp_path / 'changed.json', {**second, **change})
        with pytest.raises(InputError, match=reason):
            drawn('livec', root, split=str(tmp_path / 'changed.json'))
    with pytest.raises(InputError, match='there is no file .*absent.json'):
        drawn('livec', root, split=str(tmp_path / 'absent.json'))


def test_a_seed_gives_the_same_names_wherever_and_in_whatever_order_the_files_lie(
    make_database, tmp_path
):
    root = make_database('tid2013')
    label_file = root / 'mos_with_names.txt'
    other = tmp_path / 'deep' / 'er' / 'copy'
    (other / 'distorted_images').mkdir(parents=True)
    for path in sorted((root / 'distorted_images').iterdir(), reverse=True):
        shutil.copy(path, other / 'distorted_images' / path.name)
    shutil.copy(label_file, other)
    database, same = folders.OpenDatabase('tid2013', root), folders.OpenDatabase('tid2013', other)
    config = split_config('tid2013', root, seed=3)
    splits = [asked_splits(config, each)[1][0] for each in (database, same)]
    assert [database.names(images) for images in splits[0].values()] == [
        same.names(images) for images in splits[1].values()
    ]
    assert asked_splits(split_config('tid2013', root, seed=4), database)[1][0] != splits[0]


def test_contents_of_ones_own_stay_together_and_sets_fix_the_split(tmp_path):
    contents = [f'scene{k // 2}' for k in range(10)]
    file = own_images(tmp_path, content=contents)
    for split in drawn('csv', file, val_ratio=0.25):
        scenes = [
            {contents[int(name.removesuffix('.png'))] for name in split[part]}
            for part in ('train', 'val', 'test')
        ]
        assert len(set.union(*scenes)) == sum(map(len, scenes)) == 5 and all(scenes)
    sets = ['test', 'test', 'val', 'val', *['train'] * 6]
    file = own_images(tmp_path, content=contents, set=sets)
    parts = {
        'test': ['0.png', '1.png'],
        'val': ['2.png', '3.png'],
        'train': [f'{k}.png' for k in range(4, 10)],
    }
    assert drawn('csv', file, split=None)[0] == parts == drawn('csv', file, split='official')[0]
    assert drawn('csv', file, split='random')[0] != parts
    with pytest.raises(InputError, match='--val_ratio: the sets in .* already name'):
        drawn('csv', file, split=None, val_ratio=0.2)


@pytest.mark.slow
def test_images_of_ones_own_with_normalised_scores_tested_on_another_database(
    program, make_database, tmp_path, capsys
):
    """The scores are a DMOS, so agreement with LIVE Challenge, where higher is better, has the other sign."""
    file = own_images(tmp_path, count=8, score='dmos')
    make_database('livec', images=6)
    done = program(
        '--dataset',
        'csv',
        '--csv',
        file,
        *QUICK,
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
    for name in (
        'predictions.csv',
        'predictions_livec.csv',
    ):  # in the current folder, as in the round's
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    refused = program('--evaluate', folder / 'best.pth', '--output', folder)
    assert refused.returncode == 2 and 'is in a run folder' in refused.stderr
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
    assert_sign(tmp_path / 'run', program, across)


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
    assert (
        'downloaded.pth is in no run folder; its scores are taken for those of --dataset livec: 0'
        in done.stderr
    )


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


def test_names_of_an_own_table_still_start_at_data_root_when_the_run_is_evaluated(tmp_path):
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


def assert_sign(run, program, across):
    """The same network as if its labels had been a MOS."""
    record = json.loads((run / 'config.json').read_text())
    record['model']['higher_is_better'] = True
    files.write_json(run / 'config.json', record)
    printed = program(
        '--evaluate', run / 'round_01' / 'best.pth', '--test_on', 'livec=livec'
    ).stdout
    assert printed.startswith(f'On LIVE Challenge (6 images): SRCC {-across["SRCC"]:.4f} [')


def assert_demo_scores_in_the_labels_unit(checkpoint, picture, capsys):
    def score():
        with pytest.raises(SystemExit) as exit:
            demo.main(
                ['--checkpoint', str(checkpoint), '--device', 'cpu', '--patches', '2', str(picture)]
            )
        assert exit.value.code == 0
        return float(capsys.readouterr().out.split('\t')[1])

    in_own_unit = score()
    record_file = checkpoint.parent.parent / 'config.json'
    record = json.loads(record_file.read_text())
    files.write_json(
        checkpoint.parent / 'config.json',
        {**record, 'model': {**record['model'], 'score_range': None}},
    )
    assert in_own_unit == pytest.approx(10 + 70 * score(), abs=0.01)
    (checkpoint.parent / 'config.json').unlink()


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


@pytest.mark.parametrize(
    'options, reason',
    [
        (('--dataset', 'csv'), '--csv FILE goes with --dataset csv'),
        (('--csv', 'mine.csv'), 'there is no file mine.csv'),
        (('--csv', 'mine.csv', '--dataset', 'koniq'), '--csv FILE goes with --dataset csv'),
        (('--dataset', 'csv', '--csv', 'mine.csv'), 'there is no file mine.csv'),
        (('--split', 'official', '--val_ratio', 0.1), '--val_ratio goes with --split random'),
        (('--train_on_all', '--patience', 3), '--train_on_all leaves nothing to choose'),
        (('--test_on', 'koniq'), 'koniq is not NAME=DIR'),
        (('--test_on', 'koniq2=x'), "there is no database 'koniq2'"),
        (('--test_on', 'koniq=x', 'koniq-10k=y'), 'can be named once'),
        (('--test_on', 'csv=x/a.csv', 'csv=y/a.csv'), 'can be named once'),
        (('--columns', 'mos'), 'mos is not ROLE=NAME with a role of image, score, content, set'),
        (('--lower_is_better',), 'describe the table of --csv FILE'),
        (('--split', 'official', '--split_by', 'image'), '--split_by goes with --split random'),
        (('--rounds', '5-3'), '5-3 is no range'),
        (('--rounds', '9-11'), 'there are 10 rounds'),
        (('--val_ratio', 1), '1 is not in 0 ... 0.99'),
    ],
)
def test_options_that_contradict_each_other(program, options, reason):
    done = program('--weights', 'none', '--device', 'cpu', *options)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]


def test_the_check_reads_everything_and_trains_nothing(program, make_database, tmp_path):
    root = make_database('livec', images=10)
    done = program('--dataset', 'livec', '--data_root', 'livec', '--check')
    assert done.returncode == 0, done.stderr
    assert 'LIVE Challenge has 1162 images; 10 are listed' in done.stderr
    assert not (tmp_path / 'runs').exists() and not (root / '.hyperiqa_cache').exists()
    (root / 'Images' / '5.bmp').write_bytes(b'no image')
    done = program('--dataset', 'livec', '--data_root', 'livec', '--check')
    assert done.returncode == 2 and '5.bmp' in done.stdout + done.stderr


def test_the_documented_table_of_databases_is_the_programs(program):
    table = program('--list_datasets').stdout
    documented = (PROJECT / 'docs' / 'databases.md').read_text()
    assert table.startswith('--dataset  database') and textwrap.indent(table, '    ') in documented


def test_a_databases_protocol_is_in_the_options():
    config = parse_options(
        [
            '--dataset',
            'koniq',
            '--device',
            'cpu',
            '--rounds',
            '3-5',
            '--test_on',
            'livec=a',
            'CSIQ=b',
        ]
    )
    assert config.rounds == [3, 4, 5] and config.test_on == [
        ['livec', 'livec', 'a'],
        ['csiq', 'csiq', 'b'],
    ]
    assert parse_options(['--train_on_all', '--device', 'cpu']).train_test_num == 1


def test_metrics_of_no_images_are_nan():
    assert all(value != value for value in all_metrics([], []).values())


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
        done.returncode == 2 and done.stderr.splitlines()[-1] == 'error: there is no file gone.pth'
    )
    for start in ('livec: 10 of its 10', 'mine: 2 of its 2'):
        assert f'warning: --test_on {start} images are of the training database' in done.stderr
