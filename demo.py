"""Score images with a trained HyperIQA.

    python demo.py --checkpoint runs/koniq-seed0/round_01/best.pth photo.jpg folder/
    find /photos -name '*.jpg' |
        python demo.py --checkpoint best.pth --list - --csv scores.csv --resume

Prints `path<TAB>score`. From Python:

    from demo import Scorer
    score = Scorer('runs/koniq-seed0/round_01/best.pth')('photo.jpg')

An image's score is the mean over patches. Their places are the same fractions of every image. So
the score is the same at every call, up to the last digits if other images share its batch.
Photos are shown as a viewer shows them: upright, and in sRGB.

--map FOLDER draws each photo under the scores of a grid of patches. Content moves them as much as
quality does, so a map shows which half of a photo is blurred, but not which object.

The table of --csv grows as the scores come, unlike every other output of this project: a kill loses
at most the last batch, and the same call with --resume skips the images that are in the table.

The exit status is 2 if an image or a folder could not be read.
"""

import argparse
import os
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiment.options import Parser, positive
from experiment.run_folder import checkpoint_in
from scoring.score_table import FIRST_COLUMNS, ScoreTable
from util.errors import InputError, boundary, log, one_line
from util.files import (
    as_input_error,
    check_input,
    refuse_in_run,
    refuse_other_content,
    walk,
    write_whole,
)
from util.names import RAW_ENDINGS, FilesIn, is_picture, names_on_lines
from util.progress import progress
from util.tables import (
    Row,
    columns_of,
    find_columns,
    is_header,
    read_content,
    rows_of,
)

ENDINGS_SHOWN = 5  # of the files in a folder that are not scored


def __getattr__(name: str) -> Any:
    """Import `Scorer` on demand: that imports torch, which takes seconds, and --help needs none."""
    if name != 'Scorer':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from scoring.scorer import Scorer

    return Scorer


def main(argv: list[str] | None = None) -> None:
    # `remedies` says what the user can do after an interrupt.
    with boundary() as remedies:
        options = parse_options(argv)
        paths, has_unreadable = list_images(options.images)
        if options.list:
            paths += read_list(options.list)
        # A run folder stands for its best.pth.
        options.checkpoint = checkpoint_in(options.checkpoint)
        check_input(options.checkpoint, 'a checkpoint')
        if options.csv:
            table = ScoreTable(options.csv, options.spread, options.patches, options.resume)
            remedies.append('the scores so far are kept; --resume continues after them')
            with closing(table):
                failed = score_all(options, paths, table)
        else:
            failed = score_all(options, paths)
    sys.exit(2 if failed or has_unreadable else 0)


def score_all(
    options: argparse.Namespace, paths: list[Path], table: ScoreTable | None = None
) -> int:
    """Score the images that are not in `table` yet.

    Returns:
        the number of images that cannot be read.
    """
    maps = map_paths(paths, options.map) if options.map else {}
    # After the checks and not at the top, since torch takes seconds to import: --help, a typo and a
    # missing file are answered at once.
    from scoring.scorer import Scorer

    scorer = Scorer(options.checkpoint, options.device, options.patches, options.amp)
    if table:
        table.start(scorer.digest())
        paths = without_scored(paths, table)
    log(scorer.meaning.scale_line)
    failed = 0
    results = progress(scorer.results(paths), 'score', total=len(paths), unit='images')
    for result, path in zip(results, paths):
        with tqdm.external_write_mode():  # a progress bar on the same terminal gives way
            if isinstance(result, InputError):
                log(f'skipped: {result}')
                failed += 1
                continue
            # A result is (score, deviation over the patches).
            values = result if options.spread else result[:1]
            # The map comes before the row in the table, since --resume skips images with a row.
            if options.map:
                title = f'{path.name}: score {values[0]:.4f}'
                maps[path].parent.mkdir(parents=True, exist_ok=True)
                write_whole(maps[path], scorer.drawn_map(path, title))
            if table:
                table.append(path, values)
            print(one_line(path), *(f'{value:.4f}' for value in values), sep='\t')
    if failed:
        log(f'{failed} of {len(paths)} images could not be read')
    return failed


def common_folder(paths: list[Path]) -> str:
    """The deepest folder above all of `paths`, or '' if they are on several drives of Windows."""
    parents = [os.path.dirname(os.path.abspath(path)) for path in paths]
    try:
        return os.path.commonpath(parents)
    except ValueError:
        return ''


def name_below(common: str, path: Path) -> str:
    """The path of an image below the folder `common`; if that is '', its path with its drive."""
    if common:
        return os.path.relpath(path, common)
    drive, rest = os.path.splitdrive(os.path.abspath(path))
    # The drive C: becomes the folder C.
    return os.path.join(re.sub(r'[:\\/]', '', drive), rest.lstrip(os.path.sep))


def map_paths(paths: list[Path], folder: str) -> dict[Path, Path]:
    """The place of each image's map.

    The tree below `folder` is that of the images below their common folder.

    Raises:
        InputError: a place is in a run folder, or a file of the user's is there already.
    """
    refuse_in_run(folder)
    common = common_folder(paths)
    places = {}
    for path in paths:
        places[path] = Path(folder, f'{name_below(common, path)}.png')
        refuse_other_content(places[path])
    Path(folder).mkdir(parents=True, exist_ok=True)
    return places


