"""Tables as programs and people save them: read as they are meant, or refused with a true line."""

import os
import shlex
import warnings

import databases
import numpy as np
import openpyxl
import pytest
import scipy.io
from helpers import own_images, own_table

import folders
from experiment.command_line import parse_options
from experiment.splits import draw_splits
from util.errors import InputError
from util.excel import formulas_without_value, refuse_too_large
from util.labels import Settings
from util.tables import read_rows

NAMES = ['0.png', '1.png', '2.png', '3.png']


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folder of NAMES, which is the current one."""
    monkeypatch.chdir(tmp_path)
    databases.copies(tmp_path, NAMES)
    return tmp_path


def open_table(name, *options):
    config = parse_options(['--csv', name, '--device', 'cpu', *options])
    return folders.OpenDatabase('csv', config.data_root, settings=Settings.of(config))


def scores_of(name, *options):
    return [sample.score for sample in open_table(name, *options).samples]


def refusal(name, *options):
    with pytest.raises(InputError) as caught:
        open_table(name, *options)
    return str(caught.value)


def write(name, lines):
    with open(name, 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')


def write_columns(name, mark, cells, header=('image', 'score')):
    lines = [mark.join(header)]
    lines += [mark.join((image, *row)) for image, row in zip(NAMES, cells)]
    write(name, lines)


def write_book(name, *sheets, hidden=()):
    """An .xlsx of (title, rows) sheets."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
        if title in hidden:
            sheet.sheet_state = 'hidden'
    book.active = len(sheets) - 1
    book.save(name)


def labels(first):
    return [('image', 'score'), *((image, first + k) for k, image in enumerate(NAMES))]


@pytest.mark.parametrize('mark', ['\t', ';'])
@pytest.mark.parametrize(
    'cells',
    [
        ('987', '1,012', '998', '1,234'),
        ('100', '1,012', '1,998', '1,234'),
        ('-150', '-1,012', '1,998', '1,234'),
        ('1,234,567', '999', '1,000', '1,001'),
        ('1,012.5', '999', '1,000', '1,001'),
        ('9.87', '1,012', '1,234', '1,100'),
    ],
)
def test_thousands_are_refused_and_never_read_as_decimals(pictures, mark, cells):
    write_columns('t.txt', mark, [(cell,) for cell in cells])
    line = refusal('t.txt')
    assert 'seems to separate thousands, since line ' in line
    assert 'write numbers without such commas' in line


@pytest.mark.parametrize(
    'cells, scores',
    [
        (('1,100', '5,163', '2,000', '3,141'), [1.1, 5.163, 2, 3.141]),
        (('1,100', '99', '2,000', '3,141'), [1.1, 99, 2, 3.141]),
        (('0,512', '100', '2,000', '3,141'), [0.512, 100, 2, 3.141]),
        (('1,5', '100', '2,000', '3,141'), [1.5, 100, 2, 3.141]),
        (('1234,567', '100', '2,000', '3,141'), [1234.567, 100, 2, 3.141]),
        (('1.012', '987', '2.000', '3.141'), [1.012, 987, 2, 3.141]),
    ],
)
def test_decimals_with_a_comma_are_read(pictures, cells, scores):
    write_columns('t.csv', ';', [(cell,) for cell in cells])
    assert scores_of('t.csv') == scores


def test_the_first_visible_sheet_with_rows_is_read_and_named(pictures, capsys):
    write_book('t.xlsx', ('old', labels(1)), ('empty', []), ('new', labels(101)), hidden=('old',))
    assert scores_of('t.xlsx') == [101, 102, 103, 104]
    assert "t.xlsx: the table is its sheet 'new', and not 'old', 'empty'" in capsys.readouterr().err
    write_book('one.xlsx', ('only', labels(1)))
    assert scores_of('one.xlsx') == [1, 2, 3, 4]
    assert 'the table is its sheet' not in capsys.readouterr().err
    write_book('none.xlsx', ('old', labels(1)), ('empty', []), hidden=('old',))
    assert 'none.xlsx cannot be read as a table: none of its visible sheets has rows' in refusal(
        'none.xlsx'
    )


def test_a_cell_too_far_away_is_refused_before_memory_is_taken(pictures):
    book = openpyxl.Workbook()
    for row in labels(1):
        book.active.append(row)
    # A colour alone is no content.
    book.active['XFD1048576'].fill = openpyxl.styles.PatternFill('solid', fgColor='FF0000')
    book.save('coloured.xlsx')
    assert scores_of('coloured.xlsx') == [1, 2, 3, 4]
    book.active['XFD1048576'] = ' '
    book.save('far.xlsx')
    assert "its sheet 'Sheet' has cells up to row 1048576 and column 16384" in refusal('far.xlsx')


