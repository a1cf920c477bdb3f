"""Votes are averaged and distortion types known; both reach predictions.csv and results.json."""

import re
import statistics

import databases
import numpy as np
import pytest
from helpers import PROJECT, QUICK, own_table, read_table

from experiment.results import read_predictions, write_predictions
from experiment.results import statistics as of_rounds
from experiment.splits import read_split
from folders import OpenDatabase
from util.errors import InputError
from util.files import read_json
from util.labels import Settings
from util.metrics import TestedImages, by_type, srcc

VOTES = {f'{k:02d}.png': [10.0 * k + vote for vote in range(1 + k % 3)] for k in range(20)}
TYPES = {name: 'noise' if name < '05' else 'blur' for name in VOTES}


def table_of_votes(root, more=()):
    """mine.csv: a row for each vote, one observer after the other, with each image's distortion."""
    lines = ['image,vote,kind']
    for k in range(3):
        for name, votes in VOTES.items():
            if k < len(votes):
                lines.append(f'{name},{votes[k]},{TYPES[name]}')
    return own_table(root, '\n'.join([*lines, *more]) + '\n', images=VOTES)


COLUMNS = {'score': 'vote', 'type': 'kind'}


def test_votes_are_averaged_whatever_their_order(tmp_path):
    table = table_of_votes(tmp_path)
    database = OpenDatabase('csv', table, None, Settings(COLUMNS, average_votes=True))
    found = dict(zip(database.all_names, database.samples))
    assert list(found) == list(VOTES) and [sample.row for sample in database.samples] == list(
        range(20)
    )
    for name, votes in VOTES.items():
        deviation = statistics.stdev(votes) if len(votes) > 1 else ''
        assert found[name].score == sum(votes) / len(votes)
        assert found[name].facts == {
            'type': TYPES[name],
            'votes': len(votes),
            'deviation': deviation,
        }
    header, *rows = table.read_text().splitlines()
    table.write_text('\n'.join([header, *rows[:20], *reversed(rows[20:])]) + '\n')
    again = OpenDatabase('csv', table, None, Settings(COLUMNS, average_votes=True))
    assert again.digest == database.digest


@pytest.mark.parametrize(
    'settings, more, message',
    [
        (
            {},
            (),
            '00.png is on line 2 already; '
            'remove one of the two, or give --average_votes where each row is a vote',
        ),
        (
            {'average_votes': True},
            ['00.png,3,blur'],
            '00.png has another content, set or type than on line 2',
        ),
        ({'average_votes': True}, ['00.png,good,noise'], "the score 'good' is not a number"),
    ],
)
def test_rows_that_are_no_votes_are_refused(tmp_path, settings, more, message):
    table = table_of_votes(tmp_path, more or ['00.png,3,noise'])
    if not settings:
        lines = [line for line in table.read_text().splitlines() if not re.match('0[1-9]|1', line)]
        table.write_text('\n'.join(lines) + '\n')
    with pytest.raises(InputError, match=rf'mine\.csv, line \d+: .*{re.escape(message)}'):
        OpenDatabase('csv', table, None, Settings(COLUMNS, **settings))


def test_votes_do_not_hide_a_column_of_references(tmp_path, capsys):
    databases.pictures(tmp_path, ['s1_a.png', 's1_b.png', 's2_a.png'])
    rows = ['s1_a.png,1,s1', 's1_b.png,2,s1', 's1_a.png,2,s1', 's2_a.png,3,s2', 's2_a.png,4,s2']
    (tmp_path / 'mine.csv').write_text('\n'.join(['image,score,start', *rows]) + '\n')
    OpenDatabase('csv', tmp_path / 'mine.csv', None, Settings(average_votes=True))
    printed = capsys.readouterr().err
    assert "the column 'start' of" in printed and 'looks like the reference' in printed
    assert 'the scores are the means of 5 votes for 3 images' in printed


@pytest.mark.parametrize(
    'key, maker, types',
    [
        ('live', 'live', {'jp2k', 'jpeg', 'wn', 'gblur'}),
        ('csiq', 'csiq', {'AWGN', 'jpeg2000'}),
        ('csiq', 'csiq_folders', set(databases.CSIQ_FILES.values())),
        ('csiq', 'csiq_sheet', set(databases.CSIQ_FILES.values())),
        ('tid2013', 'tid2013', {'01', '05', '03', '24', '08'}),
        ('kadid10k', 'kadid10k', {'01', '25'}),
    ],
)
def test_the_type_is_known_by_the_name(make_database, key, maker, types):
    database = OpenDatabase(key, make_database(maker))
    assert {sample.facts['type'] for sample in database.samples} == types
    for sample in database.samples:
        assert re.search(rf'(^|[/._]){sample.facts["type"]}[/._]', sample.path)


def test_the_type_of_the_demo_is_known(tmp_path):
    names = ['scene01_blur_1.png', 'scene01_lowres_4.png']
    databases.pictures(tmp_path / 'demo', names)
    databases.write_csv(
        tmp_path / 'demo' / 'labels.csv',
        ['image', 'score', 'content'],
        [[name, k, 's'] for k, name in enumerate(names)],
    )
    assert OpenDatabase('demo', tmp_path / 'demo').facts([1, 0]) == {'type': ['lowres', 'blur']}


