"""Write a trained HyperIQA as one file for other programs.

    python export.py runs/koniq-seed0/round_01/best.pth hyperiqa.onnx

The file can end in .onnx, .pt2 (torch.export) or .safetensors. An .onnx or .pt2 takes a `photo`,
(H, W, 3) uint8 RGB, upright and in sRGB. The network's resize is inside, and a photo must be
224x224 or larger after it. The file returns its `score` in the unit of the labels, which is the
mean of the `patch_scores` that it returns too. With `--input patches` it takes `patches`,
(N, 224, 224, 3) uint8 RGB for any N, and returns N scores; the metadata `hyperiqa` says how an
image is resized before patches are cut. A .safetensors has the weights for `demo.py`. Before a file
appears it is loaded back and its scores are compared with the network's.
"""

from importlib.util import find_spec
from pathlib import Path

from experiment.options import Parser, positive
from experiment.run_folder import checkpoint_in
from util.errors import InputError, boundary
from util.files import check_input, check_output

# The packages that each format needs in addition to those of requirements.txt.
PACKAGES = {
    '.pt2': (),
    '.onnx': ('onnx', 'onnxscript', 'onnxruntime'),
    '.safetensors': ('safetensors',),
}


def main(argv: list[str] | None = None) -> None:
    parser = Parser('Write a trained HyperIQA as one file for other programs.', __doc__)
    parser.add_argument(
        'checkpoint', help="a run or its best.pth, or the authors' or pyiqa's KonIQ model"
    )
    parser.add_argument('out', help='a file that ends in .pt2, .onnx or .safetensors')
    parser.add_argument(
        '--input', choices=('photo', 'patches'), help='of an .onnx or .pt2 (default: photo)'
    )
    parser.add_argument('--patches', type=positive, help='patches of a photo (default: 25)')
    with boundary():
        options = parser.parse_args(argv)
        check_output(options.out, list(PACKAGES))
        ending = Path(options.out).suffix.lower()
        packages = PACKAGES[ending]
        if not all(map(find_spec, packages)):
            raise InputError(
                f'{options.out} needs a package that is missing here: '
                f'pip install {" ".join(packages)}'
            )
        if ending == '.safetensors' and (options.input or options.patches):
            raise InputError('a .safetensors has only weights; leave out --input and --patches')
        if options.input == 'patches' and options.patches:
            raise InputError('--patches is for an export that takes a photo; leave it out')
        checkpoint = checkpoint_in(options.checkpoint)
        check_input(checkpoint, 'a checkpoint')
        # Here and not at the top, since torch takes seconds to import: --help, a typo and a missing
        # file are answered at once.
        from scoring.exporter import export

        export(checkpoint, options.out, options.input or 'photo', options.patches or 25)


if __name__ == '__main__':
    main()
