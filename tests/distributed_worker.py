"""Started by torchrun or alone: an epoch with batch norm in eval mode, so that the numbers do not depend on the shares.

python distributed_worker.py PROJECT DATABASE
"""

import sys
from types import SimpleNamespace

sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']
import torch  # noqa: E402
from parity import fill  # noqa: E402

from HyerIQASolver import HyperIQASolver  # noqa: E402
from util import distributed  # noqa: E402
from util.errors import rank  # noqa: E402

distributed.start('cpu')
# batches of 3, 3 and 1: the last one has fewer patches than there are ranks
config = SimpleNamespace(
    dataset='livec', weights='none', device='cpu', batch_size=3, test_batch_size=2, train_patch_num=1, test_patch_num=2
)
solver = HyperIQASolver(config, sys.argv[2], list(range(7)), [7, 8, 9])
solver.model_hyper.load_state_dict(fill.fill(solver.model_hyper.state_dict()))
for module in solver.model_hyper.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
        module.train = lambda mode=True, module=module: module
solver.model_hyper.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().amax((1, 2, 3)).tolist()))
for epoch in range(1):
    seen: list[list[float]] = []
    loss, train_srcc = solver.train_epoch(epoch)
    assert len(seen) == 3 and all(patches and min(patches) > 0.1 for patches in seen), seen  # every rank, in every step
    scores = solver.predict(solver.test_data).tolist()
    if rank() == 0:
        print(loss, train_srcc, *scores)
distributed.stop()
