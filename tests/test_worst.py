"""worst.png shows the images that a network gets most wrong, in the proportions that they have on disk."""

import io
import warnings

import numpy as np
import pytest
from helpers import open_database
from PIL import Image

from folders import OpenDatabase
from util import plots
from util.metrics import TestedImages


def round_with(errors, names=None):
    names = names or [f'{k}.jpg' for k in range(len(errors))]
    return TestedImages(names, names, np.zeros(len(errors)), np.array(errors, float))


@pytest.mark.parametrize(
    'errors, shown',
    [
        (range(-15, 16), [*range(30, 20, -1), *range(10)]),  # positions: error 15 first, then error -15
        ([3, 1, 2], [0, 2, 1]),
        ([0, -2, 5], [2, 1]),
        ([0], []),
    ],
)
def test_the_ten_images_that_are_most_too_high_and_too_low_are_shown(errors, shown):
    asked = []

    def picture_of(k):
        asked.append(k)
        return Image.new('RGB', (20, 10))

    with Image.open(io.BytesIO(plots.worst(round_with(errors), picture_of, 'title'))) as picture:
        assert picture.size == (1210, 1166)
    assert asked == shown


def test_any_name_can_be_drawn():
    names = ['a$b$c_{.jpg', '写真.jpg', 'bad\udcff.jpg', 'deep/' * 20 + 'long.jpg']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plots.worst(round_with([1, 2, -1, -2], names), lambda k: Image.new('RGB', (300, 200)), 'title')
    assert plots.shortened(names[3]) == '…/deep/deep/deep/deep/long.jpg' and plots.shortened(names[2]) == 'bad?.jpg'


@pytest.mark.parametrize('size', [(256, 192), (192, 256), (40, 30), (1, 1)])
def test_a_picture_lies_in_the_middle_of_a_square_that_is_white_elsewhere(size):
    square = plots.padded(Image.new('RGB', size, 'black'))
    assert square.shape[0] == square.shape[1] == max(*size, plots.SMALLEST_SQUARE)
    rows, columns = np.nonzero(square.max(axis=2) == 0)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size
    assert abs(columns.min() + columns.max() + 1 - len(square)) <= 1 and abs(rows.min() + rows.max() + 1 - len(square)) <= 1


def test_a_thumbnail_has_the_proportions_of_the_file_and_not_of_the_squeezed_frame(make_database):
    database = open_database('koniq', make_database('koniq', images=1))
    assert database.frames[0].shape == (512, 384, 3)
    assert database.thumbnail(0).size == (256, 192)
    assert open_database('livec', make_database('livec')).thumbnail(0).size == (250, 240)  # is not enlarged


def test_contents_are_those_of_the_split_and_otherwise_the_names(make_database):
    tid = OpenDatabase('tid2013', make_database('tid2013'))
    contents = tid.contents(range(len(tid.samples)))
    assert [len({contents[k] for k in unit}) for unit in tid.units] == [1] * len(tid.units)
    assert len(set(contents)) == len(tid.units) < len(contents)
    livec = OpenDatabase('livec', make_database('livec'))
    assert livec.contents([2, 0]) == livec.names([2, 0])
