"""The rounds of a run: train, test, resume, results, and the test on other databases."""

import math
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from data_loader import DataLoader
from experiment import run_folder
from experiment.report import print_medians, print_on_others, print_round, with_intervals
from experiment.results import ON_OTHERS, summarise, write_predictions
from experiment.round_folder import RoundFolder, surroundings
from experiment.splits import PARTS, Job, split_record
from folders import OpenDatabase
from HyerIQASolver import HyperIQASolver
from util import checkpoints, distributed
from util.errors import NO_RESULT, InputError, log, rank
from util.files import write_table
from util.metrics import TestedImages, all_metrics, by_type, intervals, mae


def run(config: Any, job: Job) -> None:
    """Train and test the rounds into the run folder and print their medians."""
    device = start(config, job.database, *job.others.values())
    if rank() == 0:
        records = [split_record(split, job.database) for split in job.splits]
        run_folder.open_run(config, job.model, records, surroundings(device))
        if job.database.left_out:
            write_table(
                Path(config.output) / 'left_out.csv',
                ['image', 'row', 'reason'],
                job.database.left_out,
            )
    distributed.wait()
    rounds = config.rounds or range(1, config.train_test_num + 1)
    for later, number in zip(reversed(range(len(rounds))), rounds):
        results = train_round(config, job, number - 1, later * config.epochs)
    if rank() == 0:
        print_medians(results)
    distributed.stop()
    finished = {int(number): result['SRCC'] for number, result in results['rounds'].items()}
    without = [
        k
        for k in rounds
        if k not in finished or (math.isnan(finished[k]) and not config.train_on_all)
    ]
    if without and rank() == 0:
        log(
            f'no result: in round {", ".join(map(str, without[:5]))} no epoch has a finite loss and test SRCC'
        )
        sys.exit(NO_RESULT)
    log_next(config, number, is_whole=len(finished) == config.train_test_num)


def log_next(config: Any, number: int, is_whole: bool) -> None:
    """Log where the results of a run are, `number` being its last round, and what can be done with them."""
    run, folder = Path(config.output), run_folder.round_path(config.output, number)
    best, quoted = shlex.quote(f'{folder}/best.pth'), shlex.quote(str(run))
    log(f'Results: {run}/results.json; weights: {folder}/best.pth; pictures: {folder}/*.png')
    log(f'Score a photo:    python demo.py --checkpoint {best} PHOTO')
    if is_whole:
        log(f'Compare two runs: python compare.py {quoted} OTHER_RUN')
    else:
        log(f'Other rounds:     python train_test_IQA.py --resume {quoted}')


def start(config: Any, *databases: OpenDatabase) -> str:
    """Meet the other ranks, read the initial weights for the sake of the errors, and open the frames; the device."""
    device = distributed.pick_device(config.device, config.deterministic)
    distributed.start(device)
    log(
        f'{distributed.processes_on(device)}; initial weights: {config.weights}; seed: {config.seed}'
    )
    if config.amp and not distributed.has_bfloat16(device):
        log(
            'warning: bfloat16 has no instructions on this device, so --amp makes training many times slower; leave --amp out'
        )
    if config.weights != 'none':
        with torch.device('meta'):  # names and shapes are all that is asked of this network
            model = models.hyperiqa()
        if rank() > 0:  # until the first rank has downloaded them
            distributed.wait()
        _, layout = checkpoints.initial_weights(model, config.weights)
        if rank() == 0:
            distributed.wait()
        if (config.fit_scale or config.evaluate) and layout not in checkpoints.WITH_SCORES:
            option = '--evaluate' if config.evaluate else '--fit_scale'
            raise InputError(
                f'{option}: {config.weights} holds a {layout} alone, which gives no scores; give a HyperIQA'
            )
    for database in databases:
        database.open_frames(config.patch_size, config.cache)
    distributed.wait()
    return device


