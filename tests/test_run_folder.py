"""A run is never lost: whole files, exact resume after real kills, refusals that change nothing."""

import csv
import json
import os
import pickle
import resource
import shutil
import signal

import databases
import forked
import numpy as np
import pytest
import scipy.io
import torch
from helpers import (
    TINY,
    assert_same_run,
    best_row,
    history,
    link_run,
    read_table,
    wait_until,
    without_times,
)
from PIL import Image

import demo
import train_test_IQA
from experiment import results
from experiment.report import print_medians
from experiment.round_folder import RoundFolder
from util.errors import InputError
from util.metrics import plcc, srcc


@pytest.fixture
def workplace(tmp_path, finished_run):
    """A folder with the database of `finished_run` and no run yet."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    return tmp_path


def start(folder, *options, **limits):
    return forked.program(
        train_test_IQA.main, *TINY, '--output', 'run', *options, folder=folder, **limits
    )


def writing(folder, name):
    return any(folder.glob(f'.{name}.*.tmp'))


def kill_when(condition, folder, *options):
    process = start(folder, '--resume', *options)
    wait_until(condition, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_many_points_resumes_to_the_same_bytes(workplace, finished_run):
    """Each of the four epochs runs with another combination of cache and workers."""
    run = workplace / 'run'
    first, second = run / 'round_01', run / 'round_02'
    in_thread, direct = ('--num_workers', 0), ('--cache', 'none')

    def epochs(folder):
        return len(read_table(folder / 'history.csv')) if (folder / 'history.csv').exists() else 0

    kill_when(lambda: writing(first, 'last.pth'), workplace)  # before anything is kept
    assert not (first / 'last.pth').exists() and writing(first, 'last.pth')
    kill_when(
        lambda: writing(first, 'best.pth'), workplace, *in_thread
    )  # last.pth kept, what follows from it not
    kill_when(lambda: epochs(first) == 1 and writing(first, 'last.pth'), workplace)
    kill_when(lambda: (first / 'result.json').exists(), workplace, *direct)  # between rounds
    kill_when(lambda: epochs(second) == 1, workplace, *direct, *in_thread)
    done = start(workplace, '--resume')
    printed, errors = done.communicate()
    assert done.returncode == 0, errors
    assert_same_run(run, finished_run / 'run')
    assert not list(run.rglob('.*.tmp'))
    expected, printed = (
        without_times(text).splitlines()
        for text in ((finished_run / 'stdout.txt').read_text(), printed)
    )
    assert printed[-7:] == expected[-7:]  # the last round's table and the medians


@pytest.mark.slow
@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_cleanly_and_says_how_to_resume(workplace, killed_run, number, code):
    """SIGINT comes while best.pth is written, SIGTERM during an epoch."""
    link_run(killed_run, workplace / 'run')
    process = start(workplace, '--resume')
    if number == signal.SIGINT:
        wait_until(lambda: writing(workplace / 'run' / 'round_01', 'best.pth'), process)
    else:
        assert [process.stdout.readline().split()[0] for _ in range(3)] == ['Round', 'Epoch', '1']
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert (
        errors.splitlines()[-1]
        == 'interrupted; the same command with --resume continues after the last finished epoch'
    )
    assert 'Traceback' not in errors
    assert not list((workplace / 'run').rglob('.*.tmp'))


@pytest.fixture
def copied_run(workplace, finished_run):
    """A copy of the finished run without the end of round 2, which a resume has to do."""
    run = link_run(finished_run / 'run', workplace / 'run')  # a copy would be 0.9 GB
    best_is_last = best_row(history(run, 2)) == history(run, 2)[-1]
    for name in ('result.json', 'predictions.csv', 'history.csv', *['best.pth'] * best_is_last):
        (run / 'round_02' / name).unlink()
    results.gather_results(run)
    before = fingerprint(finished_run / 'run')
    yield run
    assert fingerprint(finished_run / 'run') == before  # what is linked was not written into


def fingerprint(folder):
    """The content of every file; of a checkpoint only its times and size, as hashing takes long."""

    def state_of(path):
        state = path.stat()
        return (
            (state.st_ino, state.st_size, state.st_mtime_ns)
            if path.suffix == '.pth'
            else path.read_bytes()
        )

    return {
        path.relative_to(folder): state_of(path)
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture
def resume(workplace, program):
    """resume(*options) runs TINY with further options in the folder `run` of `workplace`."""
    return lambda *options: program(*TINY, '--output', 'run', *options)


def test_what_follows_from_the_last_checkpoint_is_written_anew(
    workplace, finished_run, copied_run, resume
):
    done = resume('--resume')
    assert done.returncode == 0
    assert_same_run(copied_run, finished_run / 'run')
    assert done.stdout == (finished_run / 'stdout.txt').read_text().replace(
        table_of_round_1(finished_run), ''
    )


def table_of_round_1(finished_run):
    """A finished round is not printed again, only its result."""
    lines = (finished_run / 'stdout.txt').read_text().splitlines(keepends=True)
    return ''.join(lines[1:4])


class Payload:
    def __reduce__(self):
        return os.mkdir, ('payload-ran',)


@pytest.mark.parametrize('damage', ['truncated', 'text', 'foreign', 'other network', 'payload'])
def test_a_damaged_last_checkpoint_is_refused_and_the_folder_left_as_it_was(
    workplace, copied_run, damage, resume
):
    path = copied_run / 'round_02' / 'last.pth'
    content = path.read_bytes()
    path.unlink()  # it is a link
    if damage == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    elif damage == 'text':
        path.write_text('hello')
    else:
        torch.save(
            {
                'foreign': {'model': 1},
                'payload': {'model': Payload()},
                'other network': {'model': {'weight': torch.zeros(1)}},
            }[damage],
            path,
        )
    before = fingerprint(copied_run)
    done = resume('--resume')
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1].startswith('error: run/round_02/last.pth ')
        and 'Traceback' not in done.stderr
    )
    assert fingerprint(copied_run) == before
    assert not (workplace / 'payload-ran').exists()


def test_a_pickle_payload_is_refused_unrun_by_every_program(workplace, in_process):
    torch.save({'model': Payload()}, workplace / 'payload.pth')
    (workplace / 'plain.pth').write_bytes(pickle.dumps(Payload()))
    for name in ('payload.pth', 'plain.pth'):
        for main, *options in (
            (train_test_IQA.main, *TINY, '--weights', name),
            (demo.main, '--checkpoint', name, 'livec/Images/3.bmp'),
        ):
            done = in_process(main, *options)
            assert done.returncode == 2 and f'error: {name} ' in done.stderr
            assert 'Traceback' not in done.stderr
    assert not (workplace / 'payload-ran').exists()


@pytest.mark.slow
def test_a_full_disk_gives_one_line_and_the_previous_checkpoint_still_loads(
    workplace, killed_run, finished_run, resume
):
    """A limit on the file size stands in for the disk: the checkpoint's write fails halfway."""
    link_run(killed_run, workplace / 'run')
    path = workplace / 'run' / 'round_01' / 'last.pth'
    before = path.read_bytes()
    limited = start(workplace, '--resume')
    wait_until(lambda: reserved(path.parent) > 300_000_000, limited)
    resource.prlimit(limited.pid, resource.RLIMIT_FSIZE, (200_000_000, 200_000_000))
    _, errors = limited.communicate()
    assert limited.returncode == 2
    assert errors.splitlines()[-1].startswith(
        'error: run/round_01/last.pth cannot be written: File too large'
    )
    assert path.read_bytes() == before and not list(path.parent.glob('.*.tmp'))
    done = resume('--resume', '--rounds', 1)
    assert done.returncode == 0, done.stderr
    assert_same_run(workplace / 'run', finished_run / 'run', rounds=[1])


