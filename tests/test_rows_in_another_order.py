"""A table that was sorted, or that is in another place, since a run began."""

import shutil

import pytest
from helpers import QUICK, link_run, own_images

OPTIONS = (*QUICK, '--epochs', 1, '--test_patch_num', 1)


@pytest.fixture(scope='module')
def run_of_table(tmp_path_factory):
    """A folder with mine/labels.csv and a finished run on it."""
    import train_test_IQA

    folder = tmp_path_factory.mktemp('sorted')
    own_images(folder, count=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr('signal.signal', lambda *handler: None)
        train_test_IQA.main([*map(str, ('--csv', 'mine/labels.csv', *OPTIONS, '--output', 'run'))])
    return folder


@pytest.fixture
def sorted_table(run_of_table, tmp_path):
    """A copy of `run_of_table` in the current folder, whose table is in another order."""
    shutil.copytree(run_of_table / 'mine', tmp_path / 'mine')
    link_run(run_of_table / 'run', tmp_path / 'run')
    table = tmp_path / 'mine' / 'labels.csv'
    header, *rows = table.read_text().splitlines()
    table.write_text('\n'.join([header, *reversed(rows)]) + '\n')
    return table


def results(folder):
    files = [path for path in folder.rglob('*') if path.suffix in ('.json', '.csv', '.pth')]
    return {path: path.read_bytes() for path in files}


def test_a_finished_run_goes_on_and_gives_its_results(program, sorted_table, tmp_path):
    before = results(tmp_path / 'run')
    done = program('--resume', 'run')
    assert done.returncode == 0, done.stderr
    assert 'Testing median SRCC' in done.stdout
    assert results(tmp_path / 'run') == before


@pytest.mark.parametrize('more', [('--epochs', 2), ('--train_test_num', 2)])
def test_more_epochs_or_rounds_name_the_order(program, sorted_table, tmp_path, more):
    before = results(tmp_path / 'run')
    done = program('--resume', 'run', *more)
    assert done.returncode == 2
    assert 'the rows of the labels are in another order than when' in done.stderr.splitlines()[-1]
    assert results(tmp_path / 'run') == before


def test_a_test_is_repeated_to_the_digit(program, sorted_table, run_of_table, tmp_path):
    evaluate = ('--evaluate', 'run/round_01/best.pth')
    done = program(*evaluate)
    assert done.returncode == 0, done.stderr
    shutil.copy(run_of_table / 'mine' / 'labels.csv', sorted_table)
    assert program(*evaluate).stdout == done.stdout


def test_other_scores_are_still_refused(program, sorted_table):
    sorted_table.write_text(sorted_table.read_text().replace('100', '101'))
    for options in (('--resume', 'run'), ('--evaluate', 'run/round_01/best.pth')):
        done = program(*options)
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert 'of the labels have changed' in line or 'names other images' in line


@pytest.mark.parametrize('options', [('--evaluate', 'run/round_01/best.pth'), ('--resume', 'run')])
def test_a_table_that_the_record_names_and_that_is_gone(program, sorted_table, tmp_path, options):
    sorted_table.rename(tmp_path / 'mine' / 'moved.csv')
    done = program(*options)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith('error: there is no file mine/labels.csv, which ')
    assert line.endswith('run/config.json names as the table of the run; --csv FILE names it anew')
    done = program(*options, '--csv', 'mine/moved.csv')
    assert done.returncode == 0, done.stderr
