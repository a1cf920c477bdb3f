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

import compare
import demo
import export
import train_test_IQA
from util import distributed, errors, files
from util.errors import LOST, InputError, rank


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


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def forked_ranks(function, *arguments, folders):
    """A rank for each of `folders`, without torchrun, which is slow and kills other ranks."""
    count = str(len(folders))
    places = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': count}
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
    for start, stop in ((0, 8), (16, 17), (5, 12)):
        rows = []
        for number in range(ranks):
            monkeypatch.setattr(errors, 'ranks', errors.Ranks(number, number, ranks))
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

    resumed = forked.program(train_test_IQA.main, *options, '--resume', folder=tmp_path)
    printed, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    rows_after = read_table(history)
    assert rows_after[: len(rows)] == rows
    assert [row['epoch'] for row in rows_after] == ['1', '2']
    lines = printed.splitlines()
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
    assert 'this run was made by 2 processes and continues with 1 process' in errors
    assert (tmp_path / 'run' / 'round_01' / 'split.json').read_bytes() == (
        finished_run / 'run' / 'round_01' / 'split.json'
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs the /proc of Linux')
def test_two_machines_train_together_and_end_together(tmp_path, finished_run):
    """Two agents of torchrun stand for two machines, one of which loses its power."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    program = (PROJECT / 'train_test_IQA.py', *TINY, '--train_test_num', 1, '--output', 'run')
    address = f'127.0.0.1:{free_port()}'
    agents = []
    for is_host in (1, 0):
        agents.append(
            subprocess.Popen(
                [
                    *(sys.executable, '-m', 'torch.distributed.run'),
                    *('--nnodes', '2', '--nproc_per_node', '1', '--rdzv_backend', 'c10d'),
                    *('--rdzv_endpoint', address, '--rdzv_conf', f'is_host={is_host}'),
                    *('--local_addr', '127.0.0.1', *map(str, program)),
                ],
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    history = tmp_path / 'run' / 'round_01' / 'history.csv'
    wait_until(history.exists, agents[0])
    (worker,) = workers(agents[1]).values()
    for process in (agents[1].pid, worker):
        os.kill(process, signal.SIGKILL)
    printed, errors = zip(*(agent.communicate(timeout=60) for agent in agents))
    assert agents[0].returncode == 1
    # Of the two, one is the first rank.
    assert '2 processes on cpu, 1 thread each' in ''.join(errors)
    assert ''.join(printed).count('Round 1') == 1
    lines = [line for line in errors[0].splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and LOST in lines[0]
    assert [row['epoch'] for row in read_table(history)] == ['1']


@pytest.mark.slow
@pytest.mark.parametrize('place', ['step', 'wait'])
def test_a_rank_that_hangs_ends_the_others_at_every_place(place, tmp_path):
    if place == 'wait' and torch.__version__.startswith('2.6.'):
        pytest.skip("PyTorch 2.6 cannot change a barrier's time-out, so it would take a day")
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
        ('cuda:1', 'is for one process: start without torchrun, or give --device cuda'),
        ('mps', 'is for one process: start without torchrun, or give --device cuda'),
        ('meta', '.*; start as many processes as there are GPUs'),
    ],
)
def test_a_device_for_one_process_is_refused_under_torchrun(monkeypatch, device, remedy):
    monkeypatch.setattr(errors, 'ranks', errors.Ranks(0, 0, 2))
    with pytest.raises(InputError, match=f'--device {device}:? {remedy}'):
        distributed.pick_device(device)


@pytest.mark.slow
@pytest.mark.parametrize('copies', [(), (0,), (0, 1)])
def test_machines_without_a_common_disk_train_nothing(tmp_path, finished_run, copies):
    """Each rank has a folder of its own; those in `copies` have a run that is not finished."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'livec').symlink_to(finished_run / 'livec')
        if number in copies:
            link_run(finished_run / 'run', tmp_path / str(number) / 'run')
    options = [*map(str, TINY), '--epochs', '3', '--output', 'run', '--resume']
    ranks = forked_ranks(train_test_IQA.main, options, folders=[tmp_path / '0', tmp_path / '1'])
    error = ranks[0].communicate()[1]
    ranks[1].send_signal(signal.SIGTERM)  # as torchrun does
    assert ranks[1].communicate()[1] == ''
    assert [process.returncode for process in ranks] == [2, 143], error
    line = error.splitlines()[-1]
    assert line.startswith('error: the processes do not start from the same state (rank 0: run/')
    assert 'rank 1: run/.shared is not there' in line and 'that all machines share' in line
    assert not (tmp_path / '0' / 'run' / '.shared').exists()
    for number in range(2):
        path = tmp_path / str(number) / 'run' / 'round_01' / 'history.csv'
        assert not path.exists() or len(read_table(path)) == 2


def test_a_numbered_cpu_is_a_cpu(monkeypatch):
    for supported in (True, False):
        monkeypatch.setattr(
            torch.ops.mkldnn,
            '_is_mkldnn_bf16_supported',
            lambda: supported,  # noqa: B023
        )
        for name in ('cpu', 'cpu:0'):
            assert distributed.has_bfloat16(name) == supported


def test_ranks_that_compile_wait_longer_for_each_other(tmp_path):
    for compiles, timeout in ((False, 'STEP_TIMEOUT'), (True, 'COMPILE_TIMEOUT')):
        process = forked_ranks(group_timeout, compiles, folders=[tmp_path] * 2)
        printed = [rank.communicate() for rank in process]
        assert printed == 2 * [(f'{getattr(distributed, timeout)}\n', '')]


def group_timeout(compiles):
    errors.read_ranks()
    distributed.start('cpu', compiles)
    print(distributed.dist.group.WORLD._get_backend(torch.device('cpu')).options._timeout)
    distributed.stop()


SINGLE = {'RANK': '1', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '29500'}


@pytest.mark.parametrize(
    'variables',
    [{}, {'RANK': '1'}, {'RANK': '', 'WORLD_SIZE': ''}, {**SINGLE, 'WORLD_SIZE': '1'}],
)
def test_a_platforms_variables_for_a_single_process_start_no_ranks(monkeypatch, variables):
    set_variables(monkeypatch, variables)
    errors.read_ranks()
    assert (rank(), distributed.world_size(), errors.launched()) == (0, 1, False)


@pytest.mark.parametrize('name', SINGLE)
@pytest.mark.parametrize('value', ['', None])
def test_several_processes_without_one_of_torchruns_variables_are_refused(
    monkeypatch, program, name, value
):
    set_variables(monkeypatch, {**SINGLE, 'WORLD_SIZE': '2', name: value})
    done = program('--list_datasets')
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and f'missing or empty: {name};' in done.stderr


@pytest.mark.parametrize(
    'variables, text',
    [
        ({'RANK': '2'}, 'RANK is 2, but WORLD_SIZE is 2'),
        ({'RANK': '-1'}, "RANK is '-1' and not a number"),
        ({'WORLD_SIZE': 'two'}, "WORLD_SIZE is 'two' and not a number"),
    ],
)
def test_odd_variables_of_torchrun_are_refused(monkeypatch, program, variables, text):
    set_variables(monkeypatch, {**SINGLE, 'WORLD_SIZE': '2', **variables})
    done = program('--list_datasets')
    assert done.returncode == 2 and done.stderr.startswith(f'error: {text}')


def set_variables(monkeypatch, variables):
    """Set the `variables` of torchrun that are not None, and no other ones of them."""
    monkeypatch.setattr(errors, 'ranks', errors.Ranks())  # restored after the test
    for name in errors.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def test_only_a_training_has_ranks(in_process, monkeypatch):
    """The others never look at the variables, and report what they always do."""
    set_variables(monkeypatch, {**SINGLE, 'WORLD_SIZE': '2'})
    for main, options in (
        (demo.main, ('--checkpoint', 'absent.pth', 'photo.jpg')),
        (export.main, ('absent.pth', 'x.pt2')),
        (compare.main, ('absent', 'other')),
    ):
        done = in_process(main, *options)
        assert done.returncode == 2 and done.stderr.startswith('error: there is no ')


@pytest.mark.slow
def test_a_fault_in_the_command_line_is_reported_once(tmp_path, monkeypatch, program):
    """By the first rank; by another one only if the first one has no fault."""
    ranks = forked_ranks(train_test_IQA.main, ['--batch_sice', '3'], folders=[tmp_path] * 2)
    error = ranks[0].communicate()[1]
    assert ranks[0].returncode == 2 and error.count('\n') == 1 and '--batch_sice' in error
    ranks[1].send_signal(signal.SIGTERM)  # as torchrun does
    assert ranks[1].communicate()[1] == ''

    # A rank that nobody ends reports the fault as well. It waits before, which is left out here.
    monkeypatch.setattr(errors, 'TURN', 0)
    monkeypatch.setattr(sys, 'stdout', sys.stdout)
    set_variables(monkeypatch, {**SINGLE, 'WORLD_SIZE': '2'})
    second = program('--batch_sice', 3)
    assert '--batch_sice' in second.stderr and second.returncode == 2


def test_a_restart_of_torchrun_leads_to_the_first_failure(
    monkeypatch, tmp_path, finished_run, program
):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    link_run(finished_run / 'run', tmp_path / 'run')
    for count, told in (('0', False), ('1', True)):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', count)
        done = program(*TINY, '--output', 'run')
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and 'the run folder run exists already' in last
        assert told == ('after a failure, which is reported further up' in last)


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