def reserved(folder):
    """The bytes of the disk, and not only of a file's length, that a round has reserved."""
    path = folder / '.reserved.tmp'
    return 512 * path.stat().st_blocks if path.exists() else 0


def test_a_checkpoint_without_room_is_refused_before_the_first_epoch(workplace):
    limited = start(workplace, limits={resource.RLIMIT_FSIZE: 200_000_000})
    printed, errors = limited.communicate()
    assert limited.returncode == 2 and printed == 'Round 1\n'
    assert errors.splitlines()[-1] == (
        'error: run/round_01/last.pth has no room for its 329 MB: File too large; '
        'free some, or name another place with --output'
    )
    folder = workplace / 'run' / 'round_01'
    assert sorted(os.listdir(folder)) == ['.lock', 'split.json']


def test_the_room_of_a_checkpoint_is_taken_until_it_is_written(workplace, finished_run, resume):
    size = (finished_run / 'run' / 'round_01' / 'last.pth').stat().st_size
    folder = workplace / 'run' / 'round_01'
    kill_when(lambda: reserved(folder) >= size, workplace)
    assert resume('--resume', '--rounds', 1, '--epochs', 1).returncode == 0
    assert reserved(folder) == 0 and not list(folder.glob('.*.tmp'))


def test_refused_run_folders(workplace, copied_run, resume):
    before = fingerprint(copied_run)
    for options, reason in (
        ((), 'the run folder run exists already; --resume continues it'),
        (
            ('--resume', '--lr', 1e-3, '--seed', 4),
            'other options: --lr was 2e-05, is 0.001; --seed was 0, is 4',
        ),
        (('--output', 'livec'), 'livec has files, but it is not a run folder'),
        (('--output', 'livec/Images/3.bmp/x'), 'cannot be made'),
    ):
        done = resume(*options)
        assert (
            done.returncode == 2
            and reason in done.stderr.splitlines()[-1]
            and 'Traceback' not in done.stderr
        )
    assert fingerprint(copied_run) == before


