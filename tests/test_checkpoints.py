"""Weight files in every layout that people exchange load exactly; others are refused."""

import gzip
import os
import pickle
import sys
import zipfile

import pytest
import torch
import torchvision

import models
from scoring import scorer
from util import checkpoints
from util.errors import InputError


@pytest.fixture(scope='module')
def hyperiqa():
    """A HyperIQA's state_dict."""
    torch.manual_seed(3)
    return models.hyperiqa().state_dict()


@pytest.fixture(scope='module')
def resnet():
    """A ResNet-50's state_dict as a new torchvision saves it: 320 tensors."""
    torch.manual_seed(5)
    return torchvision.models.resnet50(weights=None).state_dict()


@pytest.fixture(scope='module')
def published(resnet):
    """As torchvision's IMAGENET1K_V1: 267 tensors, no batch norm counters, parameters."""
    state = {
        name: value if 'running' in name else torch.nn.Parameter(value)
        for name, value in resnet.items()
        if 'num_batches_tracked' not in name
    }
    assert len(state) == 267
    return state


@pytest.fixture(scope='module')
def shared_network():
    return models.hyperiqa()


@pytest.fixture
def network(shared_network):
    """A network whose tensors are all zero."""
    for value in shared_network.state_dict().values():
        value.zero_()
    return shared_network


def without_counters(state):
    return {
        name: value for name, value in state.items() if not name.endswith('num_batches_tracked')
    }


def assert_loaded(network, state):
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())


def assert_backbone_loaded(network, resnet):
    assert_loaded(
        network,
        {f'res.{name}': value for name, value in resnet.items() if not name.startswith('fc.')},
    )
    assert (
        not network.state_dict()['res.lda4_fc.weight'].any()
        and not network.state_dict()['conv1.0.weight'].any()
    )


@pytest.mark.parametrize('legacy', [False, True])
def test_torchvisions_published_weights_load_without_their_classifier(
    tmp_path, network, published, legacy
):
    path = tmp_path / 'resnet50-19c8e357.pth'
    torch.save(published, path, _use_new_zipfile_serialization=not legacy)
    checkpoints.load_weights(network, str(path))
    assert_backbone_loaded(network, published)


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_newer_resnet50_files_load_with_their_counters(tmp_path, network, resnet, ending):
    path = tmp_path / f'resnet50-11ad3fa6.{ending}'
    resnet = {**resnet, 'bn1.num_batches_tracked': torch.tensor(7)}
    save_safetensors(resnet, path) if ending == 'safetensors' else torch.save(resnet, path)
    checkpoints.load_weights(network, path)
    assert_backbone_loaded(network, resnet)


def save_safetensors(state, path):
    pytest.importorskip('safetensors.torch').save_file(dict(state), path)


def prefixed(state, prefix):
    return {f'{prefix}{name}': value for name, value in state.items()}


HYPERIQA_LAYOUTS = {
    'plain': lambda state: state,
    'module': lambda state: prefixed(state, 'module.'),
    'compiled and parallel': lambda state: {
        'state_dict': prefixed(state, '_orig_mod.module.'),
        'epoch': 3,
    },
    'compiled backbone': lambda state: {
        name.replace('res.', 'res._orig_mod.'): value for name, value in state.items()
    },
    'nested': lambda state: {'model': {'net': state}, 'params': {'lr': 2e-5}, 'state_dict': None},
    'model_state_dict without counters': lambda state: {
        'model_state_dict': without_counters(state)
    },
    'last.pth': lambda state: {
        'model': state,
        'optimizer': {'state': {}, 'param_groups': []},
        'history': [],
        'best': None,
    },
}


@pytest.mark.parametrize('layout', HYPERIQA_LAYOUTS)
def test_a_hyperiqa_loads_inside_wrappers_and_prefixes(tmp_path, network, hyperiqa, layout):
    torch.save(HYPERIQA_LAYOUTS[layout](hyperiqa), tmp_path / 'weights.pth')
    checkpoints.load_weights(network, tmp_path / 'weights.pth')
    assert_loaded(network, without_counters(hyperiqa))


def test_the_older_format_and_half_precision_load_as_float32(tmp_path, network, hyperiqa):
    """Counters that became floating point, which nothing uses, are no reason to refuse."""
    halves = {name: value.half() for name, value in hyperiqa.items()}
    torch.save(halves, tmp_path / 'koniq_pretrained.pkl', _use_new_zipfile_serialization=False)
    checkpoints.load_weights(network, tmp_path / 'koniq_pretrained.pkl')
    assert_loaded(
        network, {name: value.float() for name, value in without_counters(halves).items()}
    )
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def pyiqa_name(name):
    """Our names as pyiqa has them, by the table in the design, written out."""
    table = {
        **{f'res.lda{k}_pool.0.': f'lda_modules.{k - 1}.0.' for k in (1, 2, 3)},
        **{f'res.lda{k}_fc.': f'lda_modules.{k - 1}.3.' for k in (1, 2, 3)},
        'res.lda4_fc.': 'lda_modules.3.2.',
        'res.': 'base_model.',
        **{f'fc{k}w_conv.': f'fc_w_modules.{k - 1}.' for k in (1, 2, 3, 4)},
        'fc5w_fc.': 'fc_w_modules.4.2.',
        **{f'fc{k}b_fc.': f'fc_b_modules.{k - 1}.2.' for k in (1, 2, 3, 4, 5)},
        'conv1.': 'conv1.',
    }
    own = next(start for start in table if name.startswith(start))
    return table[own] + name.removeprefix(own)


