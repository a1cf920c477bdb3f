"""The network in a checkpoint, and what an image and a score mean to it."""

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


def trained(checkpoint: Path | str) -> tuple[HyperNet, Meaning]:
    """The network in a checkpoint, and what an image and a score mean to it.

    Raises:
        InputError: the file is no checkpoint, or does not hold exactly the weights of a HyperIQA.
    """
    weights = checkpoints.read_trained(checkpoint)
    # Without initial weights: to draw them takes a second, and all of them are replaced.
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
    """What an image and a score mean to the network in a checkpoint.

    Every program asks this function. The first of these that is there decides: the checkpoint
    itself, the record of its run, and the layout of its weights.

    Args:
        weights: what `read_trained` read from the checkpoint.
    """
    if weights.facts:
        return Meaning.of_record(weights.facts)
    # Earlier versions wrote it into the config.json only.
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
    """Whether a round keeps a digest of its best.pth, and this best.pth is another."""
    path = checkpoint_in_run(checkpoint)
    if path is None or path.name != 'best.pth':
        return False
    kept = []
    result = path.with_name('result.json')
    if result.exists():
        kept.append(read_json(result).get('weights'))
    last = path.with_name('last.pth')
    if last.exists():
        best = checkpoints.read_checkpoint(last).get('best') or {}
        kept.append(best.get('weights'))
    # The first versions kept none. A round that is being extended may keep two.
    digests = [digest for digest in kept if digest]
    return bool(digests) and checkpoints.digest(weights.state) not in digests
