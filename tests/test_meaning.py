"""What an image and a score mean goes with the weights, and what is said of a table reaches it."""

import json
import os
import shutil

import pytest
import torch
from helpers import own_table, read_table

import models
import train_test_IQA
from experiment.command_line import parse_options
from folders import DATABASES
from scoring.trained import load_trained, meaning_of
from util import checkpoints, files
from util.errors import InputError
from util.meaning import Meaning

KONIQ = DATABASES['koniq'].meaning
OTHER = Meaning('other images', [1, 5], False, [1, 5], [240, 250], True, True)
THIRD = OTHER._replace(title='third images')
ASSUMED = "taken for the original authors' model"


@pytest.fixture(scope='module')
def weights():
    """A HyperIQA's state_dict."""
    torch.manual_seed(4)
    return dict(models.hyperiqa().state_dict())


@pytest.fixture
def old_run(tmp_path, weights):
    """A run of an earlier version, whose best.pth is a plain dict; the path of that file."""
    path = tmp_path / 'run' / 'round_01' / 'best.pth'
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    write_record(tmp_path / 'run', THIRD)
    return path


def write_record(folder, meaning):
    files.write_json(folder / 'config.json', {'options': {}, 'model': meaning._asdict()})


def read_meaning(path):
    return meaning_of(path, checkpoints.read_trained(path))


def test_the_checkpoints_of_a_run_say_what_they_mean_wherever_they_are(finished_run, tmp_path):
    run = finished_run / 'run'
    expected = Meaning.of_record(files.read_json(run / 'config.json')['model'])
    for name in ('best.pth', 'last.pth'):
        os.link(run / 'round_01' / name, tmp_path / name)
        assert load_trained(tmp_path / name)[1] == expected != KONIQ


def test_a_best_checkpoint_is_still_a_plain_state_dict(tmp_path, weights):
    path = tmp_path / 'best.pth'
    checkpoints.write_weights(path, weights, OTHER._asdict())
    for mmap in (False, True):
        content = torch.load(path, weights_only=True, mmap=mmap)
        assert list(content) == list(weights)
        assert all(isinstance(value, torch.Tensor) for value in content.values())
        models.hyperiqa().load_state_dict(content, strict=True)
    assert checkpoints.digest(content) == checkpoints.digest(weights)
    # The record of another run next to it is not asked.
    write_record(tmp_path, THIRD)
    assert read_meaning(path) == OTHER


@pytest.mark.parametrize('kept', ['nothing', 'result', 'last'])
def test_an_earlier_best_checkpoint_is_of_its_run_if_the_digest_agrees(
    old_run, weights, kept, capsys
):
    digest = checkpoints.digest(weights)
    other = '0' * 64
    # Of two digests, as while a finished round is extended, one has to agree.
    if kept == 'result':
        files.write_json(old_run.with_name('result.json'), {'weights': digest})
        torch.save({'best': {'weights': other}}, old_run.with_name('last.pth'))
    elif kept == 'last':
        files.write_json(old_run.with_name('result.json'), {'weights': other})
        torch.save({'best': {'weights': digest}}, old_run.with_name('last.pth'))
    assert read_meaning(old_run) == THIRD and capsys.readouterr().err == ''

    if kept != 'nothing':
        torch.save({**weights, 'fc5b_fc.bias': torch.ones(1)}, old_run)
        assert read_meaning(old_run) == KONIQ and ASSUMED in capsys.readouterr().err


def test_foreign_weights_in_a_run_folder_are_not_the_runs(old_run, capsys):
    run = old_run.parents[1]
    for path in (old_run.with_name('mine.pth'), run / 'mine.pth', run / 'best.pth'):
        os.link(old_run, path)
        assert read_meaning(path) == KONIQ and ASSUMED in capsys.readouterr().err


def test_a_copied_record_counts_and_another_tools_does_not(old_run, tmp_path, capsys):
    far = tmp_path / 'far'
    far.mkdir()
    os.link(old_run, far / 'any.pth')
    assert read_meaning(far / 'any.pth') == KONIQ and ASSUMED in capsys.readouterr().err
    for text in ('{"model_type": "quality", "model": {}}', '[]', '{'):
        (far / 'config.json').write_text(text)
        assert read_meaning(far / 'any.pth') == KONIQ and ASSUMED in capsys.readouterr().err
    write_record(far, OTHER)
    assert read_meaning(far / 'any.pth') == OTHER and capsys.readouterr().err == ''


