"""The command line of train_test_IQA.py: every flag with its default, checked, as a namespace; and the record of a run.

examples:
  python train_test_IQA.py --dataset demo                     generated data, minutes on a CPU
  python train_test_IQA.py --dataset koniq --data_root DIR    KonIQ-10k with the published protocol
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import folders
from util.errors import InputError, nearest
from util.files import read_json
from util.tables import ROLES

MOST, MOST_ROUNDS, LARGEST_SIDE = 1_000_000, 1000, 20_000
MODEL_FACTS = (
    'resize',
    'exif_rotation',
    'score_range',
    'higher_is_better',
)  # which a resume compares
# Options that a resumed run may change: where things are and how fast they go, not what is computed.
FREE_OPTIONS = {
    *(
        'data_root',
        'image_root',
        'csv',
        'output',
        'resume',
        'rounds',
        'device',
        'compile',
        'num_workers',
        'cache',
    ),
    *('test_batch_size', 'list_datasets'),
}
GROWING = (
    '--epochs',
    '--train_test_num',
)  # neither the learning rates nor a round depend on how many there are


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The options in `argv`.

    The command line wins over the record of the run that --evaluate or --resume names, that over the database's own defaults,
    and those over the defaults beside the flags.
    """
    parser = make_parser()
    config = parser.parse_args(argv)
    if config.csv:
        parser.set_defaults(dataset='csv')
    parser.set_defaults(**folders.DATABASES[parser.parse_args(argv).dataset].defaults)
    if config.train_on_all:
        parser.set_defaults(train_test_num=1)
    run = config.resume if isinstance(config.resume, str) else None
    if run:
        parser.set_defaults(
            **options_of_run(Path(run) / 'config.json', {'rounds', 'output', 'resume'})
        )
    elif config.evaluate:
        record = record_of(config.evaluate)
        if record:
            parser.set_defaults(
                **options_of_run(
                    record, FREE_OPTIONS - {'csv', 'test_batch_size'} | {'evaluate', 'test_on'}
                )
            )
        elif not config.test_on:
            raise InputError(
                f'--evaluate: {config.evaluate} is in no run folder; --test_on NAME=DIR tests it on a database'
            )
    config = parser.parse_args(argv)
    config.columns = dict(config.columns or {})
    config.split = (
        config.split[0]
        if isinstance(config.split, list) and len(config.split) == 1
        else config.split
    )
    refuse_contradictions(config)
    config.image_root = config.data_root if config.csv else None
    config.data_root = config.csv or config.data_root or f'data/{config.dataset}'
    if run and config.output not in (None, run):
        raise InputError('--output: --resume RUN names the run folder already')
    default = '.' if config.evaluate else f'runs/{config.dataset}-seed{config.seed}'
    config.output, config.resume = run or config.output or default, bool(config.resume)
    config.weights = config.evaluate or config.weights
    return config


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; an option's words may be joined by - instead of _, and are never cut short.

    Args:
        docstring: of the program; what follows its first paragraph ends the help.
    """

    def __init__(self, description: str, docstring: str) -> None:
        form, more = argparse.RawDescriptionHelpFormatter, docstring.partition('\n\n')[2]
        super().__init__(
            description=description, epilog=more, formatter_class=form, allow_abbrev=False
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options in `args`, of which none is empty: that is most often a variable of the shell that is not set."""
        words = sys.argv[1:] if args is None else args
        options = super().parse_args([self.with_underscores(word) for word in words], namespace)
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if value == '' or (isinstance(value, list) and '' in value):
                name = (
                    action.option_strings[0]
                    if action.option_strings
                    else action.metavar or action.dest
                )
                raise InputError(f'{name} is empty; give it a value or leave it out')
        return options

    def with_underscores(self, word: str) -> str:
        name, mark, value = word.partition('=')
        spelled = '--' + name[2:].replace('-', '_')
        return (
            spelled + mark + value
            if name.startswith('--') and spelled in self._option_string_actions
            else word
        )

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r'unrecognized arguments: ([^ =]+)', message)
        near = unknown and (
            nearest(unknown[1], self._option_string_actions)
            or f'; {self.prog} --help lists the options'
        )
        raise InputError(message + (near or ''))


def with_defaults(config: argparse.Namespace | SimpleNamespace) -> SimpleNamespace:
    """`config` with every option that it lacks at the default beside its flag."""
    return SimpleNamespace(**{**vars(make_parser().parse_args([])), **vars(config)})


