"""What train_test_IQA.py prints and how it ends, on small real databases."""

import re

import databases
import pytest
import torch
from helpers import TINY, without_times

import models
from train_test_IQA import main

ONE_ROUND = (*TINY, '--batch_size', 3, '--train_test_num', 1)


def rows(output):
    return [line.split() for line in output.splitlines() if re.match(r' +\d', line)]


@pytest.mark.slow
def test_rounds_epochs_best_and_median_are_printed_and_repeat_exactly(finished_run, program):
    printed, errors = ((finished_run / name).read_text() for name in ('stdout.txt', 'stderr.txt'))
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith('Round')] == ['Round 1', 'Round 2']
    assert [row[0] for row in rows(printed)] == ['1', '2', '1', '2']
    assert (
        lines.count(
            'Epoch  Train_Loss  Train_SRCC  Test_SRCC  Test_PLCC  Test_MAE        Time        Left'
        )
        == 2
    )
    best = [
        float(line.split()[3].rstrip(',')) for line in lines if line.startswith('Best test SRCC')
    ]
    assert re.match(
        r'Testing median SRCC -?\d\.\d{4}, median PLCC -?\d\.\d{4}, median MAE \d', lines[-2]
    )
    assert lines[-1].startswith('Last epochs: median SRCC ')
    assert float(lines[-2].split()[3].rstrip(',')) == pytest.approx(sum(best) / 2, abs=1e-4)
    assert errors.startswith(
        'warning: LIVE Challenge'
    )  # then where it is, of what, on what; at the end what comes next
    assert (
        '\nRun folder: run (--resume run continues it)\n'
        'LIVE Challenge: 6 to train on, 2 to test on\n' in errors
    )
    assert '\n1 process on cpu, 1 thread; initial weights: none; seed: 0\n' in errors
    assert errors.splitlines()[-3:] == [
        'Results: run/results.json; weights: run/round_02/best.pth; pictures: run/round_02/*.png',
        'Score a photo:    python demo.py --checkpoint run/round_02/best.pth PHOTO',
        'Compare two runs: python compare.py run OTHER_RUN',
    ]
    assert 'warning: LIVE Challenge has 1162 images; 8 are listed' in errors

    livec = ('--data_root', finished_run / 'livec')
    again = program(*TINY, *livec, '--num_workers', 3, '--rounds', 2, '--output', 'again')
    second_round = without_times(printed[printed.index('Round 2') : printed.index('Testing')])
    assert without_times(again.stdout).startswith(second_round) and re.search(
        r' \d+ s +\d+ s\n', printed
    )


def test_a_nan_loss_stops_the_round_with_a_message(make_database, program):
    make_database('livec', images=8)
    done = program(*ONE_ROUND, '--lr', 1e30, '--epochs', 4)
    assert done.returncode == 3 and 'no result: round 1 has no epoch to choose' in done.stderr
    assert len(rows(done.stdout)) < 4
    assert re.search(
        r'epoch \d: the training loss \((nan|inf)\) or a weight is not finite, '
        r'so this round stops here',
        done.stderr,
    )


@pytest.mark.slow
def test_constant_predictions_have_srcc_nan_and_are_never_the_best(
    make_database, program, tmp_path
):
    make_database('livec', images=8)
    torch.save(
        {name: torch.zeros_like(value) for name, value in models.hyperiqa().state_dict().items()},
        tmp_path / 'zero.pth',
    )
    zero = ('--weights', 'zero.pth', '--lr', 0, '--weight_decay', 0)
    done = program(*ONE_ROUND, *zero, '--patience', 1)
    assert [row[2:5] for row in rows(done.stdout)] == [['nan'] * 3]
    assert 'Best test SRCC nan, PLCC nan' in done.stdout and done.stdout.endswith(
        'SRCC nan, median PLCC nan\n'
    )
    assert 'Warning' not in done.stderr
    assert 'no epoch has a test_srcc: this round stops here' in done.stderr


@pytest.mark.parametrize(
    'options, reason',
    [
        (('--data_root', 'nowhere'), 'there is no folder nowhere. Get it from https://'),
        (('--dataset', 'imagenet'), "there is no database 'imagenet'; choose one of"),
        (('--patch_size', 256), 'argument --patch_size: invalid choice: 256'),
        (('--device', 'cuda:77'), '--device cuda:77: '),
        (('--device', 'gpu'), '--device gpu: '),
        (('--weights', 'absent.pth'), 'there is no file absent.pth'),
        (('--train_patch_num', 0), '--train_patch_num'),
        (
            ('--train_patch_num', 10**19),
            '--train_patch_num: 10000000000000000000 is not in 1 ... 1000000',
        ),
        (('--epochs', 'many'), '--epochs'),
        (('--lr', -1), '--lr'),
        (('--num_workers', -1), '--num_workers'),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(
    make_database, monkeypatch, capsys, options, reason
):
    monkeypatch.chdir(make_database('livec', images=10).parent)
    with pytest.raises(SystemExit) as exit:
        main([*map(str, ONE_ROUND), *map(str, options)])
    assert exit.value.code == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert 'error: ' in last and reason in last
    assert 'Epoch' not in printed.out


def test_faults_of_a_database_give_one_line_and_exit_code_2(make_database, program):
    root = make_database('livec', images=10)
    image = databases.picture(root / 'Images' / '3.bmp', size=(200, 300))
    for content, reason in (
        (None, '3.bmp is 300x200: an image must be at least 224x224'),
        (b'no image', '3.bmp cannot be read as an image'),
    ):
        if content:
            image.write_bytes(content)
        done = program(*ONE_ROUND, '--resume')
        assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]
        assert 'Traceback' not in done.stderr


def test_imagenet_weights_without_a_network_say_what_to_do(
    make_database, program, monkeypatch, tmp_path
):
    make_database('livec', images=10)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'empty'))
    # Nothing listens there, with or without a network.
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    done = program(*ONE_ROUND, '--weights', 'imagenet')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert 'resnet50-0676ba61.pth' in last and '--weights FILE' in last and '--weights none' in last
