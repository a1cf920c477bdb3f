"""The command line of train_test_IQA.py, checked, as a namespace."""

import argparse
from pathlib import Path
from typing import Any, TypeVar

import folders
from HyerIQASolver import DEFAULTS
from models import PATCH_SIZE, patch_size_reason
from util import distributed, run_folder
from util.errors import InputError

Number = TypeVar('Number', int, float)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The options in `argv`. What the user leaves out has its value of the database, and then of `DEFAULTS`."""
    parser = make_parser()
    config = parser.parse_args(argv)
    parser.set_defaults(**folders.DATABASES[folders.database_key(config.dataset)].defaults)
    if config.train_on_all:
        parser.set_defaults(train_test_num=1)
    if config.evaluate:
        parser.set_defaults(**options_of_run(config.evaluate))
    config = parser.parse_args(argv)
    config.dataset = folders.database_key(config.dataset)
    refuse_contradictions(config)
    config.data_root = config.csv or config.data_root or f'data/{config.dataset}'
    config.output = config.output or f'runs/{config.dataset}-seed{config.seed}'
    config.weights = config.evaluate or config.weights
    config.device = distributed.pick_device(config.device)
    return config


def options_of_run(checkpoint: Path | str) -> dict[str, Any]:
    """The options that decide the numbers of the run whose round folder holds `checkpoint`, and where its data is."""
    options = run_folder.read_record(Path(checkpoint).parent.parent / 'config.json')['options']
    kept = {name: value for name, value in options.items() if name not in run_folder.FREE_OPTIONS}
    return {**kept, 'data_root': options['data_root'], 'csv': options['csv'], 'evaluate': None, 'test_on': None}


def refuse_contradictions(config: argparse.Namespace) -> None:
    if config.patch_size != PATCH_SIZE:
        raise InputError(f'--patch_size: {patch_size_reason(config.patch_size)}')
    if bool(config.csv) != (config.dataset == 'csv'):
        raise InputError('--dataset csv and --csv FILE go together: the file lists your images and their scores')
    if config.val_ratio and config.split != 'random':
        raise InputError('--val_ratio goes with --split random; another split says itself what its validation part is')
    if config.train_on_all and (config.val_ratio or config.patience or config.split != 'random'):
        raise InputError(
            '--train_on_all leaves nothing to choose an epoch on: it goes without --val_ratio, --patience and --split'
        )
    if config.rounds and config.rounds[-1] > config.train_test_num:
        raise InputError(f'--rounds: there are {config.train_test_num} rounds; --train_test_num says how many')
    names = [name for name, _ in config.test_on or []]
    if len(set(names)) < len(names):
        raise InputError('--test_on: each database can be named once')


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Train and test HyperIQA.', formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(**{**dict.fromkeys(ABSENT), **DEFAULTS, 'split': 'random'})

    def add(name: str, **settings: Any) -> None:
        if name.lstrip('-') in ABSENT:
            settings['default'] = argparse.SUPPRESS  # its help says what happens without it
        parser.add_argument(name, **settings)

    add('--dataset', help=f'{", ".join(folders.DATABASES)}')
    add('--data_root', metavar='DIR', help="the database's folder (default: data/<dataset>)")
    add('--csv', metavar='FILE', help='with --dataset csv: a table of your images and scores')
    add('--train_patch_num', type=positive, help='random patches of each training image an epoch')
    add('--test_patch_num', type=positive, help='random patches of each test image')
    add('--lr', type=rate, help='backbone learning rate')
    add('--weight_decay', type=rate, help='weight decay of both parameter groups')
    add('--lr_ratio', type=rate, help='hypernetwork learning rate / backbone learning rate')
    add('--batch_size', type=positive, help='patches a batch, over all GPUs')
    add('--epochs', type=positive, help='epochs a round')
    add('--patch_size', type=int, help=f'{PATCH_SIZE}: the network takes no other')
    add('--train_test_num', type=positive, help='rounds: train-test splits')
    add('--seed', type=count, help='what the splits, initial weights and patches depend on')
    add('--device', help='cpu, cuda, cuda:1 ... (default: cuda if there is one, else cpu)')
    add(
        '--weights',
        metavar='SOURCE',
        help='initial weights: imagenet, none, or the file of a torchvision ResNet-50 or HyperIQA state_dict',
    )
    add(
        '--resize',
        type=positive,
        nargs=2,
        metavar=('H', 'W'),
        help="resize every image to this height and width before the crop (default: as the database's protocol says)",
    )
    add('--normalize_scores', action='store_true', help='train on scores mapped to 0..1; reports stay in their own unit')
    add('--num_workers', type=count, help='threads that gather patches; the numbers do not depend on it')
    add('--test_batch_size', type=positive, help='patches a batch when testing')
    add(
        '--cache',
        metavar='DIR',
        help="folder of the decoded images (default: .hyperiqa_cache in the database's folder); "
        'none decodes each image again in every epoch',
    )
    add('--amp', action='store_true', help='bfloat16 autocast: faster on a GPU, the numbers differ slightly')
    add('--compile', action='store_true', help='torch.compile: a slow start, then faster on a GPU')
    add('--output', metavar='DIR', help='the run folder (default: runs/<dataset>-seed<seed>)')
    add('--resume', action='store_true', help='continue the run folder after its last finished epoch, or start it')
    add(
        '--rounds',
        type=round_numbers,
        metavar='A-B',
        help='run only these rounds (1-based), beside other processes in the same run folder',
    )
    add('--patience', type=count, metavar='N', help='stop a round after N epochs without a better epoch; 0: never')
    add('--split', metavar='SPLIT', help='random; official: the sets that the labels name; or the split.json of a run')
    add(
        '--val_ratio',
        type=share,
        metavar='R',
        help='share of the training images (or contents) that choose the best '
        'epoch; 0: the test part chooses it, as in the original',
    )
    add('--train_on_all', action='store_true', help='train on the whole database and keep the last epoch')
    add(
        '--test_on',
        type=named_folder,
        nargs='+',
        metavar='NAME=DIR',
        help="test each round's best epoch on these whole databases too",
    )
    add(
        '--evaluate',
        metavar='CHECKPOINT',
        help='only repeat the test of the round that this best.pth or last.pth is of; '
        'with --test_on only test it on those databases',
    )
    add('--check', action='store_true', help='only check the database: labels, images, sizes, duplicates')
    add('--list_datasets', action='store_true', help='only print what is known of every database')
    add('--summarize', metavar='RUN', help='only compute the results of the finished rounds in this run folder')
    return parser


ABSENT = ('data_root', 'csv', 'device', 'resize', 'cache', 'output', 'rounds', 'test_on', 'evaluate', 'summarize')


def positive(text: str) -> int:
    return at_least(1, int(text))


def count(text: str) -> int:
    return at_least(0, int(text))


def rate(text: str) -> float:
    return at_least(0, float(text))


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{value} is not in 0 ... 1')
    return value


def at_least(bound: int, value: Number) -> Number:
    if not value >= bound:
        raise argparse.ArgumentTypeError(f'{value} is less than {bound}')
    return value


def round_numbers(text: str) -> list[int]:
    """'3-5' -> [3, 4, 5], '3' -> [3]."""
    first, _, last = text.partition('-')
    numbers = list(range(positive(first), positive(last or first) + 1))
    if not numbers:
        raise argparse.ArgumentTypeError(f'{text} is no range; the first round comes first, as in 3-5')
    return numbers


def named_folder(text: str) -> list[str]:
    """'koniq=DIR' -> ['koniq', 'DIR']."""
    name, mark, folder = text.partition('=')
    if not mark or not folder:
        raise argparse.ArgumentTypeError(f'{text} is not NAME=DIR, as in koniq=data/koniq')
    try:
        return [folders.database_key(name), folder]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error))