@pytest.mark.parametrize('formula', ['=1+0', '=A1&"0"'])
def test_a_formula_without_a_value_is_no_empty_cell(pictures, formula):
    rows = [('image', 'note', 'score'), *((name, formula, 5) for name in NAMES[:3])]
    write_book('unused.xlsx', ('labels', [*rows, (NAMES[3], formula, 6)]))
    assert scores_of('unused.xlsx') == [5, 5, 5, 6]
    write_book('used.xlsx', ('labels', [*rows, (NAMES[3], 'x', formula)]))
    line = refusal('used.xlsx')
    assert 'used.xlsx, row 5: the score is a formula without a stored value; open the file' in line
    # Such cells may be all that a row has.
    write_book('all.xlsx', ('labels', [*rows, (formula, formula, formula)]))
    assert 'row 5: the image is a formula without a stored value' in refusal('all.xlsx')


def test_whole_numbers_in_a_sheet_are_names_without_a_point(pictures):
    rows = [('image', 'score', 'content'), *((name, 2.5, 7) for name in NAMES[:3])]
    write_book('t.xlsx', ('labels', [*rows, (NAMES[3], 3, '7')]))
    database = open_table('t.xlsx')
    assert {sample.content for sample in database.samples} == {'7'}
    assert [sample.score for sample in database.samples] == [2.5, 2.5, 2.5, 3]


def test_other_formats_are_named(pictures):
    scipy.io.savemat('t.mat', {'mos': [1.0, 2.0]})
    with open('t.parquet', 'wb') as file:
        file.write(b'PAR1\x15\x04\x15\xa0')
    write('t.xls', ['<html><body><table><tr><td>image</td></tr></table></body></html>'])
    write('bare.xls', ['<table><tr><td>image</td></tr></table>'])
    with open('locked.xlsx', 'wb') as file:
        file.write(b'\xd0\xcf\x11\xe0' + bytes(500) + 'EncryptedPackage'.encode('utf-16-le'))
    for name, kind in (
        ('t.mat', 'it is a MATLAB file'),
        ('t.parquet', 'it is a Parquet file'),
        ('t.xls', 'is a web page'),
        ('bare.xls', 'it is a web page'),
        ('locked.xlsx', 'it has a password'),
    ):
        assert kind in refusal(name)


def test_a_table_without_a_header_is_called_that_and_its_columns_have_numbers(pictures):
    write('t.csv', [f'{name},0.{k},{k + 1}' for k, name in enumerate(NAMES)])
    line = refusal('t.csv')
    assert line.startswith('t.csv has no header, and no column is known as the score: ')
    assert 'columns are numbered from 1 to 3' in line
    assert scores_of('t.csv', '--columns', 'score=3') == [1, 2, 3, 4]


@pytest.mark.parametrize('header', [('image', 'score', 'score'), ('image', 'x', 'x')])
def test_the_advice_about_two_columns_of_one_name_reads_the_table(pictures, header):
    write_columns('t.csv', ',', [(str(k), str(9 - k)) for k in range(4)], header)
    chosen = ['--columns', f'score={header[1]}'] if header[1] == 'x' else []
    line = refusal('t.csv', *chosen)
    advice = line[line.index('--columns') :].removesuffix(' settles it')
    assert scores_of('t.csv', *shlex.split(advice)) == [0, 1, 2, 3]


def test_a_chosen_column_that_is_not_there_is_no_advice(pictures):
    write_columns('t.csv', ',', [(str(k),) for k in range(4)])
    for choice in ('image=nosuch', 'image=3'):
        line = refusal('t.csv', '--columns', choice)
        assert choice not in line and 'image=NAME' not in line
        assert "for the image in 'image,score'" in line and 'numbered from 1 to 2' in line


@pytest.mark.parametrize('role', ['content', 'set'])
def test_no_column_chosen_is_no_column_without_a_name(pictures, role):
    # A first row with an empty cell is an image, and no header.
    write('bare.csv', [f'{name},{k + 1},' for k, name in enumerate(NAMES)])
    options = ('--columns', 'image=1', 'score=2', f'{role}=')
    assert scores_of('bare.csv', *options) == [1, 2, 3, 4]
    # The index that pandas writes has no name.
    write('pandas.csv', [',image,score', *(f'{k // 2},{n},{k}' for k, n in enumerate(NAMES))])
    database = open_table('pandas.csv', '--columns', f'{role}=')
    assert len({sample.content for sample in database.samples}) == 4
    assert {sample.official_set for sample in database.samples} == {''}