def test_every_option_that_changes_a_number_must_agree_on_resume(copied_run, resume):
    for option, value, before, now in (
        ('--train_patch_num', 2, '1', '2'),
        ('--lr', 1e-3, '2e-05', '0.001'),
        ('--lr_ratio', 3, '10', '3.0'),
        ('--weight_decay', 0, '0.0005', '0.0'),
        ('--batch_size', 5, '4', '5'),
        ('--patience', 1, '0', '1'),
        ('--seed', 4, '0', '4'),
        ('--weights', 'imagenet', 'none', 'imagenet'),
        ('--val_ratio', 0.4, '0', '0.4'),
        ('--test_patch_num', 3, '1', '3'),
    ):
        done = resume('--resume', option, value)
        reason = f'other options: {option} was {before}, is {now}; '
        assert done.returncode == 2 and reason in done.stderr.splitlines()[-1], option


@pytest.mark.parametrize('kept', ['best.pth', 'history.csv', 'predictions.csv', 'result.json'])
def test_whatever_was_earned_protects_a_folder(copied_run, resume, kept):
    """Also where last.pth was deleted to save room."""
    shutil.rmtree(copied_run / 'round_02')
    for path in (copied_run / 'round_01').iterdir():
        if path.name not in (kept, 'split.json'):
            path.unlink()
    before = fingerprint(copied_run)
    done = resume('--lr', 1e-3)
    assert (
        done.returncode == 2 and 'the run folder run exists already' in done.stderr.splitlines()[-1]
    )
    done = resume('--lr', 1e-3, '--resume')
    assert done.returncode == 2 and '--lr was 2e-05, is 0.001' in done.stderr.splitlines()[-1]
    assert fingerprint(copied_run) == before


def test_labels_that_were_edited_since_are_refused(workplace, finished_run, copied_run, resume):
    before = fingerprint(copied_run)
    (workplace / 'livec').unlink()
    shutil.copytree(finished_run / 'livec', workplace / 'livec')
    labels = workplace / 'livec' / 'Data' / 'AllMOS_release.mat'
    scores = scipy.io.loadmat(labels)['AllMOS_release']
    scores[0, -1] += 1
    scipy.io.savemat(labels, {'AllMOS_release': scores})
    done = resume('--resume')
    assert (
        done.returncode == 2
        and 'the scores, contents, sets or order of the labels have changed'
        in done.stderr.splitlines()[-1]
    )
    assert fingerprint(copied_run) == before


def replace(source, target):
    target.unlink(missing_ok=True)
    os.link(source, target)


def test_a_state_says_whose_it_is_and_best_weights_are_compared(finished_run, copied_run, resume):
    """The last.pth of the other round; then a best.pth that is gone, and one of other weights."""
    replace(copied_run / 'round_01' / 'last.pth', copied_run / 'round_02' / 'last.pth')
    done = resume('--resume')
    assert (
        done.returncode == 2
        and 'it belongs to another round, or to another split' in done.stderr.splitlines()[-1]
    )
    replace(finished_run / 'run' / 'round_02' / 'last.pth', copied_run / 'round_02' / 'last.pth')
    state = torch.load(copied_run / 'round_02' / 'last.pth', weights_only=True)
    assert state['owner']['round'] == 2
    folder = RoundFolder.__new__(RoundFolder)
    folder.path = copied_run / 'round_02'
    replace(copied_run / 'round_01' / 'best.pth', folder.path / 'best.pth')
    with pytest.raises(InputError, match='best.pth has other weights'):
        folder.check_best(state['best'])
    (folder.path / 'best.pth').unlink()
    with pytest.raises(InputError, match='there is no file .*best.pth'):
        folder.check_best(state['best'])


