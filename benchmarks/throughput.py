"""How fast each stage is beside a plain reference, measured side by side in one run.

    python benchmarks/throughput.py                     # on CUDA where there is one, else on the CPU
    python benchmarks/throughput.py --device cuda --batch_size 96

The contenders of a comparison take turns, so that a slower minute of the machine slows all of them. Each repetition gives
one ratio, reference time / own time; the table shows their minimum, median and maximum.
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
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parent.parent))
import models
from data_loader import IMAGENET_MEAN, IMAGENET_STD, DataLoader
from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver
from util.distributed import device_name, has_bfloat16, pick_device

IMAGES, PATCHES = 48, 25
STEPS = 3
LISTED = 10073  # as many as KonIQ-10k has
PROJECT = Path(__file__).parent.parent
# what a child process runs: it reports at the first training step what the process used until then, and ends
START = """
import json, os, resource, sys
import train_test_IQA, HyerIQASolver
def report(*batch):
    used = resource.getrusage(resource.RUSAGE_SELF)
    os.write(1, ('\\n' + json.dumps(used.ru_utime + used.ru_stime)).encode())
    os._exit(0)
HyerIQASolver.HyperIQASolver.train_step = report
train_test_IQA.main(sys.argv[1:])
"""
# what a child process runs to list a database: labels, splits, names and crops of an epoch, of images that are never decoded
LISTING = """
import json, resource, sys, time
from types import SimpleNamespace
import numpy as np
from data_loader import draw_patches
from folders import OpenDatabase
from util.options import with_defaults
from util.splits import draw_splits
def private():
    return sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith('Private')) / 1e3
before, started = private(), time.process_time()
database = OpenDatabase('csv', sys.argv[1])
config = with_defaults(SimpleNamespace(dataset='csv'))
names = [database.names(split['train']) for split in draw_splits(config, database)]
patches = draw_patches((0, 0, 0), np.full((len(database.samples), 2), 224), 25, True)
print(json.dumps([time.process_time() - started, private() - before]))
"""
rows: list[dict] = []


def main():
    options = parse_options()
    print(
        f'{options.device} ({device_name(options.device)}), torch {torch.__version__}, batches of '
        f'{options.batch_size}, {options.repetitions} repetitions',
        flush=True,
    )
    print(f'{"":62s} batch   reference         own   ratio: min  median     max', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_koniq(root, 4 * IMAGES)
        for benchmark in (data, growth, listing, start, step, test_pass, epoch):
            benchmark(root, options)
    if options.json:
        record = {**vars(options), 'device_name': device_name(options.device), 'torch': torch.__version__, 'rows': rows}
        Path(options.json).write_text(json.dumps(record, indent=1) + '\n')


def data(root, options):
    """Patches from 1024x768 JPEG files, on one core: decoded for each patch as in the original, and from the cache."""
    opened = OpenDatabase('koniq', root).open_frames(224)
    images = len(opened.samples)  # all of them, since a few take too short a time to measure
    loader = DataLoader('koniq', root, range(images), 224, PATCHES, 96, num_workers=0, opened=opened).get_data()
    original = original_patches([sample.path for sample in opened.samples[:IMAGES]])
    compare(
        options,
        'data: patches/s, one core',
        {
            'decoded for each patch': (lambda: [next(original) for _ in range(IMAGES)], IMAGES),
            'uint8 batches from the cache': (lambda: exhaust(loader.crops()), images * PATCHES),
        },
        96,
    )


def growth(root, options):
    """An epoch's batches from the cache for more images and more patches: a ratio of 0.5 is twice the time."""
    opened = OpenDatabase('koniq', root).open_frames(224)

    def epoch_of(images, patches):
        loader = DataLoader('koniq', root, range(images), 224, patches, 96, num_workers=0, opened=opened).get_data()
        return lambda: exhaust(loader.crops()), 1

    compare(
        options,
        'growth: epochs of data/s',
        {
            f'{IMAGES} images x {PATCHES} patches': epoch_of(IMAGES, PATCHES),
            f'{2 * IMAGES} images': epoch_of(2 * IMAGES, PATCHES),
            f'{4 * IMAGES} images': epoch_of(4 * IMAGES, PATCHES),
            f'{2 * PATCHES} patches': epoch_of(IMAGES, 2 * PATCHES),
            f'{4 * PATCHES} patches': epoch_of(IMAGES, 4 * PATCHES),
        },
        96,
    )


