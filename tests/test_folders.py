"""Each database is read from a small copy in its authors' format; faults are told in one line."""

import os
import sys
from pathlib import Path

import databases
import numpy as np
import openpyxl
import pytest
import scipy.io
from helpers import own_table
from PIL import Image

import folders
from experiment.splits import official_split, read_split
from util import frames
from util.errors import InputError
from util.labels import Settings
from util.tables import ROLES


def read(name, root):
    return [
        (os.path.relpath(sample.path, root), sample.score, sample.content)
        for sample in folders.read_labels(name, root).samples
    ]


def parts(name, root):
    return [sample.official_set for sample in folders.read_labels(name, root).samples]


def test_live_leaves_the_pristine_copies_out(make_database):
    root = make_database('live')
    samples = read('live', root)
    assert len(samples) == folders.DATABASES['live'].images == 779
    assert samples[0] == ('jp2k/img1.bmp', -2.6, 'ref00.bmp')
    assert samples[227][0] == 'jpeg/img1.bmp'
    assert (
        samples[-1][0] == 'gblur/img145.bmp'
    )  # this copy marks the last 203 as pristine: 174 and 29 more
    assert len({content for _, _, content in samples}) == 29


def test_live_in_nested_cells(make_database):
    root = make_database('live_nested')
    samples = read('live', root)
    assert len(samples) == 779
    assert samples[0] == ('jp2k/img1.bmp', -2.6, 'ref00.bmp')
    assert samples[-1][2] == f'ref{(778 * 7) % 29:02d}.bmp'


def test_csiq(make_database):
    samples = read('csiq', make_database('csiq'))
    assert samples[0] == ('dst_imgs_all/1600.AWGN.1.png', 0.0, '1600')
    assert samples[-1] == (
        'dst_imgs_all/snow_leaves.jpeg2000.5.png',
        round(11 / 13, 6),
        'snow_leaves',
    )


def test_csiq_in_the_authors_folders(make_database):
    samples = read('csiq', make_database('csiq_folders'))
    assert [path for path, _, _ in samples[:12:2]] == [
        'dst_imgs/awgn/1600.AWGN.1.png',
        'dst_imgs/blur/1600.BLUR.1.png',
        'dst_imgs/contrast/1600.contrast.1.png',
        'dst_imgs/fnoise/1600.fnoise.1.png',
        'dst_imgs/jpeg/1600.JPEG.1.png',
        'dst_imgs/jpeg2000/1600.jpeg2000.1.png',
    ]
    assert samples[-1] == ('dst_imgs/jpeg2000/snow_leaves.jpeg2000.2.png', 0.52, 'snow_leaves')


def test_kadid10k_is_split_by_its_81_references(make_database):
    root = make_database('kadid10k')
    samples = read('kadid10k', root)
    assert samples[1] == ('images/I01_25_01.png', 2.49, 'I01.png')
    assert folders.OpenDatabase('kadid10k', root).units == [[2 * k, 2 * k + 1] for k in range(81)]


def test_tid2013_in_mixed_letter_case(make_database):
    samples = read('tid2013', make_database('tid2013'))
    assert [(Path(path).name, content) for path, _, content in samples] == [
        ('I01_01_1.bmp', 'I01'),
        ('i01_05_1.bmp', 'I01'),
        ('I02_03_1.BMP', 'I02'),
        ('i02_24_5.bmp', 'I02'),
        ('I25_08_2.bmp', 'I25'),
    ]
    assert samples[0][1] == 0.51429


def test_livec_leaves_the_first_seven_out(make_database):
    samples = read('livec', make_database('livec'))
    assert [(path, score) for path, score, _ in samples] == [
        ('Images/3.bmp', 90),
        ('Images/4.JPG', 100),
        ('Images/5.bmp', 110),
        ('Images/6.JPG', 120),
        ('Images/7.bmp', 130),
        ('Images/8.JPG', 140),
    ]


@pytest.mark.parametrize('name', ['koniq', 'koniq-10k', 'KonIQ-10k'])
def test_koniq_takes_the_score_on_the_hundred_scale(make_database, name):
    samples = read(name, make_database('koniq'))
    assert [score for _, score, _ in samples] == [60, 61, 62, 63, 64]
    assert samples[0][0] == '1024x768/10004473376.jpg'


def test_koniq_with_the_file_of_official_sets(make_database):
    samples = read('koniq', make_database('koniq_sets'))
    assert [score for _, score, _ in samples] == [3.91, 17.91, 31.91, 45.91, 59.91, 73.91]
    assert samples[0][0] == '512x384/826373.jpg'


def test_koniqs_official_sets(make_database):
    official = ['train', 'train', 'train', 'val', 'test', 'test']
    root = make_database('koniq_sets')
    assert parts('koniq', root) == official
    assert parts('koniq', make_database('koniq')) == [''] * 5

    names = [f'{826373 + k}.jpg' for k in range(5, -1, -1)]
    databases.write_csv(
        root / 'koniq10k_scores_and_distributions.csv',
        ['image_name', 'MOS', 'MOS_zscore'],
        [[name, 3, 50] for name in names],
    )
    assert (
        parts('koniq', root) == official[::-1]
    )  # the file with the scores has no sets: they come from the other
    assert {score for _, score, _ in read('koniq', root)} == {50}


