"""Each database is read from a small copy in its authors' format; what is wrong with one is said in one line."""
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import databases
import folders
from errors import InputError


def read(name, root):
    return [(os.path.relpath(sample.path, root), sample.score, sample.content)
            for sample in folders.read_samples(name, root)]


def test_live_leaves_the_pristine_copies_out(make_database):
    root = make_database('live')
    samples = read('live', root)
    assert len(samples) == folders.DATABASES['live'].images == 779
    assert samples[0] == ('jp2k/img1.bmp', -2.6, 'ref00.bmp')
    assert samples[227][0] == 'jpeg/img1.bmp'
    assert samples[-1][0] == 'gblur/img145.bmp'  # this copy marks the last 203 as pristine: 174 and 29 more
    assert len({content for _, _, content in samples}) == 29


def test_csiq(make_database):
    samples = read('csiq', make_database('csiq'))
    assert samples[0] == ('dst_imgs_all/1600.AWGN.1.png', 0.0, '1600')
    assert samples[-1] == ('dst_imgs_all/snow_leaves.jpeg2000.5.png', round(11 / 13, 6), 'snow_leaves')


def test_tid2013_in_mixed_letter_case(make_database):
    samples = read('tid2013', make_database('tid2013'))
    assert [(Path(path).name, content) for path, _, content in samples] == [
        ('I01_01_1.bmp', 'I01'), ('i01_05_1.bmp', 'I01'), ('I02_03_1.BMP', 'I02'), ('i02_24_5.bmp', 'I02'),
        ('I25_08_2.bmp', 'I25')]
    assert samples[0][1] == 0.51429


def test_livec_leaves_the_first_seven_out(make_database):
    samples = read('livec', make_database('livec'))
    assert [(path, score) for path, score, _ in samples] == [
        ('Images/3.bmp', 90), ('Images/4.JPG', 100), ('Images/5.bmp', 110), ('Images/6.JPG', 120),
        ('Images/7.bmp', 130), ('Images/8.JPG', 140)]


@pytest.mark.parametrize('name', ['koniq', 'koniq-10k', 'KonIQ-10k'])
def test_koniq_takes_the_score_on_the_hundred_scale(make_database, name):
    samples = read(name, make_database('koniq'))
    assert [score for _, score, _ in samples] == [60, 61, 62, 63, 64]
    assert samples[0][0] == '1024x768/10004473376.jpg'


def test_koniq_with_the_file_of_official_sets(make_database):
    samples = read('koniq', make_database('koniq_sets'))
    assert [score for _, score, _ in samples] == [3.91, 17.91, 31.91, 45.91, 59.91, 73.91]
    assert samples[0][0] == '512x384/826373.jpg'


def test_bid_in_its_image_folder(make_database):
    samples = read('bid', make_database('bid'))
    assert [(path, score) for path, score, _ in samples] == [
        (f'ImageDatabase/DatabaseImage{number}.JPG', 1.25 + k) for k, number in enumerate(('0001', '0002', '0004', '0590'))]


def test_labels_one_folder_down(make_database, tmp_path):
    root = make_database('koniq')
    (tmp_path / 'outer').mkdir()
    root.rename(tmp_path / 'outer' / 'koniq10k')
    assert len(read('koniq', tmp_path / 'outer')) == 5


def test_split_units_are_contents_in_the_order_of_their_names_or_images(make_database):
    root = make_database('tid2013')
    samples = folders.read_samples('tid2013', root)
    assert folders.split_units('tid2013', list(reversed(samples))) == [[3, 4], [1, 2], [0]]
    assert folders.split_units('livec', samples) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize('name, folder', [
    ('tid2013', folders.TID2013Folder), ('livec', folders.LIVEChallengeFolder), ('koniq', folders.Koniq_10kFolder),
    ('bid', folders.BIDFolder), ('csiq', folders.CSIQFolder), ('live', folders.LIVEFolder)])
