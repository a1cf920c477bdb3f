"""demo.py scores files and folders, the same at every call."""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import databases
import forked
import numpy as np
import pytest
import torch
from helpers import PROJECT, command, read_table
from PIL import Image

import demo
import models
from scoring import scorer as scoring
from util import checkpoints, frames
from util.errors import InputError
from util.files import read_json
from util.meaning import Meaning


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('checkpoint') / 'best.pth'
    torch.save(models.hyperiqa().state_dict(), path)
    return path


def scores(done):
    return [line.split('\t') for line in done.stdout.splitlines()]


def test_files_and_folders_score_the_same_at_every_call(tmp_path, in_process, checkpoint):
    for name, size in (
        ('a.jpg', (600, 500)),
        ('folder/b.PNG', (520, 400)),
        ('folder/deeper/c.bmp', (512, 384)),
    ):
        databases.picture(tmp_path / name, seed=len(name), size=size)
    (tmp_path / 'folder' / 'notes.txt').write_text('no image')
    first = in_process(
        demo.main,
        '--checkpoint',
        checkpoint,
        '--patches',
        3,
        '--csv',
        'scores.csv',
        'a.jpg',
        'folder',
    )
    assert first.returncode == 0, first.stderr
    assert [path for path, _ in scores(first)] == ['a.jpg', 'folder/b.PNG', 'folder/deeper/c.bmp']
    with open(tmp_path / 'scores.csv', newline='') as file:
        rows = list(csv.reader(file))
    weights = checkpoints.digest(torch.load(checkpoint))[:8]
    assert rows[0] == ['image', 'prediction', 'patches', 'weights']
    assert [[row[0], f'{float(row[1]):.4f}'] for row in rows[1:]] == scores(first)
    assert all(row[2:] == ['3', weights] for row in rows[1:])

    (tmp_path / 'a.jpg').rename(tmp_path / 'renamed.jpg')
    again = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 3, 'folder', 'renamed.jpg'
    )
    assert dict(scores(again))['renamed.jpg'] == dict(scores(first))['a.jpg']
    assert dict(scores(again))['folder/b.PNG'] == dict(scores(first))['folder/b.PNG']


def test_unreadable_files_are_skipped_with_exit_code_2(tmp_path, in_process, checkpoint):
    databases.picture(tmp_path / 'good.png')
    (tmp_path / 'bad.png').write_bytes(b'no image')
    done = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 1, 'bad.png', 'good.png', 'absent.png'
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert [path for path, _ in scores(done)] == ['good.png']
    skipped = [line for line in done.stderr.splitlines() if line.startswith('skipped: ')]
    assert skipped[0].startswith('skipped: bad.png cannot be read as an image: ')
    assert skipped[1:] == ['skipped: there is no file absent.png']


def test_the_resize_is_that_of_the_training(tmp_path, in_process, checkpoint, finished_run):
    """livec has none, so a small image is enlarged; a file outside a run counts as KonIQ's."""
    databases.picture(tmp_path / 'small.png', size=(100, 300))
    done = in_process(
        demo.main,
        '--checkpoint',
        finished_run / 'run' / 'round_01' / 'best.pth',
        '--patches',
        1,
        'small.png',
    )
    assert 'small.png is 300x100: enlarged to 672x224' in done.stderr and len(scores(done)) == 1
    done = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 1, 'small.png')
    assert 'resized to 512 high, 384 wide' in done.stderr and 'enlarged' not in done.stderr


def test_a_checkpoint_finds_its_run_from_inside_the_folder_and_through_a_link(
    tmp_path, finished_run, monkeypatch
):
    round_folder = finished_run / 'run' / 'round_01'
    record = read_json(finished_run / 'run' / 'config.json')
    expected = Meaning.of_record(record['model'])
    (tmp_path / 'latest.pth').symlink_to(round_folder / 'best.pth')
    for folder, name in (
        (round_folder, 'best.pth'),
        (finished_run / 'run' / 'round_02', '../round_01/best.pth'),
        (tmp_path, 'latest.pth'),
    ):
        monkeypatch.chdir(folder)
        assert scoring.load_trained(name)[1] == expected


