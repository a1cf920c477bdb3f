"""Score images with a trained HyperIQA.

    python demo.py --checkpoint runs/koniq-seed0/round_01/best.pth photo.jpg folder/

Prints `path<TAB>score`. From Python:

    from demo import Scorer
    score = Scorer('runs/koniq-seed0/round_01/best.pth')('photo.jpg')

An image's score is the mean over random patches, whose places depend on its height and width alone, so it is the same at every
call. Photos are shown as a viewer shows them: upright, and in sRGB.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from util.errors import InputError, boundary, log, one_line
from util.files import check_input, check_output, walk, write_table
from util.options import Parser, positive

COLUMNS = ('image', 'score', 'spread')  # of --csv; the last only with --spread
FORMATS = {'AVIF', 'BMP', 'DIB', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PCX', 'PNG', 'PPM', 'SGI', 'TGA', 'TIFF', 'WEBP'}
PHOTO_ENDINGS = {  # of photos, whether or not Pillow reads them
    *('.avif', '.heic', '.heif', '.hif', '.jxl'),
    *('.arw', '.cr2', '.cr3', '.dng', '.nef', '.orf', '.pef', '.raf', '.rw2', '.srw'),
}


def __getattr__(name: str) -> Any:
    """`from demo import Scorer` imports torch, which takes seconds, and `demo.py --help` does not."""
    if name != 'Scorer':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from util.scorer import Scorer

    return Scorer


def main(argv: list[str] | None = None) -> None:
    with boundary() as remedies:
        options = parse_options(argv)
        paths = list_images(options.images)
        columns = COLUMNS[: 2 + options.spread]
        if options.csv:
            check_output(options.csv, ['.csv'], ','.join(columns))
            remedies.append('the scores so far are kept')
        check_input(options.checkpoint, 'a checkpoint')
        # Here and not at the top, since torch takes seconds to import: --help, a typo and a missing file answer at once.
        from util.scorer import Scorer, scale_line

        scorer = Scorer(options.checkpoint, options.device, options.patches)
        log(scale_line(scorer.facts))
        rows: list[dict[str, Any]] = []
        try:
            score_all(scorer, paths, options.spread, rows)
        finally:  # after an interrupt too
            if options.csv:
                write_table(options.csv, columns, rows)
        if len(rows) < len(paths):
            log(f'{len(paths) - len(rows)} of {len(paths)} images could not be read')
    sys.exit(2 if len(rows) < len(paths) else 0)


def score_all(scorer: Any, paths: list[Path], spread: bool, rows: list[dict[str, Any]]) -> None:
    """Print the score of every image that can be read, and append it to `rows`."""
    for batch in scorer.batches(paths):
        names, crops = [], []
        for path in batch:
            try:
                crops.append(scorer.crops(path))
                names.append(str(path))
            except InputError as error:
                log(f'skipped: {error}')
        for name, (score, deviation) in zip(names, scorer.scores(crops)):
            rows.append({'image': name, 'score': score, 'spread': deviation})
            print(f'{one_line(name)}\t{score:.4f}' + (f'\t{deviation:.4f}' if spread else ''), flush=True)


def list_images(arguments: list[str]) -> list[Path]:
    """The files among `arguments`, and every photo below the folders among them, by name, without hidden ones."""
    found = [photos_below(path) if path.is_dir() else [path] for path in map(Path, arguments)]
    if [] in found:
        raise InputError(f'there are no images in the folder {arguments[found.index([])]}')
    return [path for paths in found for path in paths]


def photos_below(folder: Path) -> list[Path]:
    """The photos in a folder and below, whether or not Pillow reads them."""
    endings = {ending for ending, format in Image.registered_extensions().items() if format in FORMATS} | PHOTO_ENDINGS
    return [path for path in map(Path, walk(folder, strict=True)) if path.suffix.lower() in endings and path.is_file()]


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser('Score images with a trained HyperIQA.')
    parser.add_argument('images', nargs='+', help='image files, and folders of them')
    checkpoint = "a run's best.pth, or the authors' or pyiqa's KonIQ model"
    parser.add_argument('--checkpoint', required=True, metavar='FILE', help=checkpoint)
    parser.add_argument('--patches', type=positive, default=25, help='random patches per image (default: 25)')
    parser.add_argument('--spread', action='store_true', help='print the standard deviation over the patches too')
    parser.add_argument('--csv', metavar='FILE', help='write the scores to FILE too, whose name must end in .csv')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, mps ... (default: cuda or mps if there is one, else cpu)')
    return parser.parse_args(argv)


if __name__ == '__main__':
    main()
