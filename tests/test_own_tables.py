"""Tables in the forms that people publish: columns, sets, paths and names once misread silently."""

import json

import databases
import pytest
from helpers import own_table

import folders
from experiment.command_line import parse_options
from experiment.splits import draw_splits
from util.errors import InputError
from util.labels import Settings
from util.tables import read_rows

NAMES = [
    'a/1.png',
    'a/2.png',
    'a/3.png',
    'b/4.png',
    'b/5.png',
    'b/6.png',
    'b/7.png',
    'b/8.png',
    'a/9.png',
    'a/10.png',
]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(name, header, row): a table of ten pictures, with the text row(k, name) of each."""
    monkeypatch.chdir(tmp_path)
    databases.copies(tmp_path, NAMES)

    def make(name='t.csv', header='image,score', row=lambda k, name: f'{name},{k + 1}'):
        lines = [row(k, image) for k, image in enumerate(NAMES)]
        if header:
            lines.insert(0, header)
        own_table(tmp_path, '\n'.join(lines) + '\n', images=(), name=name)
        return name

    return make


def database_of(file, *options):
    config = parse_options(
        ['--csv', file, '--dataset', 'csv', '--device', 'cpu', '--train_test_num', '1', *options]
    )
    return config, folders.OpenDatabase('csv', config.data_root, settings=Settings.of(config))


def split_of(file, *options):
    config, database = database_of(file, *options)
    return draw_splits(config, database)[0]


def test_a_name_in_a_folder_that_exists_is_no_picture_of_another_folder(table, tmp_path):
    table()
    (tmp_path / 'train.txt').write_text('\n'.join(NAMES[1:6]))
    (tmp_path / 'test.txt').write_text('b/1.png\nb/7.png\nb/8.png\n')
    with pytest.raises(
        InputError,
        match=r'test.txt names 1 images that are not in t.csv, the first of them b/1.png',
    ):
        split_of('t.csv', '--split', 'train=train.txt', 'test=test.txt')


def test_references_in_two_letter_cases_are_one_content(table):
    table(header='dist_img,mos,ref_img', row=lambda k, n: f'{n},{k + 1},{"Ii"[k % 2]}0{k // 2}.bmp')
    _, database = database_of('t.csv')
    assert len(database.units) == 5
    assert {sample.content for sample in database.samples} == {
        f'I0{k}.bmp' for k in range(5)
    }  # the first spelling


def test_columns_by_number_keep_the_first_row(table):
    table(header='', row=lambda k, n: f'{n},{k / 10},{k + 1}')
    with pytest.raises(
        InputError, match=r"no column is the score in 'a/1.png,0.0,1'; .* score=NUMBER"
    ):
        database_of('t.csv')
    _, database = database_of('t.csv', '--columns', 'image=1', 'score=3')
    assert [sample.score for sample in database.samples] == list(range(1, 11))
    table(header='image,mos,MOS', row=lambda k, n: f'{n},{k + 1},{k}')
    assert [
        sample.score for sample in database_of('t.csv', '--columns', 'score=MOS')[1].samples
    ] == list(range(10))


def test_sets_without_a_test_part_stop_nobody(table, capsys):
    table(header='image,score,set', row=lambda k, n: f'{n},{k + 1},training')
    alone = split_of('t.csv')
    assert 'its sets (train) name no test images' in capsys.readouterr().err
    assert split_of('t.csv', '--split', 'random') == split_of('t.csv', '--columns', 'set=') == alone
    assert 'name no test images' not in capsys.readouterr().err


def test_random_wins_over_the_sets_and_a_chosen_set_is_the_split_tables(table, tmp_path):
    table(header='image,score,set', row=lambda k, n: f'{n},{k + 1},{"train" if k < 5 else "test"}')
    assert split_of('t.csv')['test'] == [5, 6, 7, 8, 9]
    assert len(split_of('t.csv', '--split', 'random')['test']) == 2
    table('folds.csv', 'image,fold', lambda k, n: f'{n},{"train" if k < 7 else "test"}')
    assert split_of('t.csv', '--split', 'folds.csv', '--columns', 'set=fold', 'score=score')[
        'test'
    ] == [7, 8, 9]


@pytest.mark.parametrize('column, values', [('ref', 'xy'), ('source', 'xy'), ('prompt', 'xy')])
def test_a_usual_name_of_a_reference_is_a_warning(table, capsys, column, values):
    table(header=f'image,score,{column}', row=lambda k, n: f'{n},{k + 1},{values[k % 2]}.bmp')
    database_of('t.csv')
    assert (
        f'--columns content={column} keeps images of one scene together' in capsys.readouterr().err
    )


def test_an_attribute_called_content_is_a_warning(table, capsys):
    table(header='image,score,Content', row=lambda k, n: f'{n},{k / 10},{k % 3 / 10}')
    database_of('t.csv')
    assert (
        "the column 'Content' of t.csv has 3 values for 10 images, which are numbers"
        in capsys.readouterr().err
    )
    table()
    with pytest.raises(
        InputError, match='--split_by content: no two images of t.csv have the same content'
    ):
        database_of('t.csv', '--split_by', 'content')


def test_records_in_json_are_read_and_other_formats_are_named(table, tmp_path):
    (tmp_path / 'metadata.jsonl').write_text(
        ''.join(json.dumps({'file_name': n, 'mos': k}) + '\n' for k, n in enumerate(NAMES))
    )
    records = [{'name': n, 'mos_quality': k} for k, n in enumerate(NAMES)]
    (tmp_path / 'list.json').write_text(json.dumps(records))
    (tmp_path / 'lines.json').write_text(json.dumps(records, indent=1))
    for file in ('metadata.jsonl', 'list.json', 'lines.json'):
        table()
        assert [sample.score for sample in database_of(file)[1].samples] == list(range(10))
    for content, what in (
        (
            b'PAR1\x15\x04\x15\xa0',
            'cannot be read as a table: .*; save it as CSV in UTF-8, or as an Excel file',
        ),
        (b'\x1f\x8b\x08', 'cannot be read as a table: .*; save it as CSV'),
        (b'{"a": 1,\n"b": 2}', 'cannot be read as a table: Expecting .*; save it as CSV'),
        (b'[1, 2]', 'its JSON is not of an object for each image; save it as CSV'),
    ):
        (tmp_path / 'odd').write_bytes(content)
        with pytest.raises(InputError, match=what):
            read_rows(tmp_path / 'odd')


def test_paths_of_another_machine_are_found_by_their_ends(table, tmp_path, capsys):
    table('there.csv', row=lambda k, n: f'/data/other/{n},{k + 1}')
    _, database = database_of('there.csv', '--data_root', str(tmp_path))
    assert database.names(range(10)) == NAMES
    assert (
        '10 images are found by the ends of their names, the first of them /data/other/a/1.png'
        in capsys.readouterr().err
    )
    (tmp_path / 'other.csv').write_text(
        'image,score\na/b/4.png,1\na/1.png,2\n'
    )  # a folder that exists is never left out
    config = parse_options(
        ['--csv', 'other.csv', '--data_root', str(tmp_path), '--device', 'cpu', '--dataset', 'csv']
    )
    with pytest.raises(InputError, match='1 of the 2 images that .*other.csv lists are missing'):
        folders.OpenDatabase('csv', config.data_root, settings=Settings.of(config))


def test_odd_spaces_are_part_of_a_name(tmp_path):
    names = ['Screenshot\u202fAM.png', 'wide\u3000name.png', 'end\u00a0.png']
    databases.copies(tmp_path, names)
    for form in ('{} {}', '{}\t{}', '{},{}'):
        (tmp_path / 'list.txt').write_text(
            '\n'.join(form.format(name, k) for k, name in enumerate(names)), encoding='utf-8'
        )
        assert folders.OpenDatabase('csv', tmp_path / 'list.txt').names(range(3)) == names


def test_dmos_in_a_longer_name_is_a_line_and_turns_nothing(table, capsys):
    for column, lower, line in (
        ('dmos_new', False, True),
        ('dmos', True, True),
        ('mos', False, False),
    ):
        table(header=f'image,{column}', row=lambda k, n: f'{n},{k}')
        options = ['--columns', f'score={column}'] if column == 'dmos_new' else []
        assert database_of('t.csv', *options)[1].higher_is_better is not lower
        assert (
            '--higher_is_better or --lower_is_better settles it' in capsys.readouterr().err
        ) is line


def test_a_part_without_an_srcc_is_refused_and_named(table, tmp_path):
    table(row=lambda k, n: f'{n},{1 if k > 6 else k}')
    for part, images in (('train', range(7)), ('val', [7, 8]), ('test', [7, 8, 9])):
        (tmp_path / f'{part}.txt').write_text('\n'.join(NAMES[k] for k in images))
    asked = ('--split', 'train=train.txt', 'test=test.txt')
    with pytest.raises(
        InputError,
        match=r'in round 1, the test part needs two different scores for an SRCC '
        r'\(images: 3, different scores: 1\)',
    ):
        split_of('t.csv', *asked)
    (tmp_path / 'test.txt').write_text('a/9.png\nb/4.png\n')
    (tmp_path / 'train.txt').write_text('b/8.png\na/10.png\n')
    with pytest.raises(
        InputError,
        match=r'the train part needs two different scores for an SRCC '
        r'\(images: 2, different scores: 1\)',
    ):
        split_of('t.csv', *asked)
    with pytest.raises(
        InputError,
        match=r'--val_ratio: in round 1, the val part needs two different scores for an SRCC '
        r'\(images: 1, different scores: 1\)',
    ):
        split_of('t.csv', '--val_ratio', '0.1')


def test_a_link_on_the_other_side_of_a_split_is_refused(table, tmp_path):
    table()
    (tmp_path / 'a/9.png').unlink()
    (tmp_path / 'a/9.png').hardlink_to(tmp_path / 'a/1.png')
    for part, images in (('train', range(6)), ('test', range(6, 10))):
        (tmp_path / f'{part}.txt').write_text('\n'.join(NAMES[k] for k in images))
    with pytest.raises(
        InputError, match=r'in round 1, a/1.png and a/9.png are one file, in train and in test'
    ):
        split_of('t.csv', '--split', 'train=train.txt', 'test=test.txt')


def test_a_table_called_as_a_database_keeps_its_own_name():
    assert parse_options(
        ['--test_on', 'csv=my/koniq.csv', 'koniq=k', '--device', 'cpu']
    ).test_on == [
        ['koniq.csv', 'csv', 'my/koniq.csv'],
        ['koniq', 'koniq', 'k'],
    ]
