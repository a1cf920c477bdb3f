"""One of several ranks, or the only process: an epoch of training, and a test.

Batch norm is in eval mode, so that the numbers do not depend on the shares of the ranks.
"""

import torch
from helpers import make_solver
from parity import fill

from util import distributed
from util.errors import rank, read_ranks


def main(database):
    read_ranks()
    distributed.start('cpu')
    # Batches of 4 and 1: the last one has fewer patches than there are ranks, and in the first one
    # the shares differ.
    sizes = {'batch_size': 4, 'test_batch_size': 3, 'test_patch_num': 2}
    solver = make_solver(database, range(5), [5, 6], **sizes)
    solver.model_hyper.load_state_dict(fill.fill(solver.model_hyper.state_dict()))
    for module in solver.model_hyper.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    seen = []
    hook = lambda module, inputs: seen.append(inputs[0].abs().amax((1, 2, 3)).tolist())  # noqa: E731
    solver.model_hyper.register_forward_pre_hook(hook)
    loss, train_srcc = solver.train_epoch(0)
    assert len(seen) == 2 and all(patches and min(patches) > 0.1 for patches in seen), (
        seen
    )  # every rank, in every step
    # After a training each rank has statistics of its own, and all ranks test with those of the
    # first one.
    for name, buffer in solver.model_hyper.named_buffers():
        if name.endswith('running_mean'):
            buffer += rank()
    scores = solver.predict(solver.test_data).tolist()
    if rank() == 0:
        print(loss, train_srcc, *scores)
    distributed.stop()
