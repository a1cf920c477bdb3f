"""The number of CPU cores that this process may use, in a container too."""

import math
import os
from contextlib import suppress
from pathlib import Path

GROUPS = Path('/proc/self/cgroup')  # a line for each control group of this process
TREES = Path('/sys/fs/cgroup')


def cores() -> int:
    """The number of threads that can decode at the same time."""
    if hasattr(os, 'sched_getaffinity'):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    share = max(1, container_share(GROUPS, TREES))
    return math.ceil(min(count, share))


def container_share(groups: Path, trees: Path) -> float:
    """The cores whose time the control groups of this process may use, or infinity.

    A container on a machine with many cores sees all of them, and is slowed down when it uses more
    than its share of time. A share can be a fraction of a core.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not on Linux
        return math.inf
    share = math.inf
    for line in lines:
        _, controllers, path = line.split(':', 2)
        # Version 1 has a tree of groups for each controller, and version 2 a single one.
        if not controllers:
            tree = trees
        elif 'cpu' in controllers.split(','):
            tree = trees / 'cpu'
        else:
            continue
        # Each group around this one limits it too. A container may see its own group as the root of
        # the tree, so the group's folder need not exist.
        group = tree / path.lstrip('/')
        for folder in (group, *group.parents):
            if folder.is_relative_to(tree):
                share = min(share, share_of(folder))
    return share


def share_of(folder: Path) -> float:
    """The cores whose time the control group `folder` may use, or infinity."""
    # Version 2 has one file, and version 1 has two.
    for files in (['cpu.max'], ['cpu.cfs_quota_us', 'cpu.cfs_period_us']):
        # No limit is 'max 100000' in version 2, where int('max') fails, and -1 in version 1.
        with suppress(OSError, ValueError):
            text = ' '.join((folder / file).read_text() for file in files)
            quota, period = map(int, text.split())
            if quota > 0:
                return quota / period
    return math.inf
