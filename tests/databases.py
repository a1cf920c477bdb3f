"""Small copies of the databases in their authors' on-disk formats, with real image files."""
import csv
import os

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


LIVE_KINDS = (('jp2k', 227), ('jpeg', 233), ('wn', 174), ('gblur', 174), ('fastfading', 174))
LIVE_PRISTINE = 203


def live(root):
    """All 982 entries, since the order of the label file is the format; the images are links to one picture."""
    names = [f'{kind}/img{k}.bmp' for kind, count in LIVE_KINDS for k in range(1, count + 1)]
    picture(root / 'refimgs' / 'one.bmp')
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        os.link(root / 'refimgs' / 'one.bmp', root / name)
    orgs = np.zeros(982)
    orgs[-LIVE_PRISTINE:] = 1
    scores = np.where(orgs == 1, 0, np.linspace(-2.6, 111.8, 982))
    references = [f'ref{(k * 7) % 29:02d}.bmp' for k in range(982)]
    scipy.io.savemat(root / 'dmos_realigned.mat', {'dmos_new': scores[None], 'orgs': orgs[None]})
    scipy.io.savemat(root / 'refnames_all.mat', {'refnames_all': cells(references, (1, 982))})


def csiq(root):
    names = [f'{content}.{kind}.{level}.png' for content in ('1600', 'aerial_city', 'snow_leaves')
             for kind in ('AWGN', 'jpeg2000') for level in (1, 5)]
    pictures(root / 'dst_imgs_all', names)
    lines = [f'{name} {k / 13:.6f}' for k, name in enumerate(names)]
    (root / 'csiq_label.txt').write_text('\n'.join(lines) + '\n\n')


def tid2013(root):
    """Letter case differs within the label file and on disk, as in the copies in circulation."""
    listed = ['I01_01_1.bmp', 'I01_05_1.BMP', 'i02_03_1.bmp', 'I02_24_5.bmp', 'i25_08_2.bmp']
    pictures(root / 'distorted_images', ['I01_01_1.bmp', 'i01_05_1.bmp', 'I02_03_1.BMP', 'i02_24_5.bmp', 'I25_08_2.bmp'])
    (root / 'mos_with_names.txt').write_text(''.join(f'{k + 0.51429:.5f} {name}\r\n' for k, name in enumerate(listed)))


def livec(root, images=6, size=(240, 250)):
    """Entries 1..7 are the training images of the authors' study; `images` follow."""
    names = [f't{k}.bmp' for k in range(1, 8)] + [f'{k}.{"bmp" if k % 2 else "JPG"}' for k in range(3, 3 + images)]
    pictures(root / 'Images', names[7:], size=size)
    pictures(root / 'Images' / 'trainingImages', names[:1])
    (root / 'Images' / '.DS_Store').write_bytes(b'\0\0\0\1Bud1')
    (root / 'Data').mkdir()
    scores = 20 + 10 * np.arange(len(names), dtype=float)
    scipy.io.savemat(root / 'Data' / 'AllImages_release.mat', {'AllImages_release': cells(names, (-1, 1))})
    scipy.io.savemat(root / 'Data' / 'AllMOS_release.mat', {'AllMOS_release': scores[None]})


def koniq(root, images=5):
    """The file with MOS (1..5) and MOS_zscore (0..100); the images are 768 high, 1024 wide."""
    names = [f'{10004473376 + k}.jpg' for k in range(images)]
    pictures(root / '1024x768', names, size=(768, 1024), quality=90)
    rows = [[name, 0, 0, 25, 73, 7, 105, f'{3 + k / 10:.3f}', 0.52, f'{60 + k:.3f}'] for k, name in enumerate(names)]
    write_csv(root / 'koniq10k_scores_and_distributions.csv',
              ['image_name', 'c1', 'c2', 'c3', 'c4', 'c5', 'c_total', 'MOS', 'SD', 'MOS_zscore'], rows)


def koniq_sets(root):
    """The file with MOS on the 0..100 scale and the official sets; the images are 384 high, 512 wide."""
    names = [f'{826373 + k}.jpg' for k in range(6)]
    pictures(root / '512x384', names, size=(384, 512))
    sets = ['training', 'training', 'training', 'validation', 'test', 'test']
    rows = [[name, 0.0, 0.1, 0.2, 0.6, 0.1, 105, f'{3.91 + 14 * k:.2f}', 0.5, part]
            for k, (name, part) in enumerate(zip(names, sets))]
    write_csv(root / 'koniq10k_distributions_sets.csv',
              ['image_name', 'c1', 'c2', 'c3', 'c4', 'c5', 'c_total', 'MOS', 'SD', 'set'], rows)


def bid(root):
    """Image numbers have gaps; the sheet's numbers are floats."""
    numbers = [1, 2, 4, 590]
    pictures(root / 'ImageDatabase', [f'DatabaseImage{number:04d}.JPG' for number in numbers], size=(600, 800))
    book = openpyxl.Workbook()
    book.active.append(['Image Number', 'Average Subjective Grade'])
    for k, number in enumerate(numbers):
        book.active.append([float(number), 1.25 + k])
    book.active.append([None, None])
    book.save(root / 'DatabaseGrades.xlsx')
