"""The command line of train_test_IQA.py: every flag with its default, checked, as a namespace."""

import argparse
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import folders
from util import distributed, run_folder
from util.errors import InputError
from util.program import parse

MOST, MOST_ROUNDS = 1_000_000, 1000
Number = TypeVar('Number', int, float)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The options in `argv`.

    The command line wins over the record of the run that --evaluate names, that over the database's own defaults, and those
    over the defaults beside the flags.
    """
    parser = make_parser()
    config = parse(parser, argv)
    parser.set_defaults(**folders.DATABASES[folders.database_key(config.dataset)].defaults)
    if config.train_on_all:
        parser.set_defaults(train_test_num=1)
    if config.evaluate and not is_plain_checkpoint(config):
        parser.set_defaults(**options_of_run(config.evaluate))
    config = parser.parse_args(argv)
    config.dataset = folders.database_key(config.dataset)
    config.columns = dict(config.columns or {})
    config.split = config.split[0] if len(config.split) == 1 and isinstance(config.split, list) else config.split
    refuse_contradictions(config)
    config.rounds = config.rounds and list(config.rounds)
    config.image_root = config.data_root if config.csv else None
    config.data_root = config.csv or config.data_root or f'data/{config.dataset}'
    config.output = config.output or f'runs/{config.dataset}-seed{config.seed}'
    config.weights = config.evaluate or config.weights
    if not (config.list_datasets or config.summarize or config.check):
        config.device = distributed.pick_device(config.device, config.deterministic)
    return config


def with_defaults(config: argparse.Namespace | SimpleNamespace) -> SimpleNamespace:
    """`config` with every option that it lacks at the default beside its flag."""
    return SimpleNamespace(**{**vars(make_parser().parse_args([])), **vars(config)})


def is_plain_checkpoint(config: argparse.Namespace) -> bool:
    """Whether --evaluate with --test_on names a file that is not in a run folder."""
    return bool(config.test_on) and not (Path(os.path.abspath(config.evaluate)).parent.parent / 'config.json').exists()


def options_of_run(checkpoint: Path | str) -> dict[str, Any]:
    """The options that decide the numbers of the run whose round folder holds `checkpoint`, and where its data is."""
    path = Path(os.path.abspath(checkpoint)).parent.parent / 'config.json'
    options = run_folder.read_record(path)['options']
    free = run_folder.FREE_OPTIONS - {'csv', 'test_batch_size'} | {'evaluate', 'test_on', 'help'}
    actions = {action.dest: action for action in make_parser()._actions if action.dest not in free}
    for name, action in actions.items():
        value = options.get(name, action.default)
        if not fits(action, value):
            raise InputError(f'{path}: --{name} was {value!r}, which it cannot be; put the file back as the run wrote it')
    place = options.get('image_root') if options.get('csv') else options.get('data_root')
    return {**{name: options.get(name, action.default) for name, action in actions.items()}, 'data_root': place}


def fits(action: argparse.Action, value: Any) -> bool:
    """Whether the flag's `value` in a record is one that the command line can give."""
    if isinstance(value, dict):  # --columns
        return action.dest == 'columns' and all(isinstance(column, str) for column in value.values())
    if value is None or action.nargs == 0:
        return isinstance(value, bool) or value == action.default
    values = value if action.nargs and isinstance(value, list) else [value]
    try:
        return all(action.type(str(one)) == one if callable(action.type) else isinstance(one, str) for one in values)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def refuse_contradictions(config: argparse.Namespace) -> None:
    if config.patch_size != make_parser().get_default('patch_size'):
        from models import patch_size_reason  # here, since it imports torch

        raise InputError(f'--patch_size: {patch_size_reason(config.patch_size)}')
    if bool(config.csv) != (config.dataset == 'csv'):
        raise InputError('--dataset csv and --csv FILE go together: the file lists your images and their scores')
    if config.val_ratio and config.split != 'random':
        raise InputError('--val_ratio goes with --split random; another split says itself what its validation part is')
    own = config.csv or any(key == 'csv' for _, key, _ in config.test_on or [])
    if not own and (set(config.columns) - {'set'} or config.lower_is_better is not None):
        raise InputError('--columns, --lower_is_better and --higher_is_better are about the table of --csv FILE')
    if config.split_by and config.split != 'random':
        raise InputError('--split_by goes with --split random; another split says itself what its parts are')
    if config.train_on_all and (config.val_ratio or config.patience or config.split != 'random'):
        raise InputError(
            '--train_on_all leaves nothing to choose an epoch on: it goes without --val_ratio, --patience and --split'
        )
    if config.rounds and config.rounds[-1] > config.train_test_num:
        raise InputError(f'--rounds: there are {config.train_test_num} rounds; --train_test_num says how many')
    names = [name for name, _, _ in config.test_on or []]
    if len(set(names)) < len(names):
        raise InputError('--test_on: each database, and each name of a CSV file, can be named once')


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Train and test HyperIQA.')
    group: argparse._ActionsContainer = parser

    def add(name: str, text: str, default: Any = None, **settings: Any) -> None:
        if default is not None:
            text += ' (default: %(default)s)'
        elif settings.get('action') in ('store_true', argparse.BooleanOptionalAction):
            default = False
        group.add_argument(name, help=text, default=default, **settings)

    group = parser.add_argument_group('database')
    add('--dataset', ', '.join(folders.DATABASES), 'livec')
    add('--data_root', "the database's folder (default: data/<dataset>), or where the names in --csv start", metavar='DIR')
    add('--csv', 'with --dataset csv: a table of your images and scores', metavar='FILE')
    columns = 'columns of the --csv table whose names do not say it, as in image=path score=mos content=ref set=fold'
    add('--columns', columns, type=role_column, nargs='+', metavar='ROLE=NAME')
    add('--lower_is_better', 'a lower score in the --csv table is a better image', action='store_const', const=True)
    add(
        '--higher_is_better',
        'a higher score is, also in a column named dmos',
        action='store_const',
        const=False,
        dest='lower_is_better',
    )
    add('--skip_missing', 'leave out listed images that are missing or unreadable; they are listed', action='store_true')
    resize = "resize every image to this height and width before the crop (default: as the database's protocol says)"
    add('--resize', resize, type=positive, nargs=2, metavar=('H', 'W'))

    group = parser.add_argument_group('training')
    add('--train_patch_num', 'random patches of each training image an epoch', 25, type=positive)
    add('--lr', 'backbone learning rate', 2e-5, type=rate)
    add('--lr_ratio', 'hypernetwork learning rate / backbone learning rate', 10, type=rate)
    add('--weight_decay', 'weight decay of both parameter groups', 5e-4, type=rate)
    add('--batch_size', 'patches a batch, over all GPUs', 96, type=positive)
    add('--epochs', 'epochs a round', 16, type=positive)
    add('--patience', 'stop a round after N epochs without a better epoch; 0: never', 0, type=count, metavar='N')
    add('--patch_size', 'the network takes no other', 224, type=int)
    add('--seed', 'what the splits, initial weights and patches depend on', 0, type=count)
    sources = 'initial weights: imagenet, none, or the file of a torchvision ResNet-50 or HyperIQA state_dict'
    add('--weights', sources, 'imagenet', metavar='SOURCE')
    add('--normalize_scores', 'train on scores mapped to 0..1; reports stay in their own unit', action='store_true')

    group = parser.add_argument_group('splits and tests')
    add('--train_test_num', f'rounds: train-test splits, at most {MOST_ROUNDS}', 10, type=round_count)
    beside = 'run only these rounds (1-based), beside other processes in the same run folder'
    add('--rounds', beside, type=round_numbers, metavar='A-B')
    splits = (
        'random; official: the sets that the labels name; or files: a split.json, a table with a set column, a folder of '
        'lists, or train=FILE test=FILE [val=FILE]; {round} in a path stands for the round'
    )
    add('--split', splits, 'random', nargs='+', metavar='SPLIT')
    together = 'what a random split keeps together: image or content (default: as the database says)'
    add('--split_by', together, choices=('image', 'content'))
    chosen_on = 'share of the training images that choose the best epoch; 0: the test part chooses it, as in the original'
    add('--val_ratio', chosen_on, 0, type=share, metavar='R')
    add('--train_on_all', 'train on the whole database and keep the last epoch', action='store_true')
    add('--test_patch_num', 'random patches of each test image', 25, type=positive)
    others = "test each round's best epoch on these whole databases, or --csv tables as csv=FILE, too"
    add('--test_on', others, type=named_folder, nargs='+', metavar='NAME=DIR')

    group = parser.add_argument_group('run folder')
    add('--output', 'the run folder (default: runs/<dataset>-seed<seed>)', metavar='DIR')
    add('--resume', 'continue the run folder after its last finished epoch, or start it', action='store_true')

    group = parser.add_argument_group('speed')
    add('--device', 'cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)')
    add('--amp', 'bfloat16 autocast: faster on a GPU, the numbers differ slightly', action=argparse.BooleanOptionalAction)
    add('--compile', 'torch.compile: a slow start, then faster on a GPU', action=argparse.BooleanOptionalAction)
    cache = "folder of the decoded images (default: .hyperiqa_cache in the database's folder); none: decode in every epoch"
    add('--cache', cache, metavar='DIR')
    add('--num_workers', 'threads that gather patches; the numbers do not depend on it', 2, type=count)
    add('--test_batch_size', 'patches a batch when testing', 96, type=positive)
    add('--deterministic', 'a command gives the same bytes each time on CUDA too, where it is slower', action='store_true')

    group = parser.add_argument_group('instead of training')
    tested = 'only repeat the test of the round that this best.pth or last.pth is of, or with --test_on only test it on those'
    add('--evaluate', tested, metavar='CHECKPOINT')
    add('--check', 'only check the database: labels, images, sizes, duplicates', action='store_true')
    add('--list_datasets', 'only print what is known of every database', action='store_true')
    add('--summarize', 'only compute the results of the finished rounds in this run folder', metavar='RUN')
    return parser


