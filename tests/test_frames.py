"""The frame cache holds the same pixels as the files, is built once, and is never used when it is not whole or not current."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import databases
import numpy as np
import pytest
from helpers import PROJECT, open_database

from util import frames
from util.errors import InputError

OPEN = (
    'import sys; sys.path.insert(0, sys.argv[1]); from folders import OpenDatabase; '
    'opened = OpenDatabase(*sys.argv[2:4]).open_frames(224, *sys.argv[4:]); print(type(opened.frames).__name__)'
)


def opener(name, root, *cache):
    """The command that opens a database in a process of its own and prints the kind of its frames."""
    return [sys.executable, '-c', OPEN, str(PROJECT), name, str(root), *map(str, cache)]


def cache_files(folder):
    return sorted(path for path in folder.iterdir() if path.suffix != '.lock')


def assert_cached_equals_direct(name, root):
    cached, direct = open_database(name, root), open_database(name, root, 'none')
    assert type(cached.frames).__name__ == 'CachedFrames' and type(direct.frames).__name__ == 'DirectFrames'
    assert np.array_equal(cached.frames.sizes, direct.frames.sizes)
    for k in range(len(cached.samples)):
        assert np.array_equal(cached.frames[k], direct.frames[k])
    part = [2, 0]
    assert np.array_equal(cached.frames.part(part)[1], direct.frames.part(part)[1])


@pytest.mark.parametrize('name', ['koniq', 'livec', 'bid'])
def test_cached_pixels_equal_those_of_the_files(make_database, name):
    root = make_database(name)
    if name == 'livec':
        databases.picture(root / 'Images' / '4.JPG', size=(301, 407))
    assert_cached_equals_direct(name, root)


def test_it_is_built_once_and_says_so(make_database, capsys):
    root = make_database('koniq')
    open_database('koniq', root)
    assert 'decoding 5 images once into' in capsys.readouterr().err
    (file,) = cache_files(root / '.hyperiqa_cache')
    built = file.stat().st_mtime_ns
    open_database('koniq-10k', root)
    assert file.stat().st_mtime_ns == built and capsys.readouterr().err == ''
    assert cache_files(root / '.hyperiqa_cache') == [file]


def test_changed_and_replaced_images_are_noticed(make_database, capsys):
    root = make_database('livec')
    image = root / 'Images' / '5.bmp'
    open_database('livec', root)
    status = image.stat()
    databases.picture(image, seed=77)  # as large as before, at another time
    assert image.stat().st_size == status.st_size and image.stat().st_mtime_ns != status.st_mtime_ns
    assert_cached_equals_direct('livec', root)
    assert 'images changed since the frame cache was made: decoding 6' in capsys.readouterr().err

    status = image.stat()
    databases.picture(image, seed=78, size=(250, 260))  # of the same time, but larger
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_cached_equals_direct('livec', root)

    image.unlink()
    with pytest.raises(InputError, match='5.bmp'):
        open_database('livec', root)


def with_a_fifo(file, content):
    file.unlink()
    os.mkfifo(file)


def with_a_flipped_bit(file, content):
    """A second later than it was written: an edit within the second would not show."""
    with open(file, 'r+b') as opened:
        opened.seek(-1000, os.SEEK_END)
        opened.write(bytes([content[-1000] ^ 1]))
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 5))


DAMAGES = {
    'truncated': lambda file, content: file.write_bytes(content[:-1]),
    'text': lambda file, content: file.write_bytes(b'hello'),
    'empty': lambda file, content: file.write_bytes(b''),
    'a foreign index': lambda file, content: file.write_bytes(content[:26] + (8).to_bytes(8, 'little') + b'{"a": 1}' * 9),
    'a length of 2^63': lambda file, content: file.write_bytes(content[:26] + b'\xff' * 7 + b'\x7f' + content[34:]),
    'a nested index': lambda file, content: file.write_bytes(content[:26] + (9999).to_bytes(8, 'little') + b'[' * 9999),
    'an earlier version': lambda file, content: file.write_bytes(content.replace(b'frames 2', b'frames 1', 1)),
    'a flipped bit': with_a_flipped_bit,
    'a FIFO': with_a_fifo,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_cache_is_built_anew(make_database, damage):
    root = make_database('livec')
    open_database('livec', root)
    (file,) = cache_files(root / '.hyperiqa_cache')
    content = file.read_bytes()
    DAMAGES[damage](file, content)
    assert_cached_equals_direct('livec', root)
    rebuilt = file.read_bytes()
    assert rebuilt[:18] + rebuilt[26:] == content[:18] + content[26:]  # between them stands the time of writing


def test_a_folder_in_the_caches_place_is_left_alone(make_database, tmp_path, monkeypatch):
    root = make_database('livec')
    open_database('livec', root)
    (file,) = cache_files(root / '.hyperiqa_cache')
    file.unlink()
    file.mkdir()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    assert_cached_equals_direct('livec', root)
    assert len(cache_files(tmp_path / 'home' / 'hyperiqa')) == 1 and file.is_dir()


def test_a_cache_that_is_cut_while_in_use_ends_the_run_in_one_line(make_database):
    root = make_database('livec')
    done = subprocess.run(
        [
            *opener('livec', root)[:2],
            OPEN
            + "; import os; os.truncate(next(iter(__import__('util.frames').frames.mapped)), 5000); opened.frames[5].sum()",
            *opener('livec', root)[3:],
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[1:] == [done.stderr.splitlines()[-1]]
    assert 'a frame cache was cut while it was in use: ' in done.stderr and '.frames; start again' in done.stderr


def test_an_image_that_changes_while_the_cache_is_built_is_named(make_database, monkeypatch):
    root = make_database('livec')
    image = root / 'Images' / '3.bmp'
    write = frames.write_frames

    def and_change(*arguments):
        write(*arguments)
        databases.picture(image, seed=99)
        os.utime(image, (1, 1))

    monkeypatch.setattr(frames, 'write_frames', and_change)
    with pytest.raises(InputError, match='3.bmp was changed while it was in use'):
        open_database('livec', root)
    assert cache_files(root / '.hyperiqa_cache') == []


def test_an_image_that_grows_is_named_where_there_is_no_cache(make_database):
    root = make_database('livec')
    opened = open_database('livec', root, 'none')
    assert opened.frames[0].shape == tuple(opened.frames.sizes[0]) + (3,)
    databases.picture(root / 'Images' / '3.bmp', size=(300, 400))
    with pytest.raises(InputError, match='3.bmp was changed while it was in use'):
        opened.frames[0]


def test_a_builder_that_hangs_does_not_keep_others_waiting_for_ever(make_database, monkeypatch):
    root = make_database('koniq', images=40)
    folder = root / '.hyperiqa_cache'
    builder = subprocess.Popen(opener('koniq', root), stderr=subprocess.DEVNULL)
    try:
        while not (folder.exists() and any(folder.glob('.*.frames.*'))):
            assert builder.poll() is None
        builder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(frames, 'PATIENCE', 0.3)
        with pytest.raises(InputError, match='the process that makes .*frames hangs'):
            open_database('koniq', root)
    finally:
        builder.kill()
        builder.wait()


def test_what_killed_builds_left_is_removed_and_links_are_not_followed(make_database, tmp_path):
    root = make_database('livec')
    folder = root / '.hyperiqa_cache'
    open_database('livec', root)
    (file,) = cache_files(folder)
    file.write_bytes(b'')
    (tmp_path / 'precious').write_text('mine')
    mine, old, young = (folder / name for name in (f'.{file.name}.1', '.other.frames.2', '.other.frames.3'))
    mine.symlink_to(tmp_path / 'precious')
    old.write_bytes(b'')
    os.utime(old, (1, 1))
    young.write_bytes(b'')  # another process may be at work on it
    assert_cached_equals_direct('livec', root)
    assert not mine.is_symlink() and not old.exists() and young.exists()
    assert (tmp_path / 'precious').read_text() == 'mine'


def test_without_locks_the_work_of_others_is_left_alone(make_database, monkeypatch):
    """The answer that `try_lock` gives on such a file system stands in for it."""
    root = make_database('livec')
    folder = root / '.hyperiqa_cache'
    open_database('livec', root)
    (file,) = cache_files(folder)
    file.write_bytes(b'')
    (folder / f'.{file.name}.1').write_bytes(b'')
    monkeypatch.setattr(frames, 'try_lock', lambda path: contextlib.ExitStack())
    assert_cached_equals_direct('livec', root)
    assert (folder / f'.{file.name}.1').exists()


def test_a_user_without_a_home_needs_none(make_database, monkeypatch):
    root = make_database('livec')
    (root / '.hyperiqa_cache').write_text('')
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
    assert type(open_database('livec', root).frames).__name__ == 'DirectFrames'


def test_a_build_that_was_killed_is_not_used(make_database):
    root = make_database('koniq', images=40)
    folder = root / '.hyperiqa_cache'
    process = subprocess.Popen(opener('koniq', root), stderr=subprocess.DEVNULL)
    while not (folder.exists() and any(folder.glob('.*.frames.*'))):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert any(folder.glob('.*.frames.*')) and cache_files(folder)[0].name.startswith('.')
    assert_cached_equals_direct('koniq', root)
    assert [path.suffix for path in cache_files(folder)] == ['.frames']


def test_two_processes_that_start_together_build_it_once(make_database):
    root = make_database('koniq', images=20)
    processes = [
        subprocess.Popen(opener('koniq', root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = [process.communicate() for process in processes]
    assert [out for out, _ in printed] == ['CachedFrames\n'] * 3
    assert sum(err.count('decoding 20 images') for _, err in printed) == 1


def test_without_room_the_run_goes_on_without_a_cache(make_database):
    """The limit on the size of a file stands in for the disk."""
    root = make_database('koniq')
    done = subprocess.run(
        ['bash', '-c', 'ulimit -f 1000; exec "$@"', 'bash', *opener('koniq', root)], capture_output=True, text=True
    )
    assert done.stdout == 'DirectFrames\n'
    assert 'there is no room for the frame cache in' in done.stderr and '--cache DIR' in done.stderr
    assert cache_files(root / '.hyperiqa_cache') == []


def test_where_the_database_cannot_be_written_the_users_cache_folder_serves(make_database, tmp_path, monkeypatch):
    """A file in the folder's place stands in for a read-only disk, since the superuser may write everywhere."""
    root = make_database('livec')
    (root / '.hyperiqa_cache').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    assert_cached_equals_direct('livec', root)
    assert len(cache_files(tmp_path / 'home' / 'hyperiqa')) == 1

    moved = root.rename(tmp_path / 'second')  # another database of the same name
    shutil.copytree(moved, root)
    assert_cached_equals_direct('livec', root)
    assert_cached_equals_direct('livec', moved)
    assert len(cache_files(tmp_path / 'home' / 'hyperiqa')) == 2

    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    done = subprocess.run(opener('livec', root), capture_output=True, text=True)
    assert done.stdout == 'DirectFrames\n' and 'so images are decoded in every epoch' in done.stderr


