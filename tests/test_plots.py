"""The pictures of a round, and of a comparison, seen on the figures that become PNG files."""

import io
import warnings

import numpy as np
import pytest
from helpers import QUICK, open_database, own_table, read_table
from PIL import Image

from experiment.round_folder import RoundFolder
from folders import OpenDatabase
from util import plots
from util.metrics import TestedImages, plcc, srcc

MINUS = '\N{MINUS SIGN}'


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn; each is still written as a PNG."""
    figures, png = [], plots.png

    def record(figure):
        figures.append(figure)
        return png(figure)

    monkeypatch.setattr(plots, 'png', record)
    return figures


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def ticks(axis):
    low, high = axis.get_xlim()
    return [place for place in axis.get_xticks() if low <= place <= high]


def round_with(errors, names=None):
    names = names or [f'{k}.jpg' for k in range(len(errors))]
    return TestedImages(names, names, np.zeros(len(errors)), np.array(errors, float))


@pytest.mark.parametrize(
    'errors, shown, rows',
    [
        (
            range(-25, 26),
            [*range(50, 40, -1), *range(10)],
            4,
        ),  # positions: error 25 first, then error -25
        (
            [*range(-12, 0), *range(1, 13)],
            [*range(23, 18, -1), *range(5)],
            2,
        ),  # a quarter is 6, a row 5
        ([*range(1, 57), -1, -2, -3], [*range(55, 45, -1), 58, 57, 56], 3),
        ([3, 1, 2, 4, 5, 6, 7, 8], [7, 6], 1),
        ([-3, -1, -2, -4], [3], 1),
        ([0, -2, 5], [2, 1], 2),
        ([-1], [0], 1),
        ([0], [], 0),
    ],
)
def test_the_worst_images_are_shown_and_no_more_than_a_quarter_of_all_in_each_half(
    drawn, errors, shown, rows
):
    asked = []

    def picture_of(k):
        asked.append(k)
        return Image.new('RGB', (20, 10))

    with Image.open(io.BytesIO(plots.worst(round_with(errors), picture_of, 'title'))) as picture:
        assert rows * 300 < picture.height < 60 + rows * 330
    assert asked == shown
    headings = [axis.get_title(loc='left') for axis in drawn[0].axes]
    over, under = (any(errors[k] * sign > 0 for k in shown) for sign in (1, -1))
    assert [heading for heading in headings if heading] == ['Most overestimated'] * over + [
        'Most underestimated'
    ] * under


def test_a_round_shows_the_test_images_that_it_names(tmp_path, program):
    """Each image has a colour of its own, which is looked for in the picture."""
    colours = {}
    rows = ['image,score,set']
    for k in range(10):
        name = f'{k}.png'
        colours[name] = (25 * k, 250 - 25 * k, 40 + 20 * k)
        Image.new('RGB', (240, 240), colours[name]).save(tmp_path / name)
        part = 'train' if k < 2 else 'test'
        rows.append(f'{name},{7 * k % 10},{part}')
    own_table(tmp_path, '\n'.join(rows), images=())
    done = program('--csv', 'mine.csv', *QUICK, '--epochs', 1, '--output', 'run')
    assert done.returncode == 0, done.stderr

    errors = {
        row['image']: float(row['prediction']) - float(row['score'])
        for row in read_table(tmp_path / 'run' / 'round_01' / 'predictions.csv')
    }
    # at most two in each half, a quarter of the eight test images
    lowest = sorted(errors, key=errors.__getitem__)
    highest = lowest[::-1]
    over = [name for name in highest[:2] if errors[name] > 0]
    under = [name for name in lowest[:2] if errors[name] < 0]
    with Image.open(tmp_path / 'run' / 'round_01' / 'worst.png') as picture:
        pixels = np.asarray(picture.convert('RGB'))
    places = {}
    for name, colour in colours.items():
        found = np.argwhere((pixels == colour).all(2))
        if len(found) > 1000:
            places[name] = tuple(found.min(0))
    assert sorted(places, key=places.__getitem__) == [*over, *under]


def test_scores_and_errors_are_written_with_a_real_minus(drawn):
    names = ['a-b.jpg', 'c.jpg', 'd.jpg']
    tested = TestedImages(names, names, np.array([-3.1, 2, 0]), np.array([-4.2, 2.5, 0]))
    plots.worst(tested, lambda k: Image.new('RGB', (20, 10)), 'title')
    assert [axis.get_xlabel() for axis in drawn[0].axes] == [
        'c.jpg\nscore 2, predicted 2.5\nerror +0.5',
        f'a-b.jpg\nscore {MINUS}3.1, predicted {MINUS}4.2\nerror {MINUS}1.1',
    ]


def test_any_name_can_be_drawn():
    names = ['a$b_{$c.jpg', '写真.jpg', 'bad\udcff.jpg', 'deep/' * 20 + 'long.jpg']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in names:
            plots.worst(round_with([1], [name]), lambda k: Image.new('RGB', (300, 200)), 'title')
            plots.run_curves([[0.1, 0.2]], [1], name)
    assert (
        plots.shortened(names[3]) == '…/deep/deep/deep/deep/long.jpg'
        and plots.shortened(names[2]) == 'bad?.jpg'
    )


@pytest.mark.parametrize('count', [24, 2000])
def test_scatter_has_the_metrics_above_it_and_y_equal_x_in_it(drawn, count):
    subjective = np.random.RandomState(0).uniform(1, 5, count)
    predicted = subjective + np.random.RandomState(1).normal(0, 0.5, count)
    plots.scatter(predicted, subjective, 'KonIQ-10k, seed 0, round 1, epoch 9')
    (axis,) = drawn[0].axes
    first, second = axis.get_title().splitlines()
    error = np.abs(predicted - subjective).mean()
    assert first == 'KonIQ-10k, seed 0, round 1, epoch 9'
    correlations = f'SRCC {srcc(predicted, subjective):.4f}, PLCC {plcc(predicted, subjective):.4f}'
    assert second == f'{correlations}, MAE {error:.3g}'
    assert legend(axis) == [f'{count:,} images', 'y = x', 'fitted logistic']
    assert (axis.get_xlabel(), axis.get_ylabel()) == ('predicted score', 'subjective score')


@pytest.mark.parametrize(
    'low, high, crosses', [(3.0, 3.2, True), (-50, 200, True), (2, 2, True), (10, 11, False)]
)
def test_y_equal_x_leaves_the_axes_as_the_images_need_them(drawn, low, high, crosses):
    plots.scatter(np.linspace(low, high, 20), np.linspace(5, 1, 20), 'title')
    (axis,) = drawn[0].axes
    assert ('y = x' in legend(axis)) == crosses
    assert np.diff(axis.get_ylim()) < 4.5 and np.diff(axis.get_xlim()) < max(
        1.15 * (high - low), 0.5
    )
    if low < high:
        assert f'SRCC {MINUS}1.0000, PLCC {MINUS}1.0000' in axis.get_title()


@pytest.mark.parametrize('epochs, best', [(1, 1), (2, 1), (16, 9), (3, None)])
def test_the_curves_have_whole_epochs_a_dot_for_each_and_the_best_one_marked(drawn, epochs, best):
    names = ('test_srcc', 'test_plcc', 'train_srcc', 'train_loss', 'hypernet_lr', 'backbone_lr')
    plots.curves(
        [dict.fromkeys(names, 0.5 / epoch) for epoch in range(1, epochs + 1)], 'title', best
    )
    axes = drawn[0].axes
    assert drawn[0].get_suptitle() == 'title' and all(
        place == int(place) for axis in axes for place in ticks(axis)
    )
    assert {1, min(epochs, 2)} <= {*ticks(axes[-1]), 1}
    marked = [
        list(line.get_xdata())
        for axis in axes
        for line in axis.lines
        if line.get_linestyle() == ':'
    ]
    assert marked == [[best, best]] * 3 * bool(best)
    assert [label for axis in axes for label in legend(axis) if 'best' in label] == [
        f'best epoch {best}'
    ] * bool(best)
    dotted = [line for axis in axes for line in axis.lines if line.get_marker() == 'o']
    assert len(dotted) == len(names) and all(len(line.get_xdata()) == epochs for line in dotted)


def test_a_rounds_curves_have_its_title_and_the_best_epoch_of_its_state(drawn, tmp_path):
    folder = RoundFolder.__new__(RoundFolder)
    folder.path, folder.title = tmp_path, 'KonIQ-10k, seed 0, round 1'
    history = [
        {'epoch': epoch, 'test_srcc': 0.9 / epoch, 'train_loss': 1, 'hypernet_lr': 1e-3}
        for epoch in (1, 2)
    ]
    for best in ({'epoch': 1}, None):
        folder.write_derived({'history': history, 'best': best})
    assert [figure.get_suptitle() for figure in drawn] == [folder.title] * 2
    assert 'best epoch 1' in legend(drawn[0].axes[0]) and len(legend(drawn[1].axes[0])) == 1


def test_a_comparison_explains_its_differences_and_long_names_cover_nothing(drawn):
    names = ['experiments/' + 'long-name-' * 20 + '$_{$', '_b']
    rows = [
        {'round': name, 'difference': -0.1, 'low': -0.2, 'high': 0.1}
        for name in ('1', '2', 'median')
    ]
    rows[1] = {**rows[1], 'low': np.nan, 'high': np.nan}  # as of a round with two test images
    plots.comparison({name: [[0.1, 0.8, 0.9], [0.1, 0.7]] for name in names}, rows)
    figure = drawn[0]
    by_epoch, by_round = figure.axes
    assert legend(by_round) == ['rounds (lines: 95 % intervals)', 'median']
    assert legend(by_epoch)[1] == 'n = 2: _b'
    assert all(
        MINUS in label.get_text()
        for label in by_round.get_xticklabels()
        if label.get_position()[0] < -0.01
    )
    width, height = figure.bbox.size
    for axis in (by_epoch, by_round):
        box, plot = axis.get_legend().get_window_extent(), axis.get_window_extent()
        assert box.y0 >= plot.y1 and box.x0 >= 0 and box.x1 <= width and box.y1 <= height
        assert plot.height > height / 2 and plot.width > width / 3
    below = by_round.xaxis.label.get_window_extent()
    assert (
        'minus that of' in by_round.get_xlabel()
        and by_epoch.get_window_extent().x1 < below.x0
        and below.x1 <= width
    )


@pytest.mark.parametrize('size', [(256, 192), (192, 256), (40, 30), (1, 1)])
def test_a_picture_lies_in_the_middle_of_a_square_that_is_white_elsewhere(size):
    square = plots.padded(Image.new('RGB', size, 'black'))
    assert square.shape[0] == square.shape[1] == max(*size, plots.SMALLEST_SQUARE)
    rows, columns = np.nonzero(square.max(axis=2) == 0)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size
    assert (
        abs(columns.min() + columns.max() + 1 - len(square)) <= 1
        and abs(rows.min() + rows.max() + 1 - len(square)) <= 1
    )


def test_a_thumbnail_has_the_proportions_of_the_file_and_not_of_the_squeezed_frame(make_database):
    database = open_database('koniq', make_database('koniq', images=1))
    assert database.frames[0].shape == (512, 384, 3)
    assert database.thumbnail(0).size == (256, 192)
    assert open_database('livec', make_database('livec')).thumbnail(0).size == (
        250,
        240,
    )  # is not enlarged


def test_contents_are_those_of_the_split_and_otherwise_the_names(make_database):
    tid = OpenDatabase('tid2013', make_database('tid2013'))
    contents = tid.contents(range(len(tid.samples)))
    assert [len({contents[k] for k in unit}) for unit in tid.units] == [1] * len(tid.units)
    assert len(set(contents)) == len(tid.units) < len(contents)
    livec = OpenDatabase('livec', make_database('livec'))
    assert livec.contents([2, 0]) == livec.names([2, 0])
