"""The frame cache holds the pixels of the files, is built once, and is not used when outdated."""

import codecs
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
from util.files import locked

OPEN = (
    'import sys; sys.path.insert(0, sys.argv[1]); from folders import OpenDatabase; '
    'opened = OpenDatabase(*sys.argv[2:4]).open_frames(224, *sys.argv[4:]); '
    'print(type(opened.frames).__name__)'
)


def opener(name, root, *cache):
    """The command that opens a database in a new process and prints the kind of its frames."""
    return [sys.executable, '-c', OPEN, str(PROJECT), name, str(root), *map(str, cache)]


def cache_files(folder):
    return sorted(path for path in folder.iterdir() if path.suffix != '.lock')


def assert_cached_equals_direct(name, root):
    cached, direct = open_database(name, root), open_database(name, root, 'none')
    assert (
        type(cached.frames).__name__ == 'CachedFrames'
        and type(direct.frames).__name__ == 'DirectFrames'
    )
    assert np.array_equal(cached.frames.sizes, direct.frames.sizes)
    for k in range(len(cached.samples)):
        assert np.array_equal(cached.frames[k], direct.frames[k])


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
    # Only the middle changes: the size and the bytes that are sampled at both ends stay.
    status, content = image.stat(), bytearray(image.read_bytes())
    content[len(content) // 2] ^= 255
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert image.stat().st_size == status.st_size
    assert_cached_equals_direct('livec', root)
    assert 'in place of the cache of an earlier state of the database' in capsys.readouterr().err

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


DAMAGES = {
    'truncated': lambda file, content: file.write_bytes(content[:-1]),
    'text': lambda file, content: file.write_bytes(b'hello' * 99),
    'empty': lambda file, content: file.write_bytes(b''),
    'foreign sizes': lambda file, content: file.write_bytes(b'\xff' * 16 + content[16:]),
    'a height of 2^62': lambda file, content: file.write_bytes(
        (2**62).to_bytes(8, 'little') + content[8:]
    ),
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
    assert file.read_bytes() == content


def test_other_images_of_equal_names_sizes_and_times_are_noticed(make_database, tmp_path):
    """As two databases that a container shows under one path, one after the other."""
    root = make_database('livec')
    open_database('livec', root)
    image = root / 'Images' / '5.bmp'
    status = image.stat()
    databases.picture(image, seed=77)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert image.stat().st_size == status.st_size
    assert_cached_equals_direct('livec', root)


def test_older_caches_of_the_same_place_are_removed_unless_somebody_builds_them(make_database):
    root = make_database('livec')
    folder = root / '.hyperiqa_cache'
    open_database('livec', root)
    (first,) = cache_files(folder)
    databases.picture(root / 'Images' / '5.bmp', seed=77)
    with locked(first.with_suffix('.lock')):
        open_database('livec', root)
    assert len(cache_files(folder)) == 2
    databases.picture(root / 'Images' / '5.bmp', seed=78)
    open_database('livec', root)
    (last,) = cache_files(folder)
    assert last != first and [path.name for path in folder.glob('*.lock')] == [
        last.with_suffix('.lock').name
    ]


def test_a_folder_in_the_caches_place_is_left_alone(make_database, tmp_path, monkeypatch):
    root = make_database('livec')
    open_database('livec', root)
    (file,) = cache_files(root / '.hyperiqa_cache')
    file.unlink()
    file.mkdir()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    assert_cached_equals_direct('livec', root)
    assert len(cache_files(tmp_path / 'home' / 'hyperiqa')) == 1 and file.is_dir()


def test_an_image_that_changes_while_the_cache_is_built_is_named(make_database, monkeypatch):
    root = make_database('livec')
    image = root / 'Images' / '3.bmp'
    build = frames.build

    def and_change(*arguments, **options):
        build(*arguments, **options)
        databases.picture(image, seed=99)
        os.utime(image, (1, 1))

    monkeypatch.setattr(frames, 'build', and_change)
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


def test_who_waits_for_another_builder_logs_it(make_database, capsys):
    root = make_database('koniq', images=40)
    folder = root / '.hyperiqa_cache'
    builder = subprocess.Popen(opener('koniq', root), stderr=subprocess.DEVNULL)
    while not (folder.exists() and any(folder.glob('.*.frames.*.tmp'))):
        assert builder.poll() is None
    opened = open_database('koniq', root)
    assert builder.wait() == 0 and type(opened.frames).__name__ == 'CachedFrames'
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith('waiting for another process, which holds ')


def test_what_killed_builds_left_is_removed_and_links_are_not_followed(make_database, tmp_path):
    """Only this process builds that cache, as its lock shows; of others, old files are removed."""
    root = make_database('livec')
    folder = root / '.hyperiqa_cache'
    open_database('livec', root)
    (file,) = cache_files(folder)
    file.write_bytes(b'')
    (tmp_path / 'precious').write_text('mine')
    mine, old, young = (
        folder / name
        for name in (f'.{file.name[:50]}.1.tmp', '.other.frames.2.tmp', '.other.frames.3.tmp')
    )
    mine.symlink_to(tmp_path / 'precious')
    old.write_bytes(b'')
    os.utime(old, (1, 1))
    young.write_bytes(b'')  # another process may be at work on it
    assert_cached_equals_direct('livec', root)
    assert not mine.is_symlink() and not old.exists() and young.exists()
    assert (tmp_path / 'precious').read_text() == 'mine'


def test_without_locks_the_work_of_others_is_left_alone(make_database, monkeypatch):
    """The answer that `locked` gives on such a file system stands in for it."""
    root = make_database('livec')
    folder = root / '.hyperiqa_cache'
    open_database('livec', root)
    (file,) = cache_files(folder)
    file.write_bytes(b'')
    (folder / f'.{file.name[:50]}.1.tmp').write_bytes(b'')
    monkeypatch.setattr(frames, 'locked', lambda path: contextlib.nullcontext(False))
    assert_cached_equals_direct('livec', root)
    assert (folder / f'.{file.name[:50]}.1.tmp').exists()


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
    while not (folder.exists() and any(folder.glob('.*.frames.*.tmp'))):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert any(folder.glob('.*.frames.*.tmp')) and cache_files(folder)[0].name.startswith('.')
    assert_cached_equals_direct('koniq', root)
    assert [path.suffix for path in cache_files(folder)] == ['.frames']


def test_two_processes_that_start_together_build_it_once(make_database):
    root = make_database('koniq', images=20)
    processes = [
        subprocess.Popen(
            opener('koniq', root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    printed = [process.communicate() for process in processes]
    assert [out for out, _ in printed] == ['CachedFrames\n'] * 3
    assert sum(err.count('decoding 20 images') for _, err in printed) == 1


def test_without_room_the_run_goes_on_without_a_cache(make_database, tmp_path, monkeypatch):
    """The limit on the size of a file stands in for the disk."""
    root = make_database('koniq')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    done = subprocess.run(
        ['bash', '-c', 'ulimit -f 1000; exec "$@"', 'bash', *opener('koniq', root)],
        capture_output=True,
        text=True,
    )
    assert done.stdout == 'DirectFrames\n'
    assert (
        'home/hyperiqa: File too large, so images are decoded in every epoch; --cache DIR'
        in done.stderr
    )
    assert (
        cache_files(root / '.hyperiqa_cache') == cache_files(tmp_path / 'home' / 'hyperiqa') == []
    )


def test_where_the_database_cannot_be_written_the_users_cache_folder_serves(
    make_database, tmp_path, monkeypatch
):
    """A file in the folder's place stands in for a read-only disk: root may write anywhere."""
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


def test_a_cache_that_cannot_be_read_is_named(as_nobody, monkeypatch):
    """One of another user's; the user's own cache folder then serves."""
    folder, run = as_nobody
    databases.livec(folder / 'livec')
    (folder / 'home').mkdir()
    (folder / 'home').chmod(0o777)
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'home'))
    database = open_database('livec', folder / 'livec')
    (file,) = cache_files(folder / 'livec' / '.hyperiqa_cache')
    file.chmod(0o600)
    first, second = run(lambda: database.open_frames(224)).splitlines()
    told = f'the frame cache {file} cannot be read: Permission denied; its owner can let others'
    assert first.startswith(told)
    assert second.startswith(f'decoding 6 images once into {folder}/home/hyperiqa/livec-')

    database.open_frames(224, folder / 'given')
    (file,) = cache_files(folder / 'given')
    file.chmod(0o600)
    printed = run(lambda: database.open_frames(224, folder / 'given'))
    told = f'the frame cache {file} cannot be read: Permission denied; --cache DIR names another'
    assert told in printed.splitlines()[-1]


def test_an_older_cache_that_cannot_be_removed_stays(as_nobody):
    """Of another user, in a folder in which each user removes only what is theirs."""
    folder, run = as_nobody
    databases.livec(folder / 'livec')
    database = open_database('livec', folder / 'livec')
    caches = folder / 'livec' / '.hyperiqa_cache'
    (file,) = cache_files(caches)
    older = file.with_name(f'{file.name.rpartition("-")[0]}-{"0" * 16}.frames')
    file.rename(older)
    for path in caches.glob('*.lock'):
        path.unlink()
    codecs.lookup('ascii')  # the other user may not read Python's own files
    caches.chmod(0o1777)
    printed = run(lambda: database.open_frames(224))

    assert 'Traceback' not in printed and 'decoding 6 images' in printed
    assert older.exists() and file.exists()


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
        (line,) = (
            line
            for line in Path('/proc/self/status').read_text().splitlines()
            if line.startswith('RssAnon')
        )
        return int(line.split()[1]) * 1024

    before = private()
    for k in range(60):
        assert cached[k].any()
    assert private() - before < 60 * 512 * 384 * 3 / 10