def test_no_images_or_checkpoint(tmp_path, in_process, checkpoint):
    (tmp_path / 'empty').mkdir()
    for options, reason in (
        (('--checkpoint', checkpoint, 'empty'), 'there are no images in the folder empty'),
        (('--checkpoint', 'none.pth', 'a.jpg'), 'there is no file none.pth'),
    ):
        done = in_process(demo.main, *options)
        assert done.returncode == 2 and reason in done.stderr and 'Traceback' not in done.stderr


@pytest.fixture(scope='module')
def scorer(checkpoint):
    return demo.Scorer(checkpoint, 'cpu', patches=2)


def test_from_python_a_path_an_image_and_an_array_score_alike(
    tmp_path, in_process, checkpoint, scorer
):
    path = databases.picture(tmp_path / 'photo.png', size=(500, 400))
    done = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 2, '--device', 'cpu', '--spread', path
    )
    score, spread = scorer(path, spread=True)
    assert scores(done) == [[str(path), f'{score:.4f}', f'{spread:.4f}']] and spread > 0
    assert isinstance(score, float) and scorer(str(path)) == score

    image = Image.open(path)
    array = np.asarray(image)
    assert scorer(array) == scorer(image) == score  # the same crops, for ever
    assert scorer([image, array[::-1], path]) == pytest.approx(
        [score, scorer(array[::-1].copy()), score], abs=1e-5
    )
    assert scorer([]) == []


def test_an_image_from_python_is_shown_and_turned_as_its_file_is(tmp_path, scorer):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (('turned.jpg', {'exif': exif}), ('grey.png', {})):
        path = databases.picture(tmp_path / name, size=(300, 400), **options)
        if name == 'grey.png':
            Image.open(path).convert('LA').save(path)
        shown = frames.load_image(path, exif_rotation=True)
        assert np.array_equal(np.asarray(shown), np.asarray(scoring.rgb_of(Image.open(path))))
        assert (
            scorer(path) == scorer(Image.open(path)) == scorer(np.asarray(shown))
        )  # upright with every checkpoint


def test_names_with_odd_spaces_and_folders_that_are_links(tmp_path, in_process, checkpoint):
    """As macOS names screenshots; the link and its target give each photo once."""
    name = 'Screenshot 9.41.00\u202fAM\u00a0.png'
    databases.picture(tmp_path / 'photos' / name)
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more' / 'link').symlink_to(tmp_path / 'photos')
    (tmp_path / 'more' / 'again').symlink_to(tmp_path / 'more')
    done = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 1, '--csv', 'scores.csv', 'more'
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / 'scores.csv', newline='', encoding='utf-8') as file:
        assert [row['image'] for row in csv.DictReader(file)] == [f'more/link/{name}']
    assert (
        'scores on the scale of the labels of KonIQ-10k: 0 to 100, higher is better' in done.stderr
    )


def test_a_score_that_is_not_finite_is_an_error(tmp_path, in_process):
    model = models.hyperiqa()
    with torch.no_grad():
        model.fc5b_fc.bias.fill_(3e38)
        model.fc5b_fc.weight.fill_(3e38)
    torch.save(model.state_dict(), tmp_path / 'huge.pth')
    databases.picture(tmp_path / 'a.png', size=(500, 400))
    done = in_process(demo.main, '--checkpoint', 'huge.pth', '--patches', 1, 'a.png')
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        'error: huge.pth gives a score that is not finite'
    )


@pytest.mark.parametrize(
    'image',
    [np.zeros((300, 300, 3)), np.zeros((300, 300), np.uint8), np.zeros((0, 9, 3), np.uint8), 7],
)
def test_what_is_no_image_is_refused_from_python(scorer, image):
    with pytest.raises(InputError, match='an image is a path, a PIL image or an'):
        scorer([image])


