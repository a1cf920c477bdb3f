"""Run the checks that need a GPU. Prints a line per check, and at the end a table for an issue.

    python benchmarks/gpu_check.py                     # on CUDA, about six minutes
    python benchmarks/gpu_check.py --device cpu        # small; checks that need CUDA are skipped

PASS and FAIL are verdicts; INFO is only a measurement. The exit code is 1 if a check fails, and 2
without such a device.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
from throughput import (
    Contender,
    Variant,
    epoch_with_data,
    kind_of,
    make_koniq,
    make_solver,
    own_steps,
    run_short_batch,
    steps_of,
    timed,
    variants,
)

from experiment.options import Parser
from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver
from util import distributed
from util.distributed import device_name, has_fast_amp, memory_format, pick_device
from util.errors import NO_RESULT, boundary, read_ranks

PROJECT = Path(__file__).parent.parent
GIB = 2**30
# Patches in a batch. Two ranks share them as 8 and 8, 7 and 8, 1 and 1; on a CPU as 1 and 2.
BATCHES = {'cuda': (16, 15, 2), 'cpu': (3,)}


class Result(NamedTuple):
    """A row of the table. `verdict` is PASS, FAIL, INFO or SKIP."""

    verdict: str
    check: str
    figure: str


def main(argv: list[str] | None = None) -> None:
    with boundary():
        options = parse_options(argv)
        name = device_name(options.device)
        version = f'torch {torch.__version__}'
        batches = f'batches of {options.batch_size}'
        print(f'{options.device} ({name}), {version}, {batches}')
        results = []
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_koniq(root, options.images)
            for check in CHECKS:
                for result in check(root, options):
                    print(f'{result.verdict}  {result.check}: {result.figure}', flush=True)
                    results.append(result)

        print('\n| | check | figure |\n|---|---|---|')
        print(f'| | {name}, {version} | {batches} |')
        for result in results:
            print(f'| {result.verdict} | {result.check} | {result.figure} |')
        if any(result.verdict == 'FAIL' for result in results):
            sys.exit(1)


def parse_options(argv: list[str] | None) -> Namespace:
    parser = Parser('Checks that need a GPU, with a table to send.', __doc__)
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1 ... or cpu (default: cuda)')
    parser.add_argument(
        '--no_compile', action='store_true', help='leave out torch.compile, which takes minutes'
    )
    options = parser.parse_args(argv)
    options.device = pick_device(options.device)
    if is_cuda(options.device):
        options.batch_size = 96
        options.steps = 30
        options.repetitions = 3
        options.images = 48
    else:
        options.batch_size = 2
        options.steps = 1
        options.repetitions = 1
        options.images = 6
    return options


def is_cuda(device: str) -> bool:
    return kind_of(device) == 'cuda'


def verdict(passed: bool) -> str:
    return 'PASS' if passed else 'FAIL'


# The checks with a verdict.


def gradients(root: Path, options: Namespace) -> Iterator[Result]:
    """Two ranks on gloo have the gradients of one process, in float64.

    On CUDA batch norm is synchronised over the ranks. On a CPU it cannot be, so there it is in eval
    mode.
    """
    # New interpreters, since a forked process cannot use CUDA once its parent has.
    context = multiprocessing.get_context('spawn')
    paths = [root / f'gradients.{number}' for number in range(2)]
    ranks = []
    for number, path in enumerate(paths):
        process = context.Process(target=save_gradients, args=(number, options.device, path))
        process.start()
        ranks.append(process)
    expected = gradients_of(options.device)
    for process in ranks:
        process.join()

    counts = ', '.join(str(count) for count in BATCHES[kind_of(options.device)])
    check = f'gradients of two ranks against one process, batches of {counts}, float64'
    if any(process.exitcode != 0 for process in ranks):
        yield Result('FAIL', check, 'a rank has failed')
        return
    differences = []
    for path in paths:
        for of_one, of_rank in zip(expected, torch.load(path)):
            for a, b in zip(of_one, of_rank):
                largest = a.abs().max().clamp_min(1e-300)  # some gradients are all 0
                differences.append(((a - b).abs().max() / largest).item())
    worst = float(np.max(differences))
    yield Result(verdict(worst < 1e-8), check, f'at most {worst:.1e} of a tensor')


def save_gradients(number: int, device: str, path: Path) -> None:
    """Meet the other one of two ranks, and save the gradients of this one."""
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT='29533',
        WORLD_SIZE='2',
        RANK=str(number),
        LOCAL_RANK='0',
    )
    read_ranks()
    # gloo works for two ranks on one GPU, and NCCL does not.
    dist.init_process_group('gloo')
    torch.save(gradients_of(kind_of(device)), path)
    dist.destroy_process_group()


def gradients_of(device: str) -> list[list[torch.Tensor]]:
    """This process's gradients of all parameters after a step on each of `BATCHES`."""
    solver = make_double_solver(device)
    solver.model_hyper.train()
    if solver.device.type == 'cpu':
        fix_batch_norm(solver.model_hyper)
    found = []
    for count in BATCHES[kind_of(device)]:
        train_on_share(solver, count)
        of_batch = []
        for parameter in solver.model_hyper.parameters():
            assert parameter.grad is not None
            of_batch.append(parameter.grad.cpu().clone())
        found.append(of_batch)
    return found


