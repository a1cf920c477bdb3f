"""What only a GPU can show, in about six minutes: a line for each check, and a table to paste into an issue.

    python benchmarks/gpu_check.py                     # on CUDA
    python benchmarks/gpu_check.py --device cpu        # small; what needs CUDA is skipped

PASS and FAIL stand before what must hold, INFO before what is only measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
from throughput import (
    flags,
    make_koniq,
    make_solver,
    run_python,
    run_short_batch,
    steps_of,
    synchronise,
)

from folders import OpenDatabase
from util import distributed
from util.distributed import device_name, has_bfloat16, memory_format, pick_device
from util.errors import launched

GIB = 2**30
# patches in a batch, of which two ranks have shares of 8 and 8, 7 and 8, and 1 and 1; 1 and 2 on a CPU
BATCHES = {'cuda': (16, 15, 2), 'cpu': (3,)}
RUNS = (('whole', '2'), ('parts', '1'), ('parts', '2'))  # run folder and epochs
# what a child process runs: trainings one after the other; 3 ends one whose SRCC is undefined, as that of noise can be
TRAIN = """
import json, sys, train_test_IQA
for options in json.loads(sys.argv[1]):
    try:
        train_test_IQA.main(options)
    except SystemExit as end:
        if end.code != 3:
            raise
