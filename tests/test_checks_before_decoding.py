"""Whatever can be known without decoding an image is told before the first one is decoded."""

import json
import shutil

import databases
import pytest
from helpers import TINY, link_run


def foreign_weights(root):
    (root / 'foreign.pth').write_text('hello')


def official_sets(root):
    (root / 'koniq').mkdir()
    databases.koniq(root / 'koniq')


def other_without_images(root):
    official_sets(root)
    shutil.rmtree(root / 'koniq' / '1024x768')


def run_of_other_images(root, finished_run):
    """The finished run's folder, as if it had been made when the database had another image."""
    link_run(finished_run / 'run', root / 'run')
    split = root / 'run' / 'round_02' / 'split.json'
    split.write_text(split.read_text().replace('3.bmp', 'other.bmp'))


@pytest.mark.parametrize(
    'prepare, options, reason',
    [
        (foreign_weights, ('--weights', 'foreign.pth'), 'foreign.pth'),
        (None, ('--weights', 'absent.pth'), 'there is no file absent.pth'),
        (None, ('--split', 'absent.json'), 'absent.json'),
        (
            None,
            ('--split', 'official'),
            '--split official: LIVE Challenge has no official sets; use --split random',
        ),
        (None, ('--val_ratio', 0.01), '8 images or contents are too few to split'),
        (None, ('--test_on', 'koniq=absent'), 'KonIQ-10k: there is no folder absent'),
        (other_without_images, ('--test_on', 'koniq=koniq'), 'there is no image folder 1024x768'),
        (run_of_other_images, ('--resume',), 'round_02/split.json names other images'),
        (run_of_other_images, (), 'the run folder run exists already'),
        (run_of_other_images, ('--resume', '--lr', 1), '--lr was 2e-05, is 1'),
        (None, ('--output', 'livec/Images'), 'it is not a run folder'),
        (
            None,
            ('--output', 'livec/Images/3.bmp/run/x'),
            'Images/3.bmp cannot be written; --output DIR names another place',
        ),
    ],
)
def test_an_error_that_needs_no_pixel_comes_before_the_first_decoded_image(
    tmp_path, finished_run, program, prepare, options, reason
):
    shutil.copytree(
        finished_run / 'livec', tmp_path / 'livec', ignore=shutil.ignore_patterns('.hyperiqa_cache')
    )
    if prepare:
        prepare(tmp_path, *[finished_run] * (prepare is run_of_other_images))
    done = program(*TINY, '--output', 'run', *options)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1], done.stderr
    assert 'decoding' not in done.stderr and not list(tmp_path.rglob('.hyperiqa_cache'))


@pytest.mark.parametrize(
    'damage', ['foreign name', 'no test part', 'no file', 'damaged checkpoint']
)
def test_evaluates_split_and_checkpoint_are_read_before_the_first_image(
    tmp_path, finished_run, program, damage
):
    shutil.copytree(
        finished_run / 'livec', tmp_path / 'livec', ignore=shutil.ignore_patterns('.hyperiqa_cache')
    )
    link_run(finished_run / 'run', tmp_path / 'run')
    checkpoint = tmp_path / 'run' / 'round_01' / 'best.pth'
    split = checkpoint.with_name('split.json')
    names = json.loads(split.read_text())
    if damage == 'foreign name':
        split.write_text(json.dumps({**names, 'test': ['Images/none.bmp']}))
    elif damage == 'no test part':
        split.write_text(json.dumps({'train': names['train']}))
    elif damage == 'no file':
        split.unlink()
    else:
        start = checkpoint.read_bytes()[:1000]
        checkpoint.unlink()  # it is a link
        checkpoint.write_bytes(start)
    done = program('--evaluate', checkpoint, '--device', 'cpu')
    assert done.returncode == 2 and str(checkpoint.parent) in done.stderr.splitlines()[-1], (
        done.stderr
    )
    assert not list(tmp_path.rglob('.hyperiqa_cache'))
