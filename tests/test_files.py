"""Outputs destroy nothing, and locks hold where there are any."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap

import databases
import pytest
import torch
from helpers import PROJECT
from matplotlib.figure import Figure
from safetensors.torch import save_file

from util import files, plots
from util.errors import InputError
from util.files import walk

NO_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int operation) { errno = atoi(getenv("NOFLOCK")); return -1; }
"""


def python(code, **settings):
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT), **settings.pop('environment', {})}
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        **settings,
    )


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'link').symlink_to('deep/target')
    for content in (b'first', b'second'):
        files.write_whole(tmp_path / 'link', content)
        assert (tmp_path / 'link').is_symlink() and (
            tmp_path / 'deep' / 'target'
        ).read_bytes() == content
    umask = os.umask(0o027)
    files.write_whole(tmp_path / 'new', b'')
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / 'new').stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ['deep', 'link', 'new'] and os.listdir(
        tmp_path / 'deep'
    ) == ['target']


def test_an_output_is_checked_first_and_replaces_only_its_own_table(tmp_path):
    header = 'first,second'
    (tmp_path / 'labels.csv').write_text('first,second,content\n')
    (tmp_path / 'scores.csv').write_text('first,second\na.png,1\n')
    (tmp_path / 'empty.csv').touch()
    (tmp_path / 'link.csv').symlink_to('scores.csv')
    (tmp_path / 'folder.csv').mkdir()
    os.mkfifo(tmp_path / 'fifo.csv')
    before = sorted(os.listdir(tmp_path))
    for path, reason in (
        (tmp_path / 'scores.txt', 'scores.txt must end in .csv'),
        ('/dev/stdout', '/dev/stdout must end in .csv'),
        (tmp_path / 'labels.csv', 'labels.csv exists and is no such output of this project'),
        (tmp_path / 'folder.csv', 'folder.csv exists and is no such output'),
        (tmp_path / 'fifo.csv', 'fifo.csv exists and is no such output'),
        (tmp_path / 'absent' / 'x.csv', 'is missing or write-protected'),
    ):
        with pytest.raises(InputError, match=reason):
            files.check_output(path, ['.csv'], header)
    long = tmp_path / ('x' * 251 + '.csv')
    for path in (tmp_path / 'scores.csv', tmp_path / 'link.csv', tmp_path / 'empty.csv', long):
        files.check_output(path, ['.csv'], header)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / 'scores.csv').read_text() == 'first,second\na.png,1\n'
    files.write_whole(long, b'content')
    assert long.read_bytes() == b'content'


def test_no_output_goes_into_a_run_folder_and_another_tools_config_makes_none(tmp_path):
    for record, is_run in (
        ('{"options": {}, "model": {}}', True),
        ('{"model": {}, "width": 7}', False),
        ('{"options": [], "model": "HyperIQA"}', False),
        ('[1', False),
    ):
        (tmp_path / 'config.json').write_text(record)
        for place in ('.', 'round_01', 'round_01/deeper'):
            (tmp_path / place).mkdir(exist_ok=True)
            path = tmp_path / place / 'x.csv'
            if is_run:
                with pytest.raises(InputError, match='x.csv is in the run folder .*; name a place'):
                    files.check_output(path, ['.csv'], 'image')
            else:
                files.check_output(path, ['.csv'], 'image')


def test_pictures_and_exports_without_the_mark_of_this_project_are_refused(tmp_path):
    """Each as another program writes it; exports with their marks are in test_export."""
    databases.picture(tmp_path / 'a.png')
    torch.save({'weight': torch.zeros(4)}, tmp_path / 'a.pt2')
    save_file({'weight': torch.zeros(4)}, tmp_path / 'a.safetensors', {'model': 'HyperIQA'})
    (tmp_path / 'a.onnx').write_bytes(b'\x08\x0a HyperIQA')
    endings = ['.png', '.pt2', '.onnx', '.safetensors']
    for ending in endings:
        path = tmp_path / f'a{ending}'
        before = path.read_bytes()
        with pytest.raises(InputError, match='exists and is no such output of this project'):
            files.check_output(path, endings)
        assert path.read_bytes() == before
        path.write_bytes(b'')
        files.check_output(path, endings)
    (tmp_path / 'a.png').write_bytes(plots.png(Figure()))
    files.check_output(tmp_path / 'a.png', endings)