"""
rows: list[tuple[str, str, str]] = []


def main():
    options = parse_options()
    if launched():  # started by `gradients` as one of two ranks
        torch.save(gradients_of(options), f'{options.gradients}.{os.environ["RANK"]}')
        return
    print(
        f'{options.device} ({device_name(options.device)}), torch {torch.__version__}, batches of {options.batch_size}'
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_koniq(root, options.images)
        for check in (gradients, resume, scores, synchronisation, memory, speed, data, determinism):
            check(root, options)
    print('\n| | check | figure |\n|---|---|---|')
    print(
        f'| | {device_name(options.device)}, torch {torch.__version__} | batches of {options.batch_size} |'
    )
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')
    sys.exit(any(verdict == 'FAIL' for verdict, _, _ in rows))


def report(name, figure, passed=None):
    """Print a line; `passed` is None for what is only measured."""
    verdict = 'INFO' if passed is None else 'PASS' if passed else 'FAIL'
    rows.append((verdict, name, figure))
    print(f'{verdict}  {name}: {figure}', flush=True)


def skip(name, reason):
    rows.append(('SKIP', name, reason))
    print(f'SKIP  {name}: {reason}', flush=True)


def gradients(root, options):
    """Two ranks on gloo have the gradients of one process, in float64.

    Batch norm is synchronised over the ranks on CUDA; on a CPU it cannot be, so it is in eval mode there.
    """
    options.gradients = root / 'gradients'
    environment = {
        **os.environ,
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': '29533',
        'WORLD_SIZE': '2',
        'LOCAL_RANK': '0',
    }
    command = [
        sys.executable,
        __file__,
        '--device',
        options.device,
        '--gradients',
        options.gradients,
    ]
    ranks = [
        subprocess.Popen(command, env={**environment, 'RANK': str(number)}) for number in range(2)
    ]
    expected = gradients_of(options)
    codes = [process.wait() for process in ranks]
    counts = ', '.join(map(str, BATCHES[kind_of(options.device)]))
    title = f'gradients of two ranks against one process, batches of {counts}, float64'
    if any(codes):
        return report(title, 'a rank has failed', False)
    found = [torch.load(f'{options.gradients}.{number}') for number in range(2)]
    pairs = [
        (a, b) for rank in found for batch, own in zip(expected, rank) for a, b in zip(batch, own)
    ]
    worst = max(((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item() for a, b in pairs)
    report(title, f'at most {worst:.1e} of a tensor', worst < 1e-8)


def gradients_of(options):
    """The gradients of every parameter after a step of each of `BATCHES`, of this rank or of one process alone."""
    kind = kind_of(options.device)
    with tempfile.TemporaryDirectory() as folder:
        make_koniq(Path(folder), 4)
        if launched():
            dist.init_process_group(
                'gloo'
            )  # which works for two ranks on one GPU, as NCCL does not
        torch.set_default_dtype(torch.float64)
        device = kind if launched() else options.device
        solver = make_solver(
            Path(folder), argparse.Namespace(device=device, batch_size=2), images=2, lr=0.0
        )
        torch.set_default_dtype(torch.float32)
    solver.model_hyper.train()
    if kind == 'cpu':
        norms = [
            module
            for module in solver.model_hyper.modules()
            if isinstance(module, torch.nn.BatchNorm2d)
        ]
        for module in norms:
            module.momentum = 1
        torch.manual_seed(0)
        solver.model_hyper(
            torch.randn(2, 3, 224, 224, dtype=torch.float64)
        )  # for running statistics that fit the weights
        for module in norms:
            module.eval()
    found = []
    for count in BATCHES[kind]:
        torch.manual_seed(count)
        patches, wanted = (
            torch.randn(count, 3, 224, 224, dtype=torch.float64),
            torch.rand(count, dtype=torch.float64),
        )
        share = distributed.rank_slice(0, count)
        own = (
            patches[share].to(solver.device).contiguous(memory_format=memory_format(solver.device))
        )
        with patch.object(
            torch.Tensor, 'float', torch.Tensor.double
        ):  # the target network casts to float32
            solver.train_step(own, wanted[share].to(solver.device), count)
        found.append(
            [parameter.grad.detach().cpu().clone() for parameter in solver.model_hyper.parameters()]
        )
    if launched():
        dist.destroy_process_group()
    return found


def resume(root, options):
    """A run that was stopped after an epoch and resumed has the weights of one that was not."""
    common = [
        '--dataset',
        'koniq',
        '--data_root',
        root,
        '--weights',
        'none',
        '--train_test_num',
        '1',
        '--deterministic',
    ]
    common += [
        '--device',
        options.device,
        '--train_patch_num',
        '1',
        '--test_patch_num',
        '1',
        '--batch_size',
        '4',
    ]
    for part, numbers in (
        ('train', range(options.images - 2)),
        ('test', range(options.images - 2, options.images)),
    ):
        (root / f'{part}.txt').write_text('\n'.join(f'{k}.jpg' for k in numbers))
    common += ['--split', f'train={root}/train.txt', f'test={root}/test.txt']
    runs = [
        [*common, '--epochs', epochs, '--output', root / name, '--resume'] for name, epochs in RUNS
    ]
    done = run_python(TRAIN, json.dumps(runs, default=str))
    if done.returncode:
        return report('a resumed run', done.stderr.strip().splitlines()[-1], False)
    files = (root / name / 'round_01' / 'last.pth' for name in ('whole', 'parts'))
    whole, parts = (torch.load(file, weights_only=True)['model'] for file in files)
    different = sum(not torch.equal(whole[name], parts[name]) for name in whole)
    title = 'a resumed run against an uninterrupted one, --deterministic'
    report(title, f'{different} of {len(whole)} tensors differ', not different)


def scores(root, options):
    """bfloat16 moves the scores little."""
    if not has_bfloat16(options.device):
        return skip('scores with --amp against without', 'no instructions for bfloat16')
    solver = make_solver(root, options, images=2, test_patch_num=options.batch_size)
    opened = OpenDatabase('koniq', root).open_frames(224)
    answers = []
    for amp in (False, True):
        solver.config.amp = amp
        answers.append(solver.predict(solver.loader(opened, range(options.images), istrain=False)))
    difference = np.abs(answers[0] - answers[1]).max() / np.abs(answers[0]).max()
    report(
        'scores with --amp against without', f'{difference:.1e} of the largest', difference < 0.05
    )


def synchronisation(root, options):
    """No step of an epoch waits for the GPU."""
    name = 'steps of an epoch without a host synchronisation'
    if not is_cuda(options.device):
        return skip(name, 'needs CUDA')
    solver = make_solver(root, options, images=options.batch_size // 4, train_patch_num=12)
    solver.train_epoch(0)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for patches, wanted in solver.train_data:
            solver.train_step(patches, wanted, len(patches))
        report(name, f'{len(solver.train_data)} steps', True)
    except RuntimeError as error:
        report(name, str(error).splitlines()[0], False)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def memory(root, options):
    """The largest amount of GPU memory that a training step holds."""
    for name, amp, limit in (('fp32', False, 11), ('--amp', True, 6.5)):
        name = f'peak memory of a step, {name}'
        if not is_cuda(options.device):
            skip(name, 'needs CUDA')
            continue
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run_steps(root, argparse.Namespace(**{**vars(options), 'steps': 2}), amp=amp)()
        used = torch.cuda.max_memory_allocated() / GIB
        report(name, f'{used:.1f} GiB (expected: below {limit} at batches of 96)', used < limit)


def speed(root, options):
    """Patches per second of training steps on a resident batch."""
    steps = options.steps
    contenders: dict[str, Any] = (
        {'fp32, TF32 in convolutions': ({}, {})} if is_cuda(options.device) else {'fp32': ({}, {})}
    )
    if has_bfloat16(options.device):
        contenders['--amp'] = {'amp': True}, {}
    if is_cuda(options.device):
        contenders['--amp, cudnn.benchmark'] = {'amp': True}, {'benchmark': True}
    rates = {}
    functions = {
        name: run_steps(root, options, **settings) for name, (settings, _) in contenders.items()
    }
    for name, (_, setting) in contenders.items():
        with flags(**setting):
            rates[name] = steps * options.batch_size / seconds_of(functions[name], options)
        report(f'training steps, {name}', f'{rates[name]:.1f} patches/s')
    if is_cuda(options.device):
        gain = rates['--amp, cudnn.benchmark'] / rates['--amp']
        report('gain of cudnn.benchmark with --amp', f'{gain:.3f}')
    name = 'compiled steps after a shorter batch against before'
    if options.no_compile:
        return skip(name, 'left out')
    amp = has_bfloat16(options.device)
    solver = make_solver(root, options, amp=amp, compile=True)
    step = steps_of(solver, options)
    before = seconds_of(step, options)
    report(
        'training steps, --amp --compile', f'{steps * options.batch_size / before:.1f} patches/s'
    )
    run_short_batch(solver, options)
    after = seconds_of(step, options)
    report(
        name, f'{before / after:.3f}', before / after > 0.97 if is_cuda(options.device) else None
    )


def data(root, options):
    """An epoch with its data against the same number of steps on a batch that is there already."""
    amp = has_bfloat16(options.device)
    patch_num = options.steps * options.batch_size // options.images
    solver = make_solver(
        root, options, images=options.images - 2, train_patch_num=max(1, patch_num), amp=amp
    )
    count = len(solver.train_data.patches.image)
    epoch = seconds_of(lambda: solver.train_epoch(0), options) / count
    steps = seconds_of(steps_of(solver, options), options) / (options.steps * options.batch_size)
    passed = steps / epoch > 0.95 if is_cuda(options.device) else None
    report('an epoch with data against resident batches', f'{steps / epoch:.3f}', passed)


def determinism(root, options):
    """What --deterministic costs; last, since PyTorch stays like this."""
    amp = has_bfloat16(options.device)
    before = seconds_of(run_steps(root, options, amp=amp), options)
    after = seconds_of(run_steps(root, options, amp=amp, deterministic=True), options)
    report('time of a step with --deterministic against without', f'{after / before:.2f}')


def run_steps(root, options, **settings):
    return steps_of(make_solver(root, options, **settings), options)


def seconds_of(function, options):
    """The median time of `function`, on CUDA after a call that warms up."""
    if is_cuda(options.device):
        function()
    seconds = []
    for _ in range(options.repetitions):
        started = time.perf_counter()
        function()
        synchronise(options.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def is_cuda(device):
    return device.startswith('cuda')


def kind_of(device):
    return 'cuda' if is_cuda(device) else 'cpu'


def parse_options():
    parser = argparse.ArgumentParser(description='Checks that need a GPU, with a table to send.')
    parser.add_argument('--device', default='cuda')
    parser.add_argument(
        '--no_compile', action='store_true', help='leave out what torch.compile needs minutes for'
    )
    parser.add_argument('--gradients', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not launched():
        options.device = pick_device(options.device)
    cuda = is_cuda(options.device)
    options.batch_size = 96 if cuda else 2
    options.steps, options.repetitions, options.images = (30, 3, 48) if cuda else (1, 1, 6)
    return options


if __name__ == '__main__':
    main()
