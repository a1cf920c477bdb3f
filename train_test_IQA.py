"""Train and test HyperIQA.

    python train_test_IQA.py --dataset demo                        # generated data, minutes on a CPU
    python train_test_IQA.py --dataset koniq --data_root DIR       # KonIQ-10k, the published protocol
"""
import argparse
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np

import folders
import run_folder
from data_loader import open_database
from errors import InputError, say
from HyerIQASolver import DEFAULTS, HyperIQASolver, checked_device, default_device, has_bfloat16
from models import PATCH_SIZE, patch_size_reason

TRAIN_SHARE = 0.8


def main(argv=None):
    signal.signal(signal.SIGTERM, terminate)
    try:
        config = parse_options(argv)
        if config.evaluate:
            evaluate(config)
        else:
            run(config)
    except InputError as error:
        say(f'error: {error}')
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        say('interrupted; the same command with --resume continues after the last finished epoch')
        sys.exit(interrupt.args[0] if interrupt.args else 130)


def terminate(signal_number, frame):
    """SIGTERM ends the program as Ctrl-C does, with its own exit code."""
    raise KeyboardInterrupt(128 + signal_number)


def run(config):
    """Train and test `config.train_test_num` rounds into the run folder and print their medians."""
    describe(config)
    opened = open_database(config.dataset, config.data_root, config.cache)
    folder = run_folder.open_run(config)
    for round_index in range(config.train_test_num):
        split = draw_split(len(opened.units), config.seed, round_index, config.val_ratio)
        train_round(config, folder, round_index, split, opened)
    median = run_folder.summarise(folder).get('median', {})
    print(f'Testing median SRCC {median.get("SRCC", math.nan):.4f}, median PLCC {median.get("PLCC", math.nan):.4f}')


def train_round(config, run, round_index, split, opened):
    """Train and test one round, or what is left of it, and write its results."""
    names = {part: [name_of(opened.samples[k], config.data_root) for k in opened.positions(units)]
             for part, units in split.items() if units}
    folder = run_folder.RoundFolder(run, round_index, names)
    print(f'Round {round_index + 1}', flush=True)
    if not folder.finished:
        solver = HyperIQASolver(config, config.data_root, split['train'], split['test'], val_idx=split['val'],
                                round_index=round_index, opened=opened)
        folder.restore(solver)
        solver.train(folder)
        if solver.best:
            folder.finish(names['test'], solver.test_data.scores, solver.best['scores'].numpy(),
                          f'{folders.DATABASES[config.dataset].title}, round {round_index + 1}, epoch {solver.best["epoch"]}')
    result = run_folder.summarise(run)['rounds'].get(str(round_index + 1))
    if result is None:
        print('Best test SRCC nan, PLCC nan', flush=True)
    else:
        chosen = 'Best test' if not split['val'] else 'Best validation epoch: test'
        print(f'{chosen} SRCC {result["SRCC"]:.4f}, PLCC {result["PLCC"]:.4f} (epoch {result["epoch"]})', flush=True)


def evaluate(config):
    """Repeat the test of the round whose folder holds the checkpoint; prints what its history shows for that epoch."""
    describe(config)
    checkpoint = Path(config.evaluate)
    opened = open_database(config.dataset, config.data_root, config.cache)
    split = read_split(checkpoint.with_name('split.json'), config.data_root, opened)
    round_index = int(checkpoint.parent.name.removeprefix('round_')) - 1
    solver = HyperIQASolver(config, config.data_root, split['train'], split['test'], round_index=round_index,
                            opened=opened)
    test_srcc, test_plcc = solver.test(solver.test_data)
    print(f'test_srcc {test_srcc}\ntest_plcc {test_plcc}')


def read_split(path, data_root, opened):
    """The parts in a split.json as positions of units.

    Raises:
        InputError: it names images that the database does not have, or separates images of one unit.
    """
    names = run_folder.read_json(path)
    unit_of = {name_of(opened.samples[k], data_root): position for position, unit in enumerate(opened.units) for k in unit}
    unknown = [name for part in names.values() for name in part if name not in unit_of]
    if unknown:
        raise InputError(f'{path} names {len(unknown)} images that are not in {data_root}, the first of them {unknown[0]}')
    return {part: list(dict.fromkeys(unit_of[name] for name in names.get(part, []))) for part in ('train', 'val', 'test')}