def test_an_unknown_set_is_named_by_line(make_database):
    root = make_database('koniq_sets')
    file = root / 'koniq10k_distributions_sets.csv'
    file.write_text(file.read_text().replace('validation', 'later'))
    with pytest.raises(
        InputError,
        match=r"koniq10k_distributions_sets.csv, line 5: the set 'later' is none of train",
    ):
        official_split(folders.OpenDatabase('koniq', root))
    root = make_database('flive')
    file = root / 'labels=640_padded.csv'
    file.write_text(file.read_text().replace('False', 'maybe'))
    assert "labels=640_padded.csv, line 4: the set 'maybe' is none of true" in refusal(
        'flive', root
    )


@pytest.mark.parametrize(
    'form, folder', [('bid', 'ImageDatabase/'), ('bid_xls', 'ImageDatabase/'), ('bid_text', '')]
)
def test_bid_in_each_form_of_its_sheet(make_database, form, folder):
    samples = read('bid', make_database(form))
    assert [(path, score) for path, score, _ in samples] == [
        (f'{folder}DatabaseImage{number}.JPG', 0.25 + k)
        for k, number in enumerate(('0001', '0002', '0004', '0012', '0590'))
    ]


def test_an_xls_under_the_name_xlsx_is_read_all_the_same(make_database):
    root = make_database('bid_xls')
    (root / 'DatabaseGrades.xls').rename(root / 'DatabaseGrades.xlsx')
    assert len(read('bid', root)) == 5


def test_spaq_finds_its_columns_by_name(make_database):
    samples = read('spaq', make_database('spaq'))
    assert [(path, score) for path, score, _ in samples] == [
        ('TestImage/00001.jpg', 56.33),
        ('TestImage/00002.jpg', 57.33),
        ('TestImage/00003.jpg', 58.33),
        ('TestImage/00004.jpg', 59.33),
    ]


def test_spaqs_photos_are_turned_upright(make_database):
    root = make_database('spaq')
    photos = folders.DatabaseFolder('spaq', root, range(4), np.asarray, 1)
    lying = np.asarray(Image.open(root / 'TestImage' / '00003.jpg'))
    assert lying.shape == (300, 400, 3)
    assert np.array_equal(photos[2][0], np.rot90(lying, -1))
    assert photos[1][0].shape == (300, 400, 3)
    assert np.array_equal(frames.load_image(root / 'TestImage' / '00003.jpg'), lying)
    resized = frames.resized(
        frames.load_image(root / 'TestImage' / '00003.jpg', exif_rotation=True), (512, 384)
    )
    upright = Image.fromarray(photos[2][0])
    assert np.array_equal(resized, upright.resize((384, 512), Image.Resampling.BILINEAR))


def test_flives_official_sets_come_from_the_authors_two_files(make_database):
    root = make_database('flive')
    assert [(path, score) for path, score, _ in read('flive', root)] == [
        ('database/voc_emotic_ava/JPEGImages__COCO_train2014_000000000009.jpg', 70.5),
        ('database/EE371R/cj23478+019.jpg', 71.5),
        ('database/blur_dataset/motion0001.jpg', 72.5),
    ]
    assert parts('flive', root) == ['train', 'val', 'test']
    (root / 'labels640.csv').unlink()
    assert parts('flive', root) == [''] * 3


@pytest.mark.parametrize('folder', ['FLIVE', '.'])
def test_flives_other_folders(make_database, folder):
    root = make_database('flive', folder=folder)
    assert read('flive', root)[1][0] == os.path.normpath(f'{folder}/EE371R/cj23478+019.jpg')


@pytest.mark.parametrize('folder', ['.', 'images', 'img', 'AGIQA-3K'])
def test_agiqa3k_with_its_images_beside_the_labels_or_in_images(make_database, folder):
    samples = read('agiqa3k', make_database('agiqa3k', folder=folder))
    assert [(path, score) for path, score, _ in samples] == [
        (os.path.normpath(f'{folder}/{name}'), score)
        for name, score in (
            ('AttnGAN_normal_000.jpg', 1.25),
            ('sd1.5_lowsteps_0.5_001.png', 3.5),
            ('DALLE2_002.png', 4.75),
        )
    ]


@pytest.mark.parametrize(
    'name, form',
    [(name, name) for name in folders.DATABASES if name not in ('csv', 'demo')]
    + [('csiq', 'csiq_folders'), ('koniq', 'koniq_sets'), ('bid', 'bid_xls'), ('bid', 'bid_text')],
)
def test_labels_and_images_one_folder_down(make_database, tmp_path, name, form):
    root = make_database(form)
    expected = [(f'inner/{path}', score) for path, score, _ in read(name, root)]
    (tmp_path / 'outer').mkdir()
    root.rename(tmp_path / 'outer' / 'inner')
    assert [(path, score) for path, score, _ in read(name, tmp_path / 'outer')] == expected


@pytest.mark.parametrize(
    'name, file',
    [
        ('spaq', 'Annotations/MOS and Image attribute scores.xlsx'),
        ('livec', 'Data/AllImages_release.mat'),
        ('livec', 'Data/AllMOS_release.mat'),
        ('kadid10k', 'dmos.csv'),
        ('flive', 'labels_image.csv'),
    ],
)
def test_a_label_file_in_the_root_or_in_any_folder(make_database, name, file):
    root = make_database(name)
    expected = read(name, root)
    (root / 'labels').mkdir()
    for place in ('', 'labels'):
        file = (root / file).rename(root / place / Path(file).name)
        assert read(name, root) == expected


