"""`check` finds what would spoil a run, names it, and keeps no pixels."""

import os
import tracemalloc
from types import SimpleNamespace

import databases
import pytest
from PIL import Image

from experiment.check_database import check_images
from folders import read_labels
from util.labels import Sample

TRAINED = 'Test images also in training'


def database_of(samples, resize=None, exif_rotation=False):
    """What the check looks at in an open database."""
    return SimpleNamespace(
        samples=samples, resize=resize, entry=SimpleNamespace(exif_rotation=exif_rotation)
    )


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """report(samples, splits, ...) gives (result, lines); names are relative to its folder."""
    monkeypatch.chdir(tmp_path)

    def run(samples, splits=(), **options):
        usable = check_images(database_of(samples, **options), splits, 224)
        return usable, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def images(tmp_path):
    """images(count) makes 0.png, 1.png ... and gives their samples, with the scores 0, 1 ..."""

    def make(count, **options):
        databases.pictures(tmp_path, [f'{k}.png' for k in range(count)], **options)
        return [sample(f'{k}.png', k) for k in range(count)]

    return make


def sample(name, score=0, content=None):
    return Sample(name, float(score), content or name)


def after(lines, name):
    """The text behind `name`, and the indented lines below it without their indent."""
    start = next(k for k, text in enumerate(lines) if text.startswith(name))
    below = []
    for text in lines[start + 1 :]:
        if not text.startswith('    '):
            break
        below.append(text[4:])
    return lines[start].removeprefix(name).strip(), below


def test_a_faultless_database(make_database, report):
    root = make_database('livec')
    databases.picture(root / 'Images' / '4.JPG', size=(301, 407))
    samples = read_labels('livec', 'livec').samples
    usable, lines = report(samples, [{'train': [0, 1, 2, 3], 'test': [4, 5]}] * 2)
    assert usable
    assert lines == [
        'Images                        6',
        'Scores                        90 to 140, mean 115',
        '           90 to        95       1  ########################################',
        '           95 to       100       0',
        '          100 to       105       1  ########################################',
        '          105 to       110       0',
        '          110 to       115       1  ########################################',
        '          115 to       120       0',
        '          120 to       125       1  ########################################',
        '          125 to       130       0',
        '          130 to       135       1  ########################################',
        '          135 to       140       1  ########################################',
        'Split                         4 to train on, 2 to test on',
        'Height                        240 to 301 pixels',
        'Width                         250 to 407 pixels',
        'Different sizes               2',
        'Unreadable                    none',
        'Below 224x224                 none',
        'Duplicates                    none',
        'Test images also in training  none in 2 rounds',
        'Result                        the database can be trained on',
    ]


def test_contents_are_counted_where_images_share_them(images, report):
    samples = [sample._replace(content=content) for sample, content in zip(images(3), 'aab')]
    assert after(report(samples)[1], 'Images')[0] == '3 of 2 contents'


@pytest.mark.parametrize(
    'scores, first, last',
    [
        (
            [3.91] + [88.39] * 400,
            '3.91 to    12.358       1  #',
            '79.942 to     88.39     400  ' + '#' * 40,
        ),
        (
            [-0.02] * 9 + [0.98] * 18,
            '-0.02 to      0.08       9  ' + '#' * 20,
            '0.88 to      0.98      18  ' + '#' * 40,
        ),
        (
            [1000.0, 1000.5],
            '1000 to   1000.05       1  ' + '#' * 40,
            '1000.45 to    1000.5       1  ' + '#' * 40,
        ),
    ],
)
def test_the_histograms_bars_are_in_proportion_and_its_bins_differ(
    images, report, scores, first, last
):
    images(1)
    _, bars = after(report([sample('0.png', score) for score in scores])[1], 'Scores')
    assert len(bars) == 10 and bars[0].strip() == first and bars[-1].strip() == last


def test_equal_scores(images, report):
    images(1)
    text, bars = after(report([sample('0.png', 3)] * 4)[1], 'Scores')
    assert text == '3 to 3, mean 3' and sum(int(bar.split()[3]) for bar in bars) == 4


def test_every_unreadable_image_is_counted_and_five_are_named(images, report, tmp_path):
    samples = images(8)
    for k in range(1, 7):
        whole = (tmp_path / f'{k}.png').read_bytes()
        (tmp_path / f'{k}.png').write_bytes(whole[:-20000] if k > 1 else b'no image')
    usable, lines = report(samples, [{'train': [0, 1, 2, 3], 'test': [4, 5, 6, 7]}])
    count, named = after(lines, 'Unreadable')
    assert not usable and count == '6'
    assert named[:10:2] == ['1.png', '2.png', '3.png', '4.png', '5.png'] and named[10:] == [
        '... and 1 more'
    ]
    assert 'cannot identify image file' in named[1] and 'truncated' in named[3]
    assert after(lines, 'Duplicates')[0] == 'none' and after(lines, TRAINED)[0] == 'none in 1 round'
    assert (
        after(lines, 'Result')[0] == 'the database cannot be trained on: 6 unreadable, 0 too small'
    )


def test_nothing_can_be_read(report, tmp_path):
    (tmp_path / 'a.png').write_bytes(b'')
    usable, lines = report([sample('a.png')])
    assert (
        not usable
        and after(lines, 'Unreadable')[0] == '1'
        and after(lines, 'Different sizes')[0] == '0'
    )