def positive(text: str) -> int:
    return at_most(MOST, at_least(1, int(text)))


def round_count(text: str) -> int:
    return at_most(MOST_ROUNDS, positive(text))


def count(text: str) -> int:
    return at_least(0, int(text))


def rate(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f'{text} is not a number')
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


def at_most(bound: int, value: int) -> int:
    if value > bound:
        raise argparse.ArgumentTypeError(f'{value} is more than {bound}')
    return value


def round_numbers(text: str) -> range:
    """'3-5' -> 3, 4, 5; '3' -> 3."""
    first, _, last = text.partition('-')
    numbers = range(positive(first), at_least(1, int(last or first)) + 1)
    if not numbers:
        raise argparse.ArgumentTypeError(f'{text} is no range; the first round comes first, as in 3-5')
    return numbers


def role_column(text: str) -> tuple[str, str]:
    """'score=mos' -> ('score', 'mos')."""
    role, _, column = text.partition('=')
    if not column or role not in folders.CSV_COLUMNS:
        raise argparse.ArgumentTypeError(f'{text} is not ROLE=NAME with a role of {", ".join(folders.CSV_COLUMNS)}')
    return role, column


def named_folder(text: str) -> list[str]:
    """'koniq=DIR' -> ['koniq', 'koniq', 'DIR'], 'csv=DIR/mine.csv' -> ['mine', 'csv', 'DIR/mine.csv']: name, key and path."""
    name, mark, folder = text.partition('=')
    if not mark or not folder:
        raise argparse.ArgumentTypeError(f'{text} is not NAME=DIR, as in koniq=data/koniq')
    try:
        key = folders.database_key(name)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error))
    return [Path(folder).stem if key == 'csv' else key, key, folder]