def test_a_cut_picture_is_refused_from_python(scorer, tmp_path):
    path = databases.picture(tmp_path / 'cut.png', size=(500, 400))
    path.write_bytes(path.read_bytes()[:2000])
    with (
        Image.open(path) as image,
        pytest.raises(InputError, match='the image cannot be read as an image: .*replace the file'),
    ):
        scorer(image)


def test_folders_give_their_pictures_and_name_the_photos_that_cannot_be_read(
    tmp_path, in_process, checkpoint
):
    folder = tmp_path / 'folder'
    odd = os.fsdecode(b'caf\xe9.png')
    for name in ('a.png', 'new\nline\t.png', odd, '.hidden.png', '.thumbnails/b.png'):
        databases.picture(folder / name)
    for name in ('._a.png', 'IMG_1.HEIC', 'paper.pdf', 'clip.mpg', 'weights.h5'):
        (folder / name).write_bytes(b'\0\5\26\7')
    done = in_process(
        demo.main,
        '--checkpoint',
        checkpoint,
        '--patches',
        1,
        '--csv',
        'scores.csv',
        'folder',
        'folder/a.png',
    )
    names = ['folder/a.png', 'folder/caf\\udce9.png', 'folder/new\\nline\\t.png']
    assert done.returncode == 2 and sorted(name for name, _ in scores(done)) == sorted(
        [*names, 'folder/a.png']
    )
    assert (
        'skipped: folder/IMG_1.HEIC cannot be read as an image' in done.stderr
        and done.stderr.count('skipped: ') == 1
    )
    with open(tmp_path / 'scores.csv', newline='', errors='surrogateescape') as file:
        found = [row['image'] for row in csv.DictReader(file)]
    assert found == ['folder/a.png', f'folder/{odd}', 'folder/new\nline\t.png', 'folder/a.png']


def test_folders_of_drives_raw_files_and_other_endings(tmp_path, in_process, checkpoint):
    folder = tmp_path / 'folder'
    databases.pictures(folder, ['a.png', '@eaDir/a.png/small.png', 'deep/lost+found/b.png'])
    for name in ('c.nrw', 'd.3fr', 'e.jpg_large', 'Makefile', '.hidden'):
        (folder / name).write_bytes(b'nothing that is read')
    done = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 1, 'folder')
    assert done.returncode == 2 and [name for name, _ in scores(done)] == ['folder/a.png']
    told = 'folder: files of other endings, which are not scored: 4 (.3fr, .jpg_large, .nrw, none)'
    lines = done.stderr.splitlines()
    assert lines[0] == told
    skipped = [line for line in lines if line.startswith('skipped: ')]
    assert [line.split()[1] for line in skipped] == ['folder/c.nrw', 'folder/d.3fr']