def test_folder_classes_are_plain_datasets(make_database, name, folder):
    root = make_database(name)
    dataset = folder(root, [1, 0], np.asarray, 3)
    samples = folders.read_samples(name, root)
    units = folders.split_units(name, samples)
    assert len(dataset) == 3 * (len(units[1]) + len(units[0]))
    image, score = dataset[2]
    sample = samples[units[1][0]]
    assert score == sample.score
    assert np.array_equal(image, np.asarray(Image.open(sample.path).convert('RGB')))


def test_resize_is_bit_identical_to_torchvisions(make_database):
    from torchvision.transforms import Resize
    sample = folders.read_samples('koniq', make_database('koniq'))[0]
    resized = folders.load_image(sample.path, folders.DATABASES['koniq'].resize)
    assert resized.size == (384, 512)
    assert np.array_equal(resized, Resize((512, 384))(Image.open(sample.path)))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    for mode in ('L', 'P', 'RGBA', 'LA', '1', 'CMYK'):
        path = tmp_path / f'{mode}.tif'
        Image.new(mode, (230, 240)).save(path)
        assert np.asarray(folders.load_image(path)).shape == (240, 230, 3)


def refusal(name, root):
    with pytest.raises(InputError) as caught:
        folders.read_samples(name, root)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_missing_folder_says_where_to_get_the_database(tmp_path):
    message = refusal('koniq', tmp_path / 'nowhere')
    assert 'nowhere' in message and 'database.mmsp-kn.de' in message and '1024x768' in message


def test_missing_label_file(make_database):
    root = make_database('bid')
    (root / 'DatabaseGrades.xlsx').unlink()
    assert 'DatabaseGrades.xlsx is not in' in refusal('bid', root)


def test_missing_images_are_counted_and_the_first_five_named(make_database):
    root = make_database('livec', images=8)
    for k in (3, 5, 6, 7, 8, 10):
        next((root / 'Images').glob(f'{k}.*')).unlink()
    message = refusal('livec', root)
    assert '6 of the 8 images' in message
    assert [name in message for name in ('3.bmp', '5.bmp', '6.JPG', '7.bmp', '8.JPG', '10.JPG')] == [True] * 5 + [False]


def test_missing_image_folder(make_database):
    root = make_database('koniq')
    (root / '1024x768').rename(root / 'pictures')
    assert 'no image folder 1024x768 or 512x384' in refusal('koniq', root)


@pytest.mark.parametrize('name, file, old, new, where', [
    ('koniq', 'koniq10k_scores_and_distributions.csv', '62.000', 'good', "line 4: the score 'good' is not a number"),
    ('koniq', 'koniq10k_scores_and_distributions.csv', '62.000', '', "line 4: the score '' is not a number"),
    ('koniq', 'koniq10k_scores_and_distributions.csv', 'MOS_zscore', 'z', 'no column MOS_zscore'),
    ('csiq', 'csiq_label.txt', '0.153846', 'nan', "line 3: the score 'nan' is not a number"),
    ('csiq', 'csiq_label.txt', ' 0.153846', '', 'line 3: 2 words are expected'),
    ('tid2013', 'mos_with_names.txt', '1.51429', '1,51429', "line 2: the score '1,51429' is not a number"),
])
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
    (root / 'DatabaseGrades.xlsx').write_bytes(b'PK broken')
    assert 'DatabaseGrades.xlsx cannot be read as an Excel sheet' in refusal('bid', root)

    root = make_database('livec')
    file = root / 'Data' / 'AllMOS_release.mat'
    scipy.io.savemat(file, {'AllMOS_release': np.full((1, 13), np.nan)})
    assert 'entry 8: the score nan is not a number' in refusal('livec', root)
    scipy.io.savemat(file, {'other': np.zeros(3)})
    assert "has no variable 'AllMOS_release'" in refusal('livec', root)
    file.write_bytes(b'not a mat file')
    assert 'AllMOS_release.mat cannot be read as a MATLAB file' in refusal('livec', root)


def test_unknown_database():
    with pytest.raises(InputError, match="no database 'imagenet'; choose one of live, csiq"):
        folders.database_key('imagenet')


def test_unreadable_image(tmp_path):
    path = databases.picture(tmp_path / 'cut.jpg', size=(300, 300))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match='cut.jpg cannot be read as an image'):
        folders.load_image(path)