def test_a_cache_folder_of_ones_own(make_database, tmp_path):
    root = make_database('livec')
    assert type(open_database('livec', root, tmp_path / 'cache').frames).__name__ == 'CachedFrames'
    assert len(cache_files(tmp_path / 'cache')) == 1 and not (root / '.hyperiqa_cache').exists()
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='the frame cache cannot be written in .*file'):
        open_database('livec', root, tmp_path / 'file')


def test_an_unreadable_image_is_named_and_leaves_no_cache(make_database):
    root = make_database('koniq')
    path = root / '1024x768' / '10004473378.jpg'
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(InputError, match='10004473378.jpg cannot be read as an image'):
        open_database('koniq', root)
    assert cache_files(root / '.hyperiqa_cache') == []


def test_a_moved_database_keeps_its_cache(make_database, tmp_path, capsys):
    root = make_database('livec')
    open_database('livec', root)
    capsys.readouterr()
    open_database('livec', root.rename(tmp_path / 'elsewhere'))
    assert capsys.readouterr().err == ''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is measured by Linux')
def test_private_memory_does_not_grow_with_the_database(make_database):
    root = make_database('koniq', images=60)
    cached = open_database('koniq', root).frames

    def private():
        (line,) = (line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('RssAnon'))
        return int(line.split()[1]) * 1024

    before = private()
    for k in range(60):
        assert cached[k].any()
    assert private() - before < 60 * 512 * 384 * 3 / 10
