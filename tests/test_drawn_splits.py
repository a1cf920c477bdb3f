"""What each round trains and tests on: drawn from the seed, official, or taken from another run."""

import shutil
from types import SimpleNamespace

import pytest
from helpers import own_images

import folders
from experiment.command_line import parse_options
from experiment.splits import draw_split, draw_splits, read_split, requested_splits
from util import demo_database, files
from util.errors import InputError


def split_config(dataset, root, **options):
    return SimpleNamespace(
        **{
            'dataset': dataset,
            'data_root': str(root),
            'split': 'random',
            'seed': 0,
            'val_ratio': 0,
            'train_test_num': 2,
            'train_on_all': False,
            'columns': None,
            **options,
        }
    )


def drawn(dataset, root, **options):
    """Names of the images in each part, for each round."""
    database = folders.OpenDatabase(dataset, root)
    splits = draw_splits(split_config(dataset, root, **options), database)
    return [{part: database.names(split[part]) for part in split} for split in splits]


def test_the_official_split_is_that_of_the_labels(make_database):
    root = make_database('koniq_sets')
    file = root / 'koniq10k_distributions_sets.csv'
    file.write_text(
        file.read_text().replace('training', 'validation', 1)
    )  # two of each part or more
    database = folders.OpenDatabase('koniq', root)
    first, second = drawn('koniq', root, split='official')
    assert (
        first
        == second
        == {
            part: database.names(
                k for k, sample in enumerate(database.samples) if sample.official_set == part
            )
            for part in ('train', 'val', 'test')
        }
    )
    assert first['train'] and first['val'] and first['test']
    with pytest.raises(InputError, match='--split official: LIVE Challenge has no official sets'):
        drawn('livec', make_database('livec', images=10), split='official')


def test_a_split_of_another_run_is_taken_as_it_is(make_database, tmp_path):
    root = make_database('livec', images=10)
    _, second = drawn('livec', root)
    files.write_json(tmp_path / 'split.json', second)
    assert drawn('livec', root, split=str(tmp_path / 'split.json')) == [second, second]
    for change, reason in (
        ({'train': ['Images/none.bmp']}, 'names 1 images that are not in .*none.bmp'),
        ({'val': second['test'][:1]}, 'twice; an image belongs to one part'),
        (
            {'test': []},
            'in round 1, the test part needs two different scores for an SRCC .images: 0',
        ),
    ):
        files.write_json(tmp_path / 'changed.json', {**second, **change})
        with pytest.raises(InputError, match=reason):
            drawn('livec', root, split=str(tmp_path / 'changed.json'))
    with pytest.raises(InputError, match='there is no file .*absent.json'):
        drawn('livec', root, split=str(tmp_path / 'absent.json'))


def test_a_seed_gives_the_same_names_wherever_and_in_whatever_order_the_files_lie(
    make_database, tmp_path
):
    root = make_database('tid2013')
    label_file = root / 'mos_with_names.txt'
    other = tmp_path / 'deep' / 'er' / 'copy'
    (other / 'distorted_images').mkdir(parents=True)
    for path in sorted((root / 'distorted_images').iterdir(), reverse=True):
        shutil.copy(path, other / 'distorted_images' / path.name)
    shutil.copy(label_file, other)
    database, same = folders.OpenDatabase('tid2013', root), folders.OpenDatabase('tid2013', other)
    config = split_config('tid2013', root, seed=3)
    splits = [requested_splits(config, each)[1][0] for each in (database, same)]
    assert [database.names(images) for images in splits[0].values()] == [
        same.names(images) for images in splits[1].values()
    ]
    assert requested_splits(split_config('tid2013', root, seed=4), database)[1][0] != splits[0]


def test_contents_of_ones_own_stay_together_and_sets_fix_the_split(tmp_path):
    contents = [f'scene{k // 2}' for k in range(10)]
    file = own_images(tmp_path, content=contents)
    for split in drawn('csv', file, val_ratio=0.25):
        scenes = [
            {contents[int(name.removesuffix('.png'))] for name in split[part]}
            for part in ('train', 'val', 'test')
        ]
        assert len(set.union(*scenes)) == sum(map(len, scenes)) == 5 and all(scenes)
    sets = ['test', 'test', 'val', 'val', *['train'] * 6]
    file = own_images(tmp_path, content=contents, set=sets)
    parts = {
        'test': ['0.png', '1.png'],
        'val': ['2.png', '3.png'],
        'train': [f'{k}.png' for k in range(4, 10)],
    }
    assert drawn('csv', file, split=None)[0] == parts == drawn('csv', file, split='official')[0]
    assert drawn('csv', file, split='random')[0] != parts
    with pytest.raises(InputError, match='--val_ratio: the sets in .* already name'):
        drawn('csv', file, split=None, val_ratio=0.2)


def test_splits_take_80_percent_differ_by_round_and_never_cut_through_a_content(tmp_path):
    demo_database.generate(tmp_path / 'demo')
    database = folders.OpenDatabase('demo', tmp_path / 'demo')
    samples, units = database.samples, database.units
    assert len(samples) == demo_database.IMAGES and len(units) == demo_database.SCENES
    for val_ratio, sizes in ((0, [32, 0, 8]), (0.25, [24, 8, 8])):
        split = draw_split(len(units), 0, 0, val_ratio)
        contents = [
            {samples[k].content for unit in split[part] for k in units[unit]}
            for part in ('train', 'val', 'test')
        ]
        assert [len(part) for part in contents] == sizes and len(set.union(*contents)) == 40
    assert draw_split(20, 0, 0, 0) == draw_split(20, 0, 0, 0)
    assert draw_split(20, 0, 1, 0) != draw_split(20, 0, 0, 0) != draw_split(20, 1, 0, 0)
    assert draw_split(10073, 0, 0, 0)['train'][:4] == [
        5092,
        3941,
        4806,
        8181,
    ]  # the same on every machine


@pytest.mark.parametrize('units, val_ratio', [(1, 0), (2, 0.1), (0, 0)])
def test_too_few_images_to_split(units, val_ratio):
    with pytest.raises(InputError, match=f'{units} images or contents are too few'):
        draw_split(units, 0, 0, val_ratio)


def test_the_missing_file_of_official_sets_and_the_missing_round_are_named(make_database, tmp_path):
    database = folders.OpenDatabase('koniq', make_database('koniq'))
    config = parse_options(['--dataset', 'koniq', '--split', 'official', '--device', 'cpu'])
    with pytest.raises(
        InputError,
        match='the sets are named by koniq10k_distributions_sets.csv, which .* does not have',
    ):
        requested_splits(config, database)
    for number in ('1', '2'):
        (tmp_path / 'splits' / number).mkdir(parents=True)
        for part in ('train', 'test'):
            (tmp_path / 'splits' / number / f'{part}.txt').write_text('')
    with pytest.raises(InputError, match='splits is for 2 rounds; --train_test_num 2 runs those'):
        read_split(tmp_path / 'splits', database, 3)
