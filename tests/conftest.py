import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

# Tests run side by side, so each process computes in one thread, those that tests start too. Set
# before torch is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import databases
import pytest
import torch
from filelock import FileLock
from forked import program as forked_program
from helpers import TINY, command, own_table, wait_until

import train_test_IQA

# These files run first, so that short ones are left for the end, when a worker may have to wait.
LONGEST = (
    'test_gpu_check.py',
    'test_run_folder.py',
    'test_distributed.py',
    'test_trajectory.py',
    'test_solver.py',
    'test_demo.py',
    'test_export.py',
)


def pytest_collection_modifyitems(items):
    items.sort(key=place_in_order)
    if not torch.cuda.is_available():
        for item in items:
            if 'cuda' in item.keywords:
                item.add_marker(pytest.mark.skip(reason='no CUDA device'))


def place_in_order(item):
    name = item.path.name
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture
def make_database(tmp_path):
    """make_database(name, ...) writes a copy, or the user's own table, and returns its folder."""

    def make(name, **options):
        root = tmp_path / name
        root.mkdir()
        write = own_table if name == 'own' else getattr(databases, name)
        write(root, **options)
        return root

    return make


@pytest.fixture
def as_nobody():
    """(folder, run): run(function) calls it as another user in `folder`; returns its stderr."""
    if os.geteuid() != 0:
        pytest.skip('only root can act for another user')

    def run(function):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writing, 2)
            sys.stderr = open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.chdir(folder)
                function()
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(writing)
        with open(reading) as file:
            printed = file.read()
        os.waitpid(child, 0)
        return printed

    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o777)
        yield Path(folder), run


@pytest.fixture
def script(tmp_path):
    """script('train_test_IQA.py', *options) runs it as a user would, in a folder of its own."""

    def run(name, *options, **environment):
        return subprocess.run(
            command(name, *options),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """in_process(main, *options) runs main() in this process: seconds faster than `script`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *handler: None)

    def run(main, *options):
        try:
            main([*map(str, options)])
            code = 0
        except SystemExit as exit:
            code = exit.code
        return subprocess.CompletedProcess(options, code, *capsys.readouterr())

    return run


@pytest.fixture
def program(in_process):
    """program(*options) runs train_test_IQA.py in this process."""
    return lambda *options: in_process(train_test_IQA.main, *options)


def made_once(tmp_path_factory, name, make):
    """The folder `name` that `make` has filled, once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:  # its parent is the folder of all workers
        shared = shared.parent
    folder = shared / name
    with FileLock(shared / f'{name}.lock'):
        if not (folder / 'whole').exists():
            folder.mkdir()
            make(folder)
            (folder / 'whole').touch()
    return folder


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory):
    """The folder in which TINY ran to its end, once for all workers, with its output in *.txt."""

    def make(folder):
        (folder / 'livec').mkdir()
        databases.livec(folder / 'livec', images=8)
        run = forked_program(train_test_IQA.main, *TINY, '--output', 'run', folder=folder)
        printed, errors = run.communicate()
        assert run.returncode == 0, errors
        (folder / 'stdout.txt').write_text(printed)
        (folder / 'stderr.txt').write_text(errors)

    return made_once(tmp_path_factory, 'finished', make)


@pytest.fixture(scope='session')
def killed_run(tmp_path_factory, finished_run):
    """The run folder of TINY, killed (SIGKILL) after epoch 1 of round 1, once for all workers."""

    def make(folder):
        (folder / 'livec').symlink_to(finished_run / 'livec')
        process = forked_program(train_test_IQA.main, *TINY, '--output', 'run', folder=folder)
        wait_until((folder / 'run' / 'round_01' / 'history.csv').exists, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    return made_once(tmp_path_factory, 'killed', make) / 'run'
