"""One of two ranks: meet the other one, then stop without ending (rank 1) or go on until that is noticed (rank 0).

python hanging_worker.py PROJECT PLACE
"""

import os
import signal
import sys
from datetime import timedelta

sys.path.insert(0, sys.argv[1])
import torch

from util import distributed
from util.errors import boundary, rank

distributed.STEP_TIMEOUT = distributed.WAIT_TIMEOUT = timedelta(seconds=3)
place = sys.argv[2]


def hang():
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


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
