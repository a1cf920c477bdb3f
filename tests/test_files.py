"""Outputs destroy nothing, and locks hold where there are any."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
from helpers import PROJECT

from util import files
from util.errors import InputError

NO_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int operation) { errno = atoi(getenv("NOFLOCK")); return -1; }
"""


def python(code, **settings):
    environment = {**os.environ, 'PYTHONPATH': str(PROJECT), **settings.pop('environment', {})}
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], env=environment, capture_output=True, text=True, **settings
    )


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'link').symlink_to('deep/target')
    for content in (b'first', b'second'):
        files.write_whole(tmp_path / 'link', content)
        assert (tmp_path / 'link').is_symlink() and (tmp_path / 'deep' / 'target').read_bytes() == content
    umask = os.umask(0o027)
    files.write_whole(tmp_path / 'new', b'')
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / 'new').stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ['deep', 'link', 'new'] and os.listdir(tmp_path / 'deep') == ['target']


def test_devices_and_fifos_are_written_to_and_not_replaced(tmp_path):
    fifo, content, read = tmp_path / 'fifo', os.urandom(200_000), []  # more than a pipe holds
    os.mkfifo(fifo)
    with pytest.raises(InputError, match='fifo cannot be written: No such device or address'):  # nobody reads it
        files.write_whole(fifo, content)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), 'rb') as reading:
        os.set_blocking(reading.fileno(), True)
        writer = threading.Thread(target=files.write_whole, args=(fifo, content))
        writer.start()
        while len(b''.join(read)) < len(content):
            read.append(reading.read1())
        writer.join()
    assert b''.join(read) == content and stat.S_ISFIFO(fifo.stat().st_mode)
    files.write_whole('/dev/null', b'content')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with pytest.raises(InputError, match='/dev/full cannot be written: No space left on device'):
        files.write_whole('/dev/full', b'content')
    with pytest.raises(InputError, match='not a file'):
        files.read_json(fifo)
    with open(tmp_path / 'out.txt', 'w') as out:
        subprocess.run(
            [sys.executable, '-c', 'from util import files; print(1); files.write_whole("/dev/stdout", b"2\\n"); print(3)'],
            cwd=PROJECT,
            stdout=out,
            check=True,
        )
    assert (tmp_path / 'out.txt').read_text() == '1\n2\n3\n'


def test_an_output_is_tried_first_and_is_never_the_input(tmp_path):
    (tmp_path / 'labels.csv').write_text('image,score\n')
    (tmp_path / 'link.csv').symlink_to('labels.csv')
    for path, reason in (
        (tmp_path / 'link.csv', 'is read, so it cannot be the output too'),
        (tmp_path, 'it is a folder'),
        (tmp_path / 'absent' / 'x.csv', 'No such file or directory'),
        (tmp_path / ('x' * 300), 'File name too long'),
    ):
        with pytest.raises(InputError, match=reason):
            files.refuse_unwritable(path, tmp_path / 'labels.csv')
    run = tmp_path / 'run' / 'round_01'
    run.mkdir(parents=True)
    for path in (run.parent / 'config.json', run / 'predictions.csv', run / 'predictions_livec.csv', run / 'scores.csv'):
        path.touch()
        if path.name == 'scores.csv':  # the user's own
            files.refuse_unwritable(path)
        else:
            with pytest.raises(InputError, match=f'{path.name} is a file of a run'):
                files.refuse_unwritable(path)
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8')
    with pytest.raises(InputError, match='photo.jpg exists and is of another kind than this output'):
        files.refuse_unwritable(tmp_path / 'photo.jpg', start=b'image,score')
    (tmp_path / 'photo.jpg').write_text('image,score\n')
    files.refuse_unwritable(tmp_path / 'photo.jpg', start=b'image,score')
    long = tmp_path / ('x' * 255)
    files.refuse_unwritable(long)
    files.write_whole(long, b'content')
    assert long.read_bytes() == b'content' and (tmp_path / 'labels.csv').read_text() == 'image,score\n'
    assert len(os.listdir(tmp_path)) == 5


def test_what_a_kill_left_beside_an_output_is_removed_by_the_next_try(tmp_path):
    killed = python(
        """
        import os, signal, sys
        from util import files
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        files.write_whole('scores.csv', b'content')
        """,
        cwd=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 1
    (tmp_path / '.scores.csv.notes').write_text('not ours')
    (tmp_path / '.other.csv.1234567812345678.tmp').write_text('of another output')
    files.refuse_unwritable(tmp_path / 'scores.csv')
    assert sorted(os.listdir(tmp_path)) == ['.other.csv.1234567812345678.tmp', '.scores.csv.notes']


def test_a_lock_is_one_processs_and_free_when_that_is_killed(tmp_path):
    lock = tmp_path / '.lock'
    holder = subprocess.Popen(
        [sys.executable, '-c', f'from util import files; held = files.try_lock({str(lock)!r}); print(1, flush=True); input()'],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b'1\n' and files.try_lock(lock) is None
    holder.kill()
    holder.communicate()
    with files.try_lock(lock):
        assert files.try_lock(lock) is None
    with files.locked(lock) as held:
        assert held and files.try_lock(lock) is None
    files.try_lock(lock).close()


@pytest.mark.skipif(shutil.which('cc') is None, reason='needs a C compiler')
@pytest.mark.parametrize('code', ['ENOLCK', 'ENOSYS', 'EOPNOTSUPP'])
def test_without_locks_of_the_file_system_it_is_said_once(tmp_path, code):
    (tmp_path / 'noflock.c').write_text(NO_FLOCK)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', 'noflock.so', 'noflock.c'], cwd=tmp_path, check=True)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.lock').touch()  # as a process on another machine leaves it: nobody may wait for it to vanish
    done = python(
        """
        from util import files
        for name in ('run/.lock', 'run/other.lock') * 2:
            with files.try_lock(name), files.locked(name) as held:
                assert held is False
        """,
        cwd=tmp_path,
        environment={'LD_PRELOAD': str(tmp_path / 'noflock.so'), 'NOFLOCK': str(getattr(__import__('errno'), code))},
    )
    assert done.returncode == 0 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('warning: files in run cannot be locked (')


def test_another_users_files(as_nobody):
    """A folder that may be written with a lock file and a result that may not."""
    folder, run = as_nobody
    for name in ('.lock', 'result.json'):
        (folder / name).touch(0o644)

    def act():
        assert files.try_lock('.lock') is not None
        files.write_whole('own', b'content')
        with pytest.raises(InputError, match='result.json cannot be written: it is write-protected'):
            files.write_whole('result.json', b'content')

    printed = run(act)
    assert printed.count('\n') == 1 and 'cannot be locked (Permission denied)' in printed
    assert (folder / 'result.json').read_bytes() == b'' and (folder / 'own').exists()
