"""One of two ranks: rank 1 stops without ending; rank 0 computes or waits until that is noticed.

Both meet with the program's own time-outs. Rank 0 shortens them only when it has seen that rank 1
is stopped, so nothing here depends on how fast the machine is.
"""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from util import distributed
from util.errors import boundary, rank, read_ranks

SHORT = timedelta(seconds=1)


def main(place):
    with boundary():
        read_ranks()
        distributed.start('cpu')
        model = distributed.wrap(torch.nn.Linear(1, 1))
        numbers = [None, None]
        dist.all_gather_object(numbers, os.getpid())
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        while not is_stopped(numbers[1]):
            time.sleep(0.01)
        if place == 'step':
            shorten(dist.group.WORLD, distributed.STEP_TIMEOUT)
            model(torch.ones(1, 1)).sum().backward()
        else:
            shorten(distributed.waiting_group, distributed.WAIT_TIMEOUT)
            distributed.wait()


def is_stopped(number):
    return Path(f'/proc/{number}/stat').read_text().split()[2] == 'T'


def shorten(group, expected):
    """Set the time-out of `group`, which was made with the `expected` one."""
    assert group._get_backend(torch.device('cpu')).options._timeout == expected
    # PyTorch before 2.14 has it under another name
    set_timeout = getattr(dist, 'set_timeout', None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(SHORT, group)
