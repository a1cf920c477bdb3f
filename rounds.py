"""The rounds of a run: train, test, resume, results, and the test on other databases."""

import math
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import models
from data_loader import DataLoader
from experiment.evaluation import make_evaluation_folder, write_evaluation
from experiment.record import read_record, record_of, record_path
from experiment.report import print_medians, print_on_others, print_round, with_intervals
from experiment.results import Result, Results, gather_results, write_predictions
from experiment.round_folder import RoundFolder, surroundings
from experiment.run_folder import (
    has_begun,
    is_finished,
    open_run,
    round_path,
    rounds_of,
    starts_from_weights,
    trained_epochs,
)
from experiment.splits import Job, split_record
from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver
from util import checkpoints, distributed
from util.errors import NO_RESULT, InputError, log, rank
from util.files import write_table
from util.metrics import TestedImages, mae, metrics_of


def run(config: Any, job: Job) -> None:
    """Train and test the rounds, write their files into the run folder and print the medians."""
    device = join_ranks(config)
    reads_weights = starts_from_weights(config)
    # check_initial_weights waits for the other ranks, so either all ranks call it or none.
    distributed.refuse_differences(f'the initial weights are read: {reads_weights}')
    digest = check_initial_weights(config) if reads_weights else None
    decode_images(config, [job.database, *job.others.values()])
    if rank() == 0:
        write_run_files(config, job, device, digest)
    # The other ranks read the files of the run once they are all there.
    distributed.wait()
    distributed.refuse_separate_folders(Path(config.output))

    rounds = rounds_of(config)
    results: Results = {}
    for k, number in enumerate(rounds):
        epochs_after = epochs_left(config, rounds[k + 1 :])
        # The last call returns the results of all rounds.
        results = train_round(config, job, number - 1, epochs_after)
    if rank() == 0:
        print_medians(results)
    # Leave the process group before exiting: if the first rank exited inside it, the others would
    # be aborted.
    distributed.stop()
    exit_if_a_round_is_missing(config, results, rounds)
    is_whole = len(results['rounds']) == config.train_test_num
    log_next(config, rounds[-1], is_whole)


def epochs_left(config: Any, rounds: list[int]) -> int:
    """The epochs that `rounds` are still to train. A round may be trained in part already."""
    count = 0
    for number in rounds:
        folder = round_path(config.output, number)
        # With --patience, a round can be finished after fewer epochs.
        if not is_finished(folder, config.epochs):
            count += config.epochs - trained_epochs(folder)
    return count


def join_ranks(config: Any) -> str:
    """Meet the other ranks of torchrun, if there are any.

    Returns:
        the device that this rank computes on.
    """
    if config.deterministic:
        distributed.make_deterministic()
    device = distributed.pick_device(config.device)
    distributed.start(device, config.compile)
    log(
        f'{distributed.processes_on(device)}; initial weights: {config.weights}; '
        f'seed: {config.seed}'
    )
    if config.amp:
        distributed.warn_of_slow_amp(device)
    return device


def check_initial_weights(config: Any) -> str:
    """Read the initial weights once, so that a fault in them shows before images are decoded.

    Returns:
        their digest.
    """
    with torch.device('meta'):  # only the names and shapes of its parameters are needed
        model = models.hyperiqa()
    # The first rank may have to download the weights; the others then read the same file.
    with distributed.first_rank_first():
        state, layout = checkpoints.initial_weights(model, config.weights)
    # A ResNet-50 is enough to start training, but gives no scores.
    if config.fit_scale and layout not in checkpoints.WITH_SCORES:
        raise InputError(
            f'--fit_scale: {config.weights} contains only a {layout}, which gives no scores; give '
            'a HyperIQA'
        )
    # Sorted, since files of other formats have the same tensors in another order.
    return checkpoints.digest(dict(sorted(state.items())))


def decode_images(config: Any, databases: list[OpenDatabase]) -> None:
    """Decode the images of the databases, or map the caches of decoded ones into memory.

    A decoded image is called a frame.
    """
    for database in databases:
        database.open_frames(config.patch_size, config.cache)
    distributed.wait()


