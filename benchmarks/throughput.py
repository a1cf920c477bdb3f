"""Measure the speed of each stage against a plain reference, within one run.

    python benchmarks/throughput.py                     # on CUDA if there is a GPU, else on the CPU
    python benchmarks/throughput.py --device cuda --batch_size 96 --only step epoch

The contenders of a comparison take turns, so that a slow minute of the machine slows all of them.
Each repetition gives one ratio, reference time / own time. The table shows the minimum, median and
maximum of these ratios.
"""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parent.parent))
import models
from data_loader import BATCHES_AHEAD, IMAGENET_MEAN, IMAGENET_STD, DataLoader
from experiment.options import Parser
from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver
from util.distributed import device_name, has_fast_amp, memory_format, pick_device
from util.errors import boundary
from util.frames import ahead

IMAGES = 48
PATCHES = 25
# Steps per call of a training contender. On a GPU three would take 0.1 s, too short to measure.
STEPS = {'cuda': 30, 'cpu': 3}
BATCH_SIZE = {'cuda': 96, 'cpu': 8}


class Contender(NamedTuple):
    """A function without arguments that is timed, and the number of items that a call handles."""

    run: Callable[[], Any]
    items: int


class Variant(NamedTuple):
    """A way to train: options of train_test_IQA.py, and arguments of `flags` during the steps."""

    options: dict[str, Any]
    flags: dict[str, bool]


def main() -> None:
    with boundary():
        options = parse_options()
        print(
            f'{options.device} ({device_name(options.device)}), torch {torch.__version__}, '
            f'batches of {options.batch_size}, {options.repetitions} repetitions',
            flush=True,
        )
        print(f'{"":62s} batch   reference         own   ratio: min  median     max', flush=True)
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            make_koniq(root, 4 * IMAGES)
            for name in BENCHMARKS:
                if options.only is None or name in options.only:
                    rows += BENCHMARKS[name](root, options)
        if options.json:
            record = {
                **vars(options),
                'device_name': device_name(options.device),
                'torch': torch.__version__,
                'rows': rows,
            }
            Path(options.json).write_text(json.dumps(record, indent=1) + '\n')


def parse_options() -> Namespace:
    parser = Parser('Measure the speed of every stage against a plain reference.', __doc__)
    parser.add_argument('--device', help='default: cuda, else mps, else cpu')
    parser.add_argument('--batch_size', type=int, help='default: 96 on CUDA, 8 elsewhere')
    parser.add_argument('--repetitions', type=int, default=5, help='(default: 5)')
    parser.add_argument('--only', nargs='+', choices=BENCHMARKS, help='run only these')
    parser.add_argument('--json', metavar='FILE', help='also write all repetitions to a file')
    options = parser.parse_args()
    options.device = pick_device(options.device)
    kind = kind_of(options.device)
    options.batch_size = options.batch_size or BATCH_SIZE[kind]
    options.steps = STEPS[kind]
    return options


# The benchmarks. Each prints a row for each comparison and returns the rows.


def data(root: Path, options: Namespace) -> list[dict[str, Any]]:
    """Patches from 1024x768 JPEG files on one core: from the cache, or decoded for each patch."""
    samples = OpenDatabase('koniq', root).samples
    # All images, since a few of them take too short a time to measure.
    loader = DataLoader(
        'koniq',
        root,
        range(len(samples)),
        patch_size=224,
        patch_num=PATCHES,
        batch_size=96,
        num_workers=0,
    )
    patches = len(loader.patches.image)
    batches = []
    for start in range(0, patches, loader.batch_size):
        batches.append(slice(start, min(start + loader.batch_size, patches)))
    original = original_patches([sample.path for sample in samples[:IMAGES]])

    def decode() -> None:
        for _ in range(IMAGES):
            next(original)

    def gather() -> None:
        for job in ahead(loader.gather, batches, 1, BATCHES_AHEAD):
            job.result()

    # A small cache of frames fits into the processor's own cache and is faster for it: on one
    # machine 77,000 patches/s came from 113 MB, but 33,000 from 1.2 GB.
    megabytes = loader.frames[0].nbytes * len(samples) / 1e6
    print(f'data: the cache has {megabytes:.0f} MB', flush=True)
    contenders = {
        'decoded for each patch': Contender(decode, IMAGES),
        'uint8 batches from the cache': Contender(gather, patches),
    }
    return compare('data: patches/s, one core', contenders, options.repetitions, 96)