def test_what_a_kill_left_beside_an_output_is_removed_once_it_is_older_than_a_day(tmp_path):
    killed = python(
        """
        import os, signal, sys
        from util import files
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        files.write_whole('scores.csv', b'content')
        """,
        cwd=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / '.scores.csv.notes').write_text('not ours')
    # Of other outputs; the name of one begins as this one's.
    others = ['.other.csv.1234567812345678.tmp', '.scores.csv2.1234567812345678.tmp']
    for name in others:
        (tmp_path / name).write_text('of another output')
        os.utime(tmp_path / name, (1, 1))
    files.check_output(tmp_path / 'scores.csv', ['.csv'], header='image,score')
    assert left.exists()  # another process may be writing it
    os.utime(left, (1, 1))
    files.check_output(tmp_path / 'scores.csv', ['.csv'], header='image,score')
    assert sorted(os.listdir(tmp_path)) == sorted([*others, '.scores.csv.notes'])


def test_reading_names_the_file_once_and_lets_through_what_the_system_refuses(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{}')
    for content, reason in (
        (b'version https://git-lfs.github.com/spec/v1\n', 'a.json is a Git LFS pointer'),
        (b'\xef\xbb\xbf <!DOCTYPE html>', 'a.json is a web page'),
        (b'[', r'a.json cannot be read as JSON: .*; put the file back'),
        (b'[1]', 'a.json cannot be read as JSON: it is not a JSON object'),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason) as caught:
            files.read_json(path)
        assert str(caught.value).count('a.json') == 1
    for error in (OSError(errno.EMFILE, 'Too many open files'), MemoryError()):
        with pytest.raises(type(error)) as caught, files.as_input_error(path, 'JSON'):
            raise error
        assert caught.value is error
    for number in (errno.ENOTDIR, errno.EIO, errno.ESTALE):  # the file's own
        with pytest.raises(InputError) as caught, files.as_input_error(path, 'JSON'):
            raise OSError(number, 'reason')
        assert str(caught.value) == f'{path} cannot be read: reason'
    path.unlink()
    for make, reason in (
        (lambda: None, f'there is no file {path}'),
        (path.mkdir, f'{path} is not a regular file'),
    ):
        make()
        with pytest.raises(InputError) as caught:
            files.read_json(path)
        assert str(caught.value) == reason


def test_a_lock_is_one_processs_and_free_when_that_is_killed(tmp_path):
    lock = tmp_path / '.lock'
    hold = (
        'from util import files\n'
        f'with files.locked({str(lock)!r}):\n'
        '    print(1, flush=True); input()'
    )
    holder = subprocess.Popen(
        [sys.executable, '-c', hold], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b'1\n' and files.is_locked(lock)
    with pytest.raises(InputError, match='taken'), files.locked(lock, busy='taken'):
        pass
    holder.kill()
    holder.communicate()
    with files.locked(lock) as held:
        assert held and files.is_locked(lock)
    assert not files.is_locked(lock)


def test_who_waits_for_a_lock_logs_it(tmp_path):
    """The waiting process starts while the lock is held; it is released once the process logged."""
    lock = tmp_path / '.lock'
    wait = f'from util import files\nwith files.locked({str(lock)!r}) as held:\n    print(held)'
    with files.locked(lock):
        waiter = subprocess.Popen(
            [sys.executable, '-c', wait],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiter.stderr.readline() == f'waiting for another process, which holds {lock}\n'
    assert waiter.communicate() == ('True\n', '') and waiter.returncode == 0


@pytest.mark.skipif(shutil.which('cc') is None, reason='needs a C compiler')
@pytest.mark.parametrize('code', ['ENOLCK', 'ENOSYS', 'EOPNOTSUPP'])
def test_without_locks_of_the_file_system_it_warns_once(tmp_path, code):
    (tmp_path / 'noflock.c').write_text(NO_FLOCK)
    subprocess.run(
        ['cc', '-shared', '-fPIC', '-o', 'noflock.so', 'noflock.c'], cwd=tmp_path, check=True
    )
    (tmp_path / 'run').mkdir()
    (
        tmp_path / 'run' / '.lock'
    ).touch()  # as a process on another machine leaves it: nobody may wait for it to vanish
    done = python(
        """
        from util import files
        for name in ('run/.lock', 'run/other.lock') * 2:
            with files.locked(name) as held:
                assert held is False and not files.is_locked(name)
        """,
        cwd=tmp_path,
        environment={
            'LD_PRELOAD': str(tmp_path / 'noflock.so'),
            'NOFLOCK': str(getattr(__import__('errno'), code)),
        },
    )
    assert done.returncode == 0 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('warning: files in run cannot be locked (')


def test_another_users_files(as_nobody):
    """A folder that may be written with a lock file and a result that may not."""
    folder, run = as_nobody
    for name in ('.lock', 'result.json'):
        (folder / name).touch(0o644)

    def act():
        assert not files.is_locked('.lock')
        files.write_whole('own', b'content')
        with pytest.raises(
            InputError, match='result.json cannot be written: it is write-protected'
        ):
            files.write_whole('result.json', b'content')

    printed = run(act)
    assert printed.count('\n') == 1 and 'cannot be locked (Permission denied)' in printed
    assert (folder / 'result.json').read_bytes() == b'' and (folder / 'own').exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    files.write_whole(path, b'old')
    files.write_whole(path, b'new')
    assert path.read_bytes() == b'new'
    (tmp_path / 'folder').mkdir()
    with pytest.raises(InputError, match='folder cannot be written'):
        files.write_whole(tmp_path / 'folder', b'content')
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


def test_linked_folders_are_walked_once(tmp_path):
    databases.copies(tmp_path / 'all', ['b/1.png'])
    (tmp_path / 'all' / 'a').symlink_to(tmp_path / 'all' / 'b')
    (tmp_path / 'all' / 'c').symlink_to(tmp_path / 'all')
    unreadable = []
    found = [path.removeprefix(str(tmp_path)) for path in walk(tmp_path / 'all', unreadable)]
    assert found == ['/all/a/1.png'] and unreadable == []


def test_folders_that_no_person_filled_are_not_entered(tmp_path):
    names = (
        '@eaDir/b.png',
        '#recycle/b.png',
        '@Recycle/b.png',
        '.@__thumb/b.png',
        '__MACOSX/b.png',
    )
    names += ('$Recycle.Bin/S-1/b.png', 'System Volume Information/b.png', 'deep/lost+found/b.png')
    databases.copies(tmp_path, [*names, 'a.png', 'recycled photos/b.png'])
    found = [os.path.relpath(path, tmp_path) for path in walk(tmp_path, [])]
    assert found == ['a.png', 'recycled photos/b.png']
    assert list(walk(tmp_path / '@eaDir', [])) == [str(tmp_path / '@eaDir/b.png')]


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_walked(as_nobody):
    folder, run = as_nobody
    databases.copies(folder, ['a.png', 'closed/b.png', 'open/c.png'])
    (folder / 'closed').chmod(0o700)

    def act():
        unreadable = []
        names = list(walk('.', unreadable))
        print(*names, *map(str, unreadable), sep='\n', file=sys.stderr)

    told = "[Errno 13] Permission denied: './closed'"
    assert run(act).splitlines() == ['./a.png', './open/c.png', told]


def test_a_walk_ends_where_the_system_refuses(tmp_path):
    """With too many open files every folder would look unreadable."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match='Too many open files'):
            list(walk(tmp_path, []))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
