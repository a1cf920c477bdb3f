"""The checks for a user with a GPU run small on a CPU too: every line appears, and what must be exact is."""

import subprocess
import sys

import pytest
from helpers import PROJECT


@pytest.mark.slow
def test_gpu_check_runs_on_a_cpu():
    command = [
        sys.executable,
        PROJECT / 'benchmarks' / 'gpu_check.py',
        '--device',
        'cpu',
        '--no_compile',
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines, _, table = done.stdout.partition('\n\n')
    for line in (
        'PASS  gradients of two ranks against one process, batches of 3, float64: ',
        'PASS  a resumed run against an uninterrupted one, --deterministic: 0 of 355 tensors differ',
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
