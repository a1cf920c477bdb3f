"""The device of a run, and the processes that torchrun started, which are called ranks.

In a single process the functions that concern several ranks do nothing.

There are two groups with two time-outs. Ranks that compute meet in every step: one that waits for
another longer than STEP_TIMEOUT ends, and torchrun then ends all. With --compile it waits for up to
COMPILE_TIMEOUT, since a rank that finds compiled code in its cache is minutes ahead of the others.
While only one rank works (decoding, saving, finishing), the others wait for up to WAIT_TIMEOUT in a
group of their own, where the death of a rank is noticed at once.
"""

import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from util import errors
from util.errors import InputError, first_line, launched, log, rank, reported_once
from util.files import write_whole

STEP_TIMEOUT = timedelta(seconds=120)
COMPILE_TIMEOUT = timedelta(hours=1)
WAIT_TIMEOUT = timedelta(days=1)
waiting_group: Any = None  # over gloo on any device


def world_size() -> int:
    """The number of processes that compute together."""
    return errors.ranks.world_size


def make_deterministic() -> None:
    """Make this process compute the same bytes each time, from here to its end."""
    # cuBLAS reads this once, when CUDA starts.
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # PyTorch would fill new memory, which takes time; all of it is overwritten before it is read.
    # (mypy: PyTorch's stub does not have this switch.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def pick_device(name: str | None) -> str:
    """The device to compute on: `name`, or CUDA or MPS if there is one, or the CPU.

    Under torchrun each rank has its own GPU.

    Raises:
        InputError: PyTorch has no such device here, or it is not for several processes.
    """
    if not name:
        name = best_device()
    if launched():
        name = device_of_rank(name)
    try:
        # Some devices can be named and allocated on, but do not compute.
        torch.ones(1, device=name).add(1).item()
    except Exception as error:  # each backend that is missing fails in its own way
        remedy = 'use cpu, cuda, cuda:1 or mps'
        if launched():
            remedy = 'start as many processes as there are GPUs'
        raise InputError(f'--device {name}: {first_line(error)}; {remedy}')
    return name


def best_device() -> str:
    """The fastest kind of device here."""
    if torch.cuda.is_available():
        return 'cuda'
    if torch.backends.mps.is_available():
        return 'mps'
    return 'cpu'


def device_of_rank(name: str) -> str:
    """The device `name` as this rank of torchrun uses it: on CUDA, a GPU of its own."""
    if name == 'mps' or name.startswith('cuda:'):
        raise InputError(
            f'--device {name} is for one process: start without torchrun, or give --device cuda, '
            'and each process takes a GPU of its own'
        )
    return f'cuda:{errors.ranks.number_here}' if name == 'cuda' else name


def processes_on(device: str) -> str:
    """The number of processes and their device, as '2 processes on cpu, 1 thread each'."""
    if not launched():
        return f'1 process on {device}, {device_name(device)}'
    kind = device.partition(':')[0]  # the number of a GPU differs from rank to rank
    return f'{world_size()} processes on {kind}, {device_name(device)} each'


