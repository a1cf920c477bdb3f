"""Options: names, defaults, contradictions, and typing errors, which get one line that helps."""

import json
import textwrap

import forked
import pytest
import torch
from helpers import PROJECT, QUICK, assert_same_run, history, link_run, read_table

import compare
import folders
import train_test_IQA
from experiment.command_line import parse_options
from util import demo_database
from util.distributed import pick_device


@pytest.mark.parametrize(
    'options, line',
    [
        (('--ler', 1e-4), 'unrecognized arguments: --ler 0.0001; did you mean --lr?'),
        (
            ('--train-test-nun=3',),
            'unrecognized arguments: --train-test-nun=3; did you mean --train_test_num?',
        ),
        (
            ('--epoch', 3),
            'unrecognized arguments: --epoch 3; did you mean --epochs?',
        ),  # no silent abbreviations
        (('xyz',), 'unrecognized arguments: xyz; '),
        (('--batch-size', 0), 'argument --batch_size: 0 is not in 1 ... 1000000'),
        (
            ('--dataset', 'konik'),
            "argument --dataset: there is no database 'konik'; did you mean koniq?",
        ),
        (('--split_by', 'scene'), "argument --split_by: invalid choice: 'scene' (choose from "),
        (('--device', 'gpu', '--dataset', 'demo'), '; use cpu, cuda, cuda:1 or mps'),
        (
            (),
            'unpack it so that the folder holds Data/AllImages_release.mat, '
            'Data/AllMOS_release.mat and Images/; ',
        ),
    ],
)
def test_a_typo_is_one_line(program, options, line):
    done = program('--weights', 'none', *options)
    error = done.stderr.splitlines()[-1]
    assert (
        done.returncode == 2
        and error.startswith('error: ')
        and line in error
        and 'usage' not in done.stderr
    )
    assert options or error.endswith('; --dataset demo needs no data.')


@pytest.mark.parametrize(
    'name, key',
    [
        *(
            ('koniq10k', 'koniq'),
            ('KonIQ-10k', 'koniq'),
            ('live-c', 'livec'),
            ('CLIVE', 'livec'),
            ('kadid-10k', 'kadid10k'),
        ),
        *(('tid', 'tid2013'), ('agiqa_3k', 'agiqa3k'), ('bid', 'bid')),
    ],
)
def test_other_names_of_the_databases(name, key):
    assert folders.database_key(name) == key and parse_options(['--dataset', name]).dataset == key


def test_dashes_and_a_table_alone_are_understood(tmp_path):
    config = parse_options(
        ['--batch-size=5', '--no-amp', '--test-patch-num', '7', '--csv', 'a-b.csv']
    )
    assert (config.batch_size, config.amp, config.test_patch_num, config.dataset) == (
        5,
        False,
        7,
        'csv',
    )
    assert config.data_root == 'a-b.csv' and parse_options([]).dataset == 'livec'


def test_all_that_is_known_of_a_database(program):
    lines = program('--list_datasets', 'koniq10k').stdout.splitlines()
    assert lines[0] == 'KonIQ-10k' and '  also called  koniq10k' in lines
    assert any('512 high, 384 wide' in line for line in lines)
    assert any('database.mmsp-kn.de' in line for line in lines) and any(
        '1024x768/' in line for line in lines
    )


def test_help_ends_with_two_commands(script):
    lines = script('train_test_IQA.py', '--help').stdout.splitlines()
    assert all(line.startswith('  python train_test_IQA.py --dataset ') for line in lines[-2:])


