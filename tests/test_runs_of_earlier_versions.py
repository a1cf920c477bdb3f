"""What existing run folders rely on stays, byte for byte; `runs/81d2473` is by that commit."""

import hashlib
import json
import shutil
from pathlib import Path

import databases
import numpy as np
import pytest
import torch
from helpers import TINY, history, link_run, own_table, read_table
from parity import fill
from PIL import Image

import folders
import models
from experiment import run_folder
from experiment.command_line import parse_options
from experiment.round_folder import RoundFolder
from experiment.splits import Job, requested_splits, split_record
from util import checkpoints, frames
from util.labels import Settings

OLD = Path(__file__).parent / 'runs' / '81d2473'
PINNED = json.loads((OLD / 'pinned.json').read_text())
OWN = 'image,score,content\na.png,3.5,x\nb.png,1.25,y\ndeep/c.png,2,x\nd.png,4,z\ne.png,5,w\n'
FEW_CONTENTS = ('csiq', 'csiq_sheet', 'csiq_folders', 'tid2013')  # which are split by image here


def open_form(form, make_database, tmp_path, split_by):
    """The key and the path of a small database in one of its forms."""
    if form == 'own':
        root = make_database(
            'own', text=OWN, images=('a.png', 'b.png', 'deep/c.png', 'd.png', 'e.png')
        )
        return folders.OpenDatabase('csv', root / 'mine.csv')
    path = tmp_path / 'demo' if form == 'demo' else make_database(form)
    return folders.OpenDatabase(form.split('_')[0], path, settings=Settings(split_by=split_by))


@pytest.mark.parametrize('form', PINNED)
def test_digests_splits_and_owners_stay(form, make_database, tmp_path):
    split_by = 'image' if form in FEW_CONTENTS else None
    database = open_form(form, make_database, tmp_path, split_by)
    options = [
        '--dataset',
        database.key,
        '--device',
        'cpu',
        '--train_test_num',
        '2',
        '--seed',
        '3',
        '--output',
        tmp_path / 'run',
    ]
    options += ['--csv', database.path] if database.key == 'csv' else []
    options += ['--split_by', split_by] if split_by else []
    config = parse_options([*map(str, options)])
    pinned = PINNED[form]
    assert database.digest == pinned['digest']
    parts = split_record(requested_splits(config, database)[1][1], database)
    for part, names in pinned['split'].items():  # long lists are pinned by their hash
        assert names in (parts[part], hashlib.sha256(json.dumps(parts[part]).encode()).hexdigest())
    assert parts.keys() == pinned['split'].keys()
    meaning = database.meaning(config.normalize_scores)
    run_folder.open_run(config, Job(database, {}, [], meaning), {})
    folder = RoundFolder(config, meaning, 1, parts)
    folder.close()
    assert folder.owner == {name: pinned['owner'][name] for name in ('round', 'split')}
    assert folder.title == f'{database.entry.title}, seed 3, round 2'
    assert (
        hashlib.sha256((folder.path / 'split.json').read_bytes()).hexdigest()
        == pinned['split.json']
    )


def last_checkpoint():
    """The last.pth of that run, with weights and moments of parity/fill.py."""
    facts = json.loads((OLD / 'round_01' / 'last.json').read_text())
    groups = [{**group, 'params': list(range(*group['params']))} for group in facts['param_groups']]
    model = models.hyperiqa()
    hypernet = [p for name, p in model.named_parameters() if not name.startswith('res.')]
    parameters = [*hypernet, *model.res.parameters()]
    state = {
        k: {
            'step': torch.tensor(2.0),
            'exp_avg': torch.zeros_like(p),
            'exp_avg_sq': torch.zeros_like(p),
        }
        for k, p in enumerate(parameters)
    }
    weights = fill.fill(model.state_dict())
    scores = torch.tensor(facts['best']['scores'], dtype=torch.float64)
    values = {
        'model': weights,
        'optimizer': {'state': state, 'param_groups': groups},
        'history': facts['history'],
        'best': {**facts['best'], 'scores': scores, 'weights': checkpoints.digest(weights)},
        'rng': torch.get_rng_state(),
        'cuda_rng': [],
        'owner': facts['owner'],
    }
    assert list(values) == facts['keys']
    return values


