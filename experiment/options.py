"""The flags of train_test_IQA.py with their types and defaults, and the parser of every program.

examples:
  python train_test_IQA.py --dataset demo                     generated data, minutes on a CPU
  python train_test_IQA.py --dataset koniq --data_root DIR    KonIQ-10k with the published protocol
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import folders
from util.errors import InputError, nearest
from util.tables import ROLES

LARGEST_COUNT = 1_000_000  # of patches, epochs or images
MOST_ROUNDS = 1000
LARGEST_SIDE = 20_000  # pixels of a resized image


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line.

    The words of an option may be joined by - as well as by _, and are never abbreviated.

    Args:
        docstring: the program's; the help ends with everything after its first paragraph.
    """

    def __init__(self, description: str, docstring: str | None) -> None:
        # `python -OO` leaves out docstrings.
        _, _, epilog = (docstring or '').partition('\n\n')
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(  # type: ignore[override]  # argparse has overloads for a namespace's type
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The options in `args`. None of them may be empty."""
        words = sys.argv[1:] if args is None else args
        options = super().parse_args([self.with_underscores(word) for word in words], namespace)
        # An empty value is most often a shell variable that is not set.
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if value == '' or (isinstance(value, list) and '' in value):
                if action.option_strings:
                    name = action.option_strings[0]
                else:
                    name = action.metavar or action.dest
                raise InputError(f'{name} is empty; give it a value or leave it out')
        return options

    def with_underscores(self, word: str) -> str:
        """'--batch-size=8' -> '--batch_size=8'. A word that is not an option stays as it is."""
        name, mark, value = word.partition('=')
        spelled = '--' + name[2:].replace('-', '_')
        if name.startswith('--') and spelled in self._option_string_actions:
            return spelled + mark + value
        return word

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message, with the option that was probably meant."""
        unknown = re.match(r'unrecognized arguments: ([^ =]+)', message)
        if unknown:
            # '; did you mean --lr?', or '' if no option is similar.
            suggestion = nearest(unknown[1], self._option_string_actions)
            message += suggestion or f'; {self.prog} --help lists the options'
        raise InputError(message)


def with_defaults(config: argparse.Namespace | SimpleNamespace) -> SimpleNamespace:
    """`config` with the default of every option that it lacks."""
    return SimpleNamespace(**{**default_options(), **vars(config)})


def default_options() -> dict[str, Any]:
    """The default of every option of train_test_IQA.py."""
    return vars(make_parser().parse_args([]))


def make_parser() -> Parser:
    """The parser of train_test_IQA.py, whose help has these groups in this order."""
    parser = Parser('Train and test HyperIQA.', __doc__)
    add_database_flags(parser)
    add_training_flags(parser)
    add_test_flags(parser)
    add_run_folder_flags(parser)
    add_speed_flags(parser)
    add_other_tasks(parser)
    return parser


def adder(parser: Parser, title: str) -> Callable[..., None]:
    """A function that adds flags to a new group of the help; its arguments are `add_flag`'s."""
    return partial(add_flag, parser.add_argument_group(title))


def add_flag(
    group: argparse._ArgumentGroup, name: str, text: str, default: Any = None, **settings: Any
) -> None:
    """Add one flag.

    Args:
        text: its help, to which the default is added.
        default: shown in the help. With None none is shown: a switch that is not given is False,
            and any other flag is None.
        settings: of `add_argument`.
    """
    if default is not None:
        text += ' (default: %(default)s)'
    elif settings.get('action') in ('store_true', argparse.BooleanOptionalAction):
        default = False
    group.add_argument(name, help=text, default=default, **settings)


def add_database_flags(parser: Parser) -> None:
    add = adder(parser, 'database')
    add(
        '--dataset',
        ', '.join(folders.DATABASES),
        default='livec',
        type=folders.database_key,
        metavar='NAME',
    )
    add(
        '--data_root',
        "the database's folder (default: data/<dataset>), or where the names in --csv start",
        metavar='DIR',
    )
    add(
        '--csv',
        'a table of your images and scores, for --dataset csv, which it implies',
        metavar='FILE',
    )
    add(
        '--columns',
        'its columns, by name or number: score=mos type=2 ...',
        type=role_column,
        nargs='+',
        metavar='ROLE=NAME',
    )
    add(
        '--lower_is_better',
        'a lower score in it is a better image',
        action='store_const',
        const=True,
    )
    # Both directions set one option; it stays None where the name of the score column decides.
    add(
        '--higher_is_better',
        'a higher one is, even if called dmos',
        action='store_const',
        const=False,
        dest='lower_is_better',
    )
    add(
        '--average_votes',
        'several rows for one image are votes: its score is their mean',
        action='store_true',
    )
    add(
        '--skip_missing',
        'leave out listed images that are missing or unreadable; they are listed',
        action='store_true',
    )
    add(
        '--resize',
        'resize every image first (default: as in its protocol)',
        type=side,
        nargs=2,
        metavar=('H', 'W'),
    )


def add_training_flags(parser: Parser) -> None:
    add = adder(parser, 'training')
    # The defaults of the rates, patches, batches and epochs are the original script's.
    add(
        '--train_patch_num',
        'random patches per training image and epoch',
        default=25,
        type=positive,
    )
    add('--lr', 'backbone learning rate', default=2e-5, type=rate)
    add('--lr_ratio', 'hypernetwork learning rate / backbone learning rate', default=10, type=rate)
    add('--weight_decay', 'weight decay of both parameter groups', default=5e-4, type=rate)
    add('--batch_size', 'patches per batch, over all GPUs', default=96, type=positive)
    add('--epochs', 'epochs per round', default=16, type=positive)
    add(
        '--patience',
        'stop a round after N epochs without a better epoch; 0: never',
        default=0,
        type=count,
        metavar='N',
    )
    # An option of the original, kept so that its commands still work.
    add('--patch_size', 'the network takes no other', default=224, type=int, choices=(224,))
    add(
        '--seed',
        'seed of the splits, initial weights and patches',
        default=0,
        type=number(int, 0, 2**32 - 1),
    )
    add(
        '--weights',
        'initial weights: imagenet, none, or a file of a ResNet-50 or HyperIQA',
        default='imagenet',
        metavar='SOURCE',
    )
    add(
        '--fit_scale',
        'first fit the scores of --weights FILE, a HyperIQA, to the labels',
        action='store_true',
    )
    add(
        '--normalize_scores',
        'train on scores mapped to 0..1; reports stay in their own unit',
        action='store_true',
    )


def add_test_flags(parser: Parser) -> None:
    add = adder(parser, 'splits and tests')
    add(
        '--train_test_num',
        f'rounds: train-test splits, at most {MOST_ROUNDS}',
        default=10,
        type=number(int, 1, MOST_ROUNDS),
    )
    add(
        '--rounds',
        'run only these rounds; other processes may run others in the same folder',
        type=round_numbers,
        metavar='A-B',
    )
    add(
        '--split',
        'random, folds (each image is tested in one round), official, another RUN, a split.json, '
        'a table with a set column, a folder of lists, or train=FILE test=FILE; {round} in a path '
        'stands for the round '
        '(default: random, or the sets that a table of your own names)',
        nargs='+',
        metavar='SPLIT',
    )
    add(
        '--split_by',
        'whether a random split draws images or contents (default: depends on the database)',
        choices=('image', 'content'),
    )
    add(
        '--val_ratio',
        'fraction of the training part that chooses the epoch; 0: the test part',
        default=0,
        type=fraction,
        metavar='R',
    )
    add(
        '--train_on_all', 'train on the whole database and keep the last epoch', action='store_true'
    )
    add('--test_patch_num', 'random patches per test image', default=25, type=positive)
    add(
        '--test_on',
        'test the best epochs on these too; tables as csv=FILE',
        type=named_folder,
        nargs='+',
        metavar='NAME=DIR',
    )


def add_run_folder_flags(parser: Parser) -> None:
    add = adder(parser, 'run folder')
    add(
        '--output',
        'run folder (default: runs/<dataset>-seed<seed>), or the folder of --evaluate '
        '(default: evaluations/<run>-<round>-<digest of the weights>)',
        metavar='DIR',
    )
    add(
        '--resume',
        'continue RUN with its options; without RUN, continue or start --output',
        nargs='?',
        const=True,  # without RUN
        metavar='RUN',
    )


def add_speed_flags(parser: Parser) -> None:
    add = adder(parser, 'speed')
    add('--device', 'cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)')
    add(
        '--amp',
        'bfloat16 autocast, or float16 on a GPU without bfloat16: faster, the numbers differ '
        'slightly',
        action=argparse.BooleanOptionalAction,
    )
    add(
        '--compile',
        'torch.compile: a slow start, then faster on a GPU',
        action=argparse.BooleanOptionalAction,
    )
    add(
        '--cache',
        "folder of the decoded images (default: in the database's), or none to decode each time",
        metavar='DIR',
    )
    add(
        '--num_workers',
        'threads that gather patches; the numbers do not depend on it',
        default=2,
        type=count,
    )
    add(
        '--test_batch_size',
        'patches per batch when testing; the last digits depend on it',
        default=96,
        type=positive,
    )
    add(
        '--deterministic',
        'a command gives the same bytes each time on CUDA too, where it is slower',
        action='store_true',
    )


def add_other_tasks(parser: Parser) -> None:
    add = adder(parser, 'instead of training')
    add(
        '--evaluate',
        "repeat the test of this checkpoint's round, or with --test_on test it on those",
        metavar='CHECKPOINT',
    )
    add(
        '--check', 'only check the database: labels, images, sizes, duplicates', action='store_true'
    )
    add(
        '--list_datasets',
        'only print a table of the databases, or all about NAME',
        nargs='?',
        const='all',
        metavar='NAME',
    )
    add(
        '--summarize',
        'only compute the results of the finished rounds in this run folder',
        metavar='RUN',
    )


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """The type of a flag whose value is an int or float between two bounds."""

    def parse_number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise InputError(f'{text} is not in {low} ... {high}')
        return value

    # Argparse uses this name in its message about a word that is no number.
    parse_number.__name__ = kind.__name__
    return parse_number


positive = number(int, 1, LARGEST_COUNT)
count = number(int, 0)
side = number(int, 1, LARGEST_SIDE)
rate = number(float, 0)
fraction = number(float, 0, 0.99)


def round_numbers(text: str) -> list[int]:
    """'3-5' -> 3, 4, 5; '3' -> 3."""
    first, _, last = text.partition('-')
    numbers = list(range(positive(first), positive(last or first) + 1))
    if not numbers:
        raise InputError(f'{text} is no range; the first round comes first, as in 3-5')
    return numbers


def role_column(text: str) -> tuple[str, str]:
    """'score=mos' -> ('score', 'mos')."""
    role, mark, column = text.partition('=')
    # `content=` and `set=` mean that the table has no such column.
    may_be_empty = mark and role in ('content', 'set')
    if role not in ROLES or not (column or may_be_empty):
        raise InputError(f'{text} is not ROLE=NAME with a role of {", ".join(ROLES)}')
    return role, column


def named_folder(text: str) -> list[str]:
    """The name, key and path of a database of --test_on.

    'koniq=DIR' -> ['koniq', 'koniq', 'DIR'], 'csv=DIR/mine.csv' -> ['mine', 'csv', 'DIR/mine.csv'].
    A user's table with the name of a database keeps its ending: 'csv=DIR/koniq.csv' ->
    ['koniq.csv', 'csv', 'DIR/koniq.csv'].
    """
    name, mark, folder = text.partition('=')
    if not mark or not folder:
        raise InputError(f'{text} is not NAME=DIR, as in koniq=data/koniq')
    key = folders.database_key(name)
    if key != 'csv':
        return [key, key, folder]
    path = Path(folder)
    own_name = path.name if path.stem.lower() in folders.DATABASES else path.stem
    return [own_name, key, folder]


def title_of(name: str) -> str:
    """The name of a --test_on database in results: its title, or the own name of a user's table."""
    return folders.DATABASES[name].title if name in folders.DATABASES else name