def test_a_path_that_the_system_cannot_follow_is_skipped(tmp_path, in_process, checkpoint):
    databases.picture(tmp_path / 'a.png')
    (tmp_path / 'loop.png').symlink_to('loop.png')
    (tmp_path / 'gone.png').symlink_to('nowhere.png')
    (tmp_path / 'disk.png').symlink_to('/proc/self/mem')  # whose first page gives EIO
    paths = ('a.png/x.png', 'loop.png', 'n' * 300, 'disk.png')
    done = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 1, *paths, 'a.png', '--map', 'maps'
    )
    assert done.returncode == 2 and [name for name, _ in scores(done)] == ['a.png']
    reasons = ('Not a directory', 'symbolic links', 'name too long', 'output error')
    skipped = [line for line in done.stderr.splitlines() if line.startswith('skipped: ')]
    assert len(skipped) == 4
    for line, reason in zip(skipped, reasons):
        assert reason in line
    done = in_process(demo.main, '--checkpoint', checkpoint, '--patches', 1, '.')
    assert done.returncode == 2 and next(name for name, _ in scores(done)) == 'a.png'
    assert 'skipped: there is no file gone.png' in done.stderr


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_scored(as_nobody, checkpoint):
    folder, run = as_nobody
    databases.pictures(folder, ['photos/a.png', 'photos/closed/b.png'], size=(230, 240))
    shutil.copy(checkpoint, folder / 'best.pth')
    (folder / 'photos' / 'closed').chmod(0o700)
    options = ['--checkpoint', 'best.pth', '--patches', '1', '--device', 'cpu']
    # What a user may not import is imported before.
    demo.Scorer(checkpoint, 'cpu', patches=1)(folder / 'photos' / 'a.png')

    def act():
        with contextlib.redirect_stdout(sys.stderr), pytest.raises(SystemExit) as ended:
            demo.main([*options, 'photos'])
        print('exit code', ended.value.code, file=sys.stderr)

    lines = run(act).splitlines()
    assert 'skipped: the folder photos/closed cannot be read: Permission denied' in lines
    assert any(line.startswith('photos/a.png\t') for line in lines)
    assert lines[-1] == 'exit code 2'


def demo_in_pairs(argv):
    """demo.py in batches of two patches."""
    scoring.BATCH_SIZE = 2
    demo.main(argv)


@pytest.mark.slow
def test_a_list_that_was_stopped_is_resumed_to_the_table_of_an_uninterrupted_call(
    tmp_path, in_process, checkpoint, monkeypatch
):
    """Killed, interrupted, and with a reader that went away, each after its first line."""
    names = [f'photos/a {k}, b.png' if k == 7 else f'photos/a {k}.png' for k in range(12)]
    for k, name in enumerate(names):
        databases.picture(tmp_path / name, seed=k, size=(500, 400))
    (tmp_path / 'list.txt').write_text('\n'.join(['absent.png', *names[1:]]))
    options = (
        '--checkpoint',
        checkpoint,
        '--patches',
        2,
        '--device',
        'cpu',
        '--list',
        'list.txt',
        '--csv',
    )
    monkeypatch.setattr(scoring, 'BATCH_SIZE', 2)
    whole = in_process(demo.main, *options, 'whole.csv', names[0])
    assert whole.returncode == 2 and [name for name, _ in scores(whole)] == names
    assert [line for line in whole.stderr.splitlines() if 'could not' in line] == [
        '1 of 13 images could not be read'
    ]

    table, printed = tmp_path / 'scores.csv', []
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (None, 141)):
        process = forked.program(
            demo_in_pairs, *options, 'scores.csv', '--resume', names[0], folder=tmp_path
        )
        printed.append(process.stdout.readline())
        if number:
            process.send_signal(number)
            printed += process.stdout.readlines()
        else:
            process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == expected and 'Traceback' not in errors
        assert number != signal.SIGINT or errors.endswith(
            'interrupted; the scores so far are kept; --resume continues after them\n'
        )
        held = [row['image'] for row in read_table(table)]
        assert held == names[: len(held)] and len(printed) <= len(held) < len(names)
        table.write_bytes(
            table.read_bytes() + b'photos/a 11.png,0.5'
        )  # as a kill in a write leaves it

    rest = in_process(demo.main, *options, 'scores.csv', '--resume', names[0])
    assert (
        f'scores.csv has the scores of {len(held)} of 13 images, which are skipped' in rest.stderr
    )
    assert [name for name, _ in scores(rest)] == names[len(held) :]
    assert table.read_bytes() == (tmp_path / 'whole.csv').read_bytes()
    images = [line.partition('\t')[0] for line in printed]
    assert len({*images}) == len(images) and {*images} <= {*held}


