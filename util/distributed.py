"""Where a run computes: the device, and the processes that torchrun started; without torchrun those functions do nothing.

A rank that waits longer than TIMEOUT for another one ends, and torchrun then ends all: within three minutes, whether a rank
died or hangs. Where ranks may work alone for longer, `patiently` has each show the others that it lives.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from util.errors import InputError
from util.program import first_line, tell

if TYPE_CHECKING:
    import torch  # imported for real where it is used, since `say` and `rank` serve commands that answer without it

TIMEOUT = timedelta(seconds=120)
HEARTBEAT = 5  # seconds
LAUNCH = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
cpu_group: Any = None  # for messages of ranks that do not compute: gloo, whatever the device


def launched() -> bool:
    """Whether torchrun started this process."""
    return all(os.environ.get(name, '').isdecimal() for name in LAUNCH[:2])


def check_launch() -> None:
    """
    Raises:
        InputError: the environment holds a part of torchrun's variables, or odd ones.
    """
    values = [os.environ.get(name, '') for name in LAUNCH]
    whole = all(values) and all(value.isdecimal() for value in values[:3]) and int(values[0]) < int(values[1])
    if values[0] and values[1] and not whole:
        found = ', '.join(f'{name}={value}' for name, value in zip(LAUNCH, values))
        raise InputError(f'these variables are not as torchrun sets them: {found}; use torchrun, or unset RANK and WORLD_SIZE')


def rank() -> int:
    return int(os.environ['RANK']) if launched() else 0


def world_size() -> int:
    return int(os.environ['WORLD_SIZE']) if launched() else 1


def say(text: str) -> None:
    """Print to stderr, once whatever the number of ranks: stdout carries the results alone."""
    if rank() == 0:
        tell(text)


def pick_device(name: str | None, deterministic: bool = False) -> str:
    """The device to compute on: `name`, or CUDA or MPS where there is one; this rank's own GPU under torchrun.

    Args:
        deterministic: make the process compute the same bytes each time; off leaves PyTorch as it is.

    Raises:
        InputError: PyTorch has no such device here.
    """
    import torch

    check_launch()
    if deterministic:
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'  # cuBLAS reads it once, when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    name = name or ('cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu')
    if launched() and name == 'cuda':
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        torch.ones(1, device=name).add(1).item()  # some devices can be named and allocated on, but do not compute
    except Exception as error:  # each backend that is not there fails in its own way
        raise InputError(f'--device {name}: {first_line(error)}')
    return name


def device_name(device: str) -> str:
    """What a reader of the numbers should know of `device`: the GPU's name, or how many CPU threads."""
    import torch

    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    return f'{torch.get_num_threads()} threads' if device.startswith('cpu') else device


def has_bfloat16(device: str) -> bool:
    """Whether `device` computes in bfloat16 at least as fast as in float32: every GPU of use here does, not every CPU."""
    import torch

    return device != 'cpu' or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def start(device: str) -> None:
    """Meet the other ranks; NCCL on CUDA, gloo on the CPU."""
    global cpu_group
    if not launched():
        return
    import torch
    from torch import distributed as dist

    if dist.is_initialized():
        return
    if device.startswith('cuda'):
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.startswith('cuda') else 'gloo', timeout=TIMEOUT)
    cpu_group = dist.new_group(backend='gloo', timeout=TIMEOUT)


def stop() -> None:
    """Leave the other ranks, all at the same time: the threads of one that is ahead would abort it."""
    global cpu_group
    if launched():
        from torch import distributed as dist

        wait()
        cpu_group = None
        dist.destroy_process_group()


def wait() -> None:
    """Until every rank is here."""
    if launched():
        from torch import distributed as dist

        dist.barrier(cpu_group)


@contextmanager
def patiently() -> Iterator[None]:
    """Ranks may take any time in the body, each its own, and leave it together: in a thread they hear of each other meanwhile.

    Where one of them hangs, the others end as by SIGTERM.
    """
    if not launched():
        yield
        return
    import torch
    from torch import distributed as dist

    left = threading.Event()

    def listen() -> None:
        everyone = torch.zeros(1)
        try:
            while not everyone:
                left.wait(HEARTBEAT)
                everyone.fill_(left.is_set())
                dist.all_reduce(everyone, dist.ReduceOp.MIN, cpu_group)
        except RuntimeError as error:
            tell(f'rank {rank()}: another rank does not answer ({first_line(error)})')
            os.kill(os.getpid(), signal.SIGTERM)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    yield
    left.set()
    listener.join()


def sum_over_ranks(tensor: 'torch.Tensor') -> 'torch.Tensor':
    """Add up `tensor` over all ranks in place."""
    if launched():
        from torch import distributed as dist

        dist.all_reduce(tensor)
    return tensor


def copy_buffers(model: 'torch.nn.Module') -> None:
    """Give every rank the first one's buffers: the running statistics of batch norm, where they are not synchronised."""
    if launched():
        from torch import distributed as dist

        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap(model: 'torch.nn.Module') -> 'torch.nn.Module':
    """`model` with its gradients averaged over the ranks, and its batch norm synchronised on CUDA."""
    if not launched():
        return model
    import torch

    device = next(model.parameters()).device
    if device.type == 'cuda':
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, since `model` itself is none
    return torch.nn.parallel.DistributedDataParallel(model, [device] if device.type == 'cuda' else None)


def share(start: int, stop: int) -> slice:
    """This rank's part of the rows start ... stop of a batch; it is empty if there are fewer rows than ranks."""
    count, ranks = stop - start, world_size()
    return slice(start + count * rank() // ranks, start + count * (rank() + 1) // ranks)