def test_evaluate_takes_the_unit_and_direction_from_a_moved_checkpoint(program, tmp_path, weights):
    """Scores of 1 to 5 in which lower is better, of a network that gives 0 to 1."""
    path = tmp_path / 'moved.pth'
    checkpoints.write_weights(path, weights, OTHER._asdict())
    names = [f'{k}.png' for k in range(4)]
    rows = [f'{name},{k + 1}' for k, name in enumerate(names)]
    own_table(tmp_path, '\n'.join(['image,dmos', *rows]), images=names, size=(230, 240))
    options = ('--test_patch_num', 1, '--device', 'cpu', '--cache', 'none')
    done = program('--evaluate', path, '--test_on', 'csv=mine.csv', *options, '--output', 'out')
    assert done.returncode == 0, done.stderr
    assert 'labels of other images: 1 to 5, lower is better' in done.stderr
    result = files.read_json(tmp_path / 'out' / 'result.json')['databases']['mine']
    table = read_table(tmp_path / 'out' / 'predictions_mine.csv')
    predicted = [float(row['prediction']) for row in table]
    network, _ = load_trained(path)
    plain = tmp_path / 'plain.pth'
    meaning = OTHER._replace(score_range=None, higher_is_better=True)
    checkpoints.write_weights(plain, network.state_dict(), meaning._asdict())
    again = program('--evaluate', plain, '--test_on', 'csv=mine.csv', *options, '--output', 'again')
    assert again.returncode == 0, again.stderr
    turned = files.read_json(tmp_path / 'again' / 'result.json')['databases']['mine']
    outputs = read_table(tmp_path / 'again' / 'predictions_mine.csv')
    in_unit = [1 + 4 * float(row['prediction']) for row in outputs]
    assert predicted == pytest.approx(in_unit)
    assert result['SRCC'] == -turned['SRCC'] != 0


def parsed(tmp_path, *options):
    return parse_options([str(option) for option in (*options, '--device', 'cpu')])


def test_a_table_of_test_on_is_read_as_the_options_say(old_run, tmp_path):
    """The record of the run, which is of a table too, does not say how another one is read."""
    (tmp_path / 'elsewhere').mkdir()
    table = own_table(tmp_path, 'pic,opinion\na.png,1\nb.png,2\n')
    for name in ('a.png', 'b.png'):
        shutil.move(tmp_path / name, tmp_path / 'elsewhere' / name)
    trained_on = str(own_table(tmp_path, 'x,score\na.png,1\n', images=(), name='train.csv'))
    own = {'csv': trained_on, 'dataset': 'csv', 'columns': {'image': 'x'}, 'image_root': 'gone'}
    record = {'options': {**own, 'lower_is_better': False}, 'model': THIRD._asdict()}
    files.write_json(tmp_path / 'run' / 'config.json', record)
    config = parsed(
        tmp_path,
        *('--evaluate', old_run, '--test_on', f'csv={table}', '--lower_is_better'),
        *('--columns', 'image=pic', 'score=opinion', '--data_root', tmp_path / 'elsewhere'),
    )
    other = train_test_IQA.open_others(config)['mine']
    assert [sample.score for sample in other.samples] == [1, 2]
    assert not other.higher_is_better
    # To repeat the test of the round, the record says how its table is read.
    again = parsed(tmp_path, '--evaluate', old_run)
    assert (again.csv, again.columns, again.image_root) == (trained_on, {'image': 'x'}, 'gone')


def test_what_is_said_of_the_training_table_reaches_the_other_tables_of_its_lab(tmp_path):
    train = own_table(tmp_path, 'pic,opinion\na.png,1\nb.png,2\n', name='train.csv')
    same = own_table(tmp_path, 'pic,score,opinion\na.png,9,1\nb.png,9,2\n', name='same.csv')
    named = own_table(tmp_path, 'image,score\na.png,3\nb.png,4\n', name='named.csv')
    config = parsed(
        tmp_path,
        *('--csv', train, '--columns', 'image=pic', 'score=opinion', '--lower_is_better'),
        *('--test_on', f'csv={same}', f'csv={named}'),
    )
    others = train_test_IQA.open_others(config)
    assert [sample.score for sample in others['same'].samples] == [1, 2]
    assert [sample.score for sample in others['named'].samples] == [3, 4]
    assert not any(other.higher_is_better for other in others.values())


