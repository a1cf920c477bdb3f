"""Mutated files of every kind through their readers: each gives one line, or what the file says."""

import json
import random
import shutil

import pytest
import torch
from helpers import TINY

import folders
from experiment import results, splits
from experiment.record import read_record
from util import checkpoints
from util.errors import InputError

ODD = (
    b'',
    b'\x00',
    b'\xff\xfe',
    b'null',
    b'nan',
    b'[]',
    b'{}',
    b'"',
    b',',
    b'-1',
    b'1e999',
    b'true',
    b'\n',
    b'9' * 400,
)


def mutated(content, rng):
    """The bytes with a few of them changed, cut, doubled, or with a word of them replaced."""
    kind = rng.randrange(4)
    place = rng.randrange(len(content) + 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[max(0, place - 50) :]
    if kind == 2:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    words = content.split(b' ')
    words[rng.randrange(len(words))] = rng.choice(ODD)
    return b' '.join(words)


def mutations(path, count, seed=13):
    """Put `count` mutated contents into `path` in turn; restore the original at the end."""
    rng, content = random.Random(seed), path.read_bytes()
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        yield
    path.write_bytes(content)


def outcome(function, *arguments):
    """'read' or 'refused'; an exception but `InputError`, or several lines, fail the test."""
    try:
        function(*arguments)
    except InputError as error:
        assert '\n' not in str(error)
        return 'refused'
    return 'read'


def test_mutated_run_files(tmp_path, finished_run):
    """Whatever reads the files of a run, at 30 mutations of each and at odd values of each key."""
    run = tmp_path / 'run'
    shutil.copytree(finished_run / 'run', run, ignore=shutil.ignore_patterns('*.pth', '*.png'))
    database = folders.OpenDatabase('livec', finished_run / 'livec')
    readers = {
        'config.json': read_record,
        'round_01/result.json': lambda path: results.read_round(path.parent),
        'round_01/split.json': lambda path: splits.read_split(path, database),
        'round_01/history.csv': results.read_columns,
        'round_01/predictions.csv': results.read_columns,
    }
    for name, reader in readers.items():
        found = [outcome(reader, run / name) for _ in mutations(run / name, 30)]
        assert 'refused' in found and len(found) == 30, name
    for value in (None, 1, '', [], {}, [[]], {'a': 1}, [None], True, '1', -1, 1e400):
        for name in readers:
            if name.endswith('.json'):
                content = json.loads((run / name).read_text())
                for key in content:
                    (run / name).write_text(json.dumps({**content, key: value}))
                    outcome(readers[name], run / name)
                    (run / name).write_text(json.dumps(content))


LABELS = {
    'livec': 'Data/AllMOS_release.mat',
    'koniq': 'koniq10k_scores_and_distributions.csv',
    'kadid10k': 'dmos.csv',
    'tid2013': 'mos_with_names.txt',
    'flive': 'labels_image.csv',
    'agiqa3k': 'data.csv',
    'csiq': 'csiq_label.txt',
    'csiq_sheet': 'csiq.beta.xlsx',
    'spaq': 'MOS and Image attribute scores.xlsx',
    'live': 'dmos_realigned.mat',
}


@pytest.mark.parametrize('name', LABELS)
def test_mutated_label_files(make_database, name):
    root = make_database(name)
    labels = next(path for path in root.rglob('*') if path.name == LABELS[name].rpartition('/')[2])
    found = [
        outcome(folders.read_labels, name.partition('_')[0], root) for _ in mutations(labels, 15)
    ]
    assert len(found) == 15 and 'refused' in found


def test_mutated_tables_of_ones_own(tmp_path):
    for k in range(6):
        (tmp_path / f'{k}.png').touch()
    table = tmp_path / 'labels.csv'
    table.write_text(
        'image,score,content\n' + ''.join(f'{k}.png,{k + 0.5},scene {k // 2}\n' for k in range(6))
    )
    found = [outcome(folders.read_labels, 'csv', table) for _ in mutations(table, 60)]
    assert len(found) == 60 and {'read', 'refused'} == set(found)


def test_mutated_checkpoints_are_refused_or_equal(tmp_path):
    state = {
        'weight': torch.arange(60.0),
        'nested': {'bias': torch.zeros(3), 'epoch': 4, 'name': 'x'},
    }
    path = tmp_path / 'small.pth'
    torch.save(state, path)
    equal = 0
    for _ in mutations(path, 100):
        try:
            content = checkpoints.read_checkpoint(path)
        except InputError as error:
            assert '\n' not in str(error)
            continue
        equal += 1
        assert torch.equal(content['weight'], state['weight']) and torch.equal(
            content['nested']['bias'], torch.zeros(3)
        )
        assert content['nested']['epoch'] == 4 and content['nested']['name'] == 'x'
    assert equal < 50


def test_edited_run_files_are_one_line_of_the_program(tmp_path, finished_run, program):
    """Through the whole program, where the files decide what it does."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    run = tmp_path / 'run'
    shutil.copytree(finished_run / 'run', run, ignore=shutil.ignore_patterns('*.pth', '*.png'))
    for name, key, value in (
        ('config.json', 'options', {'lr': 'x', 'epochs': []}),
        ('config.json', 'options', {'train_test_num': 'ten'}),
        ('config.json', 'model', {'resize': 'x'}),
        ('round_01/split.json', 'train', {'a': 1}),
        ('round_01/split.json', 'test', 7),
        ('round_01/result.json', 'epoch', 'x'),
        ('round_01/result.json', 'SRCC', []),
    ):
        content = (run / name).read_bytes()
        (run / name).write_text(json.dumps({**json.loads(content), key: value}))
        for options in (
            (*TINY, '--output', 'run', '--resume'),
            ('--summarize', 'run'),
            ('--evaluate', 'run/round_01/best.pth', '--data_root', 'livec'),
        ):
            done = program(*options)
            assert done.returncode in (0, 2) and 'Traceback' not in done.stderr
            if '--resume' in options:
                assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
                    'error: run'
                ), done.stderr
        (run / name).write_bytes(content)
