"""Small copies of the databases in their authors' on-disk formats, with real image files."""

import csv
import io
import shutil
import struct
from pathlib import Path

import numpy as np
import openpyxl
import scipy.io
from PIL import Image


def picture(path, seed=0, size=(240, 250), **options):
    """A smooth random picture of (height, width) `size`, in the format that the extension says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    noisy = np.asarray(image).astype(int) + rng.randint(-20, 21, size + (3,))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def pictures(folder, names, **options):
    for k, name in enumerate(names):
        picture(folder / name, seed=k, **options)


def copies(folder, names):
    """Small copies of one grey picture as `names`: for databases whose number of images matters."""
    grey = io.BytesIO()
    Image.new('RGB', (250, 240), 'grey').save(grey, 'PNG')
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(grey.getvalue())


def profile_of(primaries):
    """A matrix profile with gamma 2.2; `primaries`: red, green, blue in XYZ, adapted to D50."""

    def tag(kind, body):
        return kind + bytes(4) + body + bytes(-len(body) % 4)

    def fixed(*values):
        return b''.join(struct.pack('>i', round(value * 65536)) for value in values)

    curve = tag(b'curv', struct.pack('>IH', 1, round(2.2 * 256)))
    parts = {
        b'desc': tag(b'desc', struct.pack('>I', 5) + b'ours\0' + bytes(78)),
        b'cprt': tag(b'text', b'none\0'),
    }
    parts |= {b'wtpt': tag(b'XYZ ', fixed(0.9642, 1, 0.8249))}
    for name, primary in zip((b'r', b'g', b'b'), primaries):
        parts |= {name + b'XYZ': tag(b'XYZ ', fixed(*primary)), name + b'TRC': curve}
    index, data, start = struct.pack('>I', len(parts)), b'', 128 + 4 + 12 * len(parts)
    for name, body in parts.items():
        index += name + struct.pack('>II', start + len(data), len(body))
        data += body
    kinds = (bytes(4), 0x02100000, b'mntr', b'RGB ', b'XYZ ', bytes(12), b'acsp', bytes(28))
    head = struct.pack('>I4sI4s4s4s12s4s28s', start + len(data), *kinds)
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b'\0') + index + data


def print_profile():
    """A CMYK profile of tables: 2 x 2 x 2 x 2 colours in Lab, between which is interpolated."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing='ij'), -1).reshape(16, 4)
    cyan, magenta, yellow, black = inks.T
    lightness = 240 * (1 - 0.3 * (cyan + magenta) - 0.1 * yellow) * (1 - black) + 10
    red = 128 + 60 * (magenta - cyan) * (1 - black)
    yellowness = 128 + 70 * (yellow - cyan / 2) * (1 - black)
    colours = np.stack([lightness, red, yellowness], 1).clip(0, 255).astype(np.uint8)
    line = bytes(range(256))
    one = struct.pack('>9i', *(np.eye(3, dtype=int).ravel() << 16).tolist())
    table = b'mft1' + bytes(4) + bytes([4, 3, 2, 0]) + one + 4 * line + colours.tobytes() + 3 * line
    table += bytes(-len(table) % 4)
    index = struct.pack('>I4sII', 1, b'A2B0', 144, len(table))
    size = 144 + len(table)
    head = struct.pack('>I4sI4s4s4s', size, bytes(4), 0x02100000, b'prtr', b'CMYK', b'Lab ')
    head += bytes(12) + b'acsp' + bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return head.ljust(128, b'\0') + index + table


PRINT_PROFILE = print_profile()
DISPLAY_P3 = profile_of(
    [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)]
)


def write_csv(path, header, rows, newline='\n'):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(header)
        writer.writerows(rows)


def cells(values, shape):
    """MATLAB's cell array of `values`."""
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def nested(values):
    """A column of cells with a cell inside each."""
    return cells([cells([value], (1, 1)) for value in values], (-1, 1))


