"""Score images with a trained HyperIQA.

    python demo.py --checkpoint runs/koniq-seed0/round_01/best.pth photo.jpg folder/
    find /photos -name '*.jpg' | python demo.py --checkpoint best.pth --list - --csv scores.csv --resume

Prints `path<TAB>score`. From Python:

    from demo import Scorer
    score = Scorer('runs/koniq-seed0/round_01/best.pth')('photo.jpg')

An image's score is the mean over random patches, whose places depend on its height and width alone, so it is the same at every
call. Photos are shown as a viewer shows them: upright, and in sRGB.

--map FOLDER draws each photo under the scores of a grid of patches. Content moves them as much as quality does, so a map shows
which half of a photo is blurred, but not which object.

The table of --csv grows as the scores come, unlike every other output of this project: a kill loses at most the last batch, and
the same call with --resume skips the images that the table holds.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from experiment.options import Parser, positive
from util.errors import InputError, boundary, log, one_line
from util.files import check_input, check_output, named, walk, write_whole
from util.progress import progress
from util.tables import BLANK, find_columns, read_rows

COLUMNS = ('image', 'score', 'spread')  # of --csv; the last only with --spread
FORMATS = {
    'AVIF',
    'BMP',
    'DIB',
    'GIF',
    'JPEG',
    'JPEG2000',
    'MPO',
    'PCX',
    'PNG',
    'PPM',
    'SGI',
    'TGA',
    'TIFF',
    'WEBP',
}
NEW_ENDINGS = {
    '.avif',
    '.heic',
    '.heif',
    '.hif',
    '.jxl',
}  # of photos, whether or not Pillow reads them
RAW_ENDINGS = {'.arw', '.cr2', '.cr3', '.dng', '.nef', '.orf', '.pef', '.raf', '.rw2', '.srw'}


def __getattr__(name: str) -> Any:
    """`from demo import Scorer` imports torch, which takes seconds, and `demo.py --help` does not."""
    if name != 'Scorer':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from scoring.scorer import Scorer

    return Scorer


def main(argv: list[str] | None = None) -> None:
    with boundary() as remedies:
        options = parse_options(argv)
        paths = list_images(options.images) + (read_list(options.list) if options.list else [])
        columns = COLUMNS[: 2 + options.spread]
        if options.csv:
            check_output(options.csv, ['.csv'], ','.join(columns) + '\n')
            remedies.append('the scores so far are kept; --resume continues after them')
        if options.map:
            Path(options.map).mkdir(parents=True, exist_ok=True)
            check_output(f'{options.map}/map.png', ['.png'])
        check_input(options.checkpoint, 'a checkpoint')
        if options.resume:
            scored = scored_images(options.csv)
            count, paths = len(paths), [path for path in paths if str(path) not in scored]
            log(
                f'{options.csv} holds the scores of {count - len(paths)} of {count} images, which are skipped'
            )
        # Here and not at the top, since torch takes seconds to import: --help, a typo and a missing file answer at once.
        from scoring.scorer import Scorer, scale_line

        scorer = Scorer(options.checkpoint, options.device, options.patches, options.amp)
        log(scale_line(scorer.facts))
        mode = 'a' if options.resume else 'w'
        # written line by line, so that a kill loses no more; a name that is not UTF-8 keeps its bytes
        with open(
            options.csv or os.devnull,
            mode,
            1,
            encoding='utf-8',
            errors='surrogateescape',
            newline='',
        ) as file:
            if not os.fstat(file.fileno()).st_size:
                file.write(','.join(columns) + '\n')
            failed = score_all(
                scorer, paths, columns, csv.writer(file, lineterminator='\n'), options.map
            )
        if failed:
            log(f'{failed} of {len(paths)} images could not be read')
    sys.exit(2 if failed else 0)


def score_all(
    scorer: Any, paths: list[Path], columns: tuple[str, ...], table: Any, folder: str | None
) -> int:
    """Print the score of every image that can be read, and append it to `table`; how many cannot be read.

    Args:
        folder: for the images' maps, where they lie as the images lie in the folder that all are in; or None.
    """
    failed, common = (
        0,
        os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths] or ['/']),
    )
    for result, path in zip(progress(scorer.results(paths), 'score', len(paths), 'images'), paths):
        with tqdm.external_write_mode():  # a bar on the same terminal gives way
            if isinstance(result, InputError):
                log(f'skipped: {result}')
                failed += 1
            else:
                values = result[: len(columns) - 1]
                if folder:  # before the table has the image, which --resume then skips
                    picture = Path(folder, f'{os.path.relpath(path, common)}.png')
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(
                        picture, scorer.drawn_map(path, f'{path.name}: score {values[0]:.4f}')
                    )
                table.writerow([path, *values])
                print(one_line(path), *(f'{value:.4f}' for value in values), sep='\t', flush=True)
    return failed


def scored_images(table: str) -> set[str]:
    """The images in the table of an earlier call, if there is one; what a kill left of a last line is cut off."""
    with named(table, 'a table'), open(table, 'a+b') as file:
        file.seek(0)
        lines = [line for line in file if line.endswith(b'\n')]
        file.truncate(sum(map(len, lines)))
        return {
            row['image']
            for row in csv.DictReader(
                (line.decode(errors='surrogateescape') for line in lines), strict=True
            )
        }


def read_list(source: str) -> list[Path]:
    """The images in a table or list, by names that start at its folder, or for '-', standard input, at the current one."""
    table = find_columns(source, read_rows(source), {}, ('image',))
    return [
        Path(os.path.dirname(source), str(row.cells[table.columns['image']]).strip(BLANK))
        for row in table.rows
    ]


def list_images(arguments: list[str]) -> list[Path]:
    """The files among `arguments`, and every photo below the folders among them, by name, without hidden ones."""
    found = [photos_below(path) if path.is_dir() else [path] for path in map(Path, arguments)]
    if [] in found:
        raise InputError(f'there are no images in the folder {arguments[found.index([])]}')
    return [path for paths in found for path in paths]


def photos_below(folder: Path) -> list[Path]:
    """The photos in a folder and below, whether or not Pillow reads them."""
    endings = (
        {end for end, format in Image.registered_extensions().items() if format in FORMATS}
        | NEW_ENDINGS
        | RAW_ENDINGS
    )
    return [
        path
        for path in map(Path, walk(folder))
        if path.suffix.lower() in endings and path.is_file()
    ]


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser('Score images with a trained HyperIQA.', __doc__)
    parser.add_argument('images', nargs='*', help='image files, and folders of them')
    parser.add_argument(
        '--list',
        metavar='FILE',
        help='a table of images, or one per line, relative to its folder; -: stdin',
    )
    checkpoint = "a run's best.pth, or the authors' or pyiqa's KonIQ model"
    parser.add_argument('--checkpoint', required=True, metavar='FILE', help=checkpoint)
    parser.add_argument(
        '--patches', type=positive, default=25, help='random patches per image (default: 25)'
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
        help='skip the images that --csv FILE holds, and append to it',
    )
    parser.add_argument(
        '--amp', action='store_true', help='bfloat16: faster, scores differ slightly'
    )
    parser.add_argument(
        '--device',
        help='cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)',
    )
    options = parser.parse_args(argv)
    if not options.images and not options.list:
        raise InputError('there is nothing to score; name image files or folders, or --list FILE')
    if options.resume and not options.csv:
        raise InputError('--resume goes with --csv FILE, which it continues')
    if options.map and any(
        Path(options.map).resolve().is_relative_to(Path(path).resolve()) for path in options.images
    ):
        raise InputError(
            f'--map {options.map} is inside a folder of images, of which its pictures would be; name another'
        )
    return options


if __name__ == '__main__':
    main()