def listing(root, options):
    """CPU seconds and private memory against the number of listed images: labels, ten splits, names and an epoch's crops."""
    counts = (1000, 10000, 40000)
    used: dict[int, list[list[float]]] = {count: [] for count in counts}
    tables = {count: make_csv(root / f'listed{count}', count) for count in counts}
    for _ in range(options.repetitions):
        for count in counts:
            used[count].append(json.loads(child(LISTING, tables[count])))
    for count in counts:
        seconds, megabytes = (statistics.median(column) for column in zip(*used[count]))
        each = f'{1e6 * seconds / count:.0f} us and {1e3 * megabytes / count:.1f} kB an image'
        print(f'listing of {count} images: {seconds:.2f} s of CPU, {megabytes:.1f} MB of private memory; {each}', flush=True)
        rows.append({'title': 'listing', 'images': count, 'cpu_seconds': seconds, 'private_megabytes': megabytes})


def start(root, options):
    """CPU seconds of a whole process from the command to its first training step, where the cache is there already."""
    table = make_csv(root / 'start', LISTED)
    torch.save(torchvision.models.resnet50().state_dict(), root / 'resnet50.pth')
    arguments = ['--dataset', 'csv', '--csv', table, '--device', options.device, '--weights', root / 'resnet50.pth']
    seconds = [
        float(child(START, *arguments, '--output', root / f'run{k}').splitlines()[-1]) for k in range(options.repetitions + 1)
    ][1:]  # the first one makes the cache
    low, median, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f'start with {LISTED} cached images: {low:.1f} | {median:.1f} | {high:.1f} s of CPU (min, median, max)', flush=True)
    rows.append({'title': 'start', 'images': LISTED, 'cpu_seconds': seconds})


def child(program, *arguments):
    """What `program`, run by a Python of its own in the project's folder, prints."""
    command = [sys.executable, '-c', program, *map(str, arguments)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'error: a child process of the benchmark failed: {done.stderr}')
    return done.stdout


def make_csv(folder, count):
    """A table of `count` names of one 224x224 picture."""
    folder.mkdir()
    names = [f'{k}.jpg' for k in range(count)]
    noise = np.random.RandomState(0).randint(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / 'one.jpg')
    for name in names:
        os.link(folder / 'one.jpg', folder / name)
    lines = [f'{name},{k % 100}' for k, name in enumerate(names)]
    (folder / 'labels.csv').write_text('\n'.join(['image,score', *lines]) + '\n')
    return folder / 'labels.csv'


def step(root, options):
    """A training step on a resident batch."""
    contenders = {'original': (original_step(options), STEPS * options.batch_size)}
    for name, settings in step_settings(options.device).items():
        contenders[name] = own_step(root, options, **settings), STEPS * options.batch_size
    compare(options, 'step: images/s', contenders)
    if '--amp' in contenders:
        compare(options, 'step: images/s', {name: contenders[name] for name in ('fp32', '--amp')})


def step_settings(device):
    if device.startswith('cuda'):
        return {
            'fp32': {'tf32': False},
            'TF32': {'tf32': True},
            '--amp': {'amp': True},
            '--amp --compile': {'amp': True, 'compile': True},
        }
    if has_bfloat16(device):
        return {'fp32': {}, '--amp': {'amp': True}}
    print('step: this CPU has no bfloat16 instructions, so --amp is left out', flush=True)
    return {'fp32': {}}


def test_pass(root, options):
    """A test of two images by 25 patches, from the cache."""

    def pass_in_batches(size):
        solver = make_solver(root, options, test_batch_size=size)
        return lambda: solver.predict(solver.test_data), len(solver.test_data.patches.image)

    compare(
        options,
        'test: patches/s',
        {'patch by patch': pass_in_batches(1), f'in batches of {options.batch_size}': pass_in_batches(options.batch_size)},
    )


def epoch(root, options):
    """A training epoch, data included, beside a bare ResNet-50 on a resident batch, without and with its own fused Adam."""
    solver = make_solver(root, options, images=options.batch_size, train_patch_num=STEPS)
    images = STEPS * options.batch_size
    own = {'HyperIQA with data': (lambda: solver.train_epoch(0), images)}
    compare(options, 'epoch: images/s', {'bare ResNet-50': (bare_step(options, adam=False), images), **own})
    compare(options, 'epoch: images/s', {'bare ResNet-50 + Adam': (bare_step(options, adam=True), images), **own})
    waits: list[float] = []
    solver.train_data.crops = metered(solver.train_data.crops, waits)
    started = time.perf_counter()
    solver.train_epoch(0)
    share = sum(waits) / (time.perf_counter() - started)
    print(f'epoch: {share:.1%} of the time was spent waiting for data', flush=True)


def metered(crops, waits):
    """The generator function `crops`, which appends to `waits` the seconds that each batch was waited for."""

    def batches():
        started = time.perf_counter()
        for batch in crops():
            waits.append(time.perf_counter() - started)
            yield batch
            started = time.perf_counter()

    return batches


def bare_step(options, adam):
    network = torchvision.models.resnet50().to(options.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), 2e-5, weight_decay=5e-4, fused=True)
    patches, _ = resident_batch(options, torch.channels_last)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            network(patches).sum().backward()
            if adam:
                optimizer.step()
        synchronise(options.device)

    return run