OWN = [('a.png', 3.5), ('b.png', 1.25), ('deep/c.png', 2.0)]


@pytest.mark.parametrize(
    'text, encoding',
    [
        ('image,score\na.png,3.5\nb.png,1.25\ndeep/c.png,2\n', 'utf-8'),
        ('image,score\r\na.png,3.5\r\n\r\nb.png,1.25\r\ndeep/c.png,2\r\n,\r\n\r\n', 'utf-8-sig'),
        ('Score;remark;Image_Name\n3,5;x;a.png\n1.25;é, ü, ß, x;b.png\n2;;deep/c.png\n', 'utf-8'),
        ('filename\tMOS\na.png\t3,5\nb.png\t1,25\ndeep/c.png\t2\n', 'utf-8-sig'),
        ('"name","DMOS"\n"a.png",3.5\n"b.png","1.25"\n./deep/../deep/c.png, 2', 'utf-8'),
    ],
)
def test_own_images_in_each_form_of_the_file(make_database, text, encoding):
    root = make_database('own', text=text, encoding=encoding)
    samples = folders.read_labels('csv', root / 'mine.csv').samples
    assert [(os.path.relpath(sample.path, root), sample.score) for sample in samples] == OWN
    assert (
        folders.split_units(samples, True) == [[2], [0], [1]]
        if './deep' in text
        else [[0], [1], [2]]
    )


def test_own_images_by_absolute_path_and_relative_file(make_database, tmp_path, monkeypatch):
    root = make_database('own', text='')
    elsewhere = databases.picture(tmp_path / 'elsewhere' / 'd.png')
    (root / 'mine.csv').write_text(f'image,score\n{elsewhere},1\na.png,2\n')
    monkeypatch.chdir(root)
    assert [sample.path for sample in folders.read_labels('csv', 'mine.csv').samples] == [
        str(elsewhere),
        'a.png',
    ]


def test_own_contents_and_sets(make_database):
    rows = [
        'set,content,image,score',
        'Training,z,a.png,1',
        'TEST,k,b.png,2',
        'valid,z,deep/c.png,3',
    ]
    root = make_database('own', text='\n'.join(rows))
    samples = folders.read_labels('csv', root / 'mine.csv').samples
    assert [(sample.content, sample.official_set) for sample in samples] == [
        ('z', 'train'),
        ('k', 'test'),
        ('z', 'val'),
    ]
    assert folders.split_units(samples, True) == [[1], [0, 2]]


def test_own_units_do_not_depend_on_the_order_of_the_lines_or_on_the_place(make_database, tmp_path):
    elsewhere = str(databases.picture(tmp_path / 'nearby' / 'd.png'))
    names = ['b.png', 'B.png', 'a.png', 'a-b.png', elsewhere, 'a/b.png']
    root = make_database('own', text='', images=names)
    orders = []
    for place, order in (('own', names), ('moved', names[::-1])):
        root = root.rename(tmp_path / place)
        (root / 'mine.csv').write_text('image,score\n' + ''.join(f'{name},1\n' for name in order))
        samples = folders.read_labels('csv', root / 'mine.csv').samples
        orders.append([Path(samples[k].path).name for (k,) in folders.split_units(samples, True)])
    assert orders[0] == orders[1] == ['d.png', 'B.png', 'a-b.png', 'a.png', 'b.png', 'b.png']


@pytest.mark.parametrize(
    'text, where',
    [
        ('', ' has no rows'),
        (
            'a.png,3,4\nb.png,4,5\n',
            " has no header, and no column is known as the score: line 1 is 'a.png,3,4'; "
            'columns are numbered from 1 to 3, so give --columns score=NUMBER, or add a header',
        ),
        (
            'image,quality\na.png,3\n',
            "line 1: no column is the score in 'image,quality'; name it score",
        ),
        ('a.png,3\nb.png,good\n', "line 2: the score 'good' is not a number"),
        ('image,score\na.png,1_000\n', "line 2: the score '1_000' is not a number"),
        (
            'image,score\na.png,1e39\n',
            "line 2: the score '1e39' is not a number that fits in 32 bits",
        ),
        ('\nsep=;\nimage;score\na.png;x\n', 'line 2: no column is the image'),
        (
            'image,mos,DMOS\na.png,3,4\n',
            'line 1: mos and DMOS can each be the column of the score; '
            '--columns score=mos settles it',
        ),
        (
            'name,image,mos\na.png,a.png,4\n',
            'line 1: name and image can each be the column of the image',
        ),
        ('image,score,score\na.png,3,4\n', 'line 1: score and score can each be'),
        ('image,score\na.png,3\n\nb.png\n', 'line 4: this line has fewer cells'),
        ('image,score\na.png,3,5\n', 'line 2: this line has more cells'),
        ('image,score\na.png,3\nb.png,\n', 'line 3: the score is empty'),
        ('image,score\na.png,3\n ,3\n', 'line 3: the image is empty'),
        ('image,score,content\na.png,3,\n', 'line 2: the content is empty'),
        ('image,score\na.png,good\n', "line 2: the score 'good' is not a number"),
        ('image,score\na.png,nan\n', "line 2: the score 'nan' is not a number"),
        ('image,score\na.png,"3,5"\n', "line 2: the score '3,5' is not a number"),
        ('image;score\na.png;1.234,5\n', "line 2: the score '1.234,5' is not a number"),
        (
            'image,score\na.png,3\nb.png,4\n./a.png,3\n',
            './a.png is on line 2 already; remove one of the two',
        ),
        (
            'image,score\na.png,3\n"b.png,4\nc.png,5\nd.png,6\n',
            'line 3: unexpected end of data; correct the quotes',
        ),
        ('"image"x,score\na.png,3\n', 'line 1: '),
        ('image,score\n\n', 'lists no image. Each line names'),
        ('image,score\na.png,3\nx.png,4\n', 'x.png (line 3)'),
    ],
)
def test_faults_in_an_own_file_are_named_by_line(make_database, text, where):
    root = make_database('own', text=text)
    message = refusal('csv', root / 'mine.csv')
    assert str(root / 'mine.csv') in message and where in message


