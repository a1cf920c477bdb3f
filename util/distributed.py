"""Where a run computes: the device, and the processes that torchrun started; without torchrun those functions do nothing.

Two process groups: in the training group every rank arrives within seconds, so a rank that waits longer than TIMEOUT knows
that another has failed. Ranks wait in the default group while one of them builds the frame cache or writes a checkpoint.
"""

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from util.errors import InputError

if TYPE_CHECKING:
    import torch  # imported for real where it is used, since `say` and `rank` serve commands that answer without it

TIMEOUT = timedelta(seconds=50)
PATIENCE = timedelta(hours=24)
training_group: Any = None


def launched() -> bool:
    """Whether torchrun started this process."""
    return 'RANK' in os.environ and 'WORLD_SIZE' in os.environ


def rank() -> int:
    return int(os.environ['RANK']) if launched() else 0


def world_size() -> int:
    return int(os.environ['WORLD_SIZE']) if launched() else 1


def say(text: str) -> None:
    """Print to stderr, once whatever the number of ranks: stdout carries the results alone."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def pick_device(name: str | None) -> str:
    """The device to compute on: `name`, or CUDA where there is one; this rank's own GPU under torchrun.

    Raises:
        InputError: PyTorch has no such device here.
    """
    import torch

    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    if launched() and name == 'cuda':
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device {name}: {str(error).splitlines()[0]}')
    return name


def device_name(device: str) -> str:
    """What a reader of the numbers should know of `device`: the GPU's name, or how many CPU threads."""
    import torch

    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'{torch.get_num_threads()} threads'


def has_bfloat16(device: str) -> bool:
    """Whether `device` computes in bfloat16 at least as fast as in float32: every GPU of use here does, not every CPU."""
    import torch

    return device != 'cpu' or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def start(device: str) -> None:
    """Meet the other ranks; NCCL on CUDA, gloo on the CPU."""
    global training_group
    if not launched():
        return
    import torch
    from torch import distributed as dist

    if dist.is_initialized():
        return
    if device.startswith('cuda'):
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.startswith('cuda') else 'gloo', timeout=PATIENCE)
    training_group = dist.new_group(timeout=TIMEOUT)


def stop() -> None:
    if launched():
        from torch import distributed as dist

        dist.destroy_process_group()


def wait() -> None:
    """Until every rank is here, however long one of them works alone."""
    if launched():
        from torch import distributed as dist

        dist.barrier()


def sum_over_ranks(tensor: 'torch.Tensor') -> 'torch.Tensor':
    """Add up `tensor` over all ranks in place."""
    if launched():
        from torch import distributed as dist

        dist.all_reduce(tensor, group=training_group)
    return tensor


def copy_buffers(model: 'torch.nn.Module') -> None:
    """Give every rank the first one's buffers: the running statistics of batch norm, where they are not synchronised."""
    if launched():
        from torch import distributed as dist

        for buffer in model.buffers():
            dist.broadcast(buffer, 0, group=training_group)


def wrap(model: 'torch.nn.Module') -> 'torch.nn.Module':
    """`model` with its gradients averaged over the ranks, and its batch norm synchronised on CUDA."""
    if not launched():
        return model
    import torch

    device = next(model.parameters()).device
    if device.type == 'cuda':
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, training_group)  # in place, since `model` itself is none
    return torch.nn.parallel.DistributedDataParallel(
        model, [device] if device.type == 'cuda' else None, process_group=training_group
    )


def share(start: int, stop: int) -> slice:
    """This rank's part of the rows start ... stop of a batch; it is empty if there are fewer rows than ranks."""
    count, ranks = stop - start, world_size()
    return slice(start + count * rank() // ranks, start + count * (rank() + 1) // ranks)
