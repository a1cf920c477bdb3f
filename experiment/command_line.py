"""The command line of train_test_IQA.py: its options as a namespace, completed and checked."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import folders
from experiment.options import Parser, default_options, make_parser
from experiment.record import FREE_OPTIONS, options_of_run, record_of, record_path
from experiment.run_folder import checkpoint_in
from util.errors import InputError

# Options that --resume RUN does not take from the run's record: `rounds` is of one process only,
# and the folder may have been renamed.
NOT_RESUMED = {'rounds', 'output', 'resume'}
# Options that --evaluate does not take from the run's record: those of another test, and the
# FREE_OPTIONS. But it takes the table and the batch size, on which the numbers of the test depend.
NOT_EVALUATED = (FREE_OPTIONS - {'csv', 'test_batch_size'}) | {'evaluate', 'test_on'}
# With --test_on it does not take these either: in the record they describe the run's own database.
OF_DATABASE = ('dataset', 'csv', 'columns', 'lower_is_better', 'data_root')


def parse_options(argv: list[str] | None) -> Namespace:
    """The options in `argv`.

    The command line wins over the record of the run that --evaluate or --resume names, the record
    over the database's own defaults, and these over the defaults of the flags.

    Raises:
        InputError: an option is unknown or has no such value, or options contradict each other.
    """
    parser = make_parser()
    given = parser.parse_args(argv)
    given.evaluate = checkpoint_of(given.evaluate)
    # Later defaults replace earlier ones, and the last pass over `argv` replaces them all.
    set_defaults_of_database(parser, given, argv)
    recorded = recorded_options(given)
    parser.set_defaults(**recorded)
    config = parser.parse_args(argv)
    config.evaluate = given.evaluate
    if not given.csv:
        refuse_lost_table(recorded.get('csv'), given)

    # Pairs from the command line, a dict from a record.
    config.columns = dict(config.columns or {})
    # From the command line --split is a list, since it may be train=FILE test=FILE.
    if isinstance(config.split, list) and len(config.split) == 1:
        config.split = config.split[0]
    make_names_distinct(config.test_on or [])
    # Before the paths are set, since it looks at --data_root as it was given.
    refuse_contradictions(config)
    set_data_paths(config)
    set_output(config)
    if config.weights not in ('none', 'imagenet'):
        config.weights = checkpoint_of(config.weights)
    # --evaluate loads its checkpoint in the way that training loads the initial weights.
    config.weights = config.evaluate or config.weights
    return config


def checkpoint_of(path: str | None) -> str | None:
    """The best.pth that a run folder stands for; another `path` as it is."""
    return str(checkpoint_in(path)) if path and os.path.isdir(path) else path


def set_defaults_of_database(parser: Parser, given: Namespace, argv: list[str] | None) -> None:
    """Set the defaults that depend on the database of the options `given` in `argv`."""
    if given.csv:
        parser.set_defaults(dataset='csv')
    # Parsed again, since a --dataset in `argv` wins over the default that --csv has just set.
    dataset = parser.parse_args(argv).dataset
    parser.set_defaults(**folders.DATABASES[dataset].defaults)
    # Rounds without a test part would all train on the same images.
    if given.train_on_all:
        parser.set_defaults(train_test_num=1)


def recorded_options(given: Namespace) -> dict[str, Any]:
    """The options of the run that --resume or --evaluate names; none without such a run."""
    if isinstance(given.resume, str):
        return options_of_run(record_path(given.resume), NOT_RESUMED)
    if not given.evaluate:
        return {}
    path = record_of(given.evaluate)
    if path is None:
        return {}
    options = options_of_run(path, NOT_EVALUATED)
    if given.test_on:
        for name in OF_DATABASE:
            options.pop(name, None)
    return options


def refuse_lost_table(table: str | None, given: Namespace) -> None:
    """Refuse a table that the record of a run names and that is not there.

    It may be missing because its name is relative to the folder in which the run was begun.
    """
    if table and not os.path.exists(table):
        source = record_path(given.resume) if given.resume else record_of(given.evaluate)
        raise InputError(
            f'there is no file {table}, which {source} names as the table of the run; '
            '--csv FILE names it anew'
        )


def set_data_paths(config: Namespace) -> None:
    """Set `data_root`, the path of the database, and `image_root`.

    With --csv the table is the database, and its images are looked for in the given --data_root. So
    are those of the tables that --evaluate tests on.
    """
    config.image_root = config.data_root if config.csv or tests_on_others(config) else None
    config.data_root = config.csv or config.data_root or f'data/{config.dataset}'


def set_output(config: Namespace) -> None:
    """Set `output`, the run folder, and `resume` as a bool.

    The folder of --evaluate is named later, by the weights, unless --output names it.
    """
    if isinstance(config.resume, str):
        if config.output not in (None, config.resume):
            raise InputError('--output: --resume RUN names the run folder already')
        config.output = config.resume
    elif not config.output and not config.evaluate:
        config.output = f'runs/{config.dataset}-seed{config.seed}'
    config.resume = bool(config.resume)


def refuse_contradictions(config: Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: two of them exclude each other, or one needs another.
    """
    if bool(config.csv) != (config.dataset == 'csv'):
        raise InputError(
            '--csv FILE goes with --dataset csv, which it implies: the file lists your images and '
            'their scores'
        )
    refuse_split_options(config)
    refuse_table_options(config)
    refuse_training_options(config)
    if config.rounds and config.rounds[-1] > config.train_test_num:
        raise InputError(
            f'--rounds: there are {config.train_test_num} rounds; --train_test_num sets how many'
        )
    # A database's name is its key in the results, and is in the name of its predictions_<name>.csv.
    names = [name for name, _, _ in config.test_on or []]
    if len(set(names)) < len(names):
        raise InputError('--test_on: each database and each table can be named once')