def test_other_encodings_of_an_own_file(make_database):
    for encoding, expected in (
        (
            'windows-1252',
            "mine.csv cannot be read as a table: 'utf-8' codec can't decode byte 0xe4",
        ),
        ('utf-16', 'save it as CSV in UTF-8'),
        ('utf-16-le', 'mine.csv cannot be read as a table'),
    ):
        root = make_database('own', text='image,score\na.png,1\nmäuse.png,2\n', encoding=encoding)
        assert expected in refusal('csv', root / 'mine.csv')
        root.rename(root.with_name(encoding))


def test_no_own_file(tmp_path):
    assert refusal('csv', tmp_path / 'none.csv') == f'there is no file {tmp_path / "none.csv"}'
    assert refusal('csv', tmp_path) == f'{tmp_path} is not a regular file'


def test_polarity(make_database):
    for name, expected in (
        ('live', False),
        ('csiq', False),
        ('kadid10k', True),
        ('koniq-10k', True),
    ):
        root = make_database(name.removesuffix('-10k'))
        assert folders.OpenDatabase(name, root).higher_is_better is expected
    for header, expected in (
        ('image,DMOS', False),
        ('image,mos', True),
        ('dmos ;image', False),
        ('image,score', True),
    ):
        row = '3;a.png' if ';' in header else 'a.png,3'
        root = make_database('own', text=f'{header}\n{row}\n')
        assert folders.OpenDatabase('csv', root / 'mine.csv').higher_is_better is expected
        root.rename(root.with_name(header))


def test_score_range(make_database):
    root = make_database('own', text='image,score\na.png,3.5\nb.png,-1\ndeep/c.png,7\n')
    database = folders.OpenDatabase('csv', root / 'mine.csv')
    assert database.score_range == (-1, 7)
    assert folders.OpenDatabase('kadid10k', make_database('kadid10k')).score_range == (1, 5)


@pytest.mark.parametrize('other', ['3', '3.0000000000000004'])
def test_scores_that_are_all_equal_to_the_network_are_no_labels(make_database, other):
    root = make_database('own', text=f'image,score\na.png,3\nb.png,{other}\n')
    with pytest.raises(InputError, match='mine.csv: all 2 scores are 3; give scores that differ'):
        folders.OpenDatabase('csv', root / 'mine.csv')


def test_a_wrong_count_says_what_was_expected(make_database, capsys):
    database = folders.OpenDatabase('KonIQ-10k', make_database('koniq'))
    database.warn_if_incomplete()
    assert capsys.readouterr().err == (
        'warning: KonIQ-10k has 10073 images; 5 are listed in the labels of this copy\n'
    )
    database.samples = database.samples[:1] * 10073
    database.warn_if_incomplete()
    root = make_database('own', text='image,score\na.png,3.5\n')
    database = folders.OpenDatabase('csv', root / 'mine.csv')
    capsys.readouterr()
    database.warn_if_incomplete()
    assert capsys.readouterr().err == ''


def test_the_table_has_a_row_for_every_database_and_fits_a_terminal():
    header, *rows = folders.dataset_table().splitlines()
    assert [row.split()[0] for row in rows] == list(folders.DATABASES) and header.startswith(
        '--dataset'
    )
    assert all(len(row) <= 100 for row in (header, *rows))
    koniq = next(row for row in rows if row.startswith('koniq'))
    assert koniq.split('  ')[0] == 'koniq' and 'KonIQ-10k' in koniq and '10073' in koniq
    assert '0 to 100, higher is better' in koniq and koniq.endswith('by image, or official sets')
    live = next(row for row in rows if row.startswith('live '))
    assert '0 to 100, lower is better' in live and live.endswith('by content')


def test_split_units_are_contents_in_the_order_of_their_names_or_images(make_database):
    root = make_database('tid2013')
    samples = folders.read_labels('tid2013', root).samples
    assert folders.split_units(list(reversed(samples)), True) == [[3, 4], [1, 2], [0]]
    assert folders.split_units(samples, False) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize(
    'name, folder',
    [
        ('tid2013', folders.TID2013Folder),
        ('livec', folders.LIVEChallengeFolder),
        ('koniq', folders.Koniq_10kFolder),
        ('bid', folders.BIDFolder),
        ('csiq', folders.CSIQFolder),
        ('live', folders.LIVEFolder),
    ],
)
def test_folder_classes_are_plain_datasets(make_database, name, folder):
    root = make_database(name)
    dataset = folder(root, [1, 0], np.asarray, 3)
    samples = folders.read_labels(name, root).samples
    units = folders.OpenDatabase(name, root).units
    assert len(dataset) == 3 * (len(units[1]) + len(units[0]))
    image, score = dataset[2]
    sample = samples[units[1][0]]
    assert score == sample.score
    assert np.array_equal(image, np.asarray(Image.open(sample.path).convert('RGB')))


