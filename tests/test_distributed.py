"""Several real processes on gloo train as one does, fail together and resume; so do rounds."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker
import forked
import hanging_worker
import numpy as np
import pytest
import torch
from helpers import PROJECT, TINY, assert_same_run, link_run, read_table, wait_until

import train_test_IQA
from util import distributed, files
from util.errors import InputError, rank


def torchrun(processes, *arguments):
    return [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node',
        str(processes),
        *map(str, arguments),
    ]


def forked_ranks(function, *arguments, folders):
    """A rank for each of `folders`, without torchrun, which is slow and kills other ranks."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    places = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'WORLD_SIZE': str(len(folders))}
    numbers = map(str, range(len(folders)))
    return [
        forked.Forked(function, *arguments, folder=folder, RANK=number, LOCAL_RANK=number, **places)
        for folder, number in zip(folders, numbers)
    ]


@pytest.mark.slow
def test_three_processes_train_as_one(make_database, tmp_path):
    """Shares of 1, 1 and 2 patches, and of 0, 0 and 1; gpu_check.py compares gradients."""
    root = make_database('livec', images=7)
    alone = forked.Forked(distributed_worker.main, root, folder=tmp_path)
    printed, errors = alone.communicate()
    assert alone.returncode == 0, errors
    ranks = forked_ranks(distributed_worker.main, root, folders=[tmp_path] * 3)
    several = [process.communicate() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0, 0], several
    expected, found = (
        np.array([line.split() for line in text.splitlines()], float)
        for text in (printed, several[0][0])
    )
    assert expected.shape == (1, 4) and found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('ranks', [1, 2, 3, 8])
def test_the_shares_of_a_batch_are_the_whole_batch(monkeypatch, ranks):
    monkeypatch.setenv('WORLD_SIZE', str(ranks))
    for start, stop in ((0, 8), (16, 17), (5, 12)):
        rows = []
        for number in range(ranks):
            monkeypatch.setenv('RANK', str(number))
            share = distributed.rank_slice(start, stop)
            assert start <= share.start < stop  # an empty one names a patch to take part with
            rows += range(share.start, share.stop)
            assert (
                (stop - start) // ranks <= share.stop - share.start <= -(-(stop - start) // ranks)
            )
        assert rows == list(range(start, stop))


def workers(launcher):
    """Process numbers of torchrun's workers by their rank."""
    found = {}
    for folder in Path('/proc').iterdir():
        try:
            if (
                folder.name.isdigit()
                and f'\nPPid:\t{launcher.pid}\n' in (folder / 'status').read_text()
            ):
                environment = dict(
                    entry.partition('=')[::2]
                    for entry in (folder / 'environ').read_text().split('\0')
                )
                found[environment.get('RANK')] = int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs the /proc of Linux')
