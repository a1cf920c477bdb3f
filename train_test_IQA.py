"""Train and test HyperIQA.

    python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
    python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
"""
import argparse
import sys

import numpy as np
import torch

import folders
from errors import InputError
from HyerIQASolver import DEFAULTS, HyperIQASolver, default_device
from models import PATCH_SIZE, patch_size_reason

TRAIN_SHARE = 0.8


def main(argv=None):
    try:
        run(parse_options(argv))
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


def run(config):
    """Train and test `config.train_test_num` rounds and print their medians."""
    describe(config)
    samples = folders.read_samples(config.dataset, config.data_root)
    units = folders.split_units(config.dataset, samples)
    results = []
    for round_index in range(config.train_test_num):
        print(f'Round {round_index + 1}', flush=True)
        train_idx, test_idx = draw_split(len(units), config.seed, round_index)
        solver = HyperIQASolver(config, config.data_root, train_idx, test_idx, round_index=round_index)
        results.append(solver.train())
    median_srcc, median_plcc = np.median(results, axis=0)
    print(f'Testing median SRCC {median_srcc:.4f}, median PLCC {median_plcc:.4f}')


def draw_split(units, seed, round_index):
    """Positions of the training and of the test units: a random 80 % and the rest, the same on every machine."""
    order = np.random.RandomState((seed, round_index)).permutation(units)
    cut = round(TRAIN_SHARE * units)
    if not 0 < cut < units:
        raise InputError(f'{units} images or contents are too few to split into a training and a test part')
    return order[:cut].tolist(), order[cut:].tolist()


def describe(config):
    """Say on stderr what a reader of the numbers must know."""
    own = folders.DATABASES[config.dataset].defaults
    if own:
        values = ' '.join(f'--{name} {getattr(config, name)}' for name in own).replace(' True', '')
        print(f'{config.dataset} has its own defaults, here: {values}', file=sys.stderr)
    device = config.device
    name = torch.cuda.get_device_name(device) if device.startswith('cuda') else f'{torch.get_num_threads()} threads'
    print(f'Device: {device} ({name}); seed: {config.seed}; initial weights: {config.weights}', file=sys.stderr)


def parse_options(argv):
    """The command line as a namespace. A database's own defaults stand between the general ones and the user's."""
    parser = make_parser()
    config = parser.parse_args(argv)
    config.dataset = folders.database_key(config.dataset)
    parser.set_defaults(**folders.DATABASES[config.dataset].defaults)
    config = parser.parse_args(argv, argparse.Namespace(dataset=config.dataset))
    config.dataset = folders.database_key(config.dataset)
    if config.patch_size != PATCH_SIZE:
        raise InputError(f'--patch_size: {patch_size_reason(config.patch_size)}')
    config.data_root = config.data_root or f'data/{config.dataset}'
    config.device = checked_device(config.device or default_device())
    return config


def make_parser():
    parser = argparse.ArgumentParser(description='Train and test HyperIQA.',
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add('--dataset', help=f'{", ".join(folders.DATABASES)}')
    add('--data_root', metavar='DIR', help='the database\'s folder (default: data/<dataset>)', default=argparse.SUPPRESS)
    add('--train_patch_num', type=positive, help='random patches of each training image an epoch')
    add('--test_patch_num', type=positive, help='random patches of each test image')
    add('--lr', type=rate, help='backbone learning rate')
    add('--weight_decay', type=rate, help='weight decay of both parameter groups')
    add('--lr_ratio', type=rate, help='hypernetwork learning rate / backbone learning rate')
    add('--batch_size', type=positive, help='patches a batch')
    add('--epochs', type=positive, help='epochs a round')
    add('--patch_size', type=int, help=f'{PATCH_SIZE}: the network takes no other')
    add('--train_test_num', type=positive, help='rounds: train-test splits')
    add('--seed', type=count, help='what the splits, initial weights and patches depend on')
    add('--device', help='cpu, cuda, cuda:1 ... (default: cuda if there is one, else cpu)', default=argparse.SUPPRESS)
    add('--weights', metavar='SOURCE', help='initial weights: imagenet, none, or the file of a torchvision ResNet-50 '
                                            'or HyperIQA state_dict')
    add('--num_workers', type=count, help='threads that decode images; the numbers do not depend on it')
    add('--amp', action='store_true', help='bfloat16 autocast: faster, the numbers differ slightly')
    parser.set_defaults(data_root=None, **DEFAULTS)
    return parser


def positive(text):
    return at_least(1, int(text))


def count(text):
    return at_least(0, int(text))


def rate(text):
    return at_least(0, float(text))


def at_least(bound, value):
    if not value >= bound:
        raise argparse.ArgumentTypeError(f'{value} is less than {bound}')
    return value


def checked_device(name):
    """`name` if PyTorch has such a device here."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device {name}: {str(error).splitlines()[0]}')
    return name


if __name__ == '__main__':
    main()