def name_of(sample, data_root):
    """A sample's name in the files of a run: its path below the database's folder, the same on every machine."""
    return Path(os.path.relpath(sample.path, data_root)).as_posix()


def draw_split(units, seed, round_index, val_ratio):
    """Draw the parts of a round, the same on every machine.

    Args:
        units: how many there are to draw from.
        val_ratio: share of the training units that choose the best epoch instead of being trained on.

    Returns:
        dict: positions of the `train`, `val` and `test` units.
    """
    order = np.random.RandomState((seed, round_index)).permutation(units).tolist()
    cut = round(TRAIN_SHARE * units)
    held_out = round(val_ratio * cut)
    split = {'train': order[held_out:cut], 'val': order[:held_out], 'test': order[cut:]}
    if not split['train'] or not split['test'] or bool(split['val']) != bool(val_ratio):
        raise InputError(f'{units} images or contents are too few to split into '
                         f'{"training, validation and test" if val_ratio else "training and test"} parts')
    return split


def describe(config):
    """Say on stderr what a reader of the numbers must know."""
    own = folders.DATABASES[config.dataset].defaults
    if own:
        values = ' '.join(f'--{name} {getattr(config, name)}' for name in own).replace(' True', '')
        say(f'{config.dataset} has its own defaults, here: {values}')
    say(f'Device: {config.device} ({run_folder.device_name(config.device)}); seed: {config.seed}; '
        f'initial weights: {config.weights}')
    if config.amp and not has_bfloat16(config.device):
        say('--amp: this CPU has no bfloat16 instructions, so training is many times slower with it than without')


def parse_options(argv):
    """The command line as a namespace. A database's own defaults stand between the general ones and the user's."""
    parser = make_parser()
    config = parser.parse_args(argv)
    config.dataset = folders.database_key(config.dataset)
    parser.set_defaults(**folders.DATABASES[config.dataset].defaults)
    if config.evaluate:
        parser.set_defaults(**options_of_run(config.evaluate))
    config = parser.parse_args(argv, argparse.Namespace(dataset=config.dataset))
    config.dataset = folders.database_key(config.dataset)
    if config.patch_size != PATCH_SIZE:
        raise InputError(f'--patch_size: {patch_size_reason(config.patch_size)}')
    config.data_root = config.data_root or f'data/{config.dataset}'
    config.output = config.output or f'runs/{config.dataset}-seed{config.seed}'
    config.device = checked_device(config.device or default_device())
    return config


def options_of_run(checkpoint):
    """The options that decide the numbers of the run whose round folder holds `checkpoint`, and its data_root."""
    options = run_folder.read_options(Path(checkpoint).parent.parent / 'config.json')
    kept = {name: value for name, value in options.items() if name not in run_folder.FREE_OPTIONS}
    return {**kept, 'data_root': options['data_root'], 'weights': checkpoint}


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
    add('--num_workers', type=count, help='threads that gather patches; the numbers do not depend on it')
    add('--test_batch_size', type=positive, help='patches a batch when testing')
    add('--cache', metavar='DIR', help='folder of the decoded images (default: .hyperiqa_cache in the database\'s folder); '
                                       'none decodes each image again in every epoch', default=argparse.SUPPRESS)
    add('--amp', action='store_true', help='bfloat16 autocast: faster, the numbers differ slightly')
    add('--compile', action='store_true', help='torch.compile: a slow start, then faster on a GPU')
    add('--output', metavar='DIR', help='the run folder (default: runs/<dataset>-seed<seed>)', default=argparse.SUPPRESS)
    add('--resume', action='store_true', help='continue the run folder after its last finished epoch, or start it')
    add('--patience', type=count, metavar='N', help='stop a round after N epochs without a better epoch; 0: never')
    add('--val_ratio', type=share, metavar='R', help='share of the training images (or contents) that choose the best '
                                                     'epoch; 0: the test part chooses it, as in the original')
    add('--evaluate', metavar='CHECKPOINT', help='only repeat the test of the round that this best.pth or last.pth is of')
    parser.set_defaults(data_root=None, output=None, **DEFAULTS)
    return parser


def positive(text):
    return at_least(1, int(text))


def count(text):
    return at_least(0, int(text))


def rate(text):
    return at_least(0, float(text))


def share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{value} is not in 0 ... 1')
    return value


def at_least(bound, value):
    if not value >= bound:
        raise argparse.ArgumentTypeError(f'{value} is less than {bound}')
    return value


if __name__ == '__main__':
    main()