def test_pyiqas_file_is_renamed_and_its_images_prepared_as_there(tmp_path, hyperiqa, capsys):
    theirs = {pyiqa_name(name): value for name, value in hyperiqa.items()}
    assert (
        len(theirs) == 355
        and 'lda_modules.0.0.weight' in theirs
        and 'fc_b_modules.4.2.bias' in theirs
    )
    torch.save({'params': theirs}, tmp_path / 'HyperIQA-resnet50-koniq10k-c96c41b1.pth')
    network, meaning = scorer.load_trained(tmp_path / 'HyperIQA-resnet50-koniq10k-c96c41b1.pth')
    assert_loaded(network, hyperiqa)
    assert (meaning.resize, meaning.score_range, meaning.label_range) == (None, (0, 100), (0, 100))
    assert (
        'c96c41b1.pth is of pyiqa: images are prepared as it does, without a resize'
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_default_command_starts_from_the_published_weights(
    tmp_path, make_database, program, monkeypatch, network, published
):
    """No --weights: the file is where torchvision puts it; with --lr 0 the run saves it."""
    make_database('livec', images=8)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(published, cache / 'resnet50-0676ba61.pth')
    checkpoints.load_weights(network, 'imagenet')
    assert_backbone_loaded(network, published)

    tiny = (
        '--epochs',
        1,
        '--train_patch_num',
        1,
        '--test_patch_num',
        1,
        '--batch_size',
        4,
        '--train_test_num',
        1,
    )
    options = (
        '--dataset',
        'livec',
        '--data_root',
        'livec',
        '--device',
        'cpu',
        *tiny,
        '--lr',
        0,
        '--weight_decay',
        0,
    )
    done = program(*options, '--output', 'run')
    assert done.returncode == 0, done.stderr
    saved = checkpoints.read_checkpoint(tmp_path / 'run' / 'round_01' / 'last.pth')['model']
    weights = [name for name in published if 'running' not in name and not name.startswith('fc.')]
    assert len(weights) == 159 and all(
        torch.equal(saved[f'res.{name}'], published[name]) for name in weights
    )


@pytest.mark.filterwarnings('ignore:Validating sparse')
@pytest.mark.parametrize(
    'change, reason',
    [
        ({'conv1.0.weight': None}, '1 tensors are missing.*conv1.0.weight, is missing'),
        ({'head.weight': torch.zeros(3)}, '1 tensors .*head.weight, is unknown'),
        (
            {'fc5b_fc.bias': torch.zeros(2)},
            r'fc5b_fc.bias, is not a plain array of floating-point numbers in the shape \(1,\)',
        ),
        ({'fc5b_fc.bias': torch.zeros(1, dtype=torch.int32)}, 'fc5b_fc.bias, is not a plain array'),
        (
            {'fc5b_fc.bias': torch.zeros(1, dtype=torch.complex64)},
            'fc5b_fc.bias, is not a plain array',
        ),
        ({'fc5b_fc.bias': torch.zeros(1).to_sparse()}, 'fc5b_fc.bias, is not a plain array'),
        ({'fc5b_fc.bias': torch.zeros(1, device='meta')}, 'fc5b_fc.bias, is not a plain array'),
        ({'fc5b_fc.bias': [0.0]}, 'fc5b_fc.bias, is not a plain array'),
        (
            {'fc5b_fc.bias': torch.tensor([float('nan')])},
            'fc5b_fc.bias, has values that are not finite',
        ),
        (
            {'fc5b_fc.bias': torch.tensor([1e300], dtype=torch.float64)},
            'has values that are not finite',
        ),
        ({7: torch.zeros(1)}, 'does not name tensors'),
        ({'x' * 300 + '\n': torch.zeros(1)}, 'x{80}, is unknown$'),
    ],
)
def test_a_state_dict_that_fits_by_half_is_refused_and_changes_nothing(
    tmp_path, network, hyperiqa, change, reason
):
    """Read from a real file; only the change is made anew, since only it matters."""
    torch.save(change, tmp_path / 'change.pth')
    changed = {**hyperiqa, **checkpoints.read_checkpoint(tmp_path / 'change.pth')}
    content = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(InputError, match=f'odd.pth .*{reason}'):
        checkpoints.fitting_state(network, *checkpoints.state_of(content, 'odd.pth'), 'odd.pth')
    assert not any(value.any() for value in network.state_dict().values())


@pytest.mark.parametrize(
    'content, reason',
    [
        ({'res.conv1.weight': torch.zeros(64, 3, 7, 7)}, 'is not the state_dict of .* 301 tensors'),
        ({'conv1.weight': torch.zeros(1)}, 'is not the state_dict of'),
        ([1], 'contains a list'),
        ({}, 'does not name tensors'),
        ({'model': {'model': {'model': {'model': {'model': {}}}}}}, 'does not name tensors'),
    ],
)
def test_foreign_weights_are_refused(tmp_path, network, content, reason):
    torch.save(content, tmp_path / 'foreign.pth')
    with pytest.raises(InputError, match=reason):
        checkpoints.load_weights(network, str(tmp_path / 'foreign.pth'))


def test_a_backbone_alone_does_not_score(tmp_path, published):
    torch.save(published, tmp_path / 'resnet.pth')
    with pytest.raises(InputError, match='contains only a ResNet-50'):
        checkpoints.read_trained(tmp_path / 'resnet.pth')


def small_file(path, **options):
    """A checkpoint of 4 KB; its bytes."""
    torch.save({'weight': torch.arange(1000.0)}, path, **options)
    return path.read_bytes()


NO_CHECKPOINT = (
    'cannot be read as a checkpoint: it is no checkpoint of PyTorch, or it is cut or damaged; '
    'get it again'
)


def no_checkpoints(folder):
    """Files that are no checkpoint, and what is said of each."""
    whole = small_file(folder / 'whole.pth')
    legacy = small_file(folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), folder / 'model.pth')
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / 'script.pth')
    with zipfile.ZipFile(folder / 'other.zip', 'w') as archive:
        archive.writestr('weights/readme.txt', 'hello')
    (folder / 'folder.pth').mkdir()
    os.mkfifo(folder / 'fifo.pth')
    made = {
        'page.pth': (
            b'\n<!DOCTYPE html><title>Virus scan warning</title>',
            'is a web page and not the file itself; download',
        ),
        'pointer.pth': (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 109\n',
            'is a Git LFS pointer',
        ),
        'empty.pth': (b'', NO_CHECKPOINT),
        'byte.pth': (b'x', NO_CHECKPOINT),
        'text.pth': (b'hello', NO_CHECKPOINT),
        'random.pth': (bytes(range(129, 256)), NO_CHECKPOINT),
        'cut.pth': (whole[: len(whole) // 2], 'cannot be read as a checkpoint'),
        'cut.pkl': (legacy[: len(legacy) // 2], NO_CHECKPOINT),
        'cut.safetensors': (b'\x90\1\0\0\0\0\0\0{"weight":', 'cannot be read as a checkpoint'),
        'packed.gz': (gzip.compress(whole), NO_CHECKPOINT),
        'pickle.pkl': (pickle.dumps({'weight': [1.0]}), NO_CHECKPOINT),
    }
    for name, (content, _) in made.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in made.items()} | {
        'model.pth': (
            'contains the Python object torch.nn.modules.linear.Linear.*save model.state_dict'
        ),
        'script.pth': NO_CHECKPOINT,
        'other.zip': NO_CHECKPOINT,
        'folder.pth': 'is not a regular file',
        'fifo.pth': 'is not a regular file',
        'absent.pth': 'there is no file',
    }


@pytest.mark.filterwarnings('ignore:.torch.jit.script')
def test_what_is_no_checkpoint_is_named_in_one_line_of_our_own(tmp_path):
    for name, reason in no_checkpoints(tmp_path).items():
        with pytest.raises(InputError, match=reason) as refused:
            checkpoints.read_checkpoint(tmp_path / name)
        message = str(refused.value)
        assert name in message and '\n' not in message and 'weights_only' not in message


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    whole = small_file(tmp_path / 'whole.pth')
    with zipfile.ZipFile(tmp_path / 'whole.pth') as archive:
        entry = next(entry for entry in archive.infolist() if entry.file_size == 4000)
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for place in (0, 1999, 3999):
        damaged = bytearray(whole)
        damaged[start + place] ^= 8
        (tmp_path / 'damaged.pth').write_bytes(damaged)
        with pytest.raises(
            InputError, match=f'it is damaged .the checksum of {entry.filename} in it is another'
        ):
            checkpoints.read_checkpoint(tmp_path / 'damaged.pth')


def test_a_file_that_was_saved_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        small_file(tmp_path / 'unchecked.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert checkpoints.read_checkpoint(tmp_path / 'unchecked.pth')['weight'][999] == 999


def test_safetensors_without_the_package_names_it(tmp_path, monkeypatch):
    """`None` among the modules is how Python itself marks one that cannot be imported."""
    (tmp_path / 'model.safetensors').write_bytes(b'\2\0\0\0\0\0\0\0{"}')
    for module in ('safetensors', 'safetensors.torch'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match='pip install safetensors'):
        checkpoints.read_checkpoint(tmp_path / 'model.safetensors')
