"""How programs end: exit codes and single lines, whatever fails and whichever signal comes."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
from helpers import PROJECT
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler

import compare
import demo
import export
import train_test_IQA
from util import checkpoints
from util.errors import (
    COMPILER,
    LOST,
    MEMORY,
    PERHAPS_MEMORY,
    SMALLER,
    THREADS,
    WITHOUT_COMPILER,
    machine_fault,
)


# The arguments of these errors differ between versions of PyTorch, so they are made without.
def without_compiler():
    """The error of torch.compile on a machine without a compiler."""
    return InvalidCxxCompiler.__new__(InvalidCxxCompiler, 'No working C++ compiler found')


def failed_compiler(inner):
    """The error of torch.compile with the error `inner` inside."""
    error = BackendCompilerFailed.__new__(BackendCompilerFailed, f'backend failed: {inner}')
    error.inner_exception = inner
    return error


@pytest.fixture
def small_program(tmp_path):
    """small_program(body, shell) runs `body` as a program of the project, by `shell`."""

    def run(body, shell='exec "$@"', **environment):
        path = tmp_path / 'program.py'
        path.write_text(
            f'import sys\nsys.path.insert(0, {str(PROJECT)!r})\n'
            f'import os, signal, time\nfrom util.errors import InputError, boundary, log\n'
            f'with boundary() as remedies:\n    remedies.append("go on")\n'
            f'{textwrap.indent(body, "    ")}\n'
        )
        # The workers of pytest-xdist ignore SIGINT, and programs would inherit that.
        restore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.run(
            ['bash', '-c', shell, 'bash', sys.executable, str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            preexec_fn=restore,
        )

    return run


PRINT_MUCH = 'for k in range(100000): print(k, flush=True)'

INTERRUPT = 'os.kill, os.getpid(), signal.SIGINT'
# The reader takes a line and ends; the program goes on when that has happened.
HEAD = 'unset PYTHONUNBUFFERED; "$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}'
UNREAD = (
    'import select; print(0, flush=True); gone = select.poll(); gone.register(1, 0); gone.poll()'
)


@pytest.mark.parametrize(
    'body, shell, code, out, err',
    [
        ('print(1)', 'exec "$@"', 0, '1\n', ''),
        ('raise InputError("no")', 'exec "$@"', 2, '', 'error: no\n'),
        ('open("absent")', 'exec "$@"', 2, '', 'error: absent: No such file or directory\n'),
        (
            'raise OSError(24, "Too many open files")',
            'exec "$@"',
            2,
            '',
            'error: Too many open files\n',
        ),
        ('bytearray(1 << 60)', 'exec "$@"', 2, '', f'error: out of memory: MemoryError{SMALLER}\n'),
        (PRINT_MUCH, '"$@" | head -1; exit ${PIPESTATUS[0]}', 141, '0\n', ''),
        (PRINT_MUCH, 'exec "$@" > /dev/full', 2, '', 'error: No space left on device\n'),
        ('print(1)', 'exec "$@" > /dev/full', 2, '', 'error: No space left on device\n'),
        (r'raise InputError("a\nb\t")', 'exec "$@"', 2, '', 'error: a\\nb\\t\n'),
        (r'log("\udcff\u202f")', 'exec "$@"', 0, '', '\\udcff\u202f\n'),
        ('os.kill(os.getpid(), signal.SIGUSR1)', 'exec "$@"', 138, '', 'interrupted; go on\n'),
        ('os.kill(os.getpid(), signal.SIGTERM)', 'exec "$@"', 143, '', 'interrupted; go on\n'),
        ('log("x"); print(sys.stderr.fileno())', 'exec "$@" 2>&-', 0, '2\n', ''),
        ('log("x"); print(sys.stderr.fileno())', 'exec "$@" <&- 2>&-', 0, '2\n', ''),
        ('print(1); log("x")', 'exec "$@" >&-', 0, '', 'x\n'),
        ('log("x"); print(1)', 'exec "$@" 2> /dev/full', 0, '1\n', ''),
        ('raise InputError("no")', 'exec "$@" 2> /dev/full', 2, '', ''),
        (r'print("\u56fe")', 'PYTHONIOENCODING=latin-1 exec "$@"', 0, '\\u56fe\n', ''),
        (f'{UNREAD}; os.kill(os.getpid(), signal.SIGINT)', HEAD, 130, '0\n', ''),
        (f'{UNREAD}; print(end="1"); os.kill(os.getpid(), signal.SIGINT)', HEAD, 130, '0\n', ''),
        (f'{UNREAD}; print(end="1"); sys.exit(3)', HEAD, 3, '0\n', ''),
        (f'{UNREAD}; log("x"); print(1)', HEAD, 141, '0\n', ''),
        (f'import atexit; atexit.register({INTERRUPT}); print(1)', 'exec "$@"', -2, '1\n', ''),
        ('os.kill(os.getpid(), signal.SIGINT); print(1)', 'trap \'\' INT; exec "$@"', 0, '1\n', ''),
    ],
)
def test_every_end_has_its_exit_code_and_at_most_one_line(
    small_program, body, shell, code, out, err
):
    done = small_program(body, shell)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_tracebacks_are_for_programming_errors_and_for_those_who_ask(small_program):
    asked = small_program('raise InputError("no")', HYPERIQA_DEBUG='1')
    assert (
        asked.returncode == 2
        and 'Traceback' in asked.stderr
        and asked.stderr.endswith('error: no\n')
    )
    wrong = small_program('[][0]')
    assert wrong.returncode == 1 and 'Traceback' in wrong.stderr and 'IndexError' in wrong.stderr


@pytest.mark.parametrize(
    'error, meaning',
    [
        (
            RuntimeError(
                '[enforce fail at alloc_cpu.cpp:127] err == 0. '
                "DefaultCPUAllocator: can't allocate memory: you"
            ),
            MEMORY,
        ),
        (
            RuntimeError(
                '[enforce fail] data. DefaultCPUAllocator: '
                'not enough memory: you tried to allocate 9 bytes.'
            ),
            MEMORY,
        ),
        (RuntimeError('could not create a memory object'), MEMORY),
        (RuntimeError('could not create a primitive'), MEMORY),
        (
            RuntimeError(
                'CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported'
            ),
            MEMORY,
        ),
        (RuntimeError('MPS backend out of memory (MPS allocated: 9.07 GB)'), MEMORY),
        (
            RuntimeError(
                'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'
            ),
            MEMORY,
        ),
        (RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), MEMORY),
        (RuntimeError('cuDNN error: CUDNN_STATUS_NOT_INITIALIZED'), PERHAPS_MEMORY),
        (
            RuntimeError(
                'CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`'
            ),
            PERHAPS_MEMORY,
        ),
        (
            RuntimeError('GET was unable to find an engine to execute this computation'),
            PERHAPS_MEMORY,
        ),
        (RuntimeError('Unable to find a valid cuDNN algorithm to run convolution'), PERHAPS_MEMORY),
        (
            RuntimeError(
                '[gloo/transport/tcp/pair.cc:561] '
                'Connection closed by peer [127.0.0.1]:22251. This is'
            ),
            LOST,
        ),
        (RuntimeError('Read error [127.0.0.1]:5: Connection reset by peer'), LOST),
        (RuntimeError('Application timeout caused pair closure'), LOST),
        (
            RuntimeError(
                '[unbound_buffer.cc:78] Timed out waiting 120000ms for recv operation to complete'
            ),
            LOST,
        ),
        (
            RuntimeError(
                '[unbound_buffer.cc:129] Timed out waiting 120000ms for send operation to complete'
            ),
            LOST,
        ),
        (RuntimeError("can't start new thread"), THREADS),
        (RuntimeError('Resource temporarily unavailable'), THREADS),
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), MEMORY),
        (
            torch.distributed.DistBackendError(
                'NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited'
            ),
            LOST,
        ),
        (MemoryError(), MEMORY),
        (without_compiler(), COMPILER),
        (failed_compiler(without_compiler()), COMPILER),
        (failed_compiler(RuntimeError("DefaultCPUAllocator: can't allocate memory")), MEMORY),
        (RuntimeError('CUDA error: an illegal memory access was encountered'), None),
        (RuntimeError('unsupported memory format option Preserve'), None),
        (RuntimeError('Pin memory thread exited unexpectedly'), None),
        (RuntimeError('could not create a primitive descriptor for the matmul primitive'), None),
        (RuntimeError('Distribution: the expected shape differs'), None),
        (ValueError('out of memory'), None),
    ],
)
def test_faults_of_the_machine_are_told_from_ours_by_type_or_by_whole_phrases(error, meaning):
    assert machine_fault(error) == meaning


def test_a_compiler_that_is_missing_is_one_line(small_program):
    done = small_program(
        'import torch\ntorch.compile(lambda x: x.sin())(torch.ones(4))',
        'export CXX=/nowhere/c++ PATH=/nowhere; exec "$@"',
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert done.stderr.startswith(f'error: {COMPILER}: No working C++ compiler found')
    assert done.stderr.endswith(f'{WITHOUT_COMPILER}\n')


def test_a_real_allocation_that_fails_has_its_phrase():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert machine_fault(caught.value) == MEMORY


def test_memory_that_runs_out_while_a_checkpoint_is_written_is_named(monkeypatch):
    class LittleMemory(io.BytesIO):
        def write(self, content):
            if len(content) > 1000:  # the end of the file still has room
                raise MemoryError
            return super().write(content)

    content = {'weight': torch.zeros(10000)}
    with pytest.raises(RuntimeError, match='unexpected pos'):  # it names another fault
        torch.save(content, LittleMemory())
    monkeypatch.setattr(checkpoints, 'replacing', lambda path: nullcontext(LittleMemory()))
    with pytest.raises(MemoryError):
        checkpoints.write_checkpoint('last.pth', content)


def test_nccl_keeps_its_reason(small_program):
    done = small_program(
        'import torch\n'
        'raise torch.distributed.DistBackendError('
        '"NCCL error in: x.cpp:1, invalid usage (run with NCCL_DEBUG=WARN)\\n'
        'ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\\nLast error:\\n'
        'Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000")'
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert done.stderr.endswith(
        'Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000\n'
    )


# Calls a program with each list of options in turn, and prints exit codes and outputs.
CALLS = """
import contextlib, importlib, io, json, sys
main = importlib.import_module(sys.argv[1]).main
for options in json.loads(sys.argv[2]):
    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(options)
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, printed.getvalue()]))
"""
ANSWERS = {
    'train_test_IQA': (
        (('--help',), 0, 'usage: '),
        (('--list_datasets',), 0, 'koniq'),
        (('--batch_sice', '3'), 2, '--batch_sice'),
        (('--data_root', 'nowhere'), 2, 'there is no folder nowhere'),
        (
            ('--dataset', 'livec', '--data_root', 'livec', '--weights', 'absent.pth'),
            2,
            'there is no file absent.pth',
        ),
        (('--dataset', 'csv', '--csv', 'absent.csv'), 2, 'there is no file absent.csv'),
        (('--evaluate', 'run/round_01/best.pth'), 2, 'is not the best.pth or last.pth of a run'),
        (('--summarize', 'absent'), 2, 'there is no file absent/config.json'),
    ),
    'demo': (
        (('--help',), 0, 'usage: '),
        (('--checkpoint', 'absent.pth', 'a.jpg'), 2, 'there is no file absent.pth'),
    ),
    'compare': ((('--help',), 0, 'usage: '), (('a', 'b'), 2, 'there is no folder ')),
    'export': (
        (('--help',), 0, 'usage: '),
        (('absent.pth', 'x.pt2'), 2, 'there is no file absent.pth'),
    ),
}


def test_a_python_that_leaves_out_docstrings_runs_the_programs(script):
    done = script('compare.py', '--help', PYTHONOPTIMIZE='2')
    assert done.returncode == 0 and done.stdout.startswith('usage: '), done.stderr


@pytest.mark.parametrize('name', ANSWERS)
def test_help_typos_and_missing_files_answer_without_torch(make_database, tmp_path, name):
    """A module that fails stands in torch's place."""
    make_database('livec', images=8)
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    environment = {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{PROJECT}'}
    calls = [options for options, _, _ in ANSWERS[name]]
    done = subprocess.run(
        [sys.executable, '-c', CALLS, name, json.dumps(calls)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(calls), done.stderr
    for (options, code, text), (found, printed) in zip(ANSWERS[name], answers):
        assert (found, text in printed) == (code, True), (options, printed)
        assert 'Traceback' not in printed


@pytest.mark.parametrize(
    'main, options, name',
    [
        (train_test_IQA.main, ('--evaluate', ''), '--evaluate'),
        (train_test_IQA.main, ('--split', ''), '--split'),
        (train_test_IQA.main, ('--device', ''), '--device'),
        (demo.main, ('--checkpoint', 'best.pth', ''), 'images'),
        (demo.main, ('--checkpoint', 'best.pth', '--csv', '', 'photo.jpg'), '--csv'),
        (compare.main, ('a', ''), 'RUN'),
        (export.main, ('', 'x.onnx'), 'checkpoint'),
    ],
)
def test_an_empty_value_is_a_variable_that_is_not_set(in_process, main, options, name):
    done = in_process(main, *options)
    assert (done.returncode, done.stderr) == (
        2,
        f'error: {name} is empty; give it a value or leave it out\n',
    )


@pytest.mark.parametrize(
    'backend',
    ['module://matplotlib_inline.backend_inline', 'module://of_the_notebook_alone', 'odd'],
)
def test_a_notebooks_backend_does_not_keep_pictures_from_being_drawn(backend):
    code = 'from util import plots; print(len(plots.scatter([1, 2, 3], [1, 2, 3], "")))'
    environment = {**os.environ, 'MPLBACKEND': backend}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and int(done.stdout) > 1000, done.stderr


def test_lines_of_several_threads_do_not_run_together(small_program):
    done = small_program(
        'import threading\n'
        'sys.setswitchinterval(1e-6)\n'
        'def many(k):\n'
        '    for _ in range(2000): log(f"thread {k} says this")\n'
        'threads = [threading.Thread(target=many, args=[k]) for k in range(4)]\n'
        'for thread in threads: thread.start()\n'
        'for thread in threads: thread.join()'
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 8000
    assert set(lines) == {f'thread {k} says this' for k in range(4)}