def test_best_weights_that_are_lost_end_the_run_with_one_line(copied_run, finished_run, resume):
    state = torch.load(copied_run / 'round_02' / 'last.pth', weights_only=True)
    state['best']['epoch'] = 1  # as if the second epoch had not been better
    (copied_run / 'round_02' / 'last.pth').unlink()  # it is a link
    torch.save(state, copied_run / 'round_02' / 'last.pth')
    for make in (
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b'PK\3\4'),
    ):
        best = copied_run / 'round_02' / 'best.pth'
        best.unlink(missing_ok=True)
        make(best)
        done = resume('--resume')
        assert done.returncode == 2 and 'Traceback' not in done.stderr
        assert 'the weights of the best epoch, 1, are lost (' in done.stderr.splitlines()[-1]
        if best.is_dir():
            best.rmdir()
    assert not (copied_run / 'round_02' / 'result.json').exists()


def test_a_column_that_an_earlier_version_did_not_know_is_empty_and_an_unknown_one_is_kept(
    copied_run, resume
):
    path = copied_run / 'round_02' / 'last.pth'
    state = torch.load(path, weights_only=True)
    for row in state['history']:
        row['of_the_future'] = 7.5
    del state['history'][0]['train_loss']
    path.unlink()  # it is a link
    torch.save(state, path)
    done = resume('--resume')
    assert done.returncode == 0, done.stderr
    rows = history(copied_run, 2)
    assert [row['train_loss'] == '' for row in rows] == [True, False]
    assert [row['of_the_future'] for row in rows] == ['7.5', '7.5'] and list(rows[0])[-2:] == [
        'of_the_future',
        'train_loss',
    ]


def test_a_resume_on_other_threads_is_said(copied_run, resume):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        done = resume('--resume')
    finally:
        torch.set_num_threads(before)
    assert done.returncode == 0
    assert f'this run was made on {before} thread' in done.stderr


def test_stray_folders_do_not_count(copied_run, program):
    expected = program('--summarize', 'run').stdout
    for name in ('round_99', 'round_01.bak', 'round_1', 'round_xx', 'round_00'):
        shutil.copytree(
            copied_run / 'round_01', copied_run / name, ignore=shutil.ignore_patterns('*.pth')
        )
    (copied_run / 'round_03').touch()
    done = program('--summarize', 'run')
    assert (done.returncode, done.stdout) == (0, expected)


def test_another_users_run_is_summarised_and_not_written(finished_run, as_nobody, capfd):
    folder, run = as_nobody
    shutil.copytree(
        finished_run / 'run', folder / 'run', ignore=shutil.ignore_patterns('*.pth', '*.png')
    )
    before = fingerprint(folder)
    expected = (finished_run / 'stdout.txt').read_text().splitlines()[-1]
    printed = run(lambda: print_medians(results.gather_results('run')))
    assert printed == '' and capfd.readouterr().out.splitlines()[-1] == expected
    assert fingerprint(folder) == before


@pytest.mark.slow
def test_more_epochs_may_follow(workplace, killed_run, finished_run, resume):
    """An epoch does not depend on how many are asked for."""
    link_run(killed_run, workplace / 'run')  # after one epoch
    done = resume('--epochs', 1, '--train_test_num', 1, '--resume')
    assert done.returncode == 0, done.stderr
    done = resume('--epochs', 2, '--train_test_num', 1, '--resume')
    assert done.returncode == 0, done.stderr
    rows = [
        [{**row, 'seconds': ''} for row in history(run)]
        for run in (workplace / 'run', finished_run / 'run')
    ]
    assert rows[0] == rows[1]
    result = json.loads((workplace / 'run' / 'round_01' / 'result.json').read_text())
    assert result == json.loads((finished_run / 'run' / 'round_01' / 'result.json').read_text())
    done = resume('--epochs', 1, '--train_test_num', 1, '--resume')
    assert done.returncode == 2 and 'has trained 2 epochs; give 2 or more' in done.stderr


def test_a_changed_database_is_refused(workplace, copied_run, resume):
    (workplace / 'livec').unlink()
    (workplace / 'livec').mkdir()
    databases.livec(workplace / 'livec', images=13)
    done = resume('--resume')
    assert done.returncode == 2 and 'names other images than the database has now' in done.stderr