def test_what_cannot_be_resumed_or_has_nothing_to_score_is_one_line(
    tmp_path, in_process, checkpoint
):
    for options, reason in (
        (('--resume', 'a.png'), '--resume goes with --csv FILE'),
        (('--csv', 'scores.csv'), 'there is nothing to score'),
        (('--list', 'absent.txt'), 'there is no file absent.txt'),
    ):
        done = in_process(demo.main, '--checkpoint', checkpoint, *options)
        assert done.returncode == 2 and done.stderr.startswith(f'error: {reason}')
        assert done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('header', ['image,score', 'image,score,spread', 'image,score,content'])
def test_a_table_of_labels_or_of_an_earlier_version_is_no_table_of_scores(
    tmp_path, in_process, checkpoint, header
):
    databases.picture(tmp_path / 'a.png')
    content = f'{header}\na.png,3.5\nb.png,1.25\n'
    (tmp_path / 'labels.csv').write_text(content)
    for resume in ((), ('--resume',)):
        options = ('--checkpoint', checkpoint, 'a.png', '--csv', 'labels.csv', *resume)
        done = in_process(demo.main, *options)
        assert done.returncode == 2 and done.stderr.count('\n') == 1
        assert 'name another file' in done.stderr
        said = 'these are labels, or scores of an earlier version' in done.stderr
        assert said == (header != 'image,score,content')
        assert (tmp_path / 'labels.csv').read_text() == content
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'labels.csv']


def test_a_table_of_scores_is_continued_only_on_request_and_by_the_same_network(
    tmp_path, in_process, checkpoint
):
    torch.manual_seed(1)
    torch.save(models.hyperiqa().state_dict(), tmp_path / 'other.pth')
    for name in ('a.png', 'b.png'):
        databases.picture(tmp_path / name)
    same = ('--checkpoint', checkpoint, '--patches', 2)
    first = in_process(demo.main, *same, '--csv', 's.csv', '--resume', 'a.png')
    assert first.returncode == 0 and 'skipped' not in first.stderr
    content = (tmp_path / 's.csv').read_bytes()
    # As a kill in a write leaves it; a refusal does not even repair that.
    (tmp_path / 's.csv').write_bytes(content + b'b.png,0.5')
    other = ('--checkpoint', 'other.pth', '--patches', 2)
    for options, reason in (
        (same, 's.csv has scores already; --resume continues it, or name another file'),
        ((*same, '--resume', '--patches', 3), 's.csv has scores with patches 2, not 3; '),
        ((*other, '--resume'), 's.csv has scores with weights '),
        ((*same, '--resume', '--spread'), 's.csv was made without --spread; '),
    ):
        done = in_process(demo.main, *options, '--csv', 's.csv', 'a.png', 'b.png')
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f'error: {reason}')
        assert (tmp_path / 's.csv').read_bytes() == content + b'b.png,0.5'
    done = in_process(demo.main, *same, '--csv', 's.csv', '--resume', 'a.png', 'b.png')
    assert done.returncode == 0 and [name for name, _ in scores(done)] == ['b.png']
    assert 's.csv has the scores of 1 of 2 images, which are skipped' in done.stderr
    assert (tmp_path / 's.csv').read_bytes().startswith(content + b'b.png,')
    assert [row['image'] for row in read_table(tmp_path / 's.csv')] == ['a.png', 'b.png']


def test_one_process_at_a_time_writes_a_table(tmp_path, in_process, checkpoint):
    databases.picture(tmp_path / 'a.png')
    (tmp_path / 'link.csv').symlink_to('s.csv')
    code = (
        'from scoring.score_table import ScoreTable\n'
        'table = ScoreTable("s.csv", spread=False, patches=1, resume=False)\n'
        'table.start("weights")\n'
        'table.append("b.png", [0.5])\n'
        'print(1, flush=True); input()'
    )
    writer = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == b'1\n'
    content = (tmp_path / 's.csv').read_bytes()
    for options in (('s.csv',), ('s.csv', '--resume'), ('link.csv', '--resume')):
        done = in_process(demo.main, '--checkpoint', checkpoint, 'a.png', '--csv', *options)
        assert done.returncode == 2 and 'is being written by another process' in done.stderr
        assert done.stderr.count('\n') == 1
    writer.kill()
    writer.communicate()
    assert (tmp_path / 's.csv').read_bytes() == content