def make_names_distinct(test_on: list[list[str]]) -> None:
    """Tell tables of one name apart: 'labels' becomes 'a-labels' and 'b-labels'.

    The prefix is the nearest folder above the files that is another one for each of them.

    Args:
        test_on: [name, key, path] of each database; the names in it are replaced.
    """
    tables: dict[str, list[list[str]]] = {}
    for entry in test_on:
        name, key, _path = entry
        if key == 'csv':
            tables.setdefault(name, []).append(entry)
    for name, same in tables.items():
        if len(same) == 1:
            continue
        # The folders above each file, the nearest first.
        above = [Path(os.path.abspath(path)).parent.parts[::-1] for _, _, path in same]
        for level in zip(*above):  # one folder of each file
            if len(set(level)) == len(same):
                for entry, folder in zip(same, level):
                    entry[0] = f'{folder}-{name}'
                break


def tests_on_others(config: Namespace) -> bool:
    """Whether this command only tests a checkpoint on the databases of --test_on."""
    return bool(config.evaluate and config.test_on)


def refuse_split_options(config: Namespace) -> None:
    """Refuse options about a random split where the split is another one."""
    for name in ('val_ratio', 'split_by'):
        if getattr(config, name) and config.split not in (None, 'random', 'folds'):
            raise InputError(
                f'--{name} goes with --split random or folds; another split names its own parts'
            )


def refuse_table_options(config: Namespace) -> None:
    """Refuse options about a database or a table of the user's own where they have no effect."""
    if config.csv and tests_on_others(config):
        raise InputError('--csv: with --evaluate, --test_on csv=FILE names a table to test on')
    if tests_on_others(config) and config.dataset != default_options()['dataset']:
        raise InputError(
            '--dataset: with --evaluate, --test_on NAME=DIR names the databases to test on'
        )
    keys = [key for _, key, _ in config.test_on or []]
    if config.csv or 'csv' in keys:
        return
    if config.data_root and tests_on_others(config):
        raise InputError(
            '--data_root: with --evaluate, the names in a table of --test_on csv=FILE start there; '
            'NAME=DIR has the folder of a database'
        )
    # `set` may also be the column of the sets in a --split table.
    if set(config.columns) - {'set'} or config.lower_is_better is not None:
        raise InputError(
            '--columns, --lower_is_better and --higher_is_better describe the table of --csv FILE, '
            'or of --test_on csv=FILE'
        )


def refuse_training_options(config: Namespace) -> None:
    """Refuse to choose an epoch without images, and to fit weights that give no scores."""
    if config.train_on_all and (config.val_ratio or config.patience or config.split):
        raise InputError(
            '--train_on_all leaves nothing to choose an epoch on: give no --val_ratio, --patience '
            'or --split'
        )
    if config.fit_scale and config.weights in ('none', 'imagenet'):
        raise InputError(
            '--fit_scale goes with --weights FILE, a HyperIQA that gives scores already'
        )