def compare(options, title, contenders, batch_size=None):
    """Print a row for each contender after the first, which is the reference.

    Args:
        contenders: maps a name to (function, how many items one call handles).
        batch_size: of what is compared, if not `options.batch_size`.
    """
    batch_size = batch_size or options.batch_size
    for function, _ in contenders.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repetitions):
        for name, (function, items) in contenders.items():
            started = time.perf_counter()
            function()
            seconds[name].append((time.perf_counter() - started) / items)
    reference, *others = contenders
    for name in others:
        ratios = [a / b for a, b in zip(seconds[reference], seconds[name])]
        rates = [1 / statistics.median(seconds[which]) for which in (reference, name)]
        print(
            f'{f"{title}, {reference} | {name}":62s} {batch_size:5d} {rates[0]:11.1f} {rates[1]:11.1f} '
            f'{min(ratios):12.2f} {statistics.median(ratios):7.2f} {max(ratios):7.2f}',
            flush=True,
        )
        names = {'title': title, 'reference': reference, 'own': name, 'batch_size': batch_size}
        rows.append({**names, 'rates': rates, 'ratios': ratios})


def original_patches(paths):
    """The original's pipeline: each patch opens, decodes and resizes its image; endless."""
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


class GroupedTargetNet:
    """The original's target network: all images of a batch as the groups of one convolution."""

    def __init__(self, paras):
        self.paras = paras

    def __call__(self, x):
        batch = len(x)
        x = x.view(1, -1, 1, 1)
        for k in range(1, 6):
            weight, bias = self.paras[f'target_fc{k}w'], self.paras[f'target_fc{k}b']
            x = F.conv2d(x, weight.reshape(-1, *weight.shape[2:]), bias.reshape(-1), groups=batch)
            x = torch.sigmoid(x) if k < 5 else x
        return x.flatten()


def original_step(options):
    """The original's step: float32, NCHW, grouped convolutions, one tensor of Adam at a time, results fetched every step."""
    model = models.hyperiqa().to(options.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-5, weight_decay=5e-4, foreach=False)
    patches, scores = resident_batch(options, torch.contiguous_format)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            paras = model(patches)
            predicted = GroupedTargetNet(paras)(paras['target_in_vec'])
            loss = F.l1_loss(predicted, scores)
            predicted.cpu().tolist(), loss.item()
            loss.backward()
            optimizer.step()
        synchronise(options.device)

    return run


def own_step(root, options, tf32=None, **settings):
    solver = make_solver(root, options, **settings)
    solver.model_hyper.train()
    patches, scores = resident_batch(options, torch.channels_last)

    def run():
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        for _ in range(STEPS):
            solver.train_step(patches, scores, len(patches))
        synchronise(options.device)

    return run


def make_solver(root, options, images=4, **settings):
    config = SimpleNamespace(
        **{'dataset': 'koniq', 'weights': 'none', 'device': options.device, 'batch_size': options.batch_size, **settings}
    )
    return HyperIQASolver(config, root, list(range(images)), [images, images + 1])


def resident_batch(options, memory_format):
    torch.manual_seed(0)
    patches = torch.randn(options.batch_size, 3, 224, 224, device=options.device)
    return patches.contiguous(memory_format=memory_format), torch.rand(options.batch_size, device=options.device)


def make_koniq(root, count):
    """`count` random 1024x768 pictures in KonIQ-10k's layout."""
    folder = root / '1024x768'
    folder.mkdir()
    lines = ['image_name,MOS_zscore']
    for k in range(count):
        rng = np.random.RandomState(k)
        coarse = Image.fromarray(rng.randint(0, 256, (24, 32, 3), dtype=np.uint8)).resize((1024, 768))
        noisy = np.asarray(coarse) + rng.normal(0, 8, (768, 1024, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f'{k}.jpg', quality=90)
        lines.append(f'{k}.jpg,{rng.uniform(0, 100):.3f}')
    (root / 'koniq10k_scores_and_distributions.csv').write_text('\n'.join(lines) + '\n')


def exhaust(batches):
    for _ in batches:
        pass


def synchronise(device):
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)


def parse_options():
    parser = argparse.ArgumentParser(description='Throughput of every stage beside a plain reference.')
    parser.add_argument('--device', default=pick_device(None))
    parser.add_argument('--batch_size', type=int, help='default: 96 on CUDA, 8 on the CPU')
    parser.add_argument('--repetitions', type=int, default=5)
    parser.add_argument('--json', metavar='FILE', help='write the figures there too, every repetition of them')
    options = parser.parse_args()
    options.batch_size = options.batch_size or (96 if options.device.startswith('cuda') else 8)
    return options


if __name__ == '__main__':
    main()
