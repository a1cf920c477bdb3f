"""Where a run computes: the device, and the processes that torchrun started; without torchrun those functions do nothing.

There are two groups with two time-outs. Ranks that compute meet in every step, so one that waits STEP_TIMEOUT for another ends,
and torchrun then ends all. Where one rank works alone (decoding, saving, finishing), the others wait for up to WAIT_TIMEOUT in
a group of their own; that a rank has died is noticed there at once.
"""

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from util.errors import InputError, first_line, launched, rank

STEP_TIMEOUT = timedelta(seconds=120)
WAIT_TIMEOUT = timedelta(days=1)
waiting_group: Any = None  # gloo, whatever the device


def world_size() -> int:
    return int(os.environ['WORLD_SIZE']) if launched() else 1


def pick_device(name: str | None, deterministic: bool = False) -> str:
    """The device to compute on: `name`, or CUDA or MPS where there is one; this rank's own GPU under torchrun.

    Args:
        deterministic: make the process compute the same bytes each time; off leaves PyTorch as it is.

    Raises:
        InputError: PyTorch has no such device here, or not for several processes.
    """
    if deterministic:
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # cuBLAS reads it once, when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        # what PyTorch would fill, at the cost of time, is overwritten before it is read
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in its stub
    name = name or (
        'cuda'
        if torch.cuda.is_available()
        else 'mps'
        if torch.backends.mps.is_available()
        else 'cpu'
    )
    if launched() and (name.startswith('cuda:') or name == 'mps'):
        remedy = (
            'start without torchrun'
            if name == 'mps'
            else 'give --device cuda, and each process takes a GPU of its own'
        )
        raise InputError(f'--device {name} is for one process: {remedy}')
    if launched() and name == 'cuda':
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        torch.ones(1, device=name).add(
            1
        ).item()  # some devices can be named and allocated on, but do not compute
    except Exception as error:  # each backend that is not there fails in its own way
        raise InputError(f'--device {name}: {first_line(error)}; use cpu, cuda, cuda:1 or mps')
    return name


def processes_on(device: str) -> str:
    """How many processes compute where, as '2 processes on cpu, 1 thread each'."""
    several, kind = world_size() > 1, device.partition(':')[0] if launched() else device
    return f'{world_size()} process{"es" * several} on {kind}, {device_name(device)}{" each" * several}'


def device_name(device: str) -> str:
    """What a reader of the numbers should know of `device`: the GPU's name, or how many CPU threads."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{threads} thread{"s" * (threads > 1)}' if device.startswith('cpu') else device


def has_bfloat16(device: str) -> bool:
    """Whether `device` has instructions for bfloat16; without them it is emulated, many times slower than float32."""
    if device.startswith('cuda'):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != 'cpu' or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def memory_format(device: torch.device | str) -> torch.memory_format:
    """How patches and convolutions lie in memory: channels last, in which a CPU and the tensor cores of a GPU are fastest.

    Not on Apple's mps, where batch norm's backward is wrong or fails on channels-last memory (PyTorch issue 175189).
    """
    return torch.contiguous_format if torch.device(device).type == 'mps' else torch.channels_last


def start(device: str) -> None:
    """Meet the other ranks; NCCL on CUDA, gloo on the CPU."""
    global waiting_group
    if launched() and not dist.is_initialized():
        if device.startswith('cuda'):
            torch.cuda.set_device(device)
            dist.init_process_group('nccl', timeout=STEP_TIMEOUT, device_id=torch.device(device))
        else:
            dist.init_process_group('gloo', timeout=STEP_TIMEOUT)
        waiting_group = dist.new_group(backend='gloo', timeout=WAIT_TIMEOUT)
        wait()  # connects them, and only connected ranks notice at once that one has died


def stop() -> None:
    """Leave the other ranks, all at the same time: the threads of one that is ahead would abort it."""
    global waiting_group
    if launched():
        wait()
        waiting_group = None
        dist.destroy_process_group()


def wait() -> None:
    """Until every rank is here, however long the work of one takes."""
    if launched():
        dist.barrier(waiting_group)


def refuse_differences(state: str) -> None:
    """Refuse to go on where `state` is not the same on all ranks, as on machines that read different files."""
    if launched():
        states: list[Any] = [None] * world_size()
        dist.all_gather_object(states, state, waiting_group)
        if len(set(states)) > 1:
            held = '; '.join(f'rank {number}: {other}' for number, other in enumerate(states))[:300]
            remedy = '--output and --weights must be on a disk that all machines share'
            raise InputError(f'the processes do not start from the same state ({held}); {remedy}')


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Add up `tensor` over all ranks in place."""
    if launched():
        dist.all_reduce(tensor)
    return tensor


def copy_buffers(model: torch.nn.Module) -> None:
    """Give every rank the first one's buffers: the running statistics of batch norm, where they are not synchronised."""
    if launched():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with its gradients averaged over the ranks, and its batch norm synchronised on CUDA."""
    if not launched():
        return model
    device = next(model.parameters()).device
    if device.type == 'cuda':
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(
            model
        )  # in place, since `model` itself is none
    # Each rank keeps its own running statistics of batch norm, which no step reads; `copy_buffers` makes them one for a test.
    options: dict[str, Any] = {'broadcast_buffers': False, 'gradient_as_bucket_view': True}
    with warnings.catch_warnings():
        warnings.simplefilter(
            'ignore', FutureWarning
        )  # PyTorch 2.14 has a new name for it, which 2.6 does not know
        return torch.nn.parallel.DistributedDataParallel(
            model, [device] if device.type == 'cuda' else None, **options
        )


def rank_slice(start: int, stop: int) -> slice:
    """This rank's part of the rows start ... stop of a batch; where there are fewer rows than ranks, it can be empty.

    An empty one starts at a row of the batch, for the rank to take part in the step with.
    """
    count, ranks = stop - start, world_size()
    first, last = (start + count * number // ranks for number in (rank(), rank() + 1))
    return slice(first, last) if first < last else slice(*2 * [start + rank() % count])
