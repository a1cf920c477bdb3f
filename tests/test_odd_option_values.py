"""A hundred odd values of options: each is taken or refused in one line, without a traceback."""

import random

import pytest

import train_test_IQA
from experiment.options import make_parser

VALUES = (
    *(
        '',
        ' ',
        '-',
        '--',
        '0',
        '-1',
        '1',
        '-0',
        '1e400',
        '-1e400',
        'nan',
        'inf',
        '-inf',
        '1e-400',
        '0.5',
        '1.',
        '٣',
        '1_000',
    ),
    *(
        '9' * 30,
        '9' * 5000,
        '0x10',
        '1-9999999999',
        '5-1',
        '1-',
        '-1-2',
        '2**32',
        str(2**32),
        str(2**64),
        '60000',
        '1000000',
    ),
    *(
        'a' * 300,
        'a' * 5000,
        '\udcff',
        'ä',
        '\n',
        "'",
        '=',
        'livec=',
        '=livec',
        'livec=nowhere',
        'nowhere=livec',
        'koniq=/dev/null',
    ),
    *(
        '/',
        '.',
        '..',
        '/dev/null',
        '/dev/full',
        '/proc/self/mem',
        '/root/x/y',
        'livec',
        'livec/Data',
        'livec/Images/3.bmp',
        'fifo',
    ),
    *(
        'none',
        'None',
        'imagenet',
        'official',
        'random',
        'cpu',
        'cuda:99',
        'meta',
        'xla',
        'vulkan',
        'hpu',
        'mps',
        'cpu:7',
        'gpu',
        ':',
    ),
)


def test_odd_option_values_are_taken_or_refused_in_one_line(
    make_database, in_process, finished_run, tmp_path
):
    """Together with what keeps an accepted value from training for hours: a check, or a summary."""
    make_database('livec', images=10)
    (tmp_path / 'run').symlink_to(finished_run / 'run')
    rng = random.Random(13)
    flags = [action for action in make_parser()._actions if action.dest != 'help']
    codes = []
    for _ in range(100):
        action = rng.choice(flags)
        values = (
            []
            if action.nargs == 0
            else [
                rng.choice(VALUES)
                for _ in range(action.nargs if isinstance(action.nargs, int) else 1)
            ]
        )
        mode = rng.choice(
            (
                ('--data_root', 'livec', '--check'),
                ('--data_root', 'nowhere'),
                ('--summarize', 'run'),
                ('--list_datasets',),
            )
        )
        options = (
            *mode,
            '--weights',
            'none',
            '--train_test_num',
            2,
            action.option_strings[0],
            *values,
        )
        try:
            done = in_process(train_test_IQA.main, *options)
        except Exception as error:
            pytest.fail(f'{options}: {error!r}')
        assert done.returncode in (0, 2), (options, done)
        if done.returncode == 2 and not ('--check' in options and 'error' not in done.stderr):
            assert 'error: ' in done.stderr.strip().splitlines()[-1], (options, done.stderr)
        codes.append(done.returncode)
    assert 0 in codes and 2 in codes