LIVE_KINDS = (('jp2k', 227), ('jpeg', 233), ('wn', 174), ('gblur', 174), ('fastfading', 174))
LIVE_PRISTINE = 203


def live(root):
    """All 982 entries, since their order is the format; the images are links to one picture."""
    names = [f'{kind}/img{k}.bmp' for kind, count in LIVE_KINDS for k in range(1, count + 1)]
    copies(root, names + ['refimgs/ref00.bmp'])
    orgs = np.zeros(982)
    orgs[-LIVE_PRISTINE:] = 1
    scores = np.where(orgs == 1, 0, np.linspace(-2.6, 111.8, 982))
    references = [f'ref{(k * 7) % 29:02d}.bmp' for k in range(982)]
    scipy.io.savemat(root / 'dmos_realigned.mat', {'dmos_new': scores[None], 'orgs': orgs[None]})
    scipy.io.savemat(root / 'refnames_all.mat', {'refnames_all': cells(references, (1, 982))})


def live_nested(root):
    """As `live`, with each number in a cell of its own and the names two cells deep."""
    live(root)
    numbers = scipy.io.loadmat(root / 'dmos_realigned.mat')
    names = scipy.io.loadmat(root / 'refnames_all.mat')['refnames_all']
    scipy.io.savemat(
        root / 'dmos_realigned.mat',
        {key: nested(numbers[key].ravel()) for key in ('dmos_new', 'orgs')},
    )
    scipy.io.savemat(
        root / 'refnames_all.mat',
        {'refnames_all': nested([str(name[0]) for name in names.ravel()])},
    )


def csiq(root):
    names = [
        f'{content}.{kind}.{level}.png'
        for content in ('1600', 'aerial_city', 'snow_leaves')
        for kind in ('AWGN', 'jpeg2000')
        for level in (1, 5)
    ]
    pictures(root / 'dst_imgs_all', names)
    lines = [f'{name} {k / 13:.6f}' for k, name in enumerate(names)]
    (root / 'csiq_label.txt').write_text('\n'.join(lines) + '\n\n')


def csiq_sheet(root):
    """The authors' own sheet: starts at D4 of the second sheet; some types have other names."""
    csiq_folders(root)
    (root / 'csiq_label.txt').unlink()
    book = openpyxl.Workbook()
    sheet = book.create_sheet('all_by_image')
    rows = [['image', 'dst_idx', 'dst_type', 'dst_lev', 'dmos_std', 'dmos']]
    for image in (1600, 'snow_leaves'):
        for k, kind in enumerate(
            ('noise', 'blur', 'contrast', 'fnoise', 'jpeg', 'jpeg 2000'), start=1
        ):
            rows += [[image, k, kind, level, 0.061, k / 10 + level / 100] for level in (1, 2)]
    for number, row in enumerate(rows, start=4):
        for column, cell in enumerate(row, start=4):
            sheet.cell(number, column, cell)
    book.save(root / 'csiq.beta.xlsx')


CSIQ_FILES = {
    'awgn': 'AWGN',
    'blur': 'BLUR',
    'contrast': 'contrast',
    'fnoise': 'fnoise',
    'jpeg': 'JPEG',
    'jpeg2000': 'jpeg2000',
}


def csiq_folders(root):
    """The authors' layout, a folder per type; the label file has some types in another case."""
    for content in ('1600', 'snow_leaves'):
        picture(root / 'src_imgs' / f'{content}.png')
        pictures(
            root / 'dst_imgs',
            [
                f'{folder}/{content}.{kind}.{level}.png'
                for folder, kind in CSIQ_FILES.items()
                for level in (1, 2)
            ],
        )
    kinds = ('AWGN', 'blur', 'CONTRAST', 'fnoise', 'jpeg', 'JPEG2000')
    lines = [
        f'{content}.{kind}.{level}.png 0.{k}{level}'
        for content in ('1600', 'snow_leaves')
        for k, kind in enumerate(kinds)
        for level in (1, 2)
    ]
    (root / 'csiq_label.txt').write_text('\r\n'.join(lines) + '\r\n\r\n\r\n')


