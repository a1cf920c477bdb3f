"""Every form in which people write a split down is read, and names the same images."""

import json

import databases
import numpy as np
import pytest
from helpers import LIVEC, read_table

import folders
from experiment.command_line import parse_options
from experiment.splits import draw_splits, read_split, requested_splits
from util.errors import InputError

NAMES = [f'I{content:02d}_{k:02d}.png' for content in (1, 2, 3) for k in (1, 2)]
EXPECTED = {'train': [4, 0, 1], 'val': [2], 'test': [5, 3]}


@pytest.fixture
def database(tmp_path):
    """Six KADID-10k images of three references."""
    databases.copies(tmp_path / 'kadid' / 'images', NAMES)
    rows = [[name, name[:3] + '.png', 1 + k, 0.5] for k, name in enumerate(NAMES)]
    databases.write_csv(
        tmp_path / 'kadid' / 'dmos.csv', ['dist_img', 'ref_img', 'dmos', 'var'], rows
    )
    return folders.OpenDatabase('kadid10k', tmp_path / 'kadid')


def named(part, form='{}'):
    return [form.format(NAMES[k]) for k in EXPECTED[part]]


def run_of_this_project(root):
    content = {part: named(part, 'images/{}') for part in EXPECTED}
    (root / 'split.json').write_text(json.dumps(content))
    return root / 'split.json'


def from_one_folder_up_and_in_another_case(root):
    content = {part: named(part, 'data/KADID10k/Images/{}') for part in EXPECTED}
    (root / 'split.json').write_text(
        json.dumps(content)
        .upper()
        .replace('"TRAIN"', '"train"')
        .replace('"VAL"', '"val"')
        .replace('"TEST"', '"test"')
    )
    return root / 'split.json'


def liqe(root, rounds='123'):
    """A folder for each round; no header, a tab, paths below the folder of all databases."""
    for number in rounds:
        (root / 'splits' / number).mkdir(parents=True)
        for part in EXPECTED:
            lines = [f'kadid10k/images/{name}\t3.2\t0.4\tI01.png' for name in named(part)]
            (root / 'splits' / number / f'kadid10k_{part}.txt').write_text(
                '\r\n'.join(lines) + '\r\n'
            )
    return root / 'splits'


def liqe_by_its_pattern(root):
    return liqe(root) / '{round}'


def arniqa(root):
    """Row numbers of the label file, a row of the array for each round, padded with -1."""
    for part, rows in EXPECTED.items():
        np.save(root / f'{part}.npy', np.array([rows + [-1] * (4 - len(rows))] * 3))
    return root


def table(root, column='set', images='image_name'):
    words = {'train': 'training', 'val': 'validation', 'test': 'test'}
    rows = [[k, NAMES[k], words[part]] for part in EXPECTED for k in EXPECTED[part]]
    databases.write_csv(root / 'table.csv', ['', images, column], rows)
    return root / 'table.csv'


def official_split_table(root):
    return table(root, 'Official_Split', 'filename')


def numbered_table(root):
    rows = [[NAMES[k], part, 'train'] for part in EXPECTED for k in EXPECTED[part]]
    columns = ['img_name', 'ratio802_seed123_split_01', 'ratio802_seed123_split_02']
    databases.write_csv(root / 'table.csv', columns, rows)
    return root / 'table.csv'


def lists(root):
    """A text file of names, a CSV file with a header, and JSON records."""
    (root / 'a.txt').write_text('\n'.join(named('train')) + '\n')
    databases.write_csv(root / 'b.csv', ['image', 'score'], [[name, 3] for name in named('val')])
    (root / 'c.json').write_text(
        json.dumps([{'img_path': name, 'gt_score': 3.5} for name in named('test', 'x/y/{}')])
    )
    return [f'train={root}/a.txt', f'val={root}/b.csv', f'test={root}/c.json']


def q_align(root):
    for part in EXPECTED:
        records = [
            {'id': f'{k}', 'image': name}
            for k, name in enumerate(named(part, 'kadid10k/images/{}'))
        ]
        (root / f'{part}_kadid.json').write_text(json.dumps(records))
    return root


def names_and_scores(root):
    for part in EXPECTED:
        (root / f'{part}.txt').write_text(''.join(f'{name} 3.5\n' for name in named(part)))
    return [f'{part}={root}/{part}.txt' for part in EXPECTED]


