"""One rule says which image a name means, in label tables, split lists and lists of photos."""

import json
import os
from pathlib import Path

import databases
import openpyxl
import pytest
from helpers import own_table

import demo
import folders
from experiment.command_line import parse_options
from experiment.splits import draw_splits, read_split, requested_splits
from util.errors import InputError
from util.labels import Settings
from util.names import FilesIn, KnownNames

# Known names, a name that somebody writes, and those of the known names that it can mean.
RULES = [
    ('i0.png I0.png', 'i0.png', 'i0.png'),
    ('i0.png I0.png', 'I0.PNG', 'i0.png I0.png'),
    ('i0.png', 'I0.PNG', 'i0.png'),
    ('e\u0301.png', '\u00e9.PNG', 'e\u0301.png'),
    ('a/1.png', './a/../a//1.png', 'a/1.png'),
    ('a/1.png', 'A\\1.PNG', 'a/1.png'),
    ('a/1.png a\\1.png', 'a\\1.png', 'a\\1.png'),
    # names without an ending
    ('a/1.png', 'a/1', 'a/1.png'),
    ('a/1.png a/1.jpg', 'a/1', 'a/1.png a/1.jpg'),
    ('a/1.png a/1', 'a/1', 'a/1'),
    ('i0.png I0.png', 'i0', 'i0.png'),
    ('v1.5.png', 'v1.5', 'v1.5.png'),
    ('a.png.jpg', 'a.png', ''),
    ('1.txt 1.png', '1', '1.png'),
    # names that are not there
    ('a/1.png', '1.jpg', ''),
    ('a/1.png', '', ''),
]
ENDS = [
    ('a/1.png b/4.png', '/data/other/a/1.png', 'a/1.png'),
    ('a/1.png b/4.png', 'C:\\data\\A\\1.png', 'a/1.png'),
    ('i0.png I0.png', 'far/i0.png', 'i0.png'),
    ('1.png b/4.png', 'b/1.png', ''),
    ('1.png b/4.png', 'B/1.png', ''),
]


def touch(folder, names):
    for name in names.split():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize('known, name, expected', RULES)
def test_a_name_means_the_same_in_a_list_and_on_the_disk(tmp_path, known, name, expected):
    touch(tmp_path, known)
    assert sorted(KnownNames(known.split()).find(name)) == sorted(expected.split())
    found = {os.path.relpath(path, tmp_path) for path in FilesIn(tmp_path).paths(name)}
    assert found == set(expected.split())


@pytest.mark.parametrize('known, name, expected', ENDS)
def test_an_end_of_a_name_counts_unless_it_drops_a_folder_that_exists(
    tmp_path, known, name, expected
):
    touch(tmp_path, known)
    names, files = KnownNames(known.split()), FilesIn(tmp_path)
    assert names.find(name, by_end=True) == expected.split()
    found = {os.path.relpath(path, tmp_path) for path in files.paths(name, by_end=True)}
    assert found == set(expected.split())
    assert not names.find(name) and not files.paths(name)


