"""What a long piece of work reports while it goes on."""

import fcntl
import itertools
import os
import re
import struct
import subprocess
import sys
import termios

from helpers import PROJECT

from util import progress


def test_a_line_every_few_minutes_replaces_the_bar_where_there_is_no_terminal(monkeypatch, capsys):
    clock = itertools.count(0, 100)  # each look at the clock is 100 s later
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    items = list(
        progress.progress(
            [2, 3, 5], 'epoch 1', 10, 'patches', lambda item: item, lambda: ', loss so far 0.5'
        )
    )
    assert items == [2, 3, 5]
    assert (
        capsys.readouterr().err
        == 'epoch 1: 5 of 10 patches, 0.025 patches/s, loss so far 0.5, 3 min left\n'
    )


def test_durations():
    shown = [progress.duration(seconds) for seconds in (0.4, 99, 100, 5000, 7500, 36000)]
    assert shown == ['0 s', '99 s', '2 min', '83 min', '2 h 05 min', '10 h 00 min']


def test_a_line_does_not_run_into_the_bar_on_a_terminal():
    program = (
        'from util.progress import progress\n'
        'from util.errors import log\n'
        'for item in progress([1, 1], "round 1", 2, "images"): log(f"warning: {item}")'
    )
    reading, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', 24, 80, 0, 0))
    subprocess.run([sys.executable, '-c', program], cwd=PROJECT, stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(reading, 10_000).decode()
    os.close(reading)
    assert 'round 1:' in shown  # there was a bar
    assert re.split('[\r\n]+', shown).count('warning: 1') == 2
