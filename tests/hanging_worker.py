"""One of two ranks: meet the other one, then stop without ending (rank 1) or go on until that is noticed (rank 0)."""

import os
import signal
from datetime import timedelta

import torch

from util import distributed
from util.errors import boundary, rank


def main(place):
    distributed.STEP_TIMEOUT = distributed.WAIT_TIMEOUT = timedelta(seconds=3)
    with boundary():
        distributed.start('cpu')
        model = distributed.wrap(torch.nn.Linear(1, 1))
        distributed.wait()
        if place == 'step':
            hang()
            model(torch.ones(1, 1)).sum().backward()
        else:
            hang()
            distributed.wait()


def hang():
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