NAMES = [f'i{k}.png' for k in range(10)]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(rows, header): t.csv with these rows, next to ten pictures i0.png to i9.png."""
    monkeypatch.chdir(tmp_path)
    databases.copies(tmp_path, NAMES)

    def make(rows, header='image,score'):
        own_table(tmp_path, '\n'.join([header, *rows]) + '\n', images=(), name='t.csv')

    make([f'{name},{k}' for k, name in enumerate(NAMES)])
    return make


def write(path, names):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text('\n'.join(names) + '\n')


def config_of(*options):
    return parse_options(['--device', 'cpu', '--train_test_num', '1', *options])


def opened(file='t.csv', **settings):
    return folders.OpenDatabase('csv', file, settings=Settings(**settings))


def sizes(*options, file='t.csv'):
    """The images in the train and the test part of each round."""
    config = config_of('--csv', file, *options)
    database = folders.OpenDatabase('csv', file, settings=Settings.of(config))
    splits = draw_splits(config, database)
    return [(len(split['train']), len(split['test'])) for split in splits]


def test_a_split_list_and_a_runs_own_split_tell_letter_cases_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ['i0.png', 'i1.png', 'i2.png', 'I0.png', 'I1.png']
    databases.copies(tmp_path, names)
    rows = [f'{name},{k}' for k, name in enumerate(names)]
    own_table(tmp_path, '\n'.join(['image,score', *rows]), images=(), name='t.csv')
    write('train.txt', ['i1.png', 'i2.png', 'I0.png'])
    write('test.txt', ['i0.png', 'I1.png'])
    database = opened()
    expected = {'train': [1, 2, 3], 'val': [], 'test': [0, 4]}
    assert read_split(['train=train.txt', 'test=test.txt'], database) == expected
    parts = {part: database.names(images) for part, images in expected.items()}
    Path('split.json').write_text(json.dumps(parts))
    assert read_split('split.json', database) == expected


def test_a_whole_name_goes_before_the_end_of_another(tmp_path):
    names = ['1.png', 'x/1.png', 'x/2.png', 'y/2.png']
    known = KnownNames(names)
    assert known.find('1.PNG') == known.find('far/1.png', by_end=True) == ['1.png']
    assert known.find('2.png') == ['x/2.png', 'y/2.png']
    assert known.find('X/2.png') == ['x/2.png']
    assert KnownNames(['x/i0.png', 'y/I0.png']).find('i0.png') == ['x/i0.png']


def test_ids_are_the_pictures_that_have_them_with_an_ending(table, tmp_path):
    table([f'{name[:-4]},{k}' for k, name in enumerate(NAMES)], 'image_id,score')
    assert opened().names(range(10)) == NAMES
    # A further column is no second name of the image.
    table([f'{k},{name},{k}' for k, name in enumerate(NAMES)], 'image_id,file_name,score')
    assert opened().names(range(10)) == NAMES
    table(['i0,1', 'i1,2'])
    databases.picture(tmp_path / 'i0.jpg')
    with pytest.raises(InputError, match=r'i0 can be i0.jpg or i0.png, equally near'):
        opened()


def test_whole_numbers_in_a_sheet_have_no_decimal_point(tmp_path):
    databases.copies(tmp_path, ['1.png', '2.png', '3.png', '4.png'])
    book = openpyxl.Workbook()
    book.active.append(['image', 'score', 'content', 'kind', 'set'])
    for k in range(1, 5):
        # Excel shows both forms of a number alike.
        content = 7 if k % 2 else '7'
        book.active.append([k, k + 0.5, content, k, 'train'])
    book.save(tmp_path / 't.xlsx')
    database = opened(tmp_path / 't.xlsx', columns={'type': 'kind'})
    assert database.names(range(4)) == ['1.png', '2.png', '3.png', '4.png']
    assert {sample.content for sample in database.samples} == {'7'}
    assert database.facts([0, 3]) == {'type': ['1', '4']}
    assert [sample.score for sample in database.samples] == [1.5, 2.5, 3.5, 4.5]


def test_a_content_that_is_an_images_own_name_is_one_content(table):
    own = ['i0.png', 'I0.png', 'i0.png', 'I0.PNG', 'i0.png']
    own += ['I5.PNG', 'i5.png', 'I5.PNG', 'I5.PNG', 'i5.png']
    rows = [f'{name},{k},{content}' for k, (name, content) in enumerate(zip(NAMES, own))]
    for order in (rows, rows[::-1]):
        table(order, 'image,score,content')
        assert len(opened().units) == 2


def test_names_of_images_are_no_contents_and_stay_apart(tmp_path):
    databases.copies(tmp_path, ['i0.png', 'I0.png', 'i1.png'])
    text = 'image,score\ni0.png,1\nI0.png,2\ni1.png,3\n'
    assert len(opened(own_table(tmp_path, text, images=())).units) == 3


def test_votes_for_one_image_in_several_spellings(table):
    rows = [f'{name},{k + 1}' for k, name in enumerate(NAMES)]
    table([*rows, 'I0.PNG,3', './i1.png,5', 'i2,6', '.\\i1.png,8'])
    database = opened(average_votes=True)
    assert database.names(range(10)) == NAMES
    assert database.facts(range(4))['votes'] == [2, 3, 2, 1]
    table([f'{row},x' for row in rows] + ['I0.PNG,3,y'], 'image,score,content')
    with pytest.raises(InputError, match='has another content, set or type than on line 2'):
        opened(average_votes=True)


def contents_of(*contents):
    return [f'{name},{k},{content}' for k, (name, content) in enumerate(zip(NAMES, contents))]


def test_a_reference_in_two_folders_and_few_contents_are_one_warning(table, capsys):
    parts = [f'Part {1 + k % 2}/{"bh"[k // 5]}.bmp' for k in range(10)]
    table(contents_of(*parts), 'image,score,ref_name')
    opened()
    err = capsys.readouterr().err
    assert "the column 'ref_name' of t.csv has 4 contents, but only 2 file names" in err
    assert err.count('warning') == 1
    # A prompt is no path.
    table(contents_of(*'ab', *['c w/ d', 'e w/ d'] * 4), 'image,score,scene')
    opened()
    assert 'has 4 values for 10 images' in capsys.readouterr().err


@pytest.mark.parametrize('contents, images, warned', [(10, 11, True), (11, 12, False)])
def test_few_contents_are_a_warning(tmp_path, capsys, contents, images, warned):
    names = [f'{k}.png' for k in range(images)]
    databases.copies(tmp_path, names)
    rows = [f'{name},{k},{k % contents}' for k, name in enumerate(names)]
    opened(own_table(tmp_path, '\n'.join(['image,score,scene', *rows]), images=()))
    text = f'has {contents} values for {images} images'
    assert (text in capsys.readouterr().err) is warned


def test_many_images_of_each_content_are_a_warning(tmp_path, capsys):
    names = [f'{k}.png' for k in range(2211)]
    for name in names:
        (tmp_path / name).touch()
    for images, warned in ((2211, True), (2200, False)):
        rows = [f'{name},{k},{k % 11}' for k, name in enumerate(names[:images])]
        text = '\n'.join(['image,score,scene', *rows])
        opened(own_table(tmp_path, text, images=()))
        assert (f'has 11 values for {images} images' in capsys.readouterr().err) is warned


@pytest.mark.parametrize(
    'train, test', [('training', 'testing'), ('Train set', 'test_set'), ('TRAINSET', 'TestSet')]
)
def test_words_for_the_parts(table, train, test):
    words = [train] * 7 + [test] * 3
    table([f'{name},{k},{words[k]}' for k, name in enumerate(NAMES)], 'image,score,set')
    assert sizes() == [(7, 3)]
    for part, names in ((train, NAMES[:7]), (test, NAMES[7:])):
        write(f'lists/my_{part}.txt', names)
    assert sizes('--split', 'lists') == [(7, 3)]
    assert sizes('--split', f'{train}=lists/my_{train}.txt', f'{test}=lists/my_{test}.txt')
    Path('split.json').write_text(json.dumps({train: NAMES[:7], test: NAMES[7:], 'labels': 'x'}))
    assert sizes('--split', 'split.json') == [(7, 3)]


def test_lists_in_camel_case_are_known(table):
    """As AADB's and PARA's."""
    write('aadb/imgListTrainRegression_score.txt', NAMES[:5])
    write('aadb/imgListValidationRegression_score.txt', NAMES[5:7])
    write('aadb/imgListTestNewRegression_score.txt', NAMES[7:])
    assert sizes('--split', 'aadb') == [(5, 3)]
    write('para/PARA-GiaaTrain.csv', NAMES[:6])
    write('para/PARA-GiaaTest.csv', NAMES[6:])
    assert sizes('--split', 'para') == [(6, 4)]


@pytest.mark.parametrize('words', [['train', 'spare'], ['train', 'val', 'spare'], ['0', '2']])
def test_an_unknown_word_in_place_of_the_test_part_is_refused(table, words):
    rows = [f'{name},{k},{words[k % len(words)]}' for k, name in enumerate(NAMES)]
    table(rows, 'image,score,set')
    with pytest.raises(InputError, match='the set .* is none of train, .*use --split random'):
        sizes()
    assert sizes('--split', 'random') == sizes('--columns', 'set=') == [(8, 2)]
    assert sizes('--split', 'random', '--val_ratio', '0.3') == [(6, 2)]
    with pytest.raises(InputError, match='the set .* is none of train'):
        sizes('--val_ratio', '0.3')


def test_an_unknown_list_is_refused_where_a_part_is_missing(table):
    write('lists/train.txt', NAMES[:6])
    write('lists/holdout.txt', NAMES[6:])
    with pytest.raises(InputError, match=r'lists has no list of the test part, and holdout.txt'):
        sizes('--split', 'lists')
    os.rename('lists/train.txt', 'lists/test.txt')
    with pytest.raises(InputError, match=r'lists has no list of the train part, and holdout.txt'):
        sizes('--split', 'lists')
    # With both parts, another list is of no matter.
    write('lists/train.txt', NAMES[6:])
    assert sizes('--split', 'lists') == [(4, 6)]


def test_folders_and_columns_may_be_numbered_from_0(table):
    for number, cut in ((0, 6), (1, 7)):
        Path('numbered').mkdir(exist_ok=True)
        write(f'numbered/{number}/train.txt', NAMES[:cut])
        write(f'numbered/{number}/test.txt', NAMES[cut:])
    assert sizes('--split', 'numbered', '--train_test_num', '2') == [(6, 4), (7, 3)]
    with pytest.raises(InputError, match='numbered is for 2 rounds; --train_test_num 2 runs those'):
        sizes('--split', 'numbered', '--train_test_num', '3')
    os.rename('numbered/0', 'numbered/02')
    assert sizes('--split', 'numbered', '--train_test_num', '2') == [(7, 3), (6, 4)]
    words = ['train'] * 6 + ['test'] * 4
    rows = [f'{name},{words[k]},{words[k - 1]}' for k, name in enumerate(NAMES)]
    write('folds.csv', ['image,split_0,split_1', *rows])
    config = config_of('--split', 'folds.csv', '--train_test_num', '2')
    _, splits = requested_splits(config, opened())
    assert [split['test'] for split in splits] == [[6, 7, 8, 9], [0, 7, 8, 9]]


def test_a_list_of_test_images_trains_on_the_rest(table):
    write('test.txt', NAMES[7:])
    write('val.txt', NAMES[5:7])
    assert sizes('--split', 'test=test.txt') == [(7, 3)]
    assert sizes('--split', 'testing=test.txt', 'val=val.txt') == [(5, 3)]
    Path('lists').mkdir()
    os.rename('test.txt', 'lists/test.txt')
    assert sizes('--split', 'lists') == [(7, 3)]


def test_one_list_twice_and_two_lists_of_a_part_are_called_that(table):
    write('a.txt', NAMES[7:])
    write('b.txt', NAMES[:7])
    with pytest.raises(InputError, match=r'./a.txt is given twice, as train and as test'):
        sizes('--split', 'train=a.txt', 'test=./a.txt')
    with pytest.raises(InputError, match=r'two lists of the train part, b.txt and a.txt'):
        sizes('--split', 'train=b.txt', 'training=a.txt')


def test_a_line_of_a_split_list_is_a_name_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ['i0.png', 'i0.png, copy.png', '[x] y.png', 'a;b.png', '7 c.png', 'c.png']
    databases.copies(tmp_path, names)
    rows = [f'"{name}",{k}' for k, name in enumerate(names)]
    own_table(tmp_path, '\n'.join(['image,score', *rows]), images=(), name='t.csv')
    write('train.txt', names[2:])
    write('test.txt', names[:2])
    split = read_split(['train=train.txt', 'test=test.txt'], opened())
    assert split == {'train': [2, 3, 4, 5], 'val': [], 'test': [0, 1]}
    # Other lines have cells, whose first is the name.
    write('test.txt', ['far/i0.png\t3.2\tc.png', '7\tc.png'])
    assert read_split(['test=test.txt'], opened())['test'] == [0, 5]


@pytest.mark.parametrize(
    'lines, expected',
    [
        (['Paris, 2019.jpg', 'Rome, 2020.jpg', 'Oslo.jpg'], None),
        (['[old] wall.jpg', 'Oslo.jpg'], None),
        (['a;b.jpg', '10 cats.jpg'], None),
        (['sub\\X1.JPG', 'SUB/x1.jpg'], ['sub/x1.jpg'] * 2),
        (['Oslo'], ['Oslo.jpg']),
        (['Oslo.jpg,3.5', '"Rome, 2020.jpg",4'], ['Oslo.jpg', 'Rome, 2020.jpg']),
        (['"Rome, 2020.jpg"', '"Oslo.jpg"'], ['Rome, 2020.jpg', 'Oslo.jpg']),
        (['mos,image_id', '3,Oslo'], ['Oslo.jpg']),
        (['image,mos', 'Oslo.jpg,3', '"Rome, 2020.jpg",4'], ['Oslo.jpg', 'Rome, 2020.jpg']),
        (['gone, 1.jpg'], ['gone']),
    ],
)
def test_a_list_of_photos_names_them_as_training_would(tmp_path, monkeypatch, lines, expected):
    monkeypatch.chdir(tmp_path)
    names = ['Paris, 2019.jpg', 'Rome, 2020.jpg', '[old] wall.jpg', 'a;b.jpg', '10 cats.jpg']
    for name in (*names, 'Oslo.jpg', 'cats.jpg', 'sub/x1.jpg'):
        databases.picture(tmp_path / 'list' / name)
    write('list/list.txt', lines)
    paths = demo.read_list('list/list.txt')
    assert paths == [Path('list', name) for name in expected or lines]


def test_a_list_that_names_no_column_advises_no_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for header, line in (('score,pic', '3,a.png'), ('image,filename', 'a.png,a.png')):
        write('list.csv', [header, line])
        with pytest.raises(InputError, match='list.csv, line 1: one column must be called image'):
            demo.read_list('list.csv')
    write('list.csv', [''])
    with pytest.raises(InputError, match='--list list.csv: it names no image'):
        demo.read_list('list.csv')


def test_a_table_of_scores_is_read_back_from_the_folder_in_which_it_was_written(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = ['photos/a.png', 'photos/b, c.png', os.fsdecode(b'photos/caf\xe9.png')]
    for name in names:
        databases.picture(tmp_path / name)
    lines = ['image,prediction', names[0] + ',1.5', f'"{names[1]}",2.5', names[2] + ',2']
    Path('out').mkdir()
    Path('out/scores.csv').write_bytes('\n'.join(lines).encode(errors='surrogateescape'))
    assert demo.read_list('out/scores.csv') == [Path(name) for name in names]
