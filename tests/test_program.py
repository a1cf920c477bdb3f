"""How programs end: exit codes and single lines, whatever happens to their streams and whichever signal comes."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import PROJECT, command, restore_interrupts, wait_until

import compare
import demo
import export
import train_test_IQA


@pytest.fixture
def small_program(tmp_path):
    """small_program(body, shell) runs `body` as a program of the project does its work, by the command `shell`."""

    def run(body, shell='exec "$@"', **environment):
        path = tmp_path / 'program.py'
        path.write_text(
            f'import sys\nsys.path.insert(0, {str(PROJECT)!r})\nfrom util import program\nprogram.begin()\n'
            f'import os, signal, time\nfrom util.errors import InputError\nfrom util.program import tell\n'
            f'with program.boundary("; go on"):\n{textwrap.indent(body, "    ")}\n'
        )
        return subprocess.run(
            ['bash', '-c', shell, 'bash', sys.executable, str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    return run


PRINT_MUCH = 'for k in range(100000): print(k, flush=True)'


@pytest.mark.parametrize(
    'body, shell, code, out, err',
    [
        ('print(1)', 'exec "$@"', 0, '1\n', ''),
        ('raise InputError("no")', 'exec "$@"', 2, '', 'error: no\n'),
        ('open("absent")', 'exec "$@"', 2, '', 'error: absent: No such file or directory\n'),
        ('bytearray(1 << 60)', 'exec "$@"', 2, '', 'error: the memory does not suffice: a smaller batch or image needs less\n'),
        (PRINT_MUCH, '"$@" | head -1; exit ${PIPESTATUS[0]}', 141, '0\n', ''),
        (PRINT_MUCH, 'exec "$@" > /dev/full', 2, '', 'error: the output: No space left on device\n'),
        ('print(1)', 'exec "$@" > /dev/full', 2, '', 'error: the output: No space left on device\n'),
        ('tell("x"); print(1)', 'exec "$@" 2> /dev/full', 0, '1\n', ''),
        ('tell("x"); print(1); tell("y")', 'exec "$@" 2>&-', 0, '1\n', ''),
        ('print(1); tell("y")', 'exec "$@" >&-', 0, '', 'y\n'),
        ('raise InputError("no")', 'exec "$@" <&- >&- 2>&-', 2, '', ''),
        (r'raise InputError("a\nb\t")', 'exec "$@"', 2, '', 'error: a\\nb\\t\n'),
        (r'print("\udcff")', 'exec "$@"', 0, '\\udcff\n', ''),
        ('os.kill(os.getpid(), signal.SIGUSR1)', 'exec "$@"', 138, '', 'interrupted; go on\n'),
        ('os.kill(os.getpid(), signal.SIGTERM)', 'exec "$@"', 143, '', 'interrupted; go on\n'),
        ('os.kill(os.getpid(), signal.SIGINT); print(1)', 'trap \'\' INT; exec "$@"', 0, '1\n', ''),
        (
            'try: os.kill(os.getpid(), signal.SIGTERM)\nfinally: os.kill(os.getpid(), signal.SIGTERM)',
            'exec "$@"',
            143,
            '',
            'interrupted\n',
        ),
    ],
)
def test_every_end_has_its_exit_code_and_at_most_one_line(small_program, body, shell, code, out, err):
    done = small_program(body, shell)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_tracebacks_are_for_programming_errors_and_for_those_who_ask(small_program):
    asked = small_program('raise InputError("no")', HYPERIQA_DEBUG='1')
    assert asked.returncode == 2 and 'Traceback' in asked.stderr and asked.stderr.endswith('error: no\n')
    wrong = small_program('[][0]')
    assert wrong.returncode == 1 and 'Traceback' in wrong.stderr and 'IndexError' in wrong.stderr


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='needs the /proc of Linux')
@pytest.mark.parametrize('name, option', [('train_test_IQA.py', '--resume'), ('demo.py', '--help')])
def test_an_interrupt_during_the_imports_is_one_line(tmp_path, name, option):
    process = subprocess.Popen(
        command(name, option),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=restore_interrupts,
    )
    wait_until(lambda: 'libtorch' in Path(f'/proc/{process.pid}/maps').read_text(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (out, err.count('\n'), process.returncode) == ('', 1, 130) and err.startswith('interrupted')


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
    assert (done.returncode, done.stderr) == (2, f'error: {name} is empty; give it a value or leave it out\n')


@pytest.mark.parametrize('backend', ['module://matplotlib_inline.backend_inline', 'module://of_the_notebook_alone', 'odd'])
def test_a_notebooks_backend_does_not_keep_pictures_from_being_drawn(backend):
    code = 'from util import plots; print(len(plots.scatter([1, 2, 3], [1, 2, 3], "")))'
    environment = {**os.environ, 'MPLBACKEND': backend}
    done = subprocess.run([sys.executable, '-c', code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1000, done.stderr
