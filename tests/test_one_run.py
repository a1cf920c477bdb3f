"""A run is one thing: its initial weights, lengths, results while it is extended, and locks."""

import json
import resource
import shutil
import signal
from pathlib import Path

import forked
import pytest
import torch
from helpers import QUICK, TINY, history, link_run, wait_until

import compare
import rounds
import train_test_IQA
from experiment import results, run_folder
from experiment.command_line import parse_options
from experiment.record import read_record
from experiment.round_folder import RoundFolder
from experiment.splits import split_record
from util import checkpoints
from util.errors import InputError, boundary
from util.files import locked


@pytest.fixture
def run(tmp_path, finished_run):
    """A copy of the finished run next to its database; its checkpoints are links."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    return link_run(finished_run / 'run', tmp_path / 'run')


@pytest.fixture
def resume(run, program):
    return lambda *options: program('--resume', 'run', '--device', 'cpu', *options)


def content(run, without=()):
    """Every file of a run by its name; checkpoints are not read."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob('*')
        if path.is_file() and path.suffix != '.pth' and path.name not in ('.lock', *without)
    }


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def last_line(done):
    return done.stderr.splitlines()[-1]


def test_a_result_names_its_weights_and_holds_its_last_epoch(finished_run):
    for number in (1, 2):
        folder = finished_run / 'run' / f'round_{number:02d}'
        result = json.loads((folder / 'result.json').read_text())
        weights = torch.load(folder / 'best.pth', weights_only=True)
        assert result['weights'] == checkpoints.digest(weights)
        last = history(finished_run / 'run', number)[-1]
        assert result['last_epoch'] == {
            'SRCC': float(last['test_srcc']),
            'PLCC': float(last['test_plcc']),
        }