def write_run_files(config: Any, job: Job, device: str, digest: str | None) -> None:
    """Make or continue the run folder, and write which listed images are left out.

    Args:
        digest: of the initial weights; None if no round starts from them.
    """
    made_with = {
        **surroundings(device),
        'initial_weights': digest,
        'labels': job.database.digest_in_any_order,
    }
    if config.amp:
        made_with['amp_type'] = str(distributed.amp_type(device)).removeprefix('torch.')
    open_run(config, job, made_with)
    if job.database.left_out:
        path = Path(config.output) / 'left_out.csv'
        write_table(path, ['image', 'row', 'reason'], job.database.left_out)


def train_round(config: Any, job: Job, round_index: int, epochs_after: int = 0) -> Results:
    """Train and test one round, or what is left of it, and write its results.

    Args:
        round_index: 0-based.
        epochs_after: epochs of the rounds after this one, for the estimate of the time left.

    Returns:
        the results of all rounds that are finished (see `gather_results`); none on the other ranks.
    """
    split = job.splits[round_index]
    names = split_record(split, job.database)
    # The folder is locked until it is closed, so that no other process trains this round.
    with closing(RoundFolder(config, job.meaning, round_index, names)) as folder:
        print(f'Round {round_index + 1}')
        # All ranks must take the same branch. On a network disk some may not see a new file yet.
        is_done = is_finished(folder.path, config.epochs)
        distributed.refuse_differences(f'the round is finished: {is_done}')
        if not is_done:
            solver = HyperIQASolver(
                config,
                job.database,
                split['train'],
                split['test'],
                val_idx=split['val'],
                round_index=round_index,
                # A round that has begun takes its weights from last.pth, so the file of the
                # initial ones is not read.
                weights='none' if has_begun(folder.path) else config.weights,
                amp_type=amp_type_of_run(record_path(config.output)),
            )
            # The state of the last finished epoch, if there is one.
            folder.restore(solver.load_state_dict)
            digest = checkpoints.digest(solver.model_hyper.state_dict())
            distributed.refuse_differences(f'{len(solver.history)} epochs, weights {digest[:8]}')
            # The room of last.pth is allocated now, so that a full disk shows before the training.
            folder.reserve(solver.state_size)
            solver.train(folder.save, epochs_after)
            # There is no best epoch, and so no result, if the first epoch diverged, or if no epoch
            # has an SRCC to choose by.
            if solver.best:
                finish_round(folder, solver, solver.best, job)

    if rank() > 0:
        return {'rounds': {}}
    results = gather_results(config.output)
    print_round(results['rounds'].get(str(round_index + 1)), names)
    return results


def amp_type_of_run(config_path: Path) -> torch.dtype:
    """The type in which --amp of a run computes, on whatever device the run is continued."""
    return getattr(torch, read_record(config_path)['amp_type'])


def finish_round(
    folder: RoundFolder, solver: HyperIQASolver, best: dict[str, Any], job: Job
) -> None:
    """Test the best epoch on the other databases too, and write the round's results."""
    # The solver has the weights of the last epoch, which need not be the best one.
    if job.others:
        checkpoints.load_weights(solver.model_hyper, folder.path / 'best.pth')
    on_others = test_on_others(solver, job, folder.path)
    tested = tested_images(job.database, solver.test_data, best['scores'].numpy())

    def thumbnail(k: int) -> Image.Image:
        return job.database.thumbnail(solver.test_data.images[k])

    folder.finish(best, solver.history[-1], tested, thumbnail, on_others)


def tested_images(database: OpenDatabase, data: DataLoader, predicted: np.ndarray) -> TestedImages:
    """Return the images of `data`, a loader of `database`, with their predictions."""
    return TestedImages(
        images=database.names(data.images),
        contents=database.contents(data.images),
        subjective=data.scores,
        predicted=predicted,
        facts=database.facts(data.images),
    )


def test_on_others(solver: HyperIQASolver, job: Job, folder: Path) -> dict[str, Result]:
    """Test the solver's network on the whole other databases of a job.

    Args:
        folder: for a predictions_<name>.csv of each database.

    Returns:
        for each database, by its name: the number of images, and the metrics (see `metrics_of`).
        A higher correlation always means more agreement: if a lower score is better in
        one of the two databases but not in the other, the sign is turned.
    """
    results = {}
    for name, database in job.others.items():
        data = solver.loader(database, range(len(database.samples)), istrain=False)
        tested = tested_images(database, data, solver.predict(data))
        if rank() == 0:
            write_predictions(folder / f'predictions_{name}.csv', tested)
        # Of the scores themselves. With the sign turned it would mean nothing.
        error = mae(tested.predicted, tested.subjective)
        if database.higher_is_better != job.meaning.higher_is_better:
            tested = tested._replace(predicted=-tested.predicted)
        results[name] = {'images': len(tested.images), **metrics_of(tested), 'MAE': error}
    return results


