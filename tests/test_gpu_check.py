"""The checks for a user with a GPU run small on a CPU: every line appears, and exact is exact."""

import subprocess
import sys

import pytest
from helpers import PROJECT

sys.path.insert(0, str(PROJECT / 'benchmarks'))
import gpu_check


@pytest.mark.slow
def test_gpu_check_runs_on_a_cpu():
    command = [sys.executable, PROJECT / 'benchmarks' / 'gpu_check.py', '--device', 'cpu']
    done = subprocess.run([*command, '--no_compile'], capture_output=True, text=True)
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


def test_gpu_check_has_a_help(in_process):
    done = in_process(gpu_check.main, '--help')
    assert not done.returncode and '--no_compile' in done.stdout and not done.stderr


@pytest.mark.parametrize(
    'options, reason',
    [
        (['--device', 'cuda:99'], '--device cuda:99: '),
        (['--devise', 'cpu'], 'unrecognized arguments: --devise'),
    ],
)
def test_a_missing_gpu_and_a_wrong_option_are_one_line(in_process, options, reason):
    done = in_process(gpu_check.main, *options)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f'error: {reason}') and done.stderr.count('\n') == 1