@pytest.mark.slow
def test_an_unfinished_run_of_that_version_is_continued(finished_run, tmp_path, program):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    run = tmp_path / 'run'
    shutil.copytree(OLD, run, ignore=shutil.ignore_patterns('pinned.json', 'last.json'))
    torch.save(last_checkpoint(), run / 'round_01' / 'last.pth')
    before = {name: (run / name).read_bytes() for name in ('config.json', 'round_01/split.json')}
    options = (*TINY, '--test_patch_num', 2, '--rounds', 1, '--output', 'run')
    done = program(*options, '--resume')
    assert done.returncode == 0, done.stderr
    assert all((run / name).read_bytes() == content for name, content in before.items())
    first, second = history(run)
    old = read_table(OLD / 'round_01' / 'history.csv')[
        0
    ]  # digit by digit; a younger column is empty
    assert first == {**old, 'test_mae': ''} and float(second['test_mae']) > 0
    assert (first['epoch'], second['epoch']) == ('1', '2') and (
        run / 'round_01' / 'result.json'
    ).exists()


def test_a_run_of_an_earlier_version_is_refused_if_a_picture_has_other_pixels_now(
    finished_run, tmp_path, program
):
    """A TGA whose alpha is 0 everywhere, which was all white."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    run = link_run(finished_run / 'run', tmp_path / 'run')
    record = json.loads((run / 'config.json').read_text())
    assert record['frames'] == frames.FORMAT
    new = json.dumps(record)
    del record['frames']
    old = json.dumps(record)

    def resume_and_test(content, output):
        (run / 'config.json').write_text(content)
        (tmp_path / output).mkdir()
        return (
            program(*TINY, '--output', 'run', '--resume'),
            program('--evaluate', 'run/round_01/best.pth', '--output', output),
        )

    for done in resume_and_test(old, 'tested_1'):  # all pictures are shown as they were
        assert done.returncode == 0, done.stderr

    (tmp_path / 'livec').unlink()
    shutil.copytree(finished_run / 'livec', tmp_path / 'livec')
    blank = tmp_path / 'livec' / 'Images' / '5.bmp'
    with Image.open(blank) as image:
        pixels = np.dstack([np.asarray(image), np.zeros(image.size[::-1], np.uint8)])
    blank.unlink()
    Image.fromarray(pixels).save(blank, 'TGA')
    for done in resume_and_test(old, 'tested_2'):
        assert done.returncode == 2
        assert '5.bmp has other pixels than for the version that began this run' in done.stderr
    for done in resume_and_test(new, 'tested_3'):
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('earlier', [True, False])
def test_earlier_runs_test_on_other_images_without_converting_their_colours(
    earlier, finished_run, tmp_path, program
):
    """Two files of the same pixels, one in a wide gamut, as large as a patch: equal patches."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8).repeat(28, 0)
    picture = Image.fromarray(pixels.repeat(28, 1))
    picture.save(tmp_path / 'plain.png')
    picture.save(tmp_path / 'wide.png', icc_profile=databases.DISPLAY_P3)
    own_table(tmp_path, 'image,score\nplain.png,1\nwide.png,2\n', images=(), name='other.csv')

    # A run that ended its epochs but has not tested the best one; its version recorded no `srgb`.
    run = link_run(finished_run / 'run', tmp_path / 'run')
    (run / 'round_01' / 'result.json').unlink()
    record = json.loads((run / 'config.json').read_text())
    record['options']['test_on'] = [['other', 'csv', 'other.csv']]
    if earlier:
        del record['model']['srgb']
    (run / 'config.json').write_text(json.dumps(record))

    options = ('--output', 'run', '--resume', '--rounds', 1, '--test_on', 'csv=other.csv')
    done = program(*TINY, *options)
    assert done.returncode == 0, done.stderr
    plain, wide = read_table(run / 'round_01' / 'predictions_other.csv')
    equal = pytest.approx(float(plain['prediction']), rel=1e-5)
    assert (float(wide['prediction']) == equal) == earlier