def test_the_files_of_a_finished_run(finished_run):
    run = finished_run / 'run'
    assert sorted(
        path.relative_to(run).as_posix() for path in run.rglob('*') if path.is_file()
    ) == sorted(
        ['.lock', 'config.json', 'curves.png', 'results.json']
        + [
            f'round_0{k}/{name}'
            for k in (1, 2)
            for name in (
                '.lock',
                'best.pth',
                'curves.png',
                'history.csv',
                'last.pth',
                'predictions.csv',
                'result.json',
                'scatter.png',
                'split.json',
                'worst.png',
            )
        ]
    )
    config = json.loads((run / 'config.json').read_text())
    assert config['options']['lr'] == 2e-5 and config['versions']['torch'] == torch.__version__
    assert list(history(run)[0]) == [
        'epoch',
        'train_loss',
        'train_srcc',
        'test_srcc',
        'test_plcc',
        'hypernet_lr',
        'backbone_lr',
        'seconds',
        'test_mae',
    ]
    split = json.loads((run / 'round_01' / 'split.json').read_text())
    assert [len(split[part]) for part in ('train', 'test')] == [6, 2]
    with Image.open(run / 'round_01' / 'curves.png') as image:
        assert min(image.size) > 500


def test_results_follow_from_the_predictions_of_the_best_epoch(finished_run):
    run = finished_run / 'run'
    results = json.loads((run / 'results.json').read_text())
    found = []
    for k in (1, 2):
        rows = read_table(run / f'round_0{k}' / 'predictions.csv')
        predicted, scores = ([float(row[name]) for row in rows] for name in ('prediction', 'score'))
        best = best_row(history(run, k))
        metrics = results['rounds'][str(k)]
        assert (
            (metrics['SRCC'], metrics['PLCC'])
            == (srcc(predicted, scores), plcc(predicted, scores))
            == (float(best['test_srcc']), float(best['test_plcc']))
        )
        assert metrics['epoch'] == int(best['epoch'])
        found.append(metrics['SRCC'])
    for name, function in (('median', np.median), ('mean', np.mean), ('std', np.std)):
        assert results[name]['SRCC'] == pytest.approx(function(found))


def test_best_pth_is_a_plain_state_dict_of_the_best_epoch(finished_run, program):
    run = finished_run / 'run'
    state = torch.load(run / 'round_01' / 'best.pth', weights_only=True)
    assert len(state) == 355 and all(isinstance(value, torch.Tensor) for value in state.values())
    for k, name in ((1, 'best.pth'), (2, 'best.pth'), (1, 'last.pth')):
        row = best_row(history(run, k)) if name == 'best.pth' else history(run, k)[-1]
        done = program(
            '--evaluate', run / f'round_0{k}' / name, '--data_root', finished_run / 'livec'
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(
            f'test_srcc {row["test_srcc"]}\ntest_plcc {row["test_plcc"]}\n'
        )


@pytest.mark.slow
def test_patience_stops_a_round_and_says_which_epoch_was_best(workplace, resume):
    done = resume('--patience', 1, '--epochs', 9, '--train_test_num', 1)
    assert done.returncode == 0
    rows = history(workplace / 'run')
    best = int(best_row(rows)['epoch'])
    assert len(rows) == best + 1 < 9
    assert f'no better test_srcc since epoch {best}: this round stops here' in done.stderr


@pytest.mark.slow
def test_a_validation_part_chooses_the_epoch(workplace, resume):
    done = resume('--val_ratio', 0.4, '--epochs', 2, '--train_test_num', 1)
    assert done.returncode == 0, done.stderr
    split = json.loads((workplace / 'run' / 'round_01' / 'split.json').read_text())
    assert [len(split[part]) for part in ('train', 'val', 'test')] == [4, 2, 2]
    assert len({name for part in ('train', 'val', 'test') for name in split[part]}) == 8
    rows = history(workplace / 'run')
    best = best_row(rows)
    result = json.loads((workplace / 'run' / 'results.json').read_text())['rounds']['1']
    assert (result['epoch'], result['SRCC']) == (int(best['epoch']), float(best['test_srcc']))
    assert done.stdout.splitlines()[1].split()[-4] == 'Val_SRCC'
    assert f'Best validation epoch: test SRCC {result["SRCC"]:.4f}' in done.stdout


def test_nothing_but_tables_on_stdout_and_no_bar_without_a_terminal(finished_run):
    lines = (finished_run / 'stdout.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        'Round',
        'Epoch',
        '1',
        '2',
        'Best',
        'Last',
    ] * 2 + ['Testing', 'Last']


def test_curves_and_predictions_can_be_read_by_a_spreadsheet(finished_run):
    with open(finished_run / 'run' / 'round_01' / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [set(row) for row in rows] == [{'image', 'content', 'score', 'prediction'}] * 2
    assert rows[0]['image'].startswith('Images/')