def test_names_that_are_not_utf8_or_hold_a_line_break_are_resumed_as_well(
    tmp_path, in_process, checkpoint
):
    names = ['a.png', 'new\nline.png', os.fsdecode(b'caf\xe9.png'), 'b.png']
    for name in names:
        databases.picture(tmp_path / name)
    options = ('--checkpoint', checkpoint, '--patches', 1, '--csv', 'scores.csv', '--spread')
    in_process(demo.main, *options, *names[:3])
    first = (tmp_path / 'scores.csv').read_bytes()
    done = in_process(demo.main, *options, '--resume', *names)
    assert done.returncode == 0 and [name for name, *_ in scores(done)] == ['b.png']
    assert (tmp_path / 'scores.csv').read_bytes().startswith(first + b'b.png,')


@pytest.mark.parametrize(
    'content',
    [
        'MOS,image_name\n3,x/a 1.png\n4,"b, 2.png"\n',
        'x/a 1.png\n\nb, 2.png\n',
        '{"file_name": "x/a 1.png"}\n{"file_name": "b, 2.png"}',
    ],
)
def test_a_list_is_a_table_or_lines_from_its_folder_on_or_stdin(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / 'lists'):
        databases.pictures(folder, ['x/a 1.png', 'b, 2.png'])
    (tmp_path / 'lists' / 'photos.txt').write_text(content)
    assert demo.read_list('lists/photos.txt') == [Path('lists/x/a 1.png'), Path('lists/b, 2.png')]
    with open('lists/photos.txt') as file:
        monkeypatch.setattr(sys, 'stdin', file)
        assert demo.read_list('-') == [Path('x/a 1.png'), Path('b, 2.png')]


def test_bfloat16_gives_nearly_the_same_scores(tmp_path, in_process, checkpoint, scorer):
    path = databases.picture(tmp_path / 'photo.png', size=(500, 400))
    done = in_process(
        demo.main, '--checkpoint', checkpoint, '--patches', 2, '--device', 'cpu', '--amp', path
    )
    [[_, printed]] = scores(done)
    score, spread = scorer(path, spread=True)
    assert printed != f'{score:.4f}' and float(printed) == pytest.approx(score, abs=spread / 5)


def test_images_that_are_decoded_ahead_keep_their_order(tmp_path, scorer, monkeypatch):
    """The first takes longest to decode. An opened picture can be listed twice."""
    sizes = [(3000, 2000), (250, 230), (260, 230), (270, 230)]
    paths = [
        databases.picture(tmp_path / f'{k}.png', seed=k, size=size) for k, size in enumerate(sizes)
    ]
    expected = [scorer(path) for path in paths]
    assert len({*expected}) == len(paths)
    monkeypatch.setattr(scoring, 'BATCH_SIZE', 4)
    assert scorer(paths) == pytest.approx(expected, abs=1e-5)
    opened = Image.open(paths[0])
    assert scorer([opened, opened]) == pytest.approx([expected[0]] * 2, abs=1e-5)
    results = list(scorer.results([paths[1], 'absent.png', 'none.png', paths[2]]))
    assert [str(result) for result in results[1:3]] == [
        'there is no file absent.png',
        'there is no file none.png',
    ]
    assert [results[0][0], results[3][0]] == pytest.approx(expected[1:3], abs=1e-5)
    with pytest.raises(InputError, match='there is no file absent.png'):
        scorer([paths[1], 'absent.png'])


def test_a_full_output_is_one_line(tmp_path, checkpoint):
    databases.picture(tmp_path / 'a.png')
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            command('demo.py', '--checkpoint', checkpoint, '--patches', 1, 'a.png'),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: No space left')