def exit_if_a_round_is_missing(config: Any, results: Results, rounds: list[int]) -> None:
    """Exit with 3 if a round of this command has no result.

    That is a round whose first epoch diverged, or whose test SRCC is undefined in every epoch.
    """
    if rank() > 0:
        return  # only the first rank has the results
    missing = []
    for number in rounds:
        result = results['rounds'].get(str(number))
        # Without a test part there is no SRCC.
        has_result = result and (config.train_on_all or not math.isnan(result['SRCC']))
        if not has_result:
            missing.append(str(number))
    if missing:
        numbers = ', '.join(missing[:5])
        log(f'no result: round {numbers} has no epoch to choose, or its test SRCC is undefined')
        sys.exit(NO_RESULT)


def log_next(config: Any, number: int, is_whole: bool) -> None:
    """Log where a run's results are and what can be done with them.

    Args:
        number: the 1-based number of the last round.
        is_whole: whether all rounds of the run are finished.
    """
    run = Path(config.output)
    folder = round_path(run, number)
    log(f'Results: {run}/results.json; weights: {folder}/best.pth; pictures: {folder}/*.png')
    checkpoint = shlex.quote(f'{folder}/best.pth')
    log(f'Score a photo:    python demo.py --checkpoint {checkpoint} PHOTO')
    quoted_run = shlex.quote(str(run))
    if not is_whole:
        log(f'Other rounds:     python train_test_IQA.py --resume {quoted_run}')
    elif not config.train_on_all:
        log(f'Compare two runs: python compare.py {quoted_run} OTHER_RUN')


def evaluate(config: Any, job: Job) -> None:
    """Test the checkpoint of --evaluate, and write the results into a folder of their own.

    With --test_on it is tested on those databases. Otherwise the test of its round is repeated.
    """
    join_ranks(config)
    decode_images(config, list(job.others.values()) or [job.database])
    solver = solver_of_test(config, job)
    weights = checkpoints.digest(solver.model_hyper.state_dict())
    folder = Path()  # not used by the other ranks, which write nothing
    if rank() == 0:
        folder = make_evaluation_folder(config.output, config.evaluate, weights)
    if job.others:
        results = test_on_others(solver, job, folder)
        print_on_others(results)
    else:
        results = {config.dataset: repeat_test(solver, job, folder)}
    if rank() == 0:
        write_evaluation(folder, config.evaluate, weights, results)
    log(f'Results: {folder}/result.json; predictions: {folder}/predictions*.csv')
    distributed.stop()


def solver_of_test(config: Any, job: Job) -> HyperIQASolver:
    """The solver with the weights of a checkpoint; only its `predict` is used."""
    # Without --test_on the job has one split, that of the checkpoint's round.
    test_images = job.splits[0]['test'] if job.splits else []
    config_path = record_of(config.evaluate)
    return HyperIQASolver(
        config,
        job.database,
        train_idx=[],
        test_idx=test_images,
        round_index=job.round_index,
        # The range that the network was trained with; job.database may be another database. Without
        # a range the network's output is the score.
        score_range=job.meaning.score_range or (0, 1),
        amp_type=amp_type_of_run(config_path) if config_path else None,
    )


def repeat_test(solver: HyperIQASolver, job: Job, folder: Path) -> Result:
    """Repeat the test of a checkpoint's round, and print the results.

    Args:
        folder: for predictions.csv.

    Returns:
        the metrics.
    """
    data = solver.test_data
    tested = tested_images(job.database, data, solver.predict(data))
    metrics = metrics_of(tested)
    # All digits, to be compared with those of another evaluation.
    print(f'test_srcc {metrics["SRCC"]}')
    print(f'test_plcc {metrics["PLCC"]}')
    print(f'{len(tested.images)} test images: {with_intervals(metrics)}')
    if rank() == 0:
        write_predictions(folder / 'predictions.csv', tested)
    return {'images': len(tested.images), **metrics}