def test_the_table_of_votes_may_be_the_split_too(tmp_path):
    databases.pictures(tmp_path, ['a.png', 'b.png'])
    rows = ['a.png,1,train', 'b.png,2,test', 'a.png,2,train', 'b.png,4,test']
    (tmp_path / 'mine.csv').write_text('\n'.join(['image,score,fold', *rows]) + '\n')
    database = OpenDatabase('csv', tmp_path / 'mine.csv', None, Settings(average_votes=True))
    columns = {'set': 'fold'}
    assert read_split(str(tmp_path / 'mine.csv'), database, 1, columns) == {
        'train': [0],
        'val': [],
        'test': [1],
    }
    (tmp_path / 'other.csv').write_text(
        '\n'.join(['image,set', 'a.png,train', 'b.png,test', 'a.png,test']) + '\n'
    )
    with pytest.raises(InputError, match='names a.png twice; an image belongs to one part'):
        read_split(str(tmp_path / 'other.csv'), database)


def some_images(types, seed=0):
    rng = np.random.RandomState(seed)
    names = [f'{k}.png' for k in range(len(types))]
    return TestedImages(names, names, rng.rand(len(types)), rng.rand(len(types)), {'type': types})


def test_srcc_by_type_is_over_the_rounds_that_have_it():
    rounds = [
        some_images(['a', 'b', 'a', 'b', 'a', 'b', 'a', 'c', 'c'], seed) for seed in range(2)
    ] + [some_images(['a'] * 5, 2)]
    results = [{'SRCC': 0.5, **by_type(images)} for images in rounds]
    assert [sorted(result['types']) for result in results] == [
        ['a', 'b'],
        ['a', 'b'],
        ['a'],
    ]  # c: of two images
    of_a = [slice(0, 7, 2), slice(0, 7, 2), slice(0, 5)]
    values = [
        srcc(images.predicted[part], images.subjective[part]) for images, part in zip(rounds, of_a)
    ]
    assert [result['types']['a'] for result in results] == [
        {'images': count, 'SRCC': value} for count, value in zip((4, 4, 5), values)
    ]
    summary = of_rounds(results)
    assert summary['median']['types']['a'] == {'SRCC': np.median(values)}
    assert summary['std']['types']['a'] == {'SRCC': np.std(values)}
    assert summary['mean']['types']['b']['SRCC'] == pytest.approx(
        np.mean([r['types']['b']['SRCC'] for r in results[:2]])
    )
    assert by_type(some_images([])) == {} and by_type(rounds[0]._replace(facts={})) == {}


def test_predictions_keep_further_columns(tmp_path):
    images = some_images(['a', 'b'])
    write_predictions(tmp_path / 'p.csv', images)
    assert read_predictions(tmp_path / 'p.csv').facts == images.facts
    assert list(read_table(tmp_path / 'p.csv')[0]) == [
        'image',
        'content',
        'score',
        'prediction',
        'type',
    ]


@pytest.mark.slow
def test_a_run_on_votes_reports_them(program, make_database, tmp_path):
    table_of_votes(tmp_path / 'own')
    make_database('tid2013')
    table = ('--csv', 'own/mine.csv', '--columns', 'score=vote', 'type=kind')
    names = list(VOTES)
    for part, listed in (('train', names[:4]), ('test', names[4:9])):
        (tmp_path / f'{part}.txt').write_text('\n'.join(listed))
    split = ('--split', 'train=train.txt', 'test=test.txt')
    options = (*QUICK, '--epochs', 1, *split, '--output', 'run', '--test_on', 'tid2013=tid2013')
    refused = program(*table, *options)
    assert refused.returncode == 2 and 'give --average_votes' in refused.stderr
    done = program(*table, '--average_votes', *options)
    assert done.returncode == 0, done.stderr
    rows = read_table(tmp_path / 'run' / 'round_01' / 'predictions.csv')
    assert list(rows[0]) == [
        'image',
        'content',
        'score',
        'prediction',
        'type',
        'votes',
        'deviation',
    ]
    for row in rows:
        votes = VOTES[row['image']]
        assert float(row['score']) == sum(votes) / len(votes) and int(row['votes']) == len(votes)
        assert row['deviation'] == ('' if len(votes) == 1 else repr(statistics.stdev(votes)))
    results = read_json(tmp_path / 'run' / 'results.json')
    others = read_table(tmp_path / 'run' / 'round_01' / 'predictions_tid2013.csv')
    assert {row['type'] for row in others} == {'01', '03', '05', '08', '24'}
    values = [
        (float(row['prediction']), float(row['score'])) for row in rows if row['type'] == 'blur'
    ]
    of_types = {
        'blur': {'images': 4, 'SRCC': pytest.approx(srcc(*zip(*values)))}
    }  # of noise there is one image
    assert results['rounds']['1']['types'] == of_types
    assert results['median']['types']['blur'] == {'SRCC': of_types['blur']['SRCC']}
    again = program('--evaluate', 'run/round_01/best.pth')
    assert again.returncode == 0, again.stderr
    [evaluation] = (tmp_path / 'evaluations').iterdir()
    assert (evaluation / 'predictions.csv').read_text() == (
        tmp_path / 'run' / 'round_01' / 'predictions.csv'
    ).read_text()


def test_the_table_of_the_docs_is_that_of_the_results():
    folders = sorted((PROJECT / 'benchmarks' / 'results' / 'demo' / 'repaired').glob('round_*'))
    summary = of_rounds([read_json(folder / 'result.json') for folder in folders])
    docs = (PROJECT / 'docs' / 'results.md').read_text()
    for kind in ('blur', 'defocus', 'lowres'):
        median, deviation = (summary[of]['types'][kind]['SRCC'] for of in ('median', 'std'))
        assert f'| {kind} | {median:.3f} | {deviation:.3f} |\n' in docs
