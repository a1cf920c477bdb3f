"""The folder that --evaluate leaves behind. Each evaluation has one of its own.

predictions.csv           of the test images of the checkpoint's round, or
predictions_<name>.csv    of each database of --test_on
result.json               the checkpoint, the digest of its weights, and the printed metrics of each
                          database by its name; written last
"""

from pathlib import Path

from experiment.record import checkpoint_in_run
from experiment.results import Result, without_nan
from experiment.run_folder import refuse_unwritable
from util.errors import InputError
from util.files import refuse_in_run, write_json

PARENT = 'evaluations'  # in the current folder, for the folders of evaluations without --output


def check_evaluation_folder(output: str | None) -> None:
    """Refuse a folder in which nothing can be written, before any work is done.

    Args:
        output: the folder of --output, if it is given.

    Raises:
        InputError: it is in a run folder, has files or cannot be written.
    """
    folder = Path(output or PARENT)
    refuse_in_run(folder, '--output DIR names a place outside of it')
    refuse_unwritable(folder)
    if output and folder.exists() and any(folder.iterdir()):
        raise InputError(
            f'{folder} has files already, and an evaluation has a folder of its own; '
            '--output DIR names another one'
        )


def make_evaluation_folder(output: str | None, checkpoint: str, digest: str) -> Path:
    """Make the folder of an evaluation.

    Args:
        output: the folder of --output, if it is given.
        digest: of the checkpoint's weights.
    """
    if output:
        # Another evaluation may have written there since the first check.
        check_evaluation_folder(output)
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = f'{name_of(checkpoint)}-{digest[:8]}'
    folder = Path(PARENT, name)
    number = 1
    # Earlier evaluations, and others that run now, may have taken some numbers.
    while not try_to_make(folder):
        number += 1
        folder = Path(PARENT, f'{name}-{number}')
    return folder


def try_to_make(folder: Path) -> bool:
    """Make a new folder; False if it is there already."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def name_of(checkpoint: str) -> str:
    """<run>-<round> for a checkpoint in the folder of a round, else the name of its file."""
    path = checkpoint_in_run(checkpoint)
    if path is None:
        return Path(checkpoint).stem
    return f'{path.parents[1].name}-{path.parent.name}'


def write_evaluation(
    folder: Path, checkpoint: str, digest: str, results: dict[str, Result]
) -> None:
    """Write the result.json of an evaluation.

    Args:
        digest: of the checkpoint's weights.
        results: the metrics, by the name of the database.
    """
    content = {'checkpoint': checkpoint, 'weights': digest, 'databases': results}
    write_json(folder / 'result.json', without_nan(content))
