"""The frame cache holds the same pixels as the files, is built once, and is never used when it is not whole or not current."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import databases
import numpy as np
import pytest
from helpers import PROJECT, open_database

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


@pytest.mark.parametrize('damage', ['truncated', 'text', 'empty', 'foreign index'])
def test_a_damaged_cache_is_built_anew(make_database, damage):
    root = make_database('livec')
    open_database('livec', root)
    (file,) = cache_files(root / '.hyperiqa_cache')
    content = file.read_bytes()
    file.write_bytes(
        {'truncated': content[:-1], 'text': b'hello', 'empty': b'', 'foreign index': content[:26] + b'{"a": 1}'.ljust(100)}[
            damage
        ]
    )
    assert_cached_equals_direct('livec', root)
    assert file.read_bytes() == content


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
    frames = open_database('koniq', root).frames

    def private():
        (line,) = (line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('RssAnon'))
        return int(line.split()[1]) * 1024

    before = private()
    for k in range(60):
        assert frames[k].any()
    assert private() - before < 60 * 512 * 384 * 3 / 10