def make_double_solver(device: str) -> HyperIQASolver:
    """A solver in float64 whose learning rate is 0, so that all steps are at the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        make_koniq(Path(folder), 4)
        torch.set_default_dtype(torch.float64)
        options = Namespace(device=device, batch_size=2)
        solver = make_solver(Path(folder), options, images=2, lr=0.0)
        torch.set_default_dtype(torch.float32)
    return solver


def fix_batch_norm(model: torch.nn.Module) -> None:
    """Put batch norm into eval mode, with running statistics that fit the weights."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1
    torch.manual_seed(0)
    model(torch.randn(2, 3, 224, 224, dtype=torch.float64))
    for module in norms:
        module.eval()


def train_on_share(solver: HyperIQASolver, count: int) -> None:
    """Train a step on this rank's share of a random batch of `count` patches, in float64."""
    torch.manual_seed(count)
    patches = torch.randn(count, 3, 224, 224, dtype=torch.float64)
    scores = torch.rand(count, dtype=torch.float64)
    share = distributed.rank_slice(0, count)
    own = patches[share].to(solver.device)
    own = own.contiguous(memory_format=memory_format(solver.device))
    # The target network casts its input and weights by `.float()`. Here that keeps float64.
    with patch.object(torch.Tensor, 'float', torch.Tensor.double):
        solver.train_step(own, scores[share].to(solver.device), count)


def resume(root: Path, options: Namespace) -> Iterator[Result]:
    """A run that was stopped after an epoch and resumed has the weights of one that was not."""
    check = 'a resumed run against an uninterrupted one, --deterministic'
    names = [f'{k}.jpg' for k in range(options.images)]
    (root / 'train.txt').write_text('\n'.join(names[:-2]))
    (root / 'test.txt').write_text('\n'.join(names[-2:]))
    common = (
        f'--dataset koniq --weights none --device {options.device} --deterministic --resume '
        '--train_test_num 1 --train_patch_num 1 --test_patch_num 1 --batch_size 4'
    )
    for output, epochs in (('whole', 2), ('parts', 1), ('parts', 2)):
        done = subprocess.run(
            [
                sys.executable,
                PROJECT / 'train_test_IQA.py',
                *common.split(),
                *('--data_root', root, '--output', root / output, '--epochs', str(epochs)),
                *('--split', f'train={root}/train.txt', f'test={root}/test.txt'),
            ],
            capture_output=True,
            text=True,
        )
        # The SRCC of noise can be undefined. The weights are there all the same.
        if done.returncode not in (0, NO_RESULT):
            yield Result('FAIL', 'a resumed run', done.stderr.strip().splitlines()[-1])
            return
    whole = read_weights(root / 'whole')
    parts = read_weights(root / 'parts')
    different = 0
    for name in whole:
        if not torch.equal(whole[name], parts[name]):
            different += 1
    yield Result(verdict(different == 0), check, f'{different} of {len(whole)} tensors differ')


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights after the last epoch of a run's first round."""
    return torch.load(run / 'round_01' / 'last.pth', weights_only=True)['model']


def scores(root: Path, options: Namespace) -> Iterator[Result]:
    """bfloat16 changes the scores little."""
    check = 'scores with --amp against without'
    if not has_fast_amp(options.device):
        yield Result('SKIP', check, 'no instructions for bfloat16')
        return
    solver = make_solver(root, options, images=2, test_patch_num=options.batch_size)
    database = OpenDatabase('koniq', root).open_frames(224)
    every_image = solver.loader(database, range(options.images), istrain=False)
    without = solver.predict(every_image)
    solver.config.amp = True
    difference = np.abs(without - solver.predict(every_image)).max() / np.abs(without).max()
    yield Result(verdict(difference < 0.05), check, f'{difference:.1e} of the largest')