def test_resize_is_bit_identical_to_torchvisions(make_database):
    from torchvision.transforms import Resize

    sample = folders.read_labels('koniq', make_database('koniq')).samples[0]
    resized = frames.resized(frames.load_image(sample.path), folders.DATABASES['koniq'].resize)
    assert resized.size == (384, 512)
    assert np.array_equal(resized, Resize((512, 384))(Image.open(sample.path)))


def refusal(name, root):
    with pytest.raises(InputError) as caught:
        folders.read_labels(name, root)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_missing_folder_says_where_to_get_the_database(tmp_path):
    message = refusal('koniq', tmp_path / 'nowhere')
    assert 'nowhere' in message and 'database.mmsp-kn.de' in message and '1024x768' in message


def test_missing_label_file(make_database):
    root = make_database('bid')
    (root / 'DatabaseGrades.xlsx').unlink()
    assert 'DatabaseGrades.xlsx or DatabaseGrades.xls is not in' in refusal('bid', root)


def test_missing_images_are_counted_and_the_first_five_named(make_database):
    root = make_database('livec', images=8)
    for k in (3, 5, 6, 7, 8, 10):
        next((root / 'Images').glob(f'{k}.*')).unlink()
    message = refusal('livec', root)
    assert '6 of the 8 images' in message
    assert [
        name in message for name in ('3.bmp', '5.bmp', '6.JPG', '7.bmp', '8.JPG', '10.JPG')
    ] == [True] * 5 + [False]


def test_missing_image_folder(make_database):
    root = make_database('koniq')
    (root / '1024x768').rename(root / 'pictures')
    assert 'no image folder 1024x768 or 512x384' in refusal('koniq', root)


@pytest.mark.parametrize(
    'name, file, old, new, where',
    [
        (
            'koniq',
            'koniq10k_scores_and_distributions.csv',
            '62.000',
            'good',
            "line 4: the score 'good' is not a number",
        ),
        (
            'koniq',
            'koniq10k_scores_and_distributions.csv',
            '62.000',
            '',
            "line 4: the score '' is not a number",
        ),
        (
            'koniq',
            'koniq10k_scores_and_distributions.csv',
            'MOS_zscore',
            'z',
            'no column MOS_zscore',
        ),
        ('csiq', 'csiq_label.txt', '0.153846', 'nan', "line 3: the score 'nan' is not a number"),
        ('csiq', 'csiq_label.txt', ' 0.153846', '', 'line 3: this line has fewer cells'),
        (
            'tid2013',
            'mos_with_names.txt',
            '1.51429',
            '1,51429',
            "line 2: the score '1,51429' is not a number",
        ),
        ('kadid10k', 'dmos.csv', '2.49', 'x', "line 3: the score 'x' is not a number"),
        ('kadid10k', 'dmos.csv', 'ref_img', 'reference', 'no column ref_img'),
        (
            'agiqa3k',
            'data.csv',
            '"sharp, detailed"',
            'sharp, detailed',
            'line 3: this line has more cells',
        ),
        ('agiqa3k', 'data.csv', '4.75', '', "line 5: the score '' is not a number"),
        ('flive', 'labels_image.csv', ',71.5', '', 'line 3: this line has fewer cells'),
    ],
)
def test_faults_in_a_text_file_are_named_by_line(make_database, name, file, old, new, where):
    root = make_database(name)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    message = refusal(name, root)
    assert file in message and where in message


def test_faults_in_a_sheet_and_in_a_mat_file(make_database):
    import openpyxl

    root = make_database('bid')
    book = openpyxl.load_workbook(root / 'DatabaseGrades.xlsx')
    book.active['B3'] = 'blurred'
    book.save(root / 'DatabaseGrades.xlsx')
    assert "row 3: the score 'blurred' is not a number" in refusal('bid', root)
    (root / 'DatabaseGrades.xlsx').write_bytes(b'PK\3\4 broken')
    assert 'DatabaseGrades.xlsx cannot be read as a table' in refusal('bid', root)

    root = make_database('spaq')
    file = root / 'Annotations' / 'MOS and Image attribute scores.xlsx'
    book = openpyxl.load_workbook(file)
    book.active['C4'] = '#N/A'
    book.save(file)
    assert "row 4: the score '' is not a number" in refusal('spaq', root)
    book.active['C1'] = 'Mean'
    book.save(file)
    assert 'there is no column MOS; the header is' in refusal('spaq', root)

    root = make_database('livec')
    file = root / 'Data' / 'AllMOS_release.mat'
    scipy.io.savemat(file, {'AllMOS_release': np.full((1, 13), np.nan)})
    assert 'entry 8: the score nan is not a number' in refusal('livec', root)
    scipy.io.savemat(file, {'AllMOS_release': np.ones((1, 9))})
    assert '9 scores for the 13 names' in refusal('livec', root)
    scipy.io.savemat(file, {'other': np.zeros(3)})
    assert "has no variable 'AllMOS_release'" in refusal('livec', root)
    file.write_bytes(b'not a mat file')
    assert 'AllMOS_release.mat cannot be read as a MATLAB file' in refusal('livec', root)


def test_unknown_database():
    with pytest.raises(InputError, match="no database 'imagenet'; choose one of live, csiq"):
        folders.database_key('imagenet')


