"""demo.py scores files and folders, the same at every call."""

import csv

import databases
import pytest
import torch

import demo
import models


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('checkpoint') / 'best.pth'
    torch.save(models.hyperiqa().state_dict(), path)
    return path


def scores(done):
    return [line.split('\t') for line in done.stdout.splitlines()]


def test_files_and_folders_score_the_same_at_every_call(tmp_path, script, in_process, checkpoint):
    for name, size in (('a.jpg', (600, 500)), ('folder/b.PNG', (520, 400)), ('folder/deeper/c.bmp', (512, 384))):
        databases.picture(tmp_path / name, seed=len(name), size=size)
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    first = script('demo.py', '--checkpoint', checkpoint, '--patches', 3, '--csv', 'scores.csv', 'a.jpg', 'folder')
    assert first.returncode == 0, first.stderr
    assert [path for path, _ in scores(first)] == ['a.jpg', 'folder/b.PNG', 'folder/deeper/c.bmp']
    with open(tmp_path / 'scores.csv', newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0] == ['image', 'score'] and [f'{float(score):.4f}' for _, score in rows[1:]] == [
        score for _, score in scores(first)
    ]

    (tmp_path / 'a.jpg').rename(tmp_path / 'renamed.jpg')
    again = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 3, 'folder', 'renamed.jpg')
    assert dict(scores(again))['renamed.jpg'] == dict(scores(first))['a.jpg']
    assert dict(scores(again))['folder/b.PNG'] == dict(scores(first))['folder/b.PNG']


def test_unreadable_files_are_skipped_with_exit_code_2(tmp_path, in_process, checkpoint):
    databases.picture(tmp_path / 'good.png')
    (tmp_path / 'bad.png').write_bytes(b'no image')
    done = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 1, 'bad.png', 'good.png', 'absent.png')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert [path for path, _ in scores(done)] == ['good.png']
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith('skipped: ')] == ['bad.png', 'absent.png']


def test_the_resize_is_that_of_the_training(tmp_path, in_process, checkpoint, finished_run):
    """livec has none, so a small image is enlarged; a checkpoint outside a run folder is taken for a KonIQ model."""
    databases.picture(tmp_path / 'small.png', size=(100, 300))
    done = in_process(demo.main, '--checkpoint', finished_run / 'run' / 'round_01' / 'best.pth', '--patches', 1, 'small.png')
    assert 'small.png is 300x100: enlarged to 672x224' in done.stderr and len(scores(done)) == 1
    done = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 1, 'small.png')
    assert 'resized to 512 high, 384 wide' in done.stderr and 'enlarged' not in done.stderr


def test_no_images_or_checkpoint(tmp_path, in_process, checkpoint):
    (tmp_path / 'empty').mkdir()
    for options, reason in (
        (('--checkpoint', checkpoint, 'empty'), 'there are no images in the folder empty'),
        (('--checkpoint', 'none.pth', 'a.jpg'), 'there is no file none.pth'),
    ):
        done = in_process(demo.main, *options)
        assert done.returncode == 2 and reason in done.stderr and 'Traceback' not in done.stderr