def test_a_run_folder_stands_for_its_only_network(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def checkpoints_named():
        evaluated = parse_options(['--evaluate', 'run'])
        trained_from = parse_options([*map(str, TINY), '--weights', 'run'])
        return [evaluated.evaluate, trained_from.weights, str(run_folder.checkpoint_in('run'))]

    with pytest.raises(InputError, match='run has several networks; name one: run/round_01/best'):
        checkpoints_named()
    shutil.rmtree(run / 'round_02')
    assert checkpoints_named() == 3 * ['run/round_01/best.pth']
    (run / 'round_01' / 'result.json').unlink()
    with pytest.raises(InputError, match='run has no finished round; --resume run finishes it'):
        checkpoints_named()


@pytest.mark.parametrize('earlier', [False, True])
def test_a_round_that_is_being_extended_keeps_the_results_of_its_finished_epochs(
    run, finished_run, earlier, program
):
    """Its history has an epoch more; an earlier version wrote no last epoch in result.json."""
    path = run / 'round_01' / 'result.json'
    result = json.loads(path.read_text())
    if earlier:
        del result['weights'], result['last_epoch']
        path.write_text(json.dumps(result))
    table = run / 'round_01' / 'history.csv'
    table.write_text(table.read_text() + '3' + ',0.5' * (len(history(run)[0]) - 1) + '\n')
    done = program('--summarize', 'run')
    assert done.stdout.splitlines() == (finished_run / 'stdout.txt').read_text().splitlines()[-2:]
    compared = compare.read_run(run, 'run')
    assert len(compared.histories[1]['test_srcc']) == 2


def test_the_time_left_does_not_count_epochs_that_later_rounds_have_trained(
    run, resume, monkeypatch
):
    seen = []

    def train_round(config, job, round_index, epochs_after):
        seen.append((round_index, epochs_after))
        return results.gather_results('run')

    monkeypatch.setattr(rounds, 'train_round', train_round)
    resume('--train_test_num', 3, '--epochs', 5)
    assert seen == [(0, 3 + 5), (1, 5), (2, 0)]
    # A round that --patience has ended is finished.
    edit(run / 'round_02' / 'result.json', epochs=5)
    seen.clear()
    resume('--train_test_num', 3, '--epochs', 5)
    assert seen == [(0, 5), (1, 5), (2, 0)]


@pytest.mark.slow
def test_a_killed_extension_leaves_the_earlier_results_and_can_be_taken_back(
    run, finished_run, tmp_path, resume
):
    finished = content(run)
    process = forked.program(
        train_test_IQA.main,
        *(*TINY, '--output', 'run', '--resume', '--rounds', 1, '--epochs', 4),
        folder=tmp_path,
    )
    wait_until(lambda: len(history(run)) == 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    moved_on = {'history.csv', 'curves.png', 'config.json'}
    now = content(run)
    differing = {Path(name).name for name in finished if now[name] != finished[name]}
    assert differing <= moved_on and 'history.csv' in differing

    done = resume('--epochs', 2)
    assert (done.returncode, last_line(done)) == (
        2,
        'error: --epochs: run/round_01 has trained 3 epochs; give 3 or more, or --output DIR for a '
        'new run',
    )
    done = resume('--epochs', 3, '--rounds', 1)
    assert done.returncode == 0, done.stderr
    unequal = (
        'the rounds have different --epochs (round 2: 2; round 1: 3); '
        '--resume RUN --epochs 3 makes them equal'
    )
    assert done.stdout.splitlines()[-1] == f'No median: {unequal}'


def test_rounds_of_different_epochs_are_named_and_have_no_median(run, program):
    before = json.loads((run / 'results.json').read_text())
    edit(run / 'round_02' / 'result.json', epochs=5)
    done = program('--summarize', 'run')
    reason = (
        'the rounds have different --epochs (round 1: 2; round 2: 5); '
        '--resume RUN --epochs 5 makes them equal'
    )
    assert (done.returncode, done.stdout) == (0, f'No median: {reason}\n')
    after = json.loads((run / 'results.json').read_text())
    assert (after['median'], after['mean'], after['std']) == ({}, {}, {})
    assert after['rounds']['1'] == before['rounds']['1']
    with pytest.raises(InputError) as refused:
        compare.read_run(run, 'run')
    assert str(refused.value) == f'{run}: {reason}'


def test_a_larger_number_that_trained_nothing_can_be_taken_back(run, resume):
    """As a kill before the next epoch leaves the run."""
    before = content(run)
    record = read_record(run / 'config.json')
    options = {**record['options'], 'epochs': 320, 'train_test_num': 100}
    edit(run / 'config.json', options=options)
    done = resume('--epochs', 2, '--train_test_num', 2)
    assert done.returncode == 0, done.stderr
    options = read_record(run / 'config.json')['options']
    assert (options['epochs'], options['train_test_num']) == (2, 2)
    assert content(run, ['config.json']) == {
        name: text for name, text in before.items() if name != 'config.json'
    }


def test_fewer_than_was_trained_is_refused(run, resume):
    before = content(run)
    done = resume('--epochs', 1)
    assert done.returncode == 2 and 'run/round_01 has trained 2 epochs' in last_line(done)
    done = resume('--train_test_num', 1)
    assert done.returncode == 2 and 'run/round_02 has been trained' in last_line(done)
    assert content(run) == before


def test_an_epoch_that_a_kill_kept_from_the_history_counts_too(run, resume):
    folder = run / 'round_02'
    lines = (folder / 'history.csv').read_text().splitlines(keepends=True)
    (folder / 'history.csv').write_text(''.join(lines[:-1]))
    (folder / 'result.json').unlink()
    edit(run / 'round_01' / 'result.json', epochs=1)
    first = run / 'round_01' / 'history.csv'
    first.write_text(''.join(first.read_text().splitlines(keepends=True)[:-1]))
    before = content(folder)
    done = resume('--epochs', 1)
    assert done.returncode == 2 and 'run/round_02 has trained 2 epochs' in last_line(done)
    assert content(folder) == before


def test_a_round_that_stopped_early_is_of_the_number_of_epochs_that_is_taken_back(run, resume):
    """As --patience leaves it: its two epochs are all that it trains of five."""
    record = read_record(run / 'config.json')
    edit(run / 'config.json', options={**record['options'], 'epochs': 5})
    edit(run / 'round_02' / 'result.json', epochs=5)
    done = resume('--epochs', 2)
    assert done.returncode == 0 and 'No median' not in done.stdout, done.stderr
    assert json.loads((run / 'round_02' / 'result.json').read_text())['epochs'] == 2


def test_a_round_that_has_begun_is_not_started_anew_without_its_checkpoint(unstarted, resume):
    """Not even from random weights, with only its best.pth left."""
    folder = unstarted / 'round_01'
    for path in folder.iterdir():
        if path.name not in ('best.pth', 'split.json'):
            path.unlink()
    before = content(folder)
    done = resume('--rounds', 1)
    assert done.returncode == 2 and 'last.pth is gone' in last_line(done)
    assert content(folder) == before


@pytest.fixture
def unstarted(run, finished_run):
    """The run as if it had begun with w.pth, its second round not begun."""
    shutil.rmtree(run / 'round_02')
    shutil.copy(finished_run / 'run' / 'round_01' / 'best.pth', run.parent / 'w.pth')
    state = torch.load(run.parent / 'w.pth', weights_only=True)
    record = read_record(run / 'config.json')
    digest = checkpoints.digest(dict(sorted(state.items())))
    options = {**record['options'], 'weights': 'w.pth'}
    edit(run / 'config.json', options=options, initial_weights=digest)
    return run


def test_other_initial_weights_in_the_same_place_are_refused(unstarted, resume):
    path = unstarted.parent / 'w.pth'
    state = torch.load(path, weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, path)
    before = content(unstarted)
    done = resume()
    assert done.returncode == 2
    assert '--weights: w.pth has other weights than those that run began with' in last_line(done)
    assert content(unstarted) == before


def test_moved_initial_weights_are_needed_only_where_a_round_starts(unstarted, tmp_path, resume):
    (tmp_path / 'w.pth').rename(tmp_path / 'moved.pth')
    done = resume()
    assert (done.returncode, last_line(done)) == (2, 'error: --weights: there is no file w.pth')
    done = resume('--weights', 'moved.pth')
    assert done.returncode == 0, done.stderr
    (tmp_path / 'moved.pth').unlink()
    # A finished round, and one whose last epoch is to be tested again.
    (unstarted / 'round_02' / 'result.json').unlink()
    done = resume()
    assert done.returncode == 0, done.stderr


def test_a_run_without_a_digest_compares_the_path(unstarted, tmp_path, resume):
    edit(unstarted / 'config.json', initial_weights=None)
    (tmp_path / 'w.pth').rename(tmp_path / 'moved.pth')
    done = resume('--weights', 'moved.pth')
    assert done.returncode == 2 and '--weights was w.pth, is moved.pth' in last_line(done)


def test_a_new_run_records_its_processes_and_the_digest_of_its_weights(
    tmp_path, finished_run, program
):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    weights = finished_run / 'run' / 'round_01' / 'best.pth'
    options = (*QUICK, '--epochs', 1, '--weights', weights, '--output', 'new')
    done = program('--dataset', 'livec', '--data_root', 'livec', *options)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / 'new' / 'config.json')
    state = torch.load(weights, weights_only=True)
    assert record['initial_weights'] == checkpoints.digest(dict(sorted(state.items())))
    assert record['processes'] == 1
    assert read_record(finished_run / 'run' / 'config.json')['initial_weights'] is None


def test_another_commit_or_number_of_processes_is_one_line(run, resume):
    edit(run / 'config.json', commit='0123abc', processes=2)
    done = resume()
    assert done.returncode == 0
    about = [line for line in done.stderr.splitlines() if line.startswith('this run was made')]
    assert len(about) == 2
    assert about[0].startswith(
        'this run was made by 2 processes and continues with 1 process, which can change its '
        'numbers'
    )
    assert about[1].startswith('this run was made by commit 0123abc and continues with ')


def read_in_little_memory(path, spare):
    """Read a checkpoint with `spare` bytes more than this process has now."""
    with boundary():
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        most = pages * resource.getpagesize() + spare
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        checkpoints.read_checkpoint(path)


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs Linux')
@pytest.mark.parametrize('spare', [1_000_000, 20_000_000, 100_000_000, 250_000_000])
@pytest.mark.parametrize('name', ['last.pth', 'best.safetensors'])
def test_memory_that_runs_out_is_no_damaged_file(finished_run, tmp_path, name, spare):
    folder = finished_run / 'run' / 'round_01'
    path = folder / name
    if name == 'best.safetensors':
        safetensors = pytest.importorskip('safetensors.torch')
        path = tmp_path / name
        state = torch.load(folder / 'best.pth', weights_only=True)
        safetensors.save_file({name: value.contiguous() for name, value in state.items()}, path)
        spare //= 4
    process = forked.Forked(read_in_little_memory, path, spare, folder=tmp_path)
    _, printed = process.communicate()
    assert process.returncode == 2 and 'memory' in printed
    assert 'damaged' not in printed and 'get it again' not in printed


def test_a_state_that_does_not_fit_in_memory_is_not_called_another_rounds(run, resume):
    def restored(state):
        raise MemoryError

    folder = RoundFolder.__new__(RoundFolder)
    folder.path = run / 'round_01'
    folder.owner = {}
    with pytest.raises(MemoryError):
        folder.restore(restored)


def options_of(*options):
    return parse_options([*map(str, TINY), '--output', 'run', *map(str, options)])


SURROUNDINGS = {'device': '', 'processes': 1, 'commit': None, 'initial_weights': None}


def begin(step):
    """In a process of its own: one step of how round 1 is begun."""
    config = options_of()
    job = train_test_IQA.prepare_run(config) if step == 'check' else prepared(config)
    if step == 'open':
        run_folder.open_run(config, job, SURROUNDINGS)
    elif step == 'round':
        RoundFolder(config, job.meaning, 0, split_record(job.splits[0], job.database))


def prepared(config):
    """As `prepare_run`, in a folder that has no run yet."""
    place = config.output
    config.output = 'elsewhere'
    job = train_test_IQA.prepare_run(config)
    config.output = place
    return job


@pytest.mark.parametrize('step', ['check', 'open', 'round'])
def test_rounds_are_begun_one_process_at_a_time(tmp_path, finished_run, step):
    """Another process is between its check and its write, which the lock of the run stands for."""
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    run = tmp_path / 'run'
    round_1 = run / 'round_01'
    round_1.mkdir(parents=True)
    # Of a run that was killed in its first epoch.
    for name in ('config.json', 'round_01/split.json'):
        shutil.copy(finished_run / 'run' / name, run / name)
    with locked(run / '.lock'):
        process = forked.Forked(begin, step, folder=tmp_path)
        waiting = 'waiting for another process, which holds run/.lock\n'
        lines = iter(process.stderr.readline, '')
        assert waiting in lines
        assert (round_1 / 'split.json').exists()
        assert not (round_1 / '.lock').exists()
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    # Only the one that opens the run removes the splits of the killed one.
    assert (round_1 / 'split.json').exists() == (step != 'open')


def test_a_run_that_another_process_began_anew_with_other_options_refuses_the_round(
    tmp_path, finished_run, monkeypatch
):
    (tmp_path / 'livec').symlink_to(finished_run / 'livec')
    monkeypatch.chdir(tmp_path)
    configs = [options_of(), options_of('--lr', 1e-3)]
    jobs = [train_test_IQA.prepare_run(config) for config in configs]
    for config, job in zip(configs, jobs):
        run_folder.open_run(config, job, SURROUNDINGS)
    split = split_record(jobs[0].splits[0], jobs[0].database)
    with pytest.raises(InputError, match='--lr was 0.001, is 2e-05'):
        RoundFolder(configs[0], jobs[0].meaning, 0, split)
    folder = RoundFolder(configs[1], jobs[1].meaning, 0, split)
    # The first one is told now that the second is at work.
    with pytest.raises(InputError, match='the run folder run exists already'):
        run_folder.check_run(configs[0], jobs[0])
    folder.close()