@pytest.mark.parametrize(
    'size, usable', [((224, 224), True), ((223, 300), False), ((300, 223), False)]
)
def test_images_too_small_for_a_patch(images, report, tmp_path, size, usable):
    samples = images(2)
    databases.picture(tmp_path / '1.png', seed=1, size=size)
    result, lines = report(samples)
    assert result == usable
    assert after(lines, 'Below 224x224') == (
        ('none', []) if usable else ('1', [f'  {size[0]} x {size[1]}    1.png'])
    )


def test_the_size_after_the_resize_counts(images, report):
    samples = images(2, size=(100, 120))
    assert not report(samples)[0]
    usable, lines = report(samples, resize=(512, 384))
    assert usable and after(lines, 'Height')[0] == '100 to 100 pixels'
    assert after(lines, 'Resized to')[0] == '512 high, 384 wide'
    assert not report(samples, resize=(512, 200))[0]


def test_photos_are_turned_where_the_database_says_so(make_database, report):
    make_database('spaq')
    samples = read_labels('spaq', 'spaq').samples
    assert after(report(samples, exif_rotation=True)[1], 'Height')[0] == '300 to 400 pixels'
    assert after(report(samples)[1], 'Height')[0] == '300 to 300 pixels'


def test_the_same_picture_in_another_format_is_found(images, report, tmp_path):
    samples = images(3)
    Image.open(tmp_path / '1.png').save(tmp_path / 'copy.bmp')
    usable, lines = report(samples + [sample('copy.bmp', 7.5)])
    assert usable
    assert after(lines, 'Duplicates') == (
        '1',
        ['2 images', '    score 1           1.png', '    score 7.5         copy.bmp'],
    )


def test_the_same_pixels_in_another_shape_are_another_picture(report, tmp_path):
    Image.new('RGB', (300, 400), 'gray').save(tmp_path / 'high.png')
    Image.new('RGB', (400, 300), 'gray').save(tmp_path / 'wide.png')
    assert after(report([sample('high.png'), sample('wide.png')])[1], 'Duplicates')[0] == 'none'


def test_at_most_five_groups_of_five_are_named(images, report, tmp_path):
    samples = images(7)
    for k in range(6):
        Image.open(tmp_path / f'{k}.png').save(tmp_path / f'{k}.bmp')
    copies = [sample(f'{k}.bmp') for k in range(6)] + [sample('0.bmp')] * 5
    count, named = after(report(samples + copies)[1], 'Duplicates')
    assert count == '6' and named[-1] == '... and 1 more'
    assert [text for text in named if text.endswith(' images')] == ['7 images'] + ['2 images'] * 4
    assert named[1].endswith('0.png') and named[5:7] == [
        '    score 0           0.bmp',
        '    ... and 2 more',
    ]


def test_duplicates_on_both_sides_of_a_split_are_a_warning(images, report, tmp_path):
    samples = images(4)
    for k in (0, 1):
        Image.open(tmp_path / f'{k}.png').save(tmp_path / f'{k}.bmp')
        samples.append(sample(f'{k}.bmp', k))
    splits = [
        {'train': [0, 2], 'val': [1], 'test': [3, 4, 5]},
        {'train': [0, 4, 2, 3], 'val': [], 'test': [1, 5]},
        {'train': [1, 2, 3], 'test': [0, 5]},
    ]
    usable, lines = report(samples, splits)
    assert usable
    assert after(lines, f'{TRAINED}, round 1') == (
        'warning: 2',
        ['test   0.bmp', 'train  0.png', 'test   1.bmp', 'val    1.png'],
    )
    assert not any(line.startswith((f'{TRAINED}, round 2', f'{TRAINED}  ')) for line in lines)
    assert after(lines, f'{TRAINED}, round 3') == ('warning: 1', ['test   1.bmp', 'train  1.png'])


def test_pixels_are_not_kept(images, report, monkeypatch):
    """An image here is 180 kB, and a few copies of it are alive while it is decoded."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0})
    samples = images(20)
    tracemalloc.start()
    report(samples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 240 * 250 * 3


def test_lines_fit_a_terminal_and_stderr_is_quiet_when_it_is_none(
    images, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    samples = images(7, size=(100, 120))
    (tmp_path / '0.png').write_bytes((tmp_path / '1.png').read_bytes()[:-9000])
    Image.open('1.png').save('copy.bmp')
    check_images(
        database_of(samples + [sample('copy.bmp', 123456.789)]), [{'train': [1], 'test': [7]}], 224
    )
    out, err = capfd.readouterr()
    assert err == '' and max(map(len, out.splitlines())) <= 100


def test_the_check_reads_everything_and_trains_nothing(program, make_database, tmp_path):
    root = make_database('livec', images=10)
    done = program('--dataset', 'livec', '--data_root', 'livec', '--check')
    assert done.returncode == 0, done.stderr
    assert 'LIVE Challenge has 1162 images; 10 are listed' in done.stderr
    assert not (tmp_path / 'runs').exists() and not (root / '.hyperiqa_cache').exists()
    (root / 'Images' / '5.bmp').write_bytes(b'no image')
    done = program('--dataset', 'livec', '--data_root', 'livec', '--check')
    assert done.returncode == 2 and '5.bmp' in done.stdout + done.stderr