def kadid10k(root):
    """All 81 references with two distortions each, in the order of the authors' file."""
    rows = [
        [f'I{k:02d}_{kind:02d}_01.png', f'I{k:02d}.png', f'{5 - kind / 10 - k / 100:.2f}', '0.496']
        for k in range(1, 82)
        for kind in (1, 25)
    ]
    copies(root / 'images', [row[0] for row in rows] + [f'I{k:02d}.png' for k in range(1, 82)])
    write_csv(root / 'dmos.csv', ['dist_img', 'ref_img', 'dmos', 'var'], rows)


def tid2013(root):
    """Letter case differs within the label file and on disk, as in the copies in circulation."""
    listed = ['I01_01_1.bmp', 'I01_05_1.BMP', 'i02_03_1.bmp', 'I02_24_5.bmp', 'i25_08_2.bmp']
    on_disk = ['I01_01_1.bmp', 'i01_05_1.bmp', 'I02_03_1.BMP', 'i02_24_5.bmp', 'I25_08_2.bmp']
    pictures(root / 'distorted_images', on_disk)
    (root / 'mos_with_names.txt').write_text(
        ''.join(f'{k + 0.51429:.5f} {name}\r\n' for k, name in enumerate(listed))
    )


def livec(root, images=6, size=(240, 250)):
    """Entries 1..7 are the training images of the authors' study; `images` follow."""
    names = [f't{k}.bmp' for k in range(1, 8)] + [
        f'{k}.{"bmp" if k % 2 else "JPG"}' for k in range(3, 3 + images)
    ]
    pictures(root / 'Images', names[7:], size=size)
    pictures(root / 'Images' / 'trainingImages', names[:1])
    (root / 'Images' / '.DS_Store').write_bytes(b'\0\0\0\1Bud1')
    (root / 'Data').mkdir()
    scores = 20 + 10 * np.arange(len(names), dtype=float)
    scipy.io.savemat(
        root / 'Data' / 'AllImages_release.mat', {'AllImages_release': cells(names, (-1, 1))}
    )
    scipy.io.savemat(root / 'Data' / 'AllMOS_release.mat', {'AllMOS_release': scores[None]})


def koniq(root, images=5):
    """The file with MOS (1..5) and MOS_zscore (0..100); the images are 768 high, 1024 wide."""
    names = [f'{10004473376 + k}.jpg' for k in range(images)]
    pictures(root / '1024x768', names, size=(768, 1024), quality=90)
    rows = [
        [name, 0, 0, 25, 73, 7, 105, f'{3 + k / 10:.3f}', 0.52, f'{60 + k:.3f}']
        for k, name in enumerate(names)
    ]
    write_csv(
        root / 'koniq10k_scores_and_distributions.csv',
        ['image_name', 'c1', 'c2', 'c3', 'c4', 'c5', 'c_total', 'MOS', 'SD', 'MOS_zscore'],
        rows,
    )


def koniq_sets(root):
    """The file with MOS from 0 to 100 and the official sets; the images are 384 high, 512 wide."""
    names = [f'{826373 + k}.jpg' for k in range(6)]
    pictures(root / '512x384', names, size=(384, 512))
    sets = ['training', 'training', 'training', 'validation', 'test', 'test']
    rows = [
        [name, 0.0, 0.1, 0.2, 0.6, 0.1, 105, f'{3.91 + 14 * k:.2f}', 0.5, part]
        for k, (name, part) in enumerate(zip(names, sets))
    ]
    write_csv(
        root / 'koniq10k_distributions_sets.csv',
        ['image_name', 'c1', 'c2', 'c3', 'c4', 'c5', 'c_total', 'MOS', 'SD', 'set'],
        rows,
    )


BID_NUMBERS = [1, 2, 4, 12, 590]