def test_csiqs_own_sheet(make_database):
    sheet, listed = (make_database(form) for form in ('csiq_sheet', 'csiq_folders'))
    samples = read('csiq', sheet)
    assert [(path, content) for path, _, content in samples] == [
        (path, content) for path, _, content in read('csiq', listed)
    ]
    assert samples[0] == ('dst_imgs/awgn/1600.AWGN.1.png', 0.11, '1600')
    assert samples[-1] == ('dst_imgs/jpeg2000/snow_leaves.jpeg2000.2.png', 0.62, 'snow_leaves')


def test_spaqs_sheet_as_csv(make_database):
    root = make_database('spaq')
    expected = read('spaq', root)
    (root / 'Annotations' / 'MOS and Image attribute scores.xlsx').unlink()
    rows = [[path.split('/')[1], 11, score] for path, score, _ in expected]
    file = root / 'Annotations' / 'MOS and Image attribute scores.csv'
    databases.write_csv(file, ['Image name', 'Brightness', 'MOS '], rows)
    assert read('spaq', root) == expected


@pytest.mark.parametrize(
    'name, pattern',
    [
        ('bid', 'ImageDatabase/*.JPG'),
        ('livec', 'Images/*.JPG'),
        ('koniq', '1024x768/*.jpg'),
        ('kadid10k', 'images/*.png'),
        ('agiqa3k', '*.jpg'),
        ('flive', 'database/*/*.jpg'),
        ('spaq', 'TestImage/*.jpg'),
        ('csiq', 'dst_imgs_all/*.png'),
    ],
)
def test_the_letter_case_of_image_files_does_not_matter(make_database, name, pattern):
    root = make_database(name)
    expected = [(path.lower(), score) for path, score, _ in read(name, root)]
    for path in sorted(root.glob(pattern)):
        path.rename(path.with_name(path.name.swapcase()))
    samples = read(name, root)
    assert [(path.lower(), score) for path, score, _ in samples] == expected
    assert all((root / path).is_file() for path, _, _ in samples)


def test_a_zip_of_each_type_may_be_unpacked_into_a_folder_of_its_name(make_database):
    root = make_database('csiq_folders')
    expected = [row[1:] for row in read('csiq', root)]
    for folder in list((root / 'dst_imgs').iterdir()):
        folder.rename(root / 'moved')
        folder.mkdir()
        (root / 'moved').rename(folder / folder.name)
    found = read('csiq', root)
    assert [row[1:] for row in found] == expected and found[0][0].startswith(
        'dst_imgs/awgn/awgn/1600.AWGN'
    )


def test_copies_further_down_are_not_taken_and_equally_near_ones_are_refused(make_database):
    root = make_database('csiq_folders')
    expected = read('csiq', root)
    for path in list((root / 'dst_imgs').glob('*/*.png')):
        databases.picture(root / 'dst_imgs' / 'copies' / 'small' / path.name, size=(30, 30))
    assert read('csiq', root) == expected
    databases.picture(root / 'dst_imgs' / 'other' / '1600.AWGN.1.png')
    message = refusal('csiq', root)
    assert (
        '1600.AWGN.1.png can be ' in message
        and 'equally near; remove or rename all but one' in message
    )


def test_hidden_folders_and_a_macs_twin_folder_are_not_entered(make_database, tmp_path):
    """Labels and images each in a folder of their own, as two zip files made on a Mac unpack."""
    outer = tmp_path / 'outer'
    (outer / 'koniq10k_1024x768').mkdir(parents=True)
    root = make_database('koniq')
    (root / '1024x768').rename(outer / 'koniq10k_1024x768' / '1024x768')
    root.rename(outer / 'koniq10k_scores_and_distributions')
    expected = read('koniq', outer)
    assert expected[0][0] == 'koniq10k_1024x768/1024x768/10004473376.jpg'
    for name in ('__MACOSX', '.Trash'):
        databases.picture(outer / name / '1024x768' / '10004473376.jpg')
        assert read('koniq', outer) == expected


@pytest.mark.parametrize(
    'name, file, row',
    [
        ('koniq', 'koniq10k_scores_and_distributions.csv', 3),
        ('tid2013', 'mos_with_names.txt', 1),
        ('csiq', 'csiq_label.txt', 2),
    ],
)
def test_an_image_that_an_authors_file_lists_twice_is_refused(make_database, name, file, row):
    root = make_database(name)
    lines = (root / file).read_text().splitlines()
    (root / file).write_text(
        '\n'.join([*lines[: row + 1], lines[row].swapcase(), *lines[row + 1 :]]) + '\n'
    )
    assert (
        f'{file}, line {row + 2}: ' in (message := refusal(name, root))
        and f'is on line {row + 1} already' in message
    )


