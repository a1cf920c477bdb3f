"""How fast each stage is beside a plain reference, measured side by side in one run.

    python benchmarks/throughput.py                     # on CUDA where there is one, else on the CPU
    python benchmarks/throughput.py --device cuda --batch_size 96 --only step epoch

The contenders of a comparison take turns, so that a slower minute of the machine slows all of them. Each repetition gives
one ratio, reference time / own time; the table shows their minimum, median and maximum.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
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
from util.distributed import device_name, has_bfloat16, memory_format, pick_device

IMAGES, PATCHES = 48, 25
STEPS = {
    'cuda': 30,
    'cpu': 3,
}  # of a training contender: 3 would take 0.1 s on a GPU, too short to measure
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
from experiment.options import with_defaults
from experiment.splits import draw_splits
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
        for name, benchmark in BENCHMARKS.items():
            if name in (options.only or BENCHMARKS):
                benchmark(root, options)
    if options.json:
        record = {
            **vars(options),
            'device_name': device_name(options.device),
            'torch': torch.__version__,
            'rows': rows,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + '\n')


def data(root, options):
    """Patches from 1024x768 JPEG files, on one core: decoded for each patch as in the original, and from the cache."""
    opened = OpenDatabase('koniq', root).open_frames(224)
    images = len(opened.samples)  # all of them, since a few take too short a time to measure
    loader = DataLoader(
        'koniq', root, range(images), 224, PATCHES, 96, num_workers=0, opened=opened
    ).get_data()
    original = original_patches([sample.path for sample in opened.samples[:IMAGES]])
    # a processor's own cache makes a small one faster: on one machine 77,000 patches/s came from 113 MB, 33,000 from 1.2 GB
    print(f'data: the cache holds {opened.frames[0].nbytes * images / 1e6:.0f} MB', flush=True)
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
        loader = DataLoader(
            'koniq', root, range(images), 224, patches, 96, num_workers=0, opened=opened
        ).get_data()
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
        print(
            f'listing of {count} images: {seconds:.2f} s of CPU, {megabytes:.1f} MB of private memory; {each}',
            flush=True,
        )
        rows.append(
            {
                'title': 'listing',
                'images': count,
                'cpu_seconds': seconds,
                'private_megabytes': megabytes,
            }
        )


def start(root, options):
    """CPU seconds of a whole process from the command to its first training step, where the cache is there already."""
    table = make_csv(root / 'start', LISTED)
    torch.save(torchvision.models.resnet50().state_dict(), root / 'resnet50.pth')
    arguments = [
        '--dataset',
        'csv',
        '--csv',
        table,
        '--device',
        options.device,
        '--weights',
        root / 'resnet50.pth',
    ]
    seconds = [
        float(child(START, *arguments, '--output', root / f'run{k}').splitlines()[-1])
        for k in range(options.repetitions + 1)
    ][1:]  # the first one makes the cache
    low, median, high = min(seconds), statistics.median(seconds), max(seconds)
    print(
        f'start with {LISTED} cached images: {low:.1f} | {median:.1f} | {high:.1f} s of CPU (min, median, max)',
        flush=True,
    )
    rows.append({'title': 'start', 'images': LISTED, 'cpu_seconds': seconds})


def run_python(program, *arguments):
    """The finished process of a Python of its own that ran `program` in the project's folder."""
    command = [sys.executable, '-c', program, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def child(program, *arguments):
    """What `program`, run by a Python of its own in the project's folder, prints."""
    done = run_python(program, *arguments)
    if done.returncode:
        sys.exit(f'error: a child process of the benchmark failed: {done.stderr}')
    return done.stdout


def make_csv(folder, count):
    """A table of `count` names, each of a copy of one small picture: links to it would be seen to be one file."""
    folder.mkdir()
    names = [f'{k}.jpg' for k in range(count)]
    picture = io.BytesIO()
    Image.fromarray(np.full((224, 224, 3), 99, np.uint8)).save(picture, 'JPEG')
    for name in names:
        (folder / name).write_bytes(picture.getvalue())
    lines = [f'{name},{k % 100}' for k, name in enumerate(names)]
    (folder / 'labels.csv').write_text('\n'.join(['image,score', *lines]) + '\n')
    return folder / 'labels.csv'


def step(root, options):
    """A training step on a resident batch."""
    contenders = {'original': (original_step(options), options.steps * options.batch_size)}
    for name, (settings, flags_of) in step_settings(options.device).items():
        contenders[name] = (
            own_step(root, options, flags_of, **settings),
            options.steps * options.batch_size,
        )
    compare(options, 'step: patches/s', contenders)
    if '--amp' in contenders:
        compare(options, 'step: patches/s', {name: contenders[name] for name in ('fp32', '--amp')})


def step_settings(device):
    """The options of each contender, and the flags of PyTorch that hold while it runs."""
    if device.startswith('cuda'):
        return {
            'fp32': ({}, {'tf32': False}),
            'TF32': ({}, {'tf32': True}),
            '--amp': ({'amp': True}, {}),
            '--amp, cudnn.benchmark': ({'amp': True}, {'benchmark': True}),
            '--amp --compile': ({'amp': True, 'compile': True}, {}),
        }
    if has_bfloat16(device):
        return {'fp32': ({}, {}), '--amp': ({'amp': True}, {})}
    print('step: this device has no instructions for bfloat16, so --amp is left out', flush=True)
    return {'fp32': ({}, {})}


@contextmanager
def flags(tf32=None, benchmark=None):
    """Set what decides the speed of PyTorch on CUDA, where it is not None, and restore it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    if tf32 is not None:
        cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    if benchmark is not None:
        cudnn.benchmark = benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def test_pass(root, options):
    """A test of two images by 25 patches, from the cache."""

    def pass_in_batches(size):
        solver = make_solver(root, options, test_batch_size=size)
        return lambda: solver.predict(solver.test_data), len(solver.test_data.patches.image)

    compare(
        options,
        'test: patches/s',
        {
            'patch by patch': pass_in_batches(1),
            f'in batches of {options.batch_size}': pass_in_batches(options.batch_size),
        },
    )


def epoch(root, options):
    """A training epoch, data included, beside the same steps on a resident batch, and beside a bare ResNet-50 on one.

    The ResNet-50 runs without and with its own fused Adam, and under the same autocast.
    """
    title, patches = 'epoch: patches/s', options.steps * options.batch_size
    settings_by_name = step_settings(options.device)
    default = 'TF32' if 'TF32' in settings_by_name else 'fp32'
    for name in [
        default,
        *(name for name in ('--amp', '--amp --compile') if name in settings_by_name),
    ]:
        settings, flags_of = settings_by_name[name]
        solver = make_solver(
            root, options, images=options.batch_size, train_patch_num=options.steps, **settings
        )
        run_short_batch(solver, options)
        own = {
            f'with data, {name}': (
                flagged(lambda solver=solver: solver.train_epoch(0), flags_of),
                patches,
            )
        }
        compare(
            options,
            title,
            {'resident batch': (flagged(steps_of(solver, options), flags_of), patches), **own},
        )
        for adam in (False, True) if name == default else (True,):
            bare = flagged(bare_step(options, adam, amp=settings.get('amp', False)), flags_of)
            compare(options, title, {'bare ResNet-50' + ' + Adam' * adam: (bare, patches), **own})


def bare_step(options, adam, amp):
    network = (
        torchvision.models.resnet50().to(options.device, memory_format=torch.channels_last).train()
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-5, weight_decay=5e-4, fused=True)
    patches, _ = resident_batch(options, torch.channels_last)

    def run():
        for _ in range(options.steps):
            optimizer.zero_grad()
            with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=amp):
                loss = network(patches).sum()
            loss.backward()
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
        for _ in range(options.steps):
            optimizer.zero_grad()
            paras = model(patches)
            predicted = GroupedTargetNet(paras)(paras['target_in_vec'])
            loss = F.l1_loss(predicted, scores)
            predicted.cpu().tolist(), loss.item()
            loss.backward()
            optimizer.step()
        synchronise(options.device)

    return run


def own_step(root, options, flags_of, **settings):
    solver = make_solver(root, options, **settings)
    run_short_batch(solver, options)
    return flagged(steps_of(solver, options), flags_of)


def steps_of(solver, options):
    """A function that trains `options.steps` steps on a resident batch."""
    patches, scores = resident_batch(options, memory_format(options.device))

    def run():
        solver.model_hyper.train()
        for _ in range(options.steps):
            solver.train_step(patches, scores, len(patches))
        synchronise(options.device)

    return run


def run_short_batch(solver, options):
    """As an epoch ends with: it must not slow down the full batches that follow, compiled ones either."""
    patches, scores = resident_batch(options, memory_format(options.device))
    solver.model_hyper.train()
    solver.train_step(patches[:-1], scores[:-1], len(patches) - 1)


def flagged(function, flags_of):
    def run():
        with flags(**flags_of):
            function()

    return run


def make_solver(root, options, images=4, **settings):
    config = SimpleNamespace(
        **{
            'dataset': 'koniq',
            'weights': 'none',
            'device': options.device,
            'batch_size': options.batch_size,
            **settings,
        }
    )
    return HyperIQASolver(config, root, list(range(images)), [images, images + 1])


def resident_batch(options, memory_format):
    torch.manual_seed(0)
    patches = torch.randn(options.batch_size, 3, 224, 224, device=options.device)
    return patches.contiguous(memory_format=memory_format), torch.rand(
        options.batch_size, device=options.device
    )


def make_koniq(root, count):
    """`count` random 1024x768 pictures in KonIQ-10k's layout."""
    folder = root / '1024x768'
    folder.mkdir()
    lines = ['image_name,MOS_zscore']
    for k in range(count):
        rng = np.random.RandomState(k)
        coarse = Image.fromarray(rng.randint(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (1024, 768)
        )
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
    parser = argparse.ArgumentParser(
        description='Throughput of every stage beside a plain reference.'
    )
    parser.add_argument('--device', default=pick_device(None))
    parser.add_argument('--batch_size', type=int, help='default: 96 on CUDA, 8 on the CPU')
    parser.add_argument('--repetitions', type=int, default=5)
    parser.add_argument('--only', nargs='+', choices=BENCHMARKS, help='these alone (default: all)')
    parser.add_argument(
        '--json', metavar='FILE', help='write the figures there too, every repetition of them'
    )
    options = parser.parse_args()
    kind = 'cuda' if options.device.startswith('cuda') else 'cpu'
    options.batch_size, options.steps = (
        options.batch_size or {'cuda': 96, 'cpu': 8}[kind],
        STEPS[kind],
    )
    return options


BENCHMARKS = {
    'data': data,
    'growth': growth,
    'listing': listing,
    'start': start,
    'step': step,
    'test': test_pass,
    'epoch': epoch,
}


if __name__ == '__main__':
    main()