def test_blanks_between_columns_with_a_header_are_read(pictures):
    for header in ('image    score', 'Image MOS', 'img_name dmos'):
        write('t.txt', [header, *(f'{name:8} {k + 1}' for k, name in enumerate(NAMES))])
        assert scores_of('t.txt') == [1, 2, 3, 4]
    write('t.txt', ['image quality', *(f'{name} {k + 1}' for k, name in enumerate(NAMES))])
    assert 'or separate all cells by commas or tabs' in refusal('t.txt')
    # One name with a space, in a list of names, is one column.
    write('list.txt', ['image name', *NAMES])
    assert [row.cells for row in read_rows('list.txt')] == [['image name'], *([n] for n in NAMES)]


def test_an_odd_space_behind_a_missing_name_is_shown(pictures):
    write_columns('t.csv', ',', [(str(k),) for k in range(4)])
    text = (pictures / 't.csv').read_text().replace('3.png', '3.png\u00a0')
    (pictures / 't.csv').write_text(text, encoding='utf-8')
    assert r'3.png\xa0 (line 5)' in refusal('t.csv')


def test_a_number_beyond_32_bits_is_one_line_without_a_warning(pictures):
    for number in ('1e39', '-1e39', '1e400', 'nan'):
        write_columns('t.csv', ',', [(number,), ('1',), ('2',), ('3',)])
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert f"the score '{number}' is not a number that fits in 32 bits" in refusal('t.csv')
    write_columns('t.csv', ',', [('3.4e38',), ('1',), ('2',), ('3',)])
    assert scores_of('t.csv')[0] == 3.4e38


def test_a_list_of_row_numbers_alone_has_no_parts(pictures):
    write_columns('t.csv', ',', [(str(k),) for k in range(4)])
    np.save('x.npy', np.arange(3))
    config = parse_options(['--csv', 't.csv', '--split', 'x.npy', '--device', 'cpu'])
    database = folders.OpenDatabase('csv', config.data_root, settings=Settings.of(config))
    with pytest.raises(InputError, match='x.npy lists the images of one part only; give train='):
        draw_splits(config, database)


def test_the_advice_about_a_database_of_test_on_does_not_name_data_root(program, tmp_path):
    own_images(tmp_path)
    own_table(tmp_path / 'other', 'image,score\nx.png,1\ny.png,2\n', images=())
    for asked, advice in (
        ('livec=absent', '--test_on livec=DIR names another place'),
        ('csv=other/mine.csv', 'a relative name starts at other/. '),
    ):
        done = program('--csv', 'mine/labels.csv', '--test_on', asked)
        assert done.returncode == 2 and '--data_root' not in done.stderr
        assert advice in done.stderr


def cache_files(folder):
    return sorted(path.name for path in (folder / '.hyperiqa_cache').glob('*.frames'))


def test_each_image_column_of_a_table_has_a_cache(pictures, capsys):
    header = ('image', 'sharp', 'score')
    cells = [(image, str(k)) for k, image in enumerate(reversed(NAMES))]
    write_columns('t.csv', ',', cells, header)
    for _ in range(2):
        for column in ('image', 'sharp'):
            open_table('t.csv', '--columns', f'image={column}').open_frames(224)
    assert capsys.readouterr().err.count('decoding') == 2
    assert len(cache_files(pictures)) == 2


def test_pictures_that_moved_are_not_decoded_again(pictures, capsys):
    write_columns('t.csv', ',', [(str(k),) for k in range(4)])
    for place in ('here', 'there'):
        os.mkdir(place)
        for name in NAMES:
            os.replace(name if place == 'here' else f'here/{name}', f'{place}/{name}')
        open_table('t.csv', '--data_root', place).open_frames(224)
    assert capsys.readouterr().err.count('decoding') == 1
    # The order of the rows is no change of an image.
    lines = (pictures / 't.csv').read_text().splitlines()
    write('t.csv', [lines[0], *reversed(lines[1:])])
    open_table('t.csv', '--data_root', 'there').open_frames(224)
    assert 'changed' not in capsys.readouterr().err
    assert len(cache_files(pictures)) == 1


def test_an_xlsx_of_a_program_that_writes_prefixes_is_read(pictures):
    """Some programs write <x:c> and <x:f> in place of <c> and <f>."""
    cells = (
        b'<x:c r="A1"><x:v>1</x:v></x:c><x:c r="AB2"><x:f>A1</x:f><x:v /></x:c>'
        b'<x:c r="B3" t="str"><x:f>""</x:f><x:v></x:v></x:c><x:c r="B4"><x:f>A1</x:f>'
        b'<x:v>0</x:v></x:c><x:c r="B5" s="1"><x:f t="shared" si="0"/></x:c>'
    )
    assert formulas_without_value(cells) == [(2, 28), (5, 2)]
    with pytest.raises(ValueError, match='row 999999 and column 28'):
        refuse_too_large('x', cells + b'<x:c r="A999999"></x:c>')