def step(root: Path, options: Namespace) -> list[dict[str, Any]]:
    """A training step on a resident batch."""
    title = 'step: patches/s'
    contenders = {'original': original_steps(options)}
    for name, variant in variants(options.device).items():
        contenders[name] = own_steps(root, options, variant)
    rows = compare(title, contenders, options.repetitions, options.batch_size)
    if '--amp' in contenders:
        precisions = {'fp32': contenders['fp32'], '--amp': contenders['--amp']}
        rows += compare(title, precisions, options.repetitions, options.batch_size)
    return rows


def test_pass(root: Path, options: Namespace) -> list[dict[str, Any]]:
    """A test of two images by 25 patches, from the cache."""

    def in_batches_of(size: int) -> Contender:
        solver = make_solver(root, options, test_batch_size=size)
        patches = len(solver.test_data.patches.image)
        return Contender(partial(solver.predict, solver.test_data), patches)

    contenders = {
        'patch by patch': in_batches_of(1),
        f'in batches of {options.batch_size}': in_batches_of(options.batch_size),
    }
    return compare('test: patches/s', contenders, options.repetitions, options.batch_size)


def epoch(root: Path, options: Namespace) -> list[dict[str, Any]]:
    """A training epoch, data included, against the same steps of two references without data.

    The references are the network itself on a resident batch, and a bare ResNet-50 on one, with
    its own fused Adam and in the same precision. In the default precision it also runs without
    Adam.
    """
    title = 'epoch: patches/s'
    every = variants(options.device)
    default = 'TF32' if 'TF32' in every else 'fp32'
    rows = []
    for name in (default, '--amp', '--amp --compile'):
        if name not in every:
            continue
        variant = every[name]
        resident, with_data = epoch_with_data(root, options, variant, options.batch_size)
        own = {f'with data, {name}': with_data}
        references = [{'resident batch': resident}]
        if name == default:
            references.append({'bare ResNet-50': bare_steps(options, variant, adam=False)})
        references.append({'bare ResNet-50 + Adam': bare_steps(options, variant, adam=True)})
        for reference in references:
            contenders = {**reference, **own}
            rows += compare(title, contenders, options.repetitions, options.batch_size)
    return rows


BENCHMARKS = {'data': data, 'step': step, 'test': test_pass, 'epoch': epoch}


# How contenders are timed. gpu_check.py times with these functions too.


