"""One of two ranks: meet the other one, then stop without ending (rank 1) or go on until that is noticed (rank 0).

python hanging_worker.py PROJECT PLACE
"""

import os
import signal
import sys
import time
from datetime import timedelta

sys.path.insert(0, sys.argv[1])
import torch

from util import distributed, program

distributed.TIMEOUT, distributed.HEARTBEAT = timedelta(seconds=3), 0.1
place = sys.argv[2]


def hang():
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


with program.boundary():
    distributed.start('cpu')
    model = distributed.wrap(torch.nn.Linear(1, 1))
    distributed.wait()
    if place == 'step':
        hang()
        model(torch.ones(1, 1)).sum().backward()
    elif place == 'wait':
        hang()
        distributed.wait()
    else:
        with distributed.patiently():
            time.sleep(1)  # rank 0 builds longer than a heartbeat
            hang()
            time.sleep(600)
