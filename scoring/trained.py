"""The network in a checkpoint, and the meaning of images and scores to it."""

from pathlib import Path

import torch

from experiment.record import checkpoint_in_run, read_record, record_of
from folders import DATABASES
from models import HyperNet, hyperiqa
from util import checkpoints
from util.checkpoints import Trained
from util.errors import log
from util.files import read_json
from util.meaning import Meaning


def load_trained(checkpoint: Path | str) -> tuple[HyperNet, Meaning]:
    """The network in a checkpoint, and the meaning of images and scores to it.

    Raises:
        InputError: the file is no checkpoint, or does not have exactly the weights of a HyperIQA.
    """
    weights = checkpoints.read_trained(checkpoint)
    # On `meta` no initial weights are drawn: that takes a second, and all of them are replaced.
    with torch.device('meta'):
        model = hyperiqa()
    state = checkpoints.fitting_state(model, weights.state, weights.layout, checkpoint)
    # Batch norm's counters, which nothing uses, may be missing.
    for name in model.state_dict().keys() - state.keys():
        state[name] = torch.tensor(0)
    model.to_empty(device='cpu')
    model.load_state_dict(state)
    return model, meaning_of(checkpoint, weights)


def meaning_of(checkpoint: Path | str, weights: Trained) -> Meaning:
    """The meaning of images and scores to the network in a checkpoint.

    Every program calls this function. The first of these that exists decides: the meaning in the
    checkpoint itself, the record of its run, and the layout of its weights.

    Args:
        weights: the checkpoint, as `read_trained` returns it.
    """
    # The `facts` in a checkpoint are the fields of a Meaning.
    if weights.facts:
        return Meaning.of_record(weights.facts)
    # Earlier versions wrote the meaning only into the config.json.
    record = record_of(checkpoint)
    if record and not is_replaced(checkpoint, weights):
        return Meaning.of_record(read_record(record)['model'])
    koniq = DATABASES['koniq'].meaning
    if weights.layout == 'pyiqa':
        log(
            f'{checkpoint} is of pyiqa: images are prepared as it does, without a resize, and its '
            '0..1 is shown as 0..100'
        )
        return koniq._replace(resize=None, score_range=(0, 100))
    log(
        f'{checkpoint} does not say what its scores mean, and is not of a run that does: it is '
        "taken for the original authors' model of KonIQ-10k, whose images are resized to 512 high, "
        '384 wide'
    )
    return koniq


def is_replaced(checkpoint: Path | str, weights: Trained) -> bool:
    """Whether a checkpoint is a round's best.pth, but not with the weights that the round wrote.

    The round keeps a digest of them in its result.json and last.pth.
    """
    path = checkpoint_in_run(checkpoint)
    if path is None or path.name != 'best.pth':
        return False
    kept = []
    result = path.with_name('result.json')
    if result.exists():
        kept.append(read_json(result).get('weights'))
    last = path.with_name('last.pth')
    if last.exists():
        # `best` is None until an epoch has a result.
        best = checkpoints.read_checkpoint(last).get('best') or {}
        kept.append(best.get('weights'))
    # The first versions kept none. A round that is being extended may keep two.
    digests = [digest for digest in kept if digest]
    return bool(digests) and checkpoints.digest(weights.state) not in digests
