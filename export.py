"""Write a trained HyperIQA as one file for other programs.

    python export.py runs/koniq-seed0/round_01/best.pth hyperiqa.onnx

The file can end in .onnx, .pt2 (torch.export) or .safetensors. An .onnx or .pt2 takes `patches`,
(N, 224, 224, 3) uint8 RGB for any N, and returns N scores in the unit of the labels. The patches
are cut from an image that is resized as the metadata `hyperiqa` says, and the mean over an image's
patches is its score. A .safetensors holds the weights for `demo.py`. Before a file appears it is
loaded back and compared with the network.
"""

from importlib.util import find_spec
from pathlib import Path

from experiment.options import Parser
from util.errors import InputError, boundary
from util.files import check_input, check_output

# The packages that each format needs besides those of requirements.txt.
PACKAGES = {
    '.pt2': (),
    '.onnx': ('onnx', 'onnxscript', 'onnxruntime'),
    '.safetensors': ('safetensors',),
}


def main(argv: list[str] | None = None) -> None:
    parser = Parser('Write a trained HyperIQA as one file for other programs.', __doc__)
    parser.add_argument(
        'checkpoint', help="a run's best.pth, or the authors' or pyiqa's KonIQ model"
    )
    parser.add_argument('out', help='a file that ends in .pt2, .onnx or .safetensors')
    with boundary():
        options = parser.parse_args(argv)
        check_output(options.out, list(PACKAGES))
        packages = PACKAGES[Path(options.out).suffix.lower()]
        if any(find_spec(package) is None for package in packages):
            raise InputError(
                f'{options.out} needs a package that is missing here: '
                f'pip install {" ".join(packages)}'
            )
        check_input(options.checkpoint, 'a checkpoint')
        # Here and not at the top, since torch takes seconds to import: --help, a typo and a missing
        # file are answered at once.
        from scoring.exporter import export

        export(options.checkpoint, options.out)


if __name__ == '__main__':
    main()