@pytest.mark.slow
def test_a_killed_run_continues_with_its_name_alone(killed_run, finished_run, tmp_path):
    """It has another name now, and another process has finished its second round."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    link_run(killed_run, tmp_path / 'renamed')
    link_run(finished_run / 'run' / 'round_02', tmp_path / 'renamed' / 'round_02')
    resumed = forked.program(train_test_IQA.main, '--resume', 'renamed', folder=tmp_path)
    _, errors = resumed.communicate()  # the device is the recorded one
    assert resumed.returncode == 0, errors
    assert_same_run(tmp_path / 'renamed', finished_run / 'run')


@pytest.fixture
def run_of_two(finished_run, tmp_path):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    return link_run(finished_run / 'run', tmp_path / 'run')


def test_what_is_given_beside_resume_must_agree_or_may_change(run_of_two, program):
    for options, reason in (
        (('--lr', 1), '--lr was 2e-05, is 1.0'),
        (('--train_test_num', 1), '--train_test_num: run/round_02 has been trained; give 2'),
        (('--split', 'official'), '--split official: LIVE Challenge has no official sets'),
        (('--output', 'other'), '--output: --resume RUN names the run folder already'),
    ):
        done = program('--resume', 'run', *options)
        assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]
    config = parse_options(['--resume', 'run', '--num_workers', '0', '--compile', '--rounds', '2'])
    assert (config.batch_size, config.device, config.output, config.rounds) == (
        4,
        'cpu',
        'run',
        [2],
    )
    done = program('--resume', 'run', '--num_workers', 0, '--data_root', 'livec')
    assert done.returncode == 0, done.stderr
    assert program('--resume', 'nowhere').stderr.endswith('there is no file nowhere/config.json\n')


def test_a_gpus_number_in_an_older_record_is_not_taken(run_of_two):
    record = json.loads((run_of_two / 'config.json').read_text())
    for device, without, taken in (
        ('cuda:3', ('fit_scale',), 'cuda'),
        ('cuda:3', (), 'cuda:3'),
        (None, (), None),
    ):
        options = {name: value for name, value in record['options'].items() if name not in without}
        (run_of_two / 'config.json').write_text(
            json.dumps({**record, 'options': {**options, 'device': device}})
        )
        assert parse_options(['--resume', str(run_of_two)]).device == taken


@pytest.mark.slow
def test_more_rounds_may_follow_and_another_seed_may_take_the_splits(
    run_of_two, program, in_process, tmp_path
):
    done = program('--resume', 'run', '--train_test_num', 3, '--rounds', 3)
    assert done.returncode == 0, done.stderr
    options = json.loads((run_of_two / 'config.json').read_text())['options']
    assert len(history(run_of_two, 3)) == 2 and options['train_test_num'] == 3
    livec = ('--dataset', 'livec', '--data_root', 'livec', *QUICK, '--split', 'run')
    other = program(*livec, '--epochs', 1, '--seed', 1, '--output', 'other')
    assert other.returncode == 0, other.stderr
    tables = [
        read_table(tmp_path / name / 'round_01' / 'predictions.csv') for name in ('run', 'other')
    ]
    assert {row['image'] for row in tables[0]} == {row['image'] for row in tables[1]}
    losses = [history(tmp_path / name)[0]['train_loss'] for name in ('run', 'other')]
    assert losses[0] != losses[1]  # another seed is another training
    assert in_process(compare.main, 'run', 'other').returncode == 0
    wanting = program(*livec, '--train_test_num', 4, '--output', 'x')
    assert wanting.returncode == 2 and 'there is no file run/round_04/split.json' in wanting.stderr


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
        (('--test_on', 'csv=x/a.csv', 'csv=x/a.csv'), 'can be named once'),
        (('--columns', 'mos'), 'mos is not ROLE=NAME with a role of image, score, content, set'),
        (('--lower_is_better',), 'describe the table of --csv FILE'),
        (('--split', 'official', '--split_by', 'image'), '--split_by goes with --split random'),
        (
            ('--evaluate', 'x.pth', '--test_on', 'bid=bid', '--dataset', 'koniq'),
            '--dataset: with --evaluate, --test_on NAME=DIR names the databases to test on',
        ),
        (('--rounds', '5-3'), '5-3 is no range'),
        (('--rounds', '9-11'), 'there are 10 rounds'),
        (('--val_ratio', 1), '1 is not in 0 ... 0.99'),
    ],
)
def test_options_that_contradict_each_other(program, options, reason):
    done = program('--weights', 'none', '--device', 'cpu', *options)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]


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


def test_options_of_the_original_keep_their_names_and_defaults():
    config = parse_options(['--weights', 'none'])
    assert {
        name: getattr(config, name)
        for name in (
            'dataset',
            'train_patch_num',
            'test_patch_num',
            'lr',
            'weight_decay',
            'lr_ratio',
            'batch_size',
            'epochs',
            'patch_size',
            'train_test_num',
        )
    } == {
        'dataset': 'livec',
        'train_patch_num': 25,
        'test_patch_num': 25,
        'lr': 2e-5,
        'weight_decay': 5e-4,
        'lr_ratio': 10,
        'batch_size': 96,
        'epochs': 16,
        'patch_size': 224,
        'train_test_num': 10,
    }
    assert (config.seed, config.data_root) == (0, 'data/livec')
    assert pick_device(config.device) == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert parse_options([]).weights == 'imagenet'
    assert parse_options(['--dataset', 'koniq-10k']).data_root == 'data/koniq'


def test_a_databases_own_defaults_yield_to_the_users_options():
    config = parse_options(['--dataset', 'demo', '--epochs', '3'])
    assert (config.weights, config.epochs, config.batch_size) == (
        'none',
        3,
        demo_database.DEFAULTS['batch_size'],
    )