@pytest.mark.parametrize(
    'name, file',
    [
        ('koniq', 'koniq10k_scores_and_distributions.csv'),
        ('csiq', 'csiq_label.txt'),
        ('csiq_sheet', 'csiq.beta.xlsx'),
        ('livec', 'Data/AllMOS_release.mat'),
        ('own', 'mine.csv'),
    ],
)
def test_what_lies_in_the_place_of_a_label_file_is_named(make_database, name, file):
    root = make_database(name, **({'text': ''} if name == 'own' else {}))
    key, path = ('csv', root / file) if name == 'own' else (name.split('_')[0], root)
    for content, what in (
        (b'\n<!DOCTYPE html><title>Sign in</title>', f'{Path(file).name} is a web page'),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
            f'{Path(file).name} is a Git LFS pointer',
        ),
        (b'', str(file)),
        (b'\0\xff\1' * 50, str(file)),
        (b'PK\3\4' + b'\7' * 90, str(file)),
    ):
        (root / file).write_bytes(content)
        assert what in refusal(key, path)
    (root / file).unlink()
    for make in (Path.mkdir, os.mkfifo):
        make(root / file)
        assert Path(file).name in refusal(key, path)
        (Path.rmdir if make is Path.mkdir else Path.unlink)(root / file)


def test_names_that_no_file_system_takes(make_database):
    long = 'n' * 300
    assert f'there is no folder {long}' in refusal('koniq', long)
    with pytest.raises(InputError, match='cannot be read: File name too long'):
        folders.read_labels('csv', long)
    root = make_database('own', text=f'image,score\na.png,1\n{long}.png,2\nb.png,3\n')
    assert '1 of the 3 images' in refusal('csv', root / 'mine.csv')


def layout(root, text, **settings):
    table = own_table(root, text, images=())
    return folders.OpenDatabase('csv', table, settings=Settings(**settings))


@pytest.mark.parametrize('image', ROLES['image'])
@pytest.mark.parametrize('score', [name for name in ROLES['score'] if name != 'dmos'])
def test_every_column_name_of_other_peoples_tables(tmp_path, image, score):
    for name in ('a.png', 'b.png'):
        (tmp_path / name).touch()
    database = layout(tmp_path, f'{image},{score.upper()}\na.png,3\nb.png,1\n')
    assert [sample.score for sample in database.samples] == [3, 1] and database.higher_is_better


@pytest.mark.parametrize('content', ROLES['content'])
@pytest.mark.parametrize('part', ROLES['set'])
def test_every_name_of_a_content_and_of_a_set_column(tmp_path, content, part):
    for name in ('a.png', 'b.png'):
        (tmp_path / name).touch()
    database = layout(tmp_path, f'image,score,{content},{part}\na.png,3,x,train\nb.png,1,x,test\n')
    assert [(sample.content, sample.official_set) for sample in database.samples] == [
        ('x', 'train'),
        ('x', 'test'),
    ]
    assert database.units == [[0, 1]]
    assert layout(tmp_path, (tmp_path / 'mine.csv').read_text(), split_by='image').units == [
        [0],
        [1],
    ]


@pytest.mark.parametrize('text', ['my a.png{}3\nb.png{}1.5\n', 'b.png{}1.5\nmy a.png{}3\n'])
@pytest.mark.parametrize('mark', [',', '\t', ' ', '  ', ';'])
def test_a_table_without_a_header(tmp_path, capsys, text, mark):
    for name in ('my a.png', 'b.png'):
        (tmp_path / name).touch()
    samples = layout(tmp_path, text.format(mark, mark)).samples
    assert sorted((Path(sample.path).name, sample.score) for sample in samples) == [
        ('b.png', 1.5),
        ('my a.png', 3),
    ]
    told = (
        'mine.csv: no header, so the first line is an image too; '
        "image from column '1', score from column '2'"
    )
    assert told in capsys.readouterr().err


def test_nothing_is_taken_from_an_own_table_silently(make_database, capsys):
    root = make_database('own', text='')
    rows = 'a.png,3,x,1\nb.png,1,y,2\n'
    database = layout(root, 'Name,DMOS,remark,mos\n' + rows, columns={'score': 'dmos'})
    err = capsys.readouterr().err
    assert "mine.csv: image from column 'Name', score from column 'DMOS'; lower is better" in err
    assert "--higher_is_better or --lower_is_better settles it; ignored: 'remark', 'mos'" in err
    assert not database.higher_is_better
    assert layout(root, 'name,dmos\na.png,3\nb.png,1\n', lower_is_better=False).higher_is_better
    assert 'settles' not in capsys.readouterr().err
    assert not layout(root, 'name,mos\na.png,3\nb.png,1\n', lower_is_better=True).higher_is_better


def test_a_reference_column_that_is_not_taken_is_a_warning(make_database, capsys):
    root = make_database('own', text='', images=('I01_1.png', 'I01_2.png', 'I02_1.png'))
    text = 'image,score,{}\nI01_1.png,1,refs/i01.BMP\nI01_2.png,2,I01.png\nI02_1.png,3,I02.png\n'
    layout(root, text.format('source'))
    assert (
        "the column 'source' of" in (err := capsys.readouterr().err)
        and '--columns content=source' in err
    )
    layout(root, text.format('ref_img'))
    layout(root, text.format('source'), columns={'content': 'Source'})
    layout(root, text.format('source').replace('I01.png', 'I99.png'))
    assert 'warning' not in capsys.readouterr().err


def test_names_in_an_own_table_start_at_data_root_and_may_hold_backslashes(make_database, tmp_path):
    root = make_database('own', text='')
    text = 'image,score\nDeep\\C.png,3\na.png,1\n'
    expected = [str(root / 'deep' / 'c.png'), str(root / 'a.png')]
    assert [sample.path for sample in layout(root, text).samples] == expected
    (tmp_path / 'tables').mkdir()
    database = layout(tmp_path / 'tables', text, images=str(root))
    assert [sample.path for sample in database.samples] == expected
    assert database.names([0, 1]) == ['deep/c.png', 'a.png']