def without_scored(paths: list[Path], table: ScoreTable) -> list[Path]:
    """The images that are not in the table of an earlier call."""
    scored = {row['image'] for row in table.rows}
    left = [path for path in paths if str(path) not in scored]
    if scored:
        log(
            f'{table.path} has the scores of {len(paths) - len(left)} of {len(paths)} images, '
            'which are skipped'
        )
    return left


def read_list(source: str) -> list[Path]:
    """The images that a table or list names; a missing one keeps its name.

    Args:
        source: a file, at whose folder relative names start; or '-' for standard input, where they
            start at the current one, as in a table of scores that --csv wrote.
    """
    files = FilesIn(os.path.dirname(source))
    content = read_content(source)
    # A name that is not UTF-8 keeps its bytes. But a file with zero bytes is most likely UTF-16, so
    # it is decoded strictly.
    errors = 'strict' if b'\0' in content else 'surrogateescape'
    with as_input_error(source, 'a table'):
        names = names_on_lines(content, lambda line: bool(files.find(line)), errors=errors)
        if names is None:  # the lines are not names, so it is a table
            rows = rows_of(content, source, errors=errors)
            names = names_in_table(source, rows)
            # The names in a table that --csv wrote start at the current folder.
            if rows and tuple(rows[0].cells[:2]) == FIRST_COLUMNS:
                files = FilesIn('')
    if not names:
        raise InputError(f'--list {source}: it names no image')
    # A name that is not found becomes a path too, which is reported when its turn comes.
    return [Path(files.path(name)) for name in names]


def names_in_table(source: str, rows: list[Row]) -> list[str]:
    """The names in the column of the images."""
    if not rows:
        return []
    header = [str(cell) for cell in rows[0].cells]
    found = columns_of('image', header, chosen=None)
    # Checked here, since `find_columns` would advise an option that demo.py does not have.
    if is_header(header, chosen={}, needed=('image',)) and len(found) != 1:
        raise InputError(
            f'{source}, {rows[0].where}: one column must be called image; the header is '
            f'{",".join(header)[:200]!r}'
        )
    table = find_columns(source, rows, chosen={}, needed=('image',))
    return table.cells('image')


def list_images(arguments: list[str]) -> tuple[list[Path], bool]:
    """The files among `arguments`, and all photos below the folders among them, by name.

    Returns:
        their paths, and whether there are folders that cannot be listed, which are logged.

    Raises:
        InputError: a folder has no photos.
    """
    found = []
    unreadable: list[OSError] = []
    for argument in arguments:
        # Not by Path.is_dir, which raises for a path that is too long, for example.
        if not os.path.isdir(argument):
            found.append(Path(argument))
            continue
        photos, errors = photos_below(argument)
        if not photos and not errors:
            raise InputError(f'there are no images in the folder {argument}')
        found += photos
        unreadable += errors
    for error in unreadable:
        log(f'skipped: the folder {error.filename} cannot be read: {error.strerror}')
    return found, bool(unreadable)


def photos_below(folder: str) -> tuple[list[Path], list[OSError]]:
    """The photos in a folder and below that are not hidden, whether or not Pillow reads them.

    Files of other endings are logged.

    Returns:
        their paths, and the error of each folder that cannot be listed.
    """
    photos = []
    others = []
    errors: list[OSError] = []
    for name in walk(folder, errors):
        ending = Path(name).suffix.lower()
        if is_picture(name):
            photos.append(Path(name))
        # A raw file of a camera is also refused by its name, when its turn comes.
        if not is_picture(name) or ending in RAW_ENDINGS:
            others.append(ending or 'none')
    if photos and others:
        kinds = sorted(set(others))
        shown = ', '.join(kinds[:ENDINGS_SHOWN]) + (' ...' if len(kinds) > ENDINGS_SHOWN else '')
        log(f'{folder}: files of other endings, which are not scored: {len(others)} ({shown})')
    return photos, errors


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    options = make_parser().parse_args(argv)
    if not options.images and not options.list:
        raise InputError('there is nothing to score; name image files or folders, or --list FILE')
    if options.resume and not options.csv:
        raise InputError('--resume goes with --csv FILE, which it continues')
    if options.map:
        target = Path(os.path.realpath(options.map))
        if any(target.is_relative_to(os.path.realpath(path)) for path in options.images):
            raise InputError(
                f'--map {options.map} is inside a folder that is scored, so the maps would be '
                'scored too; name another'
            )
    return options


def make_parser() -> Parser:
    parser = Parser('Score images with a trained HyperIQA.', __doc__)
    parser.add_argument('images', nargs='*', help='image files, and folders of them')
    parser.add_argument(
        '--list',
        metavar='FILE',
        help='a table or list of images, with names relative to its folder; -: standard input',
    )
    parser.add_argument(
        '--checkpoint',
        required=True,
        metavar='FILE',
        help="a run's best.pth, or the authors' or pyiqa's KonIQ model",
    )
    parser.add_argument(
        '--patches', type=positive, default=25, help='patches per image (default: 25)'
    )
    parser.add_argument(
        '--spread', action='store_true', help='print the standard deviation over the patches too'
    )
    parser.add_argument(
        '--csv', metavar='FILE', help='write the scores to FILE.csv too, which grows as they come'
    )
    parser.add_argument(
        '--map',
        metavar='FOLDER',
        help='draw where each image scores high and low, as PNG files in FOLDER',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='skip the images that are in --csv FILE already, and append to it',
    )
    parser.add_argument(
        '--amp', action='store_true', help='bfloat16 or float16: faster, scores differ slightly'
    )
    parser.add_argument(
        '--device',
        help='cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)',
    )
    return parser


if __name__ == '__main__':
    main()