FORMS = [
    run_of_this_project,
    from_one_folder_up_and_in_another_case,
    liqe,
    liqe_by_its_pattern,
    arniqa,
    table,
    official_split_table,
    numbered_table,
    lists,
    q_align,
    names_and_scores,
]


@pytest.mark.parametrize('form', FORMS, ids=lambda form: form.__name__)
def test_every_form_of_a_split(database, tmp_path, form):
    (tmp_path / 'there').mkdir()
    asked = form(tmp_path / 'there')
    assert read_split(asked if isinstance(asked, list) else str(asked), database) == EXPECTED


def drawn(database, *options):
    config = parse_options(['--dataset', 'kadid10k', '--device', 'cpu', *map(str, options)])
    return requested_splits(config, database)[1]


def test_each_round_has_its_own_split_where_the_path_or_the_array_says_so(
    database, tmp_path, capsys
):
    folder = liqe(tmp_path)
    (folder / '2' / 'kadid10k_train.txt').write_text(NAMES[0] + '\n')
    expected = [EXPECTED, {**EXPECTED, 'train': [0]}, EXPECTED]
    assert drawn(database, '--train_test_num', 3, '--split', folder) == expected
    parts = [f'{part}={folder}/{{round}}/kadid10k_{part}.txt' for part in EXPECTED]
    assert drawn(database, '--train_test_num', 3, '--split', *parts) == expected
    rows = np.array([[0, 1, 2], [0, -1, -1]])
    np.save(tmp_path / 'train.npy', rows)
    np.save(tmp_path / 'test.npy', np.array([5, 3]))
    parts = [f'train={tmp_path}/train.npy', f'test={tmp_path}/test.npy']
    assert [
        split['train'] for split in drawn(database, '--train_test_num', 2, '--split', *parts)
    ] == [[0, 1, 2], [0]]
    assert 'one split for all' not in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r'train.npy is for 2 rounds; --train_test_num 2 runs those'
    ):
        drawn(database, '--train_test_num', 3, '--split', *parts)


def test_one_split_for_many_rounds_and_shared_contents_are_said(database, tmp_path, capsys):
    files = [f'{part}={tmp_path}/{part}.txt' for part in ('train', 'test')]
    for part, images in (('train', [0, 1, 4]), ('test', [2, 3, 5])):
        (tmp_path / f'{part}.txt').write_text('\n'.join(NAMES[k] for k in images))
    options = [
        '--dataset',
        'kadid10k',
        '--device',
        'cpu',
        '--train_test_num',
        '3',
        '--split',
        *files,
    ]
    draw_splits(parse_options(options), database)
    err = capsys.readouterr().err
    assert 'test.txt: one split for all 3 rounds' in err
    assert "warning: 1 contents are in train and in test, the first is 'I03.png'" in err


def test_the_set_column_can_be_named(database, tmp_path):
    file = table(tmp_path, 'fold')
    with pytest.raises(
        InputError, match=r'table.csv, line 1: no column is the set in .* --columns set=NAME'
    ):
        drawn(database, '--split', file)
    assert drawn(database, '--split', file, '--columns', 'set=fold', '--train_test_num', 1) == [
        EXPECTED
    ]


@pytest.mark.parametrize(
    'name, content, reason',
    [
        (
            'train.txt',
            'x.png\ny.png\n',
            r'names 2 images that are not in .*kadid, the first of them x.png, y.png',
        ),
        (
            'train.txt',
            f'{NAMES[0]}\n{NAMES[5]}\n',
            'names I03_02.png twice; an image belongs to one part',
        ),
        ('train.json', '{"image": 3}', 'train.json cannot be read as JSON: it has no list'),
        (
            'train.json',
            '[{"name": 3}]',
            r'train.json cannot be read as JSON: a record has no "image" or "img_path"',
        ),
        ('train.json', '[', r'train.json cannot be read as JSON'),
        ('train.csv', '<!DOCTYPE html>', 'train.csv is a web page'),
        ('train.npy', b'\x93NUMPY nothing', 'train.npy cannot be read as a NumPy array'),
        (
            'train.npy',
            np.array([0.5]),
            r'train.npy cannot .*: '
            r'row numbers are integers in the shape \(n,\) or \(rounds, n\), not float64',
        ),
        (
            'train.npy',
            np.array([0, 6]),
            r'train.npy names 1 images that are not in .*, the first of them 6',
        ),
        (
            'train.npy',
            np.array([{}], object),
            'train.npy cannot be read as a NumPy array of numbers: Object arrays cannot be',
        ),
    ],
)
def test_faults_in_a_list_are_named(database, tmp_path, name, content, reason):
    folder = tmp_path / 'there'
    folder.mkdir()
    (folder / 'test.txt').write_text('\n'.join(named('test')))
    if isinstance(content, np.ndarray):
        np.save(folder / name, content)
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=reason) as caught:
        drawn(database, '--split', folder)
    assert '\n' not in str(caught.value)