def device_name(device: str) -> str:
    """The GPU's name or the number of CPU threads: measured times mean little without it."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    if not device.startswith('cpu'):
        return device
    threads = torch.get_num_threads()
    return '1 thread' if threads == 1 else f'{threads} threads'


def has_bfloat16(device: str) -> bool:
    """Whether `device` has instructions for bfloat16.

    Without them it is emulated, and many times slower than float32.
    """
    if device.startswith('cuda'):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not device.startswith('cpu') or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def amp_type(device: str) -> torch.dtype:
    """The type in which --amp computes: bfloat16, or float16 on a GPU without instructions for it.

    float16 needs a gradient scaler in training, since its smallest number is 6e-8.
    """
    if device.startswith('cuda') and not has_bfloat16(device):
        return torch.float16
    return torch.bfloat16


def has_fast_amp(device: str) -> bool:
    """Whether --amp is faster than float32."""
    return device.startswith('cuda') or has_bfloat16(device)


def warn_of_slow_amp(device: str) -> None:
    if not has_fast_amp(device):
        log(
            'warning: bfloat16 has no instructions on this device, so --amp makes it many times '
            'slower; leave it out'
        )


def memory_format(device: torch.device | str) -> torch.memory_format:
    """The layout of patches and convolutions in memory.

    Channels last is fastest on a CPU and on the tensor cores of a GPU. On Apple's mps batch norm's
    backward is wrong or fails with it (PyTorch issue 175189), so the plain layout serves there.
    """
    return torch.contiguous_format if torch.device(device).type == 'mps' else torch.channels_last


def start(device: str, compiles: bool = False) -> None:
    """Meet the other ranks, over NCCL on CUDA and gloo on the CPU.

    Args:
        compiles: whether the ranks compile: then they may arrive an hour apart.
    """
    global waiting_group
    if not launched() or dist.is_initialized():
        return
    timeout = COMPILE_TIMEOUT if compiles else STEP_TIMEOUT
    if device.startswith('cuda'):
        torch.cuda.set_device(device)
        dist.init_process_group('nccl', timeout=timeout, device_id=torch.device(device))
    else:
        dist.init_process_group('gloo', timeout=timeout)
    waiting_group = dist.new_group(backend='gloo', timeout=WAIT_TIMEOUT)
    # The first wait connects the ranks, and only connected ones notice at once that one has died.
    wait()


def stop() -> None:
    """Leave the other ranks, all at the same time."""
    global waiting_group
    if launched():
        # The group's threads would abort a rank that leaves before the others.
        wait()
        waiting_group = None
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every rank has arrived, however long the work of one takes."""
    if launched():
        dist.barrier(waiting_group)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the body on the first rank, and on the others once the first has finished it."""
    if rank() > 0:
        wait()
    yield
    # Not reached if the body fails: the first rank then ends, and the waiting ranks notice that.
    if rank() == 0:
        wait()


def refuse_differences(state: str) -> None:
    """Refuse to go on if `state` differs between ranks, as on machines that read other files."""
    if not launched():
        return
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, state, waiting_group)
    if len(set(states)) > 1:
        shown = '; '.join(f'rank {number}: {other}' for number, other in enumerate(states))
        with reported_once():
            raise InputError(
                f'the processes do not start from the same state ({shown[:300]}); '
                '--output and --weights must be on a disk that all machines share'
            )


def refuse_separate_folders(folder: Path) -> None:
    """Refuse to go on if `folder` is not one for all ranks, as on machines that share no disk.

    Separate folders can have the same content, so the first rank writes a new file to look for.
    """
    if not launched():
        return
    path = folder / '.shared'
    if rank() == 0:
        write_whole(path, secrets.token_bytes(16))
    wait()
    try:
        token = path.read_bytes().hex()[:8]
    except OSError:
        token = 'not there'
    try:
        refuse_differences(f'{path} is {token}')
    finally:
        # All ranks have read it now.
        if rank() == 0:
            path.unlink()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Add up `tensor` over all ranks in place, and return it."""
    if launched():
        dist.all_reduce(tensor)
    return tensor


def copy_buffers(model: torch.nn.Module) -> None:
    """Give every rank the first one's buffers.

    These are the running statistics of batch norm, which differ where it is not synchronised.
    """
    if launched():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with gradients averaged over the ranks, and on CUDA with synchronised batch norm."""
    if not launched():
        return model
    device = next(model.parameters()).device
    device_ids = None
    if device.type == 'cuda':
        device_ids = [device]
        # In place: `model` itself is no batch norm, so only modules inside it are replaced.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with warnings.catch_warnings():
        # PyTorch 2.14 warns that `broadcast_buffers` has a successor, which 2.6 does not know.
        warnings.simplefilter('ignore', FutureWarning)
        return torch.nn.parallel.DistributedDataParallel(
            model,
            device_ids,
            # Each rank keeps its own running statistics of batch norm: no training step reads them,
            # and `copy_buffers` makes them equal before a test.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def rank_slice(start: int, stop: int) -> slice:
    """This rank's part of the rows start ... stop of a batch.

    It is empty if there are fewer rows than ranks. An empty slice starts at a valid row, which the
    rank uses to take part in the step.
    """
    count = stop - start
    first = start + count * rank() // world_size()
    last = start + count * (rank() + 1) // world_size()
    if first == last:
        first = last = start + rank() % count
    return slice(first, last)