@pytest.mark.parametrize('version', [None, 2])
def test_a_run_of_an_earlier_version_reads_its_other_tables_as_it_began(tmp_path, version):
    names = [f'{k}.png' for k in range(10)]
    rows = '\n'.join(f'{name},{k}' for k, name in enumerate(names))
    train = own_table(tmp_path, f'image,score\n{rows}', images=names, name='train.csv')
    shutil.copy(train, tmp_path / 'test.csv')
    options = (
        *('--csv', train, '--lower_is_better', '--test_on', f'csv={tmp_path / "test.csv"}'),
        *('--weights', 'none', '--output', tmp_path / 'run', '--resume'),
    )
    config = parsed(tmp_path, *options)
    meaning = train_test_IQA.open_database(config).meaning(normalized=False)
    record = {'options': vars(config), 'model': meaning._asdict()}
    if version:
        record['version'] = version
    (tmp_path / 'run' / 'round_01').mkdir(parents=True)
    (tmp_path / 'run' / 'round_01' / 'history.csv').touch()
    files.write_json(tmp_path / 'run' / 'config.json', json.loads(json.dumps(record)))
    job = train_test_IQA.prepare_run(config)
    assert job.others['test'].higher_is_better is (version is None)


@pytest.mark.parametrize(
    'options, reason',
    [
        (('--test_on', 'koniq=x', '--data_root', 'y'), '--data_root: with --evaluate, the names'),
        (('--test_on', 'koniq=x', '--columns', 'image=pic'), 'or of --test_on csv=FILE'),
        (('--test_on', 'koniq=x', '--lower_is_better'), 'or of --test_on csv=FILE'),
        (('--test_on', 'csv=x.csv', '--csv', 'y.csv'), '--test_on csv=FILE names a table'),
        (('--lower_is_better',), 'or of --test_on csv=FILE'),
    ],
)
def test_an_option_without_a_table_is_refused(tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        parsed(tmp_path, '--evaluate', tmp_path / 'best.pth', *options)


def test_tables_of_one_name_are_told_apart_by_the_nearest_folder_that_differs(tmp_path):
    def names(*paths):
        tables = [f'csv={path}' for path in paths]
        config = parsed(tmp_path, '--dataset', 'demo', '--test_on', 'koniq=x', *tables)
        return [name for name, _, _ in config.test_on]

    assert names('a/test.csv', 'b/test.csv', 'b/x.csv') == ['koniq', 'a-test', 'b-test', 'x']
    assert names('a/c/test.csv', 'b/c/test.csv') == ['koniq', 'a-test', 'b-test']
    with pytest.raises(InputError, match='can be named once'):
        names('a/test.csv', 'a/../a/test.csv')


def test_check_looks_at_the_tables_of_test_on_too(program, tmp_path):
    names = [f'{k}.png' for k in range(10)]
    rows = '\n'.join(f'{name},{k}' for k, name in enumerate(names))
    own_table(tmp_path, f'image,score\n{rows}', images=names, size=(230, 240))
    (tmp_path / 'broken.csv').write_text('image,score\n0.png,1\n1.png,2\n12.png,3\n')
    options = ('--csv', 'mine.csv', '--check', '--test_on')
    done = program(*options, 'csv=broken.csv')
    assert done.returncode == 2 and '12.png' in done.stderr.splitlines()[-1]
    # An image that is there and cannot be trained on is found as in the database itself.
    own_table(
        tmp_path,
        'image,score\nsmall.png,1\n1.png,2\n',
        images=['small.png'],
        name='s.csv',
        size=(99, 99),
    )
    done = program(*options, 'csv=s.csv')
    assert done.returncode == 2 and '--test_on s' in done.stdout
    assert 'can be trained on\n\n--test_on s\n' in done.stdout