def timed(
    contenders: Mapping[str, Contender], repetitions: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """The seconds per item of each contender in each repetition."""
    if warm_up:
        for contender in contenders.values():
            contender.run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender.run()
            seconds[name].append((time.perf_counter() - started) / contender.items)
    return seconds


def compare(
    title: str, contenders: Mapping[str, Contender], repetitions: int, batch_size: int
) -> list[dict[str, Any]]:
    """Time contenders. The first one is the reference; for each other one a row is printed.

    Returns:
        the rows, with every repetition's ratio.
    """
    seconds = timed(contenders, repetitions)
    reference, *others = contenders
    reference_rate = 1 / statistics.median(seconds[reference])
    rows = []
    for name in others:
        ratios = [theirs / own for theirs, own in zip(seconds[reference], seconds[name])]
        own_rate = 1 / statistics.median(seconds[name])
        comparison = f'{title}, {reference} | {name}'
        print(
            f'{comparison:62s} {batch_size:5d} {reference_rate:11.1f} {own_rate:11.1f} '
            f'{min(ratios):12.2f} {statistics.median(ratios):7.2f} {max(ratios):7.2f}',
            flush=True,
        )
        row = {
            'title': title,
            'reference': reference,
            'own': name,
            'batch_size': batch_size,
            'rates': [reference_rate, own_rate],
            'ratios': ratios,
        }
        rows.append(row)
    return rows


@contextmanager
def flags(tf32: bool | None = None, benchmark: bool | None = None) -> Iterator[None]:
    """Set the flags of PyTorch that decide its speed on CUDA, and restore them; None keeps one."""
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
    if tf32 is not None:
        cudnn.allow_tf32 = tf32
        matmul.allow_tf32 = tf32
    if benchmark is not None:
        cudnn.benchmark = benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def with_flags(function: Callable[[], Any], settings: dict[str, bool]) -> Callable[[], None]:
    """A function that calls `function` with the `flags` that `settings` names."""

    def run() -> None:
        with flags(**settings):
            function()

    return run


def synchronise(device: str) -> None:
    """Wait until a GPU has finished: its work is queued, so a call returns before it is done."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)


def kind_of(device: str) -> str:
    """'cuda', or 'cpu' for every other device."""
    return 'cuda' if device.startswith('cuda') else 'cpu'


# The contenders.


def variants(device: str) -> dict[str, Variant]:
    """The ways to train that are measured on a device."""
    if device.startswith('cuda'):
        return {
            'fp32': Variant({}, {'tf32': False}),
            'TF32': Variant({}, {'tf32': True}),
            '--amp': Variant({'amp': True}, {}),
            '--amp in float16': Variant({'amp': True, 'amp_type': torch.float16}, {}),
            '--amp, cudnn.benchmark': Variant({'amp': True}, {'benchmark': True}),
            '--amp --compile': Variant({'amp': True, 'compile': True}, {}),
        }
    if has_fast_amp(device):
        return {'fp32': Variant({}, {}), '--amp': Variant({'amp': True}, {})}
    print('This device has no instructions for bfloat16, so --amp is left out', flush=True)
    return {'fp32': Variant({}, {})}


def own_steps(root: Path, options: Namespace, variant: Variant) -> Contender:
    """Training steps on a resident batch."""
    solver = make_solver(root, options, **variant.options)
    run_short_batch(solver, options)
    run = with_flags(steps_of(solver, options), variant.flags)
    return Contender(run, options.steps * options.batch_size)


def steps_of(solver: HyperIQASolver, options: Namespace) -> Callable[[], None]:
    """A function that trains `options.steps` steps on a resident batch."""
    patches, scores = resident_batch(options, memory_format(options.device))

    def run() -> None:
        solver.model_hyper.train()
        for _ in range(options.steps):
            solver.train_step(patches, scores, len(patches))
        synchronise(options.device)

    return run


def run_short_batch(solver: HyperIQASolver, options: Namespace) -> None:
    """Train on a batch that lacks a patch, as the last one of an epoch does.

    It must not slow down the full batches that follow, not even those of a compiled network.
    """
    patches, scores = resident_batch(options, memory_format(options.device))
    solver.model_hyper.train()
    solver.train_step(patches[:-1], scores[:-1], len(patches) - 1)


def epoch_with_data(
    root: Path, options: Namespace, variant: Variant, images: int
) -> tuple[Contender, Contender]:
    """Steps on a resident batch, and about as many in an epoch that reads its data."""
    patch_num = max(1, options.steps * options.batch_size // images)
    solver = make_solver(root, options, images, train_patch_num=patch_num, **variant.options)
    run_short_batch(solver, options)
    steps = with_flags(steps_of(solver, options), variant.flags)
    epoch = with_flags(partial(solver.train_epoch, 0), variant.flags)
    return (
        Contender(steps, options.steps * options.batch_size),
        Contender(epoch, len(solver.train_data.patches.image)),
    )


def bare_steps(options: Namespace, variant: Variant, adam: bool) -> Contender:
    """Forward and backward passes of a bare ResNet-50, with or without a step of its Adam."""
    network = torchvision.models.resnet50().train()
    network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), 2e-5, weight_decay=5e-4, fused=True)
    patches, _ = resident_batch(options, torch.channels_last)
    device_type = torch.device(options.device).type
    amp = variant.options.get('amp', False)

    def run() -> None:
        for _ in range(options.steps):
            optimizer.zero_grad()
            with torch.autocast(device_type, torch.bfloat16, enabled=amp):
                loss = network(patches).sum()
            loss.backward()
            if adam:
                optimizer.step()
        synchronise(options.device)

    return Contender(with_flags(run, variant.flags), options.steps * options.batch_size)


def original_steps(options: Namespace) -> Contender:
    """The original's training steps on a resident batch.

    They are in float32 and NCHW, with grouped convolutions. Adam updates one tensor at a time, and
    the results are fetched in every step.
    """
    model = models.hyperiqa().to(options.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-5, weight_decay=5e-4, foreach=False)
    patches, scores = resident_batch(options, torch.contiguous_format)

    def run() -> None:
        for _ in range(options.steps):
            optimizer.zero_grad()
            paras = model(patches)
            predicted = GroupedTargetNet(paras)(paras['target_in_vec'])
            loss = F.l1_loss(predicted, scores)
            # Fetching them makes the host wait for the GPU, as in the original's steps.
            predicted.cpu().tolist()
            loss.item()
            loss.backward()
            optimizer.step()
        synchronise(options.device)

    return Contender(run, options.steps * options.batch_size)


class GroupedTargetNet:
    """The original's target network: the images of a batch are the groups of one convolution."""

    def __init__(self, paras: dict[str, torch.Tensor]) -> None:
        self.paras = paras

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch = len(x)
        x = x.view(1, -1, 1, 1)
        for k in range(1, 6):
            weight = self.paras[f'target_fc{k}w']
            bias = self.paras[f'target_fc{k}b']
            x = F.conv2d(x, weight.reshape(-1, *weight.shape[2:]), bias.reshape(-1), groups=batch)
            if k < 5:
                x = torch.sigmoid(x)
        return x.flatten()


def original_patches(paths: Sequence[str]) -> Iterator[torch.Tensor]:
    """The original's patches, without an end: each one opens, decodes and resizes its image."""
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.Resize((512, 384)),
            transforms.RandomCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    while True:
        for path in paths:
            with Image.open(path) as image:
                yield transform(image.convert('RGB'))


# The data that the contenders work on.


def make_solver(
    root: Path,
    options: Any,
    images: int = 4,
    *,
    amp_type: torch.dtype | None = None,
    **settings: Any,
) -> HyperIQASolver:
    """A solver that trains on the first `images` images of `make_koniq` and tests on two more."""
    defaults = {
        'dataset': 'koniq',
        'weights': 'none',
        'device': options.device,
        'batch_size': options.batch_size,
    }
    config = SimpleNamespace(**{**defaults, **settings})
    tested = [images, images + 1]
    return HyperIQASolver(config, root, list(range(images)), tested, amp_type=amp_type)


def resident_batch(
    options: Any, memory_format: torch.memory_format
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of random patches and scores that is on the device already."""
    torch.manual_seed(0)
    patches = torch.randn(options.batch_size, 3, 224, 224, device=options.device)
    scores = torch.rand(options.batch_size, device=options.device)
    return patches.contiguous(memory_format=memory_format), scores


def make_koniq(root: Path, count: int) -> None:
    """Write `count` random 1024x768 pictures in KonIQ-10k's layout."""
    folder = root / '1024x768'
    folder.mkdir()
    lines = ['image_name,MOS_zscore']
    for k in range(count):
        rng = np.random.RandomState(k)
        small = Image.fromarray(rng.randint(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((1024, 768)))
        # Noise gives the files about the size of photos, and so the time that decoding one takes.
        noisy = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f'{k}.jpg', quality=90)
        lines.append(f'{k}.jpg,{rng.uniform(0, 100):.3f}')
    (root / 'koniq10k_scores_and_distributions.csv').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