def record_of(checkpoint: Path | str) -> Path | None:
    """The config.json of the run that holds a checkpoint, or beside the checkpoint; None where there is none."""
    places = (
        os.path.abspath(checkpoint),
        os.path.realpath(checkpoint),
    )  # as it is named, and what a link points to
    records = [
        folder / 'config.json' for place in places for folder in list(Path(place).parents)[:2]
    ]
    return next(filter(Path.exists, records), None)


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run's config.json: its `options`, and in `model` what an image and a score mean to its networks."""
    record = read_json(path)
    if not isinstance(record.get('options'), dict) or not isinstance(record.get('model'), dict):
        raise InputError(
            f'{path} does not hold the options of a run; put the file back as the run wrote it'
        )
    options, entry = record['options'], folders.DATABASES.get(record['options'].get('dataset', ''))
    if 'fit_scale' not in options:
        if options.get('split') == 'random':
            options['split'] = (
                None  # an earlier version's default, which gave way to the sets of a table
            )
        if str(options.get('device')).startswith('cuda:'):
            options['device'] = 'cuda'  # an earlier version recorded the GPU that it had chosen
    if entry:
        record['model'] = {
            'title': entry.title,
            'label_range': entry.score_range,
            **record['model'],
        }
    return record


def options_of_run(record: Path, without: set[str]) -> dict[str, Any]:
    """The options of the run with this config.json, and where its data is."""
    options = read_record(record)['options']
    kept = {name: value for name, value in options.items() if name not in without}
    return {
        **kept,
        'data_root': options.get('image_root') if options.get('csv') else options.get('data_root'),
    }


def refuse_other_options(path: Path, record: dict[str, Any]) -> None:
    """Refuse to continue the run whose config.json is `path` with what `record` holds, except for what may change.

    An option that an earlier version did not have counts as its default.
    """
    before, now = read_record(path), json.loads(json.dumps(record))
    defaults = json.loads(json.dumps(vars(with_defaults(SimpleNamespace()))))
    options, asked = ({**defaults, **content['options']} for content in (before, now))
    for values in (options, asked):  # the other databases may have moved: their names count
        values['test_on'] = [entry[0] for entry in values['test_on'] or []]
    changes = [
        (f'--{name}', options[name], asked.get(name))
        for name in sorted(options.keys() - FREE_OPTIONS)
    ]
    changes = [change for change in changes if differs(*change)]
    was, means = before['model'], now['model']
    changes += [
        (name, was[name], means[name])
        for name in MODEL_FACTS
        if name in was and was[name] != means[name]
    ]
    if changes:
        listed = '; '.join(f'{name} was {old}, is {new}' for name, old, new in changes)
        raise InputError(
            f'{path.parent} was made with other options: {listed}; give the same, or --output DIR for a new run'
        )


def differs(name: str, before: Any, now: Any) -> bool:
    """Whether an option that a resume compares has changed; None, False and an empty list all mean that it is not given."""
    if name in GROWING and isinstance(before, int):
        return now < before
    if name == '--split' and all(value in (None, 'random') for value in (before, now)):
        return False  # they differ where a table names sets alone, and there the splits are other ones, which is refused too
    return before != now and bool(before or now)


def refuse_contradictions(config: argparse.Namespace) -> None:
    if bool(config.csv) != (config.dataset == 'csv'):
        raise InputError(
            '--csv FILE goes with --dataset csv, which it implies: the file lists your images and their scores'
        )
    for name in ('val_ratio', 'split_by'):
        if getattr(config, name) and config.split not in (None, 'random'):
            raise InputError(
                f'--{name} goes with --split random; another split names its own parts'
            )
    own = config.csv or any(key == 'csv' for _, key, _ in config.test_on or [])
    if not own and (set(config.columns) - {'set'} or config.lower_is_better is not None):
        raise InputError(
            '--columns, --lower_is_better and --higher_is_better describe the table of --csv FILE'
        )
    if config.train_on_all and (config.val_ratio or config.patience or config.split):
        raise InputError(
            '--train_on_all leaves nothing to choose an epoch on: give no --val_ratio, --patience or --split'
        )
    if config.fit_scale and config.weights in ('none', 'imagenet'):
        raise InputError(
            '--fit_scale goes with --weights FILE, a HyperIQA that gives scores already'
        )
    if config.rounds and config.rounds[-1] > config.train_test_num:
        raise InputError(
            f'--rounds: there are {config.train_test_num} rounds; --train_test_num sets how many'
        )
    names = [name for name, _, _ in config.test_on or []]
    if len(set(names)) < len(names):
        raise InputError('--test_on: each database, and each name of a CSV file, can be named once')