def train_round(config: Any, job: Job, round_index: int, later: int = 0) -> dict[str, Any]:
    """Train and test one round, or what is left of it, and write its results; those of all rounds that are finished.

    Args:
        later: how many epochs of later rounds follow.
    """
    split = job.splits[round_index]
    record, state = split_record(split, job.database), 'the round is finished'
    with closing(RoundFolder(config, round_index, record)) as folder:
        print(f'Round {round_index + 1}', flush=True)
        solver = None
        if not folder.finished:
            train, val, test = (split[part] for part in PARTS)
            solver = HyperIQASolver(
                config, '', train, test, val_idx=val, round_index=round_index, opened=job.database
            )
            folder.restore(solver.load_state_dict)
            state = f'{len(solver.history)} epochs, weights {checkpoints.digest(solver.model_hyper.state_dict())[:8]}'
        distributed.refuse_differences(state)
        if solver:
            solver.train(folder.save, later)
            if solver.best:
                finish_round(folder, solver, solver.best, job)
    results = summarise(config.output) if rank() == 0 else {'rounds': {}}
    print_round(results['rounds'].get(str(round_index + 1)), record)
    return results


def finish_round(
    folder: RoundFolder, solver: HyperIQASolver, best: dict[str, Any], job: Job
) -> None:
    """Test the best epoch on the other databases too, and write the round's results."""
    if job.others:
        checkpoints.load_weights(solver.model_hyper, folder.path / 'best.pth')
    on_others = test_on_others(solver, job, folder.path)
    tested = tested_images(job.database, solver.test_data, best['scores'].numpy())
    folder.finish(
        best, tested, lambda k: job.database.thumbnail(solver.test_data.images[k]), on_others
    )


def tested_images(database: OpenDatabase, data: DataLoader, predicted: np.ndarray) -> TestedImages:
    """The images that `data` delivers, beside their predictions."""
    names, contents = database.names(data.images), database.contents(data.images)
    return TestedImages(names, contents, data.scores, predicted, database.facts(data.images))


def test_on_others(solver: HyperIQASolver, job: Job, folder: Path) -> dict[str, dict[str, Any]]:
    """Test the solver's network on the whole other databases of a job.

    Args:
        folder: for a predictions_<name>.csv of each database.

    Returns:
        by the database's name how many images it has, and SRCC, PLCC, KRCC and MAE with intervals. A higher correlation
        always means more agreement: where one of the two databases has scores that fall with quality, the sign is turned.
    """
    results = {}
    for name, database in job.others.items():
        data = solver.loader(database, range(len(database.samples)), istrain=False)
        sign = 1 if database.higher_is_better == job.model['higher_is_better'] else -1
        tested = tested_images(database, data, solver.predict(data))
        if rank() == 0:
            write_predictions(folder / f'predictions_{name}.csv', tested)
        of_images = {'images': len(tested.images), 'MAE': mae(tested.predicted, tested.subjective)}
        tested = tested._replace(predicted=sign * tested.predicted)
        metrics: dict[str, Any] = {
            **all_metrics(tested.predicted, tested.subjective),
            **intervals([tested]),
            **by_type(tested),
        }
        results[name] = of_images | {
            metric: metrics[metric] for metric in ON_OTHERS if metric in metrics
        }
    return results


def evaluate(config: Any, job: Job) -> None:
    """Repeat the test of the round that a checkpoint is of, or test the checkpoint on the other databases of a job."""
    start(config, *(job.others.values() or [job.database]))
    # with --test_on a solver without images, for its network and its way to predict
    test = [] if job.others else job.splits[0]['test']
    solver = HyperIQASolver(config, '', [], test, round_index=job.round_index, opened=job.database)
    folder = Path(config.output)
    if job.others:
        solver.score_range = job.model['score_range'] or (
            0,
            1,
        )  # the network's scores are in the unit that it was trained in
        print_on_others(test_on_others(solver, job, folder))
    else:
        tested = tested_images(job.database, solver.test_data, solver.predict(solver.test_data))
        metrics = all_metrics(tested.predicted, tested.subjective) | intervals([tested])
        print(f'test_srcc {metrics["SRCC"]}\ntest_plcc {metrics["PLCC"]}')
        print(f'{len(test)} test images: {with_intervals(metrics)}')
        if rank() == 0:
            write_predictions(folder / 'predictions.csv', tested)
    log(f'Predictions: {folder}/predictions*.csv')
    distributed.stop()
