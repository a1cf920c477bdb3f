"""Decoding uses the cores that a container may use, and not all that it sees."""

import math
import os

import pytest

from util import cores


@pytest.mark.parametrize(
    'groups, files, share',
    [
        ('0::/\n', {'cpu.max': '150000 100000\n'}, 1.5),
        ('0::/\n', {'cpu.max': 'max 100000\n'}, math.inf),
        ('0::/a/b\n', {'a/cpu.max': '200000 100000\n', 'a/b/cpu.max': 'max 100000\n'}, 2),
        ('0::/a/b\n', {'a/cpu.max': '800000 100000\n', 'a/b/cpu.max': '50000 100000\n'}, 0.5),
        ('0::/../../outside\n', {'cpu.max': '300000 100000\n'}, 3),
        (
            '5:devices:/\n2:cpu,cpuacct:/docker/1a\n0::/\n',
            {'cpu/cpu.cfs_quota_us': '250000\n', 'cpu/cpu.cfs_period_us': '100000\n'},
            2.5,
        ),
        (
            '1:cpu:/\n',
            {'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'},
            math.inf,
        ),
        ('1:name=systemd:/x:y\n', {}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_the_share_of_a_container(tmp_path, groups, files, share):
    """Of both versions of Linux's control groups, with the names and forms of their files."""
    if groups is not None:
        (tmp_path / 'cgroup').write_text(groups)
    for name, text in files.items():
        path = tmp_path / 'trees' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores.container_share(tmp_path / 'cgroup', tmp_path / 'trees') == share


@pytest.mark.parametrize(
    'quota, threads', [('max', 32), ('100000', 1), ('10000', 1), ('150000', 2), ('6400000', 32)]
)
def test_no_more_threads_decode_than_the_share_of_a_container(
    tmp_path, monkeypatch, quota, threads
):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(32)))
    (tmp_path / 'cgroup').write_text('0::/\n')
    (tmp_path / 'cpu.max').write_text(f'{quota} 100000\n')
    monkeypatch.setattr(cores, 'GROUPS', tmp_path / 'cgroup')
    monkeypatch.setattr(cores, 'TREES', tmp_path)
    assert cores.cores() == threads
