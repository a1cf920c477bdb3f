"""Paths on two drives of Windows, between which there is no relative path.

Everything else is real: only the two functions that compare paths are Windows' own (`ntpath`).
"""

import ntpath
import os
from pathlib import Path

import databases
import pytest
from helpers import open_database, own_table

import demo
from util.files import path_from


@pytest.fixture
def two_drives(monkeypatch, tmp_path):
    """Everything below tmp_path/d is on drive D:, and everything else on C:."""

    def on_drive(path):
        path = os.path.abspath(path)
        drive = 'D:' if f'{path}/'.startswith(f'{tmp_path}/d/') else 'C:'
        return drive + path.replace('/', '\\')

    def relpath(path, start=os.curdir):
        return ntpath.relpath(on_drive(path), on_drive(start)).replace('\\', '/')

    def commonpath(paths):
        return ntpath.commonpath(map(on_drive, paths)).replace('\\', '/').removeprefix('C:')

    monkeypatch.setattr(os.path, 'relpath', relpath)
    monkeypatch.setattr(os.path, 'commonpath', commonpath)


def test_a_path_on_another_drive_is_whole(monkeypatch):
    with monkeypatch.context() as windows:
        windows.setattr(os, 'path', ntpath)
        same = path_from('C:\\runs', 'C:\\photos\\a.png')
        other = path_from('C:\\runs', 'D:\\photos\\a.png')
        maps = [demo.name_below(common, 'D:\\photos\\a.png') for common in ('D:\\photos', '')]
        of_network = demo.name_below('', '\\\\host\\share\\photos\\a.png')
    assert (same, other) == ('..\\photos\\a.png', 'D:\\photos\\a.png')
    assert maps == ['a.png', 'D\\photos\\a.png']
    assert of_network == 'hostshare\\photos\\a.png'


def test_a_cache_and_the_images_of_a_table_can_be_on_another_drive(two_drives, tmp_path):
    moved = tmp_path / 'd' / 'a.png'
    table = own_table(tmp_path, f'image,score\nb.png,1\n{moved},2', images=('b.png', 'd/a.png'))
    opened = open_database('csv', table, tmp_path / 'd' / 'cache')
    assert opened.names(range(2)) == ['b.png', str(moved)]
    assert opened.frames[1].shape == (240, 250, 3)
    assert len(list((tmp_path / 'd' / 'cache').glob('*.frames'))) == 1


def test_maps_of_photos_on_two_drives(two_drives, tmp_path, in_process, finished_run):
    for name in ('c/a.png', 'd/a.png'):
        databases.picture(tmp_path / name, size=(300, 260))
    checkpoint = finished_run / 'run' / 'round_01' / 'best.pth'
    options = ('--checkpoint', checkpoint, '--patches', 1, '--map', 'maps')
    done = in_process(demo.main, *options, 'c', 'd')
    assert done.returncode == 0, done.stderr
    drawn = {str(path.relative_to('maps')) for path in Path('maps').rglob('*.png')}
    here = str(tmp_path).lstrip('/')
    assert drawn == {f'{here}/c/a.png.png', f'{here}/d/a.png.png'}