def test_an_accented_name_in_either_unicode_form_unless_two_files_fit(make_database):
    import unicodedata

    forms = [unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD')]
    root = make_database('own', text='', images=(forms[1], 'b.png'))
    text = f'image,score\n{forms[0]},1\nB.PNG,2\n'
    assert [Path(sample.path).name for sample in layout(root, text).samples] == [forms[1], 'b.png']
    databases.picture(root / 'B.png')
    with pytest.raises(InputError, match=r'B.PNG can be .*/B.png or .*/b.png, equally near'):
        layout(root, text)


def test_skip_missing_leaves_out_what_cannot_be_read_and_says_so(make_database, capsys):
    root = make_database('own', text='')
    (root / 'b.png').write_bytes((root / 'b.png').read_bytes()[:3000])
    text = 'image,score\na.png,3\ngone.png,5\nb.png,1\ndeep/c.png,2\n'
    database = layout(root, text, skip_missing=True)
    assert database.names(range(2)) == ['a.png', 'deep/c.png'] and [
        sample.row for sample in database.samples
    ] == [0, 3]
    assert [(entry['image'], entry['row']) for entry in database.left_out] == [
        ('gone.png', 'line 3'),
        ('b.png', 'line 4'),
    ]
    assert (
        'there is no file' in database.left_out[0]['reason']
        and 'cannot be read' in database.left_out[1]['reason']
    )
    assert (
        '--skip_missing: 2 of 4 listed images are left out, the first is gone.png'
        in capsys.readouterr().err
    )
    with pytest.raises(InputError, match=r'gone.png \(line 3\).*--skip_missing leaves them out'):
        layout(root, text)
    with pytest.raises(InputError, match='none of the 1 images that it lists can be read'):
        layout(root, 'image,score\nb.png,3\n', skip_missing=True)


def test_agiqa3k_by_prompt(make_database):
    root = make_database('agiqa3k')
    file = root / 'data.csv'
    file.write_bytes(file.read_bytes().replace(b'statue of a man', b'"two lines\r\nof text"'))
    assert folders.OpenDatabase('agiqa3k', root).units == [[0], [1], [2]]
    assert folders.OpenDatabase('agiqa3k', root, settings=Settings(split_by='content')).units == [
        [1],
        [0, 2],
    ]


def test_folders_that_may_not_be_entered_are_passed_over(as_nobody):
    """As lost+found, which every file system of its own holds."""
    folder, run = as_nobody
    for name, key, inner in (('livec', 'livec', 'Images'), ('csiq_folders', 'csiq', 'dst_imgs')):
        (folder / name).mkdir()
        getattr(databases, name)(folder / name)
        for place in (folder / name, folder / name / inner):
            (place / 'lost+found').mkdir(mode=0o700)
        printed = run(
            lambda key=key, name=name: print(
                len(folders.read_labels(key, name).samples), file=sys.stderr
            )
        )
        assert printed == {'livec': '6\n', 'csiq': '24\n'}[key]


def test_the_rows_of_csiqs_sheet_are_counted_as_in_its_text_file(tmp_path):
    names = [
        f'{ref}.{kind}.{level}.png'
        for kind in ('AWGN', 'JPEG')
        for ref in ('aaa', 'bb_b', 'bbc')
        for level in (1, 2)
    ]
    book = openpyxl.Workbook()
    book.active.title = 'all_by_image'
    book.active.append(['image', 'dst_type', 'dst_lev', 'dmos'])
    for name in sorted(names):
        ref, kind, level, _ = name.split('.')
        book.active.append(
            [ref, {'AWGN': 'noise', 'JPEG': 'jpeg'}[kind], int(level), names.index(name) / 20]
        )
    splits = []
    for folder in ('sheet', 'text'):
        databases.copies(tmp_path / folder / 'dst_imgs_all', names)
    book.save(tmp_path / 'sheet' / 'csiq.DMOS.xlsx')
    (tmp_path / 'text' / 'csiq_label.txt').write_text(
        ''.join(f'{n} {k / 20}\n' for k, n in enumerate(names))
    )
    np.save(tmp_path / 'train.npy', [0, 1, 2, 3, 6, 7, 8, 9])
    np.save(tmp_path / 'test.npy', [4, 5, 10, 11])
    for folder in ('sheet', 'text'):
        database = folders.OpenDatabase('csiq', tmp_path / folder)
        split = read_split(
            [f'{part}={tmp_path}/{part}.npy' for part in ('train', 'test')], database
        )
        splits.append({part: sorted(database.names(images)) for part, images in split.items()})
    assert splits[0] == splits[1] and len(splits[0]['train']) == 8


def test_known_images_that_are_not_scored_are_not_missing(make_database, tmp_path, capsys):
    database = folders.OpenDatabase('livec', make_database('livec', images=10))
    names = database.names(range(10))
    (tmp_path / 'train.txt').write_text(
        '\n'.join(['t1.bmp', 'Images/trainingImages/t2.bmp', *names[:6]])
    )
    (tmp_path / 'test.txt').write_text('\n'.join(names[6:]))
    split = read_split([f'{part}={tmp_path}/{part}.txt' for part in ('train', 'test')], database)
    assert split == {'train': list(range(6)), 'val': [], 'test': list(range(6, 10))}
    assert 'train.txt names 2 images that are known and left out' in capsys.readouterr().err