def make_parser() -> Parser:
    parser = Parser('Train and test HyperIQA.', __doc__)
    group: argparse._ActionsContainer = parser

    def add(name: str, text: str, default: Any = None, **settings: Any) -> None:
        if default is not None:
            text += ' (default: %(default)s)'
        elif settings.get('action') in ('store_true', argparse.BooleanOptionalAction):
            default = False
        group.add_argument(name, help=text, default=default, **settings)

    group = parser.add_argument_group('database')
    add(
        '--dataset',
        ', '.join(folders.DATABASES),
        'livec',
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

    group = parser.add_argument_group('training')
    add('--train_patch_num', 'random patches per training image and epoch', 25, type=positive)
    add('--lr', 'backbone learning rate', 2e-5, type=rate)
    add('--lr_ratio', 'hypernetwork learning rate / backbone learning rate', 10, type=rate)
    add('--weight_decay', 'weight decay of both parameter groups', 5e-4, type=rate)
    add('--batch_size', 'patches per batch, over all GPUs', 96, type=positive)
    add('--epochs', 'epochs per round', 16, type=positive)
    add(
        '--patience',
        'stop a round after N epochs without a better epoch; 0: never',
        0,
        type=count,
        metavar='N',
    )
    add('--patch_size', 'the network takes no other', 224, type=int, choices=(224,))
    add(
        '--seed',
        'what the splits, initial weights and patches depend on',
        0,
        type=number(int, 0, 2**32 - 1),
    )
    add(
        '--weights',
        'initial weights: imagenet, none, or a file of a ResNet-50 or HyperIQA',
        'imagenet',
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

    group = parser.add_argument_group('splits and tests')
    add(
        '--train_test_num',
        f'rounds: train-test splits, at most {MOST_ROUNDS}',
        10,
        type=number(int, 1, MOST_ROUNDS),
    )
    add(
        '--rounds',
        'run only these rounds, beside other processes in the same folder',
        type=round_numbers,
        metavar='A-B',
    )
    splits = 'random; official; another RUN; a split.json; a table with a set column; a folder of lists; train=FILE test=FILE'
    default = 'default: random, or the sets that a table of your own names'
    add(
        '--split',
        f'{splits}; {{round}} in a path stands for the round ({default})',
        nargs='+',
        metavar='SPLIT',
    )
    add(
        '--split_by',
        'what a random split keeps together (default: depends on the database)',
        choices=('image', 'content'),
    )
    add(
        '--val_ratio',
        'fraction of the training part that chooses the epoch; 0: the test part',
        0,
        type=fraction,
        metavar='R',
    )
    add(
        '--train_on_all', 'train on the whole database and keep the last epoch', action='store_true'
    )
    add('--test_patch_num', 'random patches per test image', 25, type=positive)
    add(
        '--test_on',
        'test the best epochs on these too; tables as csv=FILE',
        type=named_folder,
        nargs='+',
        metavar='NAME=DIR',
    )

    group = parser.add_argument_group('run folder')
    add(
        '--output',
        'run folder (default: runs/<dataset>-seed<seed>), or where --evaluate writes (default: .)',
        metavar='DIR',
    )
    add(
        '--resume',
        'continue RUN with its options; alone, continue or start --output',
        nargs='?',
        const=True,
        metavar='RUN',
    )

    group = parser.add_argument_group('speed')
    add('--device', 'cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)')
    add(
        '--amp',
        'bfloat16 autocast: faster on a GPU, the numbers differ slightly',
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
        2,
        type=count,
    )
    add('--test_batch_size', 'patches per batch when testing', 96, type=positive)
    add(
        '--deterministic',
        'a command gives the same bytes each time on CUDA too, where it is slower',
        action='store_true',
    )

    group = parser.add_argument_group('instead of training')
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
    return parser


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], Any]:
    """The type of a flag whose value is an int or float between two bounds."""

    def parse_number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise InputError(f'{text} is not in {low} ... {high}')
        return value

    parse_number.__name__ = kind.__name__  # for argparse's message
    return parse_number


positive, count, side = number(int, 1, MOST), number(int, 0), number(int, 1, LARGEST_SIDE)
rate, fraction = number(float, 0), number(float, 0, 0.99)


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
    if role not in ROLES or not (column or (mark and role in ('content', 'set'))):
        raise InputError(f'{text} is not ROLE=NAME with a role of {", ".join(ROLES)}')
    return role, column


def named_folder(text: str) -> list[str]:
    """'koniq=DIR' -> ['koniq', 'koniq', 'DIR'], 'csv=DIR/mine.csv' -> ['mine', 'csv', 'DIR/mine.csv']: name, key and path.

    A user's table that is called as a database keeps the ending: 'csv=DIR/koniq.csv' -> ['koniq.csv', ...].
    """
    name, mark, folder = text.partition('=')
    if not mark or not folder:
        raise InputError(f'{text} is not NAME=DIR, as in koniq=data/koniq')
    key = folders.database_key(name)
    path = Path(folder)
    own = path.name if path.stem.lower() in folders.DATABASES else path.stem
    return [own if key == 'csv' else key, key, folder]


def facts_of_koniq() -> dict[str, Any]:
    """What an image and a score mean to the original authors' model for KonIQ-10k, as in the `model` of a record."""
    entry = folders.DATABASES['koniq']
    facts = {'title': entry.title, 'label_range': entry.score_range, 'higher_is_better': True}
    return {'resize': entry.resize, 'exif_rotation': False, 'score_range': None, **facts}


def title_of(name: str) -> str:
    """How a database of --test_on is called in results: by its title, or a user's table by its own name."""
    return folders.DATABASES[name].title if name in folders.DATABASES else name
