"""The patches depend only on the seed, and a batch holds exactly the pixels of the drawn crops."""

import databases
import numpy as np
import pytest
import torch
from helpers import open_database
from PIL import Image
from torchvision import transforms

import folders
from data_loader import BATCHES_AHEAD, DataLoader, draw_patches
from util.errors import InputError


def batches(
    root, name='livec', index=(0, 1, 2, 3), patch_num=2, batch_size=3, epoch=None, **options
):
    loader = DataLoader(name, root, index, 224, patch_num, batch_size, **options).get_data()
    if epoch is not None:
        loader.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second) for a, b in zip(one, two)
    )


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('cache', [None, 'none'])
def test_a_batch_is_the_original_transform_of_the_drawn_crops(make_database, cache, workers):
    root = make_database('koniq', images=3)
    database = open_database('koniq', root, cache)
    loader = DataLoader(
        'koniq', database, [2, 0, 1], 224, 3, 4, seed=1, num_workers=workers
    ).get_data()
    samples = folders.read_labels('koniq', root).samples
    resize = transforms.Resize((512, 384))
    finish = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    expected = []
    for image, top, left, flip in zip(*loader.patches):
        patch = transforms.functional.crop(
            resize(Image.open(samples[(2, 0, 1)[image]].path)), top, left, 224, 224
        )
        expected.append(finish(transforms.functional.hflip(patch) if flip else patch))
    got = list(loader)
    assert [len(scores) for _, scores in got] == [4, 4, 1] and len(loader) == 3
    torch.testing.assert_close(
        torch.cat([patches for patches, _ in got]), torch.stack(expected), rtol=0, atol=1e-6
    )
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([scores for _, scores in got]).tolist() == [
        samples[(2, 0, 1)[k]].score for k in loader.patches.image
    ]
    assert loader.patches.flip.any() and not loader.patches.flip.all()


def test_a_path_and_an_open_database_give_the_same_batches(make_database):
    """The call of the original: DataLoader(dataset, path, img_indx, patch_size, patch_num)."""
    root = make_database('livec')
    by_path = DataLoader('livec', root, [2, 0], 224, 2)
    by_database = DataLoader('livec', open_database('livec', root), [2, 0], 224, 2)
    assert same(list(by_path.get_data()), list(by_database.get_data()))
    assert by_path.scores.tolist() == [110, 90]


def test_a_batch_knows_its_rows_and_its_size(make_database):
    loader = DataLoader('livec', make_database('livec'), [0, 1, 2], 224, 1, 2)
    found = list(loader.batches())
    assert [(batch.rows, batch.size) for batch in found] == [(slice(0, 2), 2), (slice(2, 3), 1)]
    assert same([(batch.patches, batch.scores) for batch in found], list(loader))


def test_patches_depend_on_seed_round_and_epoch_and_not_on_workers(make_database):
    root = make_database('livec')
    reference = batches(root, seed=1, round_index=2, epoch=3, num_workers=0)
    for workers in (1, 2, 5):
        assert same(reference, batches(root, seed=1, round_index=2, epoch=3, num_workers=workers))
    assert not same(reference, batches(root, seed=2, round_index=2, epoch=3))
    assert not same(reference, batches(root, seed=1, round_index=1, epoch=3))
    assert not same(reference, batches(root, seed=1, round_index=2, epoch=2))


def test_test_patches_come_image_by_image_unflipped_and_are_the_same_in_every_epoch(make_database):
    root = make_database('livec')
    loader = DataLoader('livec', root, [3, 1], 224, 5, 4, istrain=False).get_data()
    assert loader.patches.image.tolist() == [0] * 5 + [1] * 5
    assert not loader.patches.flip.any()
    assert loader.scores.tolist() == [120, 100]
    assert same(
        list(loader), batches(root, index=(3, 1), patch_num=5, batch_size=4, istrain=False, epoch=9)
    )


def test_every_image_gives_its_patches_and_crops_cover_all_positions():
    sizes = np.array([[224, 230], [300, 224], [226, 226]])
    patches = draw_patches((0,), sizes, 2000, True)
    for k, (height, width) in enumerate(sizes):
        mine = patches.image == k
        assert mine.sum() == 2000
        assert set(patches.top[mine]) == set(range(height - 223))
        assert set(patches.left[mine]) == set(range(width - 223))
    assert 0.45 < patches.flip.mean() < 0.55


def test_images_of_different_sizes(make_database):
    root = make_database('livec')
    databases.picture(root / 'Images' / '3.bmp', size=(224, 400))
    assert sum(len(scores) for _, scores in batches(root)) == 8


def test_a_small_image_is_named(make_database):
    root = make_database('livec')
    databases.picture(root / 'Images' / '5.bmp', size=(300, 223))
    with pytest.raises(InputError, match=r'5.bmp is 223x300: an image must be at least 224x224'):
        batches(root)


def test_another_patch_size_is_refused_with_the_reason(make_database):
    with pytest.raises(InputError, match='must be 224, not 256: '):
        DataLoader('livec', make_database('livec'), [0], 256, 1)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_unreadable_image_ends_the_epoch_with_its_name(make_database, workers):
    root = make_database('koniq')
    path = root / '1024x768' / '10004473378.jpg'
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(InputError, match='10004473378.jpg cannot be read as an image'):
        batches(root, 'koniq', index=range(5), num_workers=workers)


def test_leaving_an_epoch_early_gathers_no_further_batches(make_database):
    loader = DataLoader(
        'livec', make_database('livec'), [0, 1, 2], 224, 20, 1, num_workers=1
    ).get_data()
    gathered = []
    gather = loader.gather
    loader.gather = lambda rows: gathered.append(rows) or gather(rows)
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert len(gathered) <= BATCHES_AHEAD + 2