def test_a_name_that_fits_several_images_is_refused(make_database, tmp_path):
    databases.pictures(tmp_path / 'own', ['x/1.png', 'y/1.png', '2.png'])
    (tmp_path / 'own' / 'mine.csv').write_text('image,score\nx/1.png,1\ny/1.png,2\n2.png,3\n')
    database = folders.OpenDatabase('csv', tmp_path / 'own' / 'mine.csv')
    for name, expected in (('far/x/1.png', [0]), ('far\\Y\\1.PNG', [1])):
        (tmp_path / 'list.txt').write_text(name)
        assert read_split([f'train={tmp_path}/list.txt'], database)['train'] == expected
    (tmp_path / 'list.txt').write_text('1.png')
    with pytest.raises(
        InputError,
        match=r'list.txt names 1 images .*1.png; a name that fits several images counts as none',
    ):
        read_split([f'train={tmp_path}/list.txt'], database)


def test_a_split_reads_no_pickle(database, tmp_path):
    (tmp_path / 'split.pkl').write_bytes(
        b'\x80\x04cos\nsystem\n(Vtouch ' + bytes(tmp_path / 'ran') + b'\ntR.'
    )
    with pytest.raises(InputError, match=r'split.pkl cannot be read as a table'):
        drawn(database, '--split', tmp_path / 'split.pkl')
    with pytest.raises(InputError, match=r'split.npy cannot be read as a NumPy array'):
        (tmp_path / 'split.pkl').rename(tmp_path / 'split.npy')
        drawn(database, '--split', f'train={tmp_path}/split.npy')
    assert not (tmp_path / 'ran').exists()


def test_rows_stay_the_label_files_where_images_are_left_out(tmp_path):
    from util.labels import Settings

    databases.pictures(tmp_path, ['a.png', 'c.png', 'd.png'])
    (tmp_path / 'mine.csv').write_text('image,score\na.png,1\nb.png,2\nc.png,3\nd.png,4\n')
    database = folders.OpenDatabase(
        'csv', tmp_path / 'mine.csv', settings=Settings(skip_missing=True)
    )
    np.save(tmp_path / 'train.npy', [3, 1])
    (tmp_path / 'test.txt').write_text('b.png\nc.png\n')
    split = read_split([f'train={tmp_path}/train.npy', f'test={tmp_path}/test.txt'], database)
    assert split == {'train': [2], 'val': [], 'test': [1]}


def test_a_split_of_the_large_koniq_fits_the_small_one(make_database):
    database = folders.OpenDatabase('koniq', make_database('koniq_sets'))
    assert database.names([0]) == ['512x384/826373.jpg']
    file = database.path / 'split.json'
    file.write_text(
        json.dumps({'train': ['1024x768/826374.jpg'], 'test': ['koniq/1024x768/826373.jpg']})
    )
    assert read_split(file, database) == {'train': [1], 'val': [], 'test': [0]}


@pytest.mark.slow
def test_images_that_are_left_out_are_listed_in_the_run_folder(in_process, make_database, tmp_path):
    import train_test_IQA

    make_database('livec', images=10)
    next((tmp_path / 'livec' / 'Images').glob('5.*')).unlink()
    options = (*LIVEC, '--epochs', 1, '--output', 'run')
    assert '--skip_missing leaves them out' in in_process(train_test_IQA.main, *options).stderr
    done = in_process(train_test_IQA.main, *options, '--skip_missing')
    assert done.returncode == 0, done.stderr
    rows = read_table(tmp_path / 'run' / 'left_out.csv')
    assert rows == [
        {
            'image': 'Images/5.bmp',
            'row': 'entry 10',
            'reason': 'there is no file livec/Images/5.bmp',
        }
    ]
    assert '1 of 10 listed images are left out, the first is Images/5.bmp' in done.stderr