def test_all_ranks_end_when_one_is_killed_and_another_number_of_them_resumes(
    tmp_path, finished_run
):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    options = (*TINY, '--train_test_num', 1, '--output', 'run')
    launcher = subprocess.Popen(
        torchrun(2, PROJECT / 'train_test_IQA.py', *options),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    history = tmp_path / 'run' / 'round_01' / 'history.csv'
    wait_until(history.exists, launcher)
    before = workers(launcher)
    os.kill(before['1'], signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert not any(Path(f'/proc/{worker}').exists() for worker in before.values())
    rows = read_table(history)

    ranks = forked_ranks(
        train_test_IQA.main, [*map(str, options), '--resume'], folders=[tmp_path] * 3
    )
    printed, errors = zip(*(process.communicate() for process in ranks))
    assert [process.returncode for process in ranks] == [0, 0, 0], errors
    resumed = read_table(history)
    assert resumed[: len(rows)] == rows and [row['epoch'] for row in resumed] == ['1', '2']
    lines = ''.join(printed).splitlines()
    assert [line.split()[0] for line in lines] == [
        'Round',
        'Epoch',
        '1',
        '2',
        'Best',
        'Last',
        'Testing',
        'Last',
    ]
    assert ''.join(errors).count('3 processes on cpu, 1 thread each') == 1
    assert (tmp_path / 'run' / 'round_01' / 'split.json').read_bytes() == (
        finished_run / 'run' / 'round_01' / 'split.json'
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize('place', ['step', 'wait'])
def test_a_rank_that_hangs_ends_the_others_at_every_place(place, tmp_path):
    ranks = forked_ranks(hanging_worker.main, place, folders=[tmp_path] * 2)
    try:
        errors = ranks[0].communicate(timeout=600)[1]  # so that a failure ends too
        assert ranks[0].returncode == 2, errors
        assert errors.count('does not answer') == 1 and 'Traceback' not in errors
        assert hanging_worker.is_stopped(ranks[1].pid)  # it did not end by itself
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_the_memory_format_is_that_of_the_device():
    assert (
        distributed.memory_format('mps') == torch.contiguous_format
    )  # batch norm's backward is wrong there otherwise
    assert (
        distributed.memory_format('cpu')
        == distributed.memory_format(torch.device('cuda:1'))
        == torch.channels_last
    )


@pytest.mark.parametrize(
    'device, remedy',
    [
        ('cuda:1', 'give --device cuda, and each process takes a GPU of its own'),
        ('mps', 'start without torchrun'),
    ],
)
def test_a_device_for_one_process_is_refused_under_torchrun(monkeypatch, device, remedy):
    for name, value in (('RANK', '0'), ('WORLD_SIZE', '2'), ('LOCAL_RANK', '0')):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f'--device {device} is for one process: {remedy}'):
        distributed.pick_device(device)


@pytest.mark.slow
def test_machines_without_a_common_disk_train_nothing(tmp_path, finished_run):
    """Each rank has a folder of its own; only the first one has the run, one epoch from its end."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'livec').symlink_to(finished_run / 'livec')
    link_run(finished_run / 'run', tmp_path / '0' / 'run')
    options = [*map(str, TINY), '--epochs', '3', '--output', 'run', '--resume']
    ranks = forked_ranks(train_test_IQA.main, options, folders=[tmp_path / '0', tmp_path / '1'])
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2], errors
    assert (
        'error: the processes do not start from the same state (rank 0: 2 epochs, weights'
        in errors[0]
    )
    assert 'rank 1: 0 epochs' in errors[0] and 'on a disk that all machines share' in errors[0]
    assert len(read_table(tmp_path / '0' / 'run' / 'round_01' / 'history.csv')) == 2


def test_one_of_the_variables_of_torchrun_alone_starts_no_ranks(monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert rank() == 0 and distributed.world_size() == 1


@pytest.mark.slow
def test_rounds_side_by_side_give_the_run_of_one_process(tmp_path, finished_run, program):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    jobs = [
        forked.program(
            train_test_IQA.main, *TINY, '--output', 'run', '--rounds', number, folder=tmp_path
        )
        for number in (2, 1)
    ]
    errors = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert_same_run(tmp_path / 'run', finished_run / 'run')
    medians = ''.join((finished_run / 'stdout.txt').read_text().splitlines(keepends=True)[-2:])
    assert program('--summarize', 'run').stdout == medians
    again = program(*TINY, '--output', 'run', '--rounds', 1)
    assert again.returncode == 2 and 'the run folder run exists already' in again.stderr


def test_a_round_belongs_to_one_process(tmp_path, finished_run, program):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    link_run(finished_run / 'run', tmp_path / 'run')
    (tmp_path / 'run' / 'round_02' / 'result.json').unlink()
    with files.locked(tmp_path / 'run' / 'round_02' / '.lock'):
        done = program(*TINY, '--output', 'run', '--resume', '--rounds', 2)
    assert (
        done.returncode == 2 and 'run/round_02 is being trained by another process' in done.stderr
    )


def test_summarising_what_is_no_run_folder(program):
    done = program('--summarize', 'nowhere')
    assert done.returncode == 2 and 'nowhere' in done.stderr.splitlines()[-1]
