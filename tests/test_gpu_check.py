"""The checks for a user with a GPU run small on a CPU: every line appears, and exact is exact."""

import subprocess
import sys

import pytest
from helpers import PROJECT


def gpu_check(*options):
    command = [sys.executable, PROJECT / 'benchmarks' / 'gpu_check.py', *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_gpu_check_runs_on_a_cpu():
    done = gpu_check('--device', 'cpu', '--no_compile')
    assert done.returncode == 0, done.stdout + done.stderr
    lines, _, table = done.stdout.partition('\n\n')
    for line in (
        'PASS  gradients of two ranks against one process, batches of 3, float64: ',
        'PASS  a resumed run against an uninterrupted one, --deterministic: '
        '0 of 355 tensors differ',
        'scores with --amp against without: ',
        'SKIP  steps of an epoch without a host synchronisation: needs CUDA',
        'SKIP  peak memory of a step, fp32: needs CUDA',
        'SKIP  peak memory of a step, --amp: needs CUDA',
        'INFO  training steps, fp32: ',
        'SKIP  compiled steps after a shorter batch against before: left out',
        'INFO  an epoch with data against resident batches: ',
        'INFO  time of a step with --deterministic against without: ',
    ):
        assert line in lines
    assert table.count('\n') >= len(lines.splitlines())


def test_gpu_check_has_a_help():
    done = gpu_check('--help')
    assert done.returncode == 0 and '--no_compile' in done.stdout and not done.stderr


@pytest.mark.parametrize(
    'options, reason',
    [
        (['--device', 'cuda:99'], '--device cuda:99: '),
        (['--devise', 'cpu'], 'unrecognized arguments: --devise'),
    ],
)
def test_a_missing_gpu_and_a_wrong_option_are_one_line(options, reason):
    done = gpu_check(*options)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f'error: {reason}') and done.stderr.count('\n') == 1