def synchronisation(root: Path, options: Namespace) -> Iterator[Result]:
    """No step of an epoch waits for the GPU."""
    check = 'steps of an epoch without a host synchronisation'
    if not is_cuda(options.device):
        yield Result('SKIP', check, 'needs CUDA')
        return
    solver = make_solver(root, options, images=options.batch_size // 4, train_patch_num=12)
    # The first epoch may wait, since some things are set up once.
    solver.train_epoch(0)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for patches, wanted in solver.train_data:
            solver.train_step(patches, wanted, len(patches))
        result = Result('PASS', check, f'{len(solver.train_data)} steps')
    except RuntimeError as error:
        result = Result('FAIL', check, str(error).splitlines()[0])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    yield result


def memory(root: Path, options: Namespace) -> Iterator[Result]:
    """The peak memory of a training step is as expected."""
    for name, amp, limit in (('fp32', False, 11), ('--amp', True, 6.5)):
        check = f'peak memory of a step, {name}'
        if not is_cuda(options.device):
            yield Result('SKIP', check, 'needs CUDA')
            continue
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        two_steps = Namespace(**{**vars(options), 'steps': 2})
        steps_of(make_solver(root, options, amp=amp), two_steps)()
        used = torch.cuda.max_memory_allocated() / GIB
        figure = f'{used:.1f} GiB (expected: below {limit} at batches of 96)'
        yield Result(verdict(used < limit), check, figure)


# The measurements, with the functions of throughput.py.


def speed(root: Path, options: Namespace) -> Iterator[Result]:
    """Patches per second of training steps on a resident batch."""
    contenders = {}
    for name, variant in variants(options.device).items():
        if 'compile' not in variant.options:
            contenders[name] = own_steps(root, options, variant)
    rates = {name: 1 / seconds for name, seconds in median_seconds(contenders, options).items()}
    for name, rate in rates.items():
        yield Result('INFO', f'training steps, {name}', f'{rate:.1f} patches/s')
    if is_cuda(options.device):
        gain = rates['--amp, cudnn.benchmark'] / rates['--amp']
        yield Result('INFO', 'gain of cudnn.benchmark with --amp', f'{gain:.3f}')


def compiled_speed(root: Path, options: Namespace) -> Iterator[Result]:
    """A shorter batch does not slow down compiled steps, as another compilation would."""
    check = 'compiled steps after a shorter batch against before'
    if options.no_compile:
        yield Result('SKIP', check, 'left out')
        return
    solver = make_solver(root, options, amp=has_fast_amp(options.device), compile=True)
    steps = steps_of(solver, options)
    before = seconds_of(steps, options)
    rate = options.steps * options.batch_size / before
    yield Result('INFO', 'training steps, --amp --compile', f'{rate:.1f} patches/s')
    run_short_batch(solver, options)
    ratio = before / seconds_of(steps, options)
    yield Result(verdict_on_cuda(ratio > 0.97, options), check, f'{ratio:.3f}')


def data(root: Path, options: Namespace) -> Iterator[Result]:
    """An epoch with its data takes hardly longer than the same steps on a resident batch."""
    variant = Variant({'amp': has_fast_amp(options.device)}, {})
    resident, with_data = epoch_with_data(root, options, variant, options.images - 2)
    seconds = median_seconds({'resident': resident, 'with data': with_data}, options)
    ratio = seconds['resident'] / seconds['with data']
    check = 'an epoch with data against resident batches'
    yield Result(verdict_on_cuda(ratio > 0.95, options), check, f'{ratio:.3f}')


def determinism(root: Path, options: Namespace) -> Iterator[Result]:
    """The time that --deterministic costs."""
    amp = has_fast_amp(options.device)
    before = seconds_of(steps_of(make_solver(root, options, amp=amp), options), options)
    solver = make_solver(root, options, amp=amp, deterministic=True)
    after = seconds_of(steps_of(solver, options), options)
    check = 'time of a step with --deterministic against without'
    yield Result('INFO', check, f'{after / before:.2f}')


def verdict_on_cuda(passed: bool, options: Namespace) -> str:
    """INFO on a CPU, where a single small step is no measurement."""
    return verdict(passed) if is_cuda(options.device) else 'INFO'


def median_seconds(contenders: dict[str, Contender], options: Namespace) -> dict[str, float]:
    """The median seconds per item of each contender."""
    seconds = timed(contenders, options.repetitions, warm_up=is_cuda(options.device))
    return {name: statistics.median(seconds[name]) for name in contenders}


def seconds_of(function: Callable[[], Any], options: Namespace) -> float:
    """The median seconds of a call."""
    return median_seconds({'function': Contender(function, 1)}, options)['function']


CHECKS = (
    gradients,
    resume,
    scores,
    synchronisation,
    memory,
    speed,
    compiled_speed,
    data,
    determinism,  # last, since PyTorch stays deterministic in this process
)


if __name__ == '__main__':
    main()
