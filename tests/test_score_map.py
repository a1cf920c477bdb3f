"""`Scorer.map` and `demo.py --map`: where in an image the scores are high and low."""

import io
import os
import subprocess
import sys

import databases
import numpy as np
import pytest
import torch
from helpers import PROJECT, read_table
from PIL import Image

import demo
import models
from scoring.scorer import Scorer
from util import plots


@pytest.fixture
def picture():
    return np.random.RandomState(0).randint(0, 256, (500, 400, 3), dtype=np.uint8)


def test_a_map_has_the_score_of_each_patch_at_its_place(finished_run, picture):
    scorer = Scorer(finished_run / 'run' / 'round_01' / 'best.pth', 'cpu', patches=1)
    scores, y, x, photo = scorer.map(picture)
    top, left = [0, 92, 184, 276], [0, 88, 176]  # evenly spread, the last ones end with the image
    assert y.tolist() == [start + 112 for start in top] and x.tolist() == [
        start + 112 for start in left
    ]
    expected = [
        [scorer(picture[row : row + 224, column : column + 224]) for column in left] for row in top
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (np.asarray(photo) == picture).all() and np.ptp(scores) > 0


def test_coordinates_are_pixels_of_the_photo_also_where_the_frame_is_resized(tmp_path):
    torch.manual_seed(0)
    torch.save(
        models.hyperiqa().state_dict(), tmp_path / 'authors.pth'
    )  # of KonIQ-10k: 512 high, 384 wide
    databases.picture(tmp_path / 'a.png', size=(768, 1024))
    scores, y, x, photo = Scorer(tmp_path / 'authors.pth', 'cpu').map(tmp_path / 'a.png')
    assert photo.size == (1024, 768) and scores.shape == (4, 3)
    assert y.tolist() == [k * 768 / 512 for k in (112, 208, 304, 400)] and x.tolist() == [
        k * 1024 / 384 for k in (112, 192, 272)
    ]


def test_an_image_of_one_patch_has_a_map_of_one_score(finished_run):
    scorer = Scorer(finished_run / 'run' / 'round_01' / 'best.pth', 'cpu', patches=1)
    image = np.zeros((224, 224, 3), np.uint8)
    scores, y, x, _ = scorer.map(image)
    assert scores.shape == (1, 1) and (y.tolist(), x.tolist()) == ([112], [112])
    assert scores[0, 0] == pytest.approx(scorer(image), rel=1e-5) and scorer.drawn_map(
        image, 'a'
    ).startswith(b'\x89PNG')


@pytest.mark.parametrize('colour', ['black', 'tan', 'white'])
def test_the_colour_bar_has_the_colours_of_the_map(colour):
    photo = Image.new('RGB', (600, 600), colour)
    cells = np.array([[1, 2], [3, 4]])
    centres = np.array([150, 450])
    png = plots.score_map(cells, centres, centres, photo, 'a', unit='score')
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)
    height, width = drawn.shape[:2]
    bar = drawn[:, round(0.85 * width) :]
    of_lowest = drawn[round(0.3 * height), round(0.3 * width)]
    of_highest = drawn[round(0.7 * height), round(0.6 * width)]
    assert abs(of_lowest - of_highest).max() > 50
    for found in (of_lowest, of_highest):
        assert (abs(bar - found).max(2) < 3).sum() > 5


def test_who_scores_imports_no_matplotlib_and_keeps_its_environment():
    program = (
        'import os, sys, scoring.scorer\n'
        'print("matplotlib" in sys.modules, os.environ["MPLBACKEND"])'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=PROJECT,
        env={**os.environ, 'MPLBACKEND': 'svg'},
        capture_output=True,
        text=True,
    )
    assert done.stdout == 'False svg\n', done.stderr


def test_demo_draws_a_map_beside_each_score(tmp_path, in_process, finished_run):
    for name in ('in/a.png', 'in/deep/a.png', 'in/$x^$.png'):
        databases.picture(tmp_path / name, size=(300, 260))
    (tmp_path / 'in' / 'bad.png').write_bytes(b'no image')
    options = (
        '--checkpoint',
        finished_run / 'run' / 'round_01' / 'best.pth',
        '--patches',
        1,
        '--map',
        'maps',
        '--csv',
        's.csv',
    )
    done = in_process(demo.main, *options, 'in')
    assert done.returncode == 2 and done.stderr.count('skipped: ') == 1
    drawn = sorted(
        str(path.relative_to(tmp_path / 'maps')) for path in (tmp_path / 'maps').rglob('*.png')
    )
    assert drawn == ['$x^$.png.png', 'a.png.png', 'deep/a.png.png']
    for path in (tmp_path / 'maps').rglob('*.png'):
        with Image.open(path) as image:
            assert image.width > 500 and len(image.convert('RGB').getcolors(1 << 20)) > 100
    (tmp_path / 'maps' / 'a.png.png').unlink()
    assert [row['image'] for row in read_table(tmp_path / 's.csv')] == [
        'in/$x^$.png',
        'in/a.png',
        'in/deep/a.png',
    ]
    again = in_process(demo.main, *options, '--resume', 'in')
    assert (
        '3 of 4 images, which are skipped' in again.stderr
        and not (tmp_path / 'maps' / 'a.png.png').exists()
    )


def test_maps_replace_only_maps_and_go_into_no_run_folder(tmp_path, in_process, finished_run):
    databases.picture(tmp_path / 'in' / 'a.png', size=(300, 260))
    mine = databases.picture(tmp_path / 'maps' / 'a.png.png')
    content = mine.read_bytes()
    run = finished_run / 'run'
    options = ('--checkpoint', run / 'round_01' / 'best.pth', '--patches', 1, 'in', '--map')
    for folder, reason in (
        ('maps', 'error: maps/a.png.png exists and is no such output of this project'),
        (run / 'maps', f'error: {run}/maps is in the run folder {run}; '),
    ):
        done = in_process(demo.main, *options, folder)
        assert done.returncode == 2 and done.stderr.startswith(reason)
        assert done.stderr.count('\n') == 1
    assert mine.read_bytes() == content and not (run / 'maps').exists()
    mine.unlink()
    for _ in range(2):
        assert in_process(demo.main, *options, 'maps').returncode == 0
    assert mine.exists()


@pytest.mark.parametrize(
    'folder, message',
    [
        (
            'in/maps',
            'error: --map in/maps is inside a folder that is scored, '
            'so the maps would be scored too; name another',
        ),
        ('s.csv', 'error: s.csv: File exists'),
    ],
)
def test_a_folder_that_maps_cannot_be_in_is_one_line(tmp_path, in_process, folder, message):
    databases.picture(tmp_path / 'in' / 'a.png')
    for name in ('s.csv', 'best.pth'):
        (tmp_path / name).touch()
    done = in_process(demo.main, '--checkpoint', 'best.pth', '--map', folder, 'in')
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count('\n') == 1