def bid(root):
    """Image numbers have gaps; the sheet's numbers are floats."""
    bid_images(root / 'ImageDatabase')
    book = openpyxl.Workbook()
    book.active.append(['Image Number', 'Average Subjective Grade'])
    for k, number in enumerate(BID_NUMBERS):
        book.active.append([float(number), 0.25 + k])
    book.active.append([None, None])
    book.save(root / 'DatabaseGrades.xlsx')


def bid_text(root):
    """Numbers stored as text, as Excel does once a cell has been touched."""
    bid_images(root)
    book = openpyxl.Workbook()
    book.active.append(['Image Number', 'Average Subjective Grade', 'Remark'])
    for k, number in enumerate(['1', '2.0', ' 4 ', '12', '590.0']):
        book.active.append([number, f'{0.25 + k}'])
    book.save(root / 'DatabaseGrades.xlsx')


def bid_xls(root):
    """The binary sheet that is distributed; xlwt wrote the rows of `bid` and a blank one."""
    bid_images(root / 'ImageDatabase')
    shutil.copy(Path(__file__).parent / 'files' / 'DatabaseGrades.xls', root)


def bid_images(folder):
    pictures(folder, [f'DatabaseImage{number:04d}.JPG' for number in BID_NUMBERS], size=(300, 400))


def spaq(root):
    """The sheet has more columns than needed; the third photo is turned, as its EXIF block says."""
    names = [f'{k:05d}.jpg' for k in range(1, 5)]
    pictures(root / 'TestImage', names, size=(300, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / 'TestImage' / names[2], size=(300, 400), exif=exif)
    book = openpyxl.Workbook()
    book.active.append(
        ['Image name', 'Brightness', 'MOS ', 'Colorfulness', 'Contrast', 'Noisiness', 'Sharpness']
    )
    for k, name in enumerate(names):
        book.active.append([name, 11, 56.33 + k if k else '56.33', 22, 33, 44, 55])
    book.active.append([None] * 7)
    (root / 'Annotations').mkdir()
    book.save(root / 'Annotations' / 'MOS and Image attribute scores.xlsx')


def flive(root, folder='database'):
    """Windows line ends, folders in the names, and two files whose columns tell the official sets.

    A test image is valid in the padded file too.
    """
    names = [
        'voc_emotic_ava/JPEGImages__COCO_train2014_000000000009.jpg',
        'EE371R/cj23478+019.jpg',
        'blur_dataset/motion0001.jpg',
    ]
    pictures(root / folder, names)
    rows = [[name, f'{70.5 + k}'] for k, name in enumerate(names)]
    write_csv(root / 'labels_image.csv', ['name', 'mos'], rows, newline='\r\n')
    header = ['mos_patch_1', 'name_patch', 'mos_image', 'name_image']
    padded = [[60, f'patches/{k}.jpg', 70, name] for k, name in enumerate(names)]
    write_csv(root / 'labels640.csv', header, padded[2:])
    flags = zip(padded, ('False', 'True', 'True'))
    write_csv(
        root / 'labels=640_padded.csv',
        [*header, 'is_valid'],
        [[*row, flag] for row, flag in flags][::-1],
    )


def agiqa3k(root, folder='.'):
    """Windows line ends, commas, quotes and a line break inside prompts, and dots inside names."""
    rows = [
        ['AttnGAN_normal_000.jpg', 'statue of a man', '', '', 'anime style', 1.25, 0.5, 2.5, 0.75],
        [
            'sd1.5_lowsteps_0.5_001.png',
            'a cat, sitting, on "the" mat',
            'sharp, detailed',
            '',
            '',
            3.5,
            0.5,
            9,
            9,
        ],
        ['DALLE2_002.png', 'two lines\r\nof text', '', 'dark', 'baroque, old', 4.75, 0.5, 9, 9],
    ]
    pictures(root / folder, [row[0] for row in rows])
    write_csv(
        root / 'data.csv',
        [
            'name',
            'prompt',
            'adj1',
            'adj2',
            'style',
            'mos_quality',
            'std_quality',
            'mos_align',
            'std_align',
        ],
        rows,
        newline='\r\n',
    )
