"""One known picture in the forms that trip image readers keeps its pixels, or is refused."""

import io
import os
import struct
import zlib

import databases
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import folders
from scoring.scorer import rgb_of
from util import frames
from util.errors import InputError
from util.frames import read_picture

HEIGHT, WIDTH = 60, 70
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([40 + 180 * X / WIDTH, 60 + 150 * Y / HEIGHT, 128 + 100 * np.sin(X / 9)], 2).astype(
    np.uint8
)
GREY16 = (RGB.mean(2) * 257).astype(np.uint16)
GREY = np.repeat((GREY16 >> 8).astype(np.uint8)[:, :, None], 3, 2)
ALPHA = np.where((X - 35) ** 2 + (Y - 30) ** 2 < 400, 255, 0).astype(np.uint8)
ON_WHITE = np.where(ALPHA[:, :, None] > 0, RGB, 255).astype(np.uint8)


def png16(rows, colour):
    """A PNG of 16 bits by hand, since Pillow does not write them all."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    data = zlib.compress(b''.join(b'\0' + row.astype('>u2').tobytes() for row in rows))
    head = struct.pack('>IIBBBBB', WIDTH, HEIGHT, 16, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def saved(array, ending, **options):
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(
        buffer, ending, **options
    )
    return buffer.getvalue()


def lying(ending, **options):
    """Stored on its side, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(
        Image.fromarray(RGB).transpose(Image.Transpose.ROTATE_90), ending, exif=exif, **options
    )


def palette():
    return Image.fromarray(RGB).quantize(64)


def tiff(pixels, inner=b'', **tags):
    """A TIFF without compression by hand.

    Args:
        pixels: their bytes.
        inner: the bytes of a directory inside.
        tags: t254=1 and so on; places of pixels are counted from the first one.
    """
    page = ImageFileDirectory_v2()
    bits = (8, 8, 8)
    usual = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: 2, 273: 0, 277: 3, 278: HEIGHT}
    page_tags = {**usual, 279: len(pixels), 284: 1}
    page_tags.update({int(name[1:]): value for name, value in tags.items()})
    for tag, value in page_tags.items():
        page[tag] = value
    if inner:
        page[330] = 10**6  # as long as the real place, which depends on the length
        page[330] = 8 + len(page.tobytes(8)) + len(pixels)
    return b'II*\0' + struct.pack('<I', 8) + page.tobytes(8) + pixels + inner


def tiff_with_mosaic():
    """A camera's small picture, whose raw pixels are in a directory inside."""
    mosaic = struct.pack('<HHHIII', 1, 262, 3, 1, 32803, 0)
    return tiff(RGB.tobytes(), mosaic)


def tiff_with_small_copy():
    """A picture that brings a reduced copy of itself, as many programs write it."""
    copy = struct.pack('<HHHIIHHIII', 2, 254, 4, 1, 1, 262, 3, 1, 2, 0)
    return tiff(RGB.tobytes(), copy)


def big_tiff_with(photometric):
    """A BigTIFF that Pillow wrote, with a directory inside that holds pixels of that meaning."""
    length = len(saved(RGB, 'TIFF', big_tiff=True, tiffinfo={330: 10**6}))
    inner = struct.pack('<QHHQQQ', 1, 262, 3, 1, photometric, 0)
    content = saved(RGB, 'TIFF', big_tiff=True, tiffinfo={330: length}) + inner
    if content[2] != 43:
        pytest.skip('this Pillow writes no BigTIFF')
    return content


def planes(kind, **tags):
    """A TIFF of one plane for each colour, with numbers of the type `kind`."""
    array = RGB.astype(kind) * (257 if np.dtype(kind).itemsize == 2 else 1)
    size = array[..., 0].nbytes
    bits = (8 * array.itemsize,) * 3
    of_planes = {'t258': bits, 't273': (0, size, 2 * size), 't279': (size,) * 3, 't284': 2}
    try:
        return tiff(array.transpose(2, 0, 1).tobytes(), **{**of_planes, **tags})
    except NotImplementedError:
        pytest.skip('this Pillow cannot write a TIFF of several strips')


def bmp32(alpha):
    """A BMP with a mask for alpha, whose values are `alpha`."""
    pixels = np.dstack([RGB[..., ::-1], np.broadcast_to(alpha, (HEIGHT, WIDTH))]).astype(np.uint8)
    body = pixels[::-1].tobytes()
    head = struct.pack('<IiiHHIIiiII', 108, WIDTH, HEIGHT, 1, 32, 3, len(body), 0, 0, 0, 0)
    head += struct.pack('<4I', 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b'BGRs' + bytes(48)
    return b'BM' + struct.pack('<III', 14 + len(head) + len(body), 0, 14 + len(head)) + head + body


def with_alpha(alpha):
    return np.dstack([RGB, np.broadcast_to(alpha, (HEIGHT, WIDTH)).astype(np.uint8)])


HIDDEN = np.random.RandomState(0).randint(0, 256, RGB.shape, np.uint8)
FORMS = {
    'grey of 16 bits, PNG': (lambda: png16(GREY16, 0), GREY, 0),
    'grey of 16 bits, TIFF': (lambda: saved(GREY16, 'TIFF'), GREY, 0),
    'colour of 16 bits': (
        lambda: png16(RGB.astype(np.uint16).reshape(HEIGHT, -1) * 257, 2),
        RGB,
        1,
    ),
    'transparent': (
        lambda: saved(np.dstack([np.where(ALPHA[..., None] > 0, RGB, HIDDEN), ALPHA]), 'PNG'),
        ON_WHITE,
        0,
    ),
    'opaque alpha': (lambda: saved(np.dstack([RGB, np.full_like(ALPHA, 255)]), 'PNG'), RGB, 0),
    'blank alpha, BMP': (lambda: bmp32(0), RGB, 0),
    'blank alpha, TGA': (lambda: saved(with_alpha(0), 'TGA'), RGB, 0),
    'blank alpha, PNG': (lambda: saved(with_alpha(0), 'PNG'), np.full_like(RGB, 255), 0),
    'alpha, BMP': (lambda: bmp32(ALPHA), ON_WHITE, 0),
    'alpha, TGA': (lambda: saved(with_alpha(ALPHA), 'TGA'), ON_WHITE, 0),
    'planes of 8 bits': (lambda: planes(np.uint8), RGB, 0),
    'a small copy inside': (tiff_with_small_copy, RGB, 0),
    'a copy inside a BigTIFF': (lambda: big_tiff_with(2), RGB, 0),
    'palette': (lambda: saved(palette(), 'PNG'), np.asarray(palette().convert('RGB')), 0),
    'CMYK': (lambda: saved(Image.fromarray(RGB).convert('CMYK'), 'TIFF'), RGB, 1),
    'animated': (
        lambda: saved(RGB, 'PNG', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
        0,
    ),
    'pages': (
        lambda: saved(RGB, 'TIFF', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
        0,
    ),
    'lying JPEG': (lambda: lying('JPEG', quality=100, subsampling=0), RGB, 4),
    'lying PNG': (lambda: lying('PNG'), RGB, 0),
    'lying TIFF': (lambda: lying('TIFF', compression='tiff_lzw'), RGB, 0),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_picture_keeps_its_pixels_in_every_form(tmp_path, form):
    make, truth, tolerance = FORMS[form]
    (tmp_path / 'picture').write_bytes(make())
    read = np.asarray(frames.load_image(tmp_path / 'picture', exif_rotation=True)).astype(int)
    assert read.shape == truth.shape and abs(read - truth).max() <= tolerance
    assert frames.image_size(tmp_path / 'picture', exif_rotation=True) == truth.shape[:2]


def refused(path):
    with pytest.raises(InputError) as caught:
        frames.load_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and '\n' not in message
    return message


def test_planes_of_16_bits_are_refused(tmp_path):
    (tmp_path / 'planes.tif').write_bytes(planes('<u2'))
    assert 'Pillow misreads planes of more than 8 bits' in refused(tmp_path / 'planes.tif')


def test_a_big_tiff_of_a_camera_is_refused(tmp_path):
    (tmp_path / 'big.tif').write_bytes(big_tiff_with(32803))
    assert "it is a camera's raw file" in refused(tmp_path / 'big.tif')


def test_what_cannot_be_a_picture_is_refused_in_one_line(tmp_path, monkeypatch):
    whole = saved(RGB, 'JPEG')
    files = {
        'cut_marker.jpg': (whole[:-2], 'truncated'),
        'white_is_zero.tif': (saved(GREY16, 'TIFF', tiffinfo={262: 0}), 'in which zero is white'),
        'float.tif': (
            saved((RGB.mean(2) / 255).astype(np.float32), 'TIFF'),
            'whose range nobody knows',
        ),
        'int.tif': (saved(GREY16.astype(np.int32), 'TIFF'), 'whose range nobody knows'),
        'truncated.jpg': (whole[: len(whole) // 2], 'truncated'),
        'zero_tail.jpg': (
            whole[: len(whole) // 2] + bytes(len(whole) // 2),
            'cannot be read as an image',
        ),
        'empty.png': (b'', 'cannot be read as an image'),
        'page.jpg': (b'<!DOCTYPE html>', 'is a web page'),
        'reduced.tif': (tiff(RGB.tobytes(), t254=1), 'its first page is a reduced copy'),
        'reduced_of_old.tif': (tiff(RGB.tobytes(), t255=2), 'its first page is a reduced copy'),
        'dng.tif': (tiff(RGB.tobytes(), t50706=b'\1\4\0\0'), "it is a camera's raw file"),
        'mosaic.tif': (tiff_with_mosaic(), "it is a camera's raw file"),
        'photo.NRW': (saved(RGB, 'TIFF'), "is a camera's raw file; convert it to JPEG"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        assert reason in refused(tmp_path / name)
    os.mkfifo(tmp_path / 'fifo.png')
    assert 'is not a regular file' in refused(tmp_path / 'fifo.png')  # and is not waited for
    (tmp_path / 'folder.png').mkdir()
    assert 'is not a regular file' in refused(tmp_path / 'folder.png')
    (tmp_path / 'loop.png').symlink_to('loop.png')
    (tmp_path / 'disk.png').symlink_to('/proc/self/mem')  # whose first page gives EIO
    for name, reason in (
        ('n' * 300, 'File name too long'),
        ('empty.png/x.png', 'Not a directory'),
        ('loop.png', 'Too many levels of symbolic links'),
        ('disk.png', 'Input/output error'),
    ):
        assert refused(tmp_path / name).endswith(f' cannot be read: {reason}')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    (tmp_path / 'giant.png').write_bytes(saved(RGB, 'PNG'))
    assert 'exceeds limit of 2000 pixels' in refused(tmp_path / 'giant.png')


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_whatever_a_decoder_raises_is_one_line(tmp_path):
    """At this one Pillow raises a bare RuntimeError."""
    head, tail = saved(RGB, 'AVIF').split(b'mdat')
    (tmp_path / 'damaged.avif').write_bytes(head + b'mdat' + bytes(20) + tail[20:])
    with pytest.raises(RuntimeError), Image.open(tmp_path / 'damaged.avif') as image:
        image.load()
    assert 'cannot be read as an image: ' in refused(tmp_path / 'damaged.avif')


def test_what_was_changed_to_be_shown_is_listed_by_the_check(tmp_path):
    (tmp_path / 'a.png').write_bytes(FORMS['transparent'][0]())
    (tmp_path / 'deep.png').write_bytes(FORMS['grey of 16 bits, PNG'][0]())
    (tmp_path / 'blank.bmp').write_bytes(bmp32(0))
    names = ('a.png', 'deep.png', 'blank.bmp')
    found = [read_picture(str(tmp_path / name), True).oddities for name in names]
    assert found == [['transparent'], ['16-bit grey'], ['with a blank alpha']]


def test_mutated_images_are_read_at_their_size_or_refused(tmp_path):
    """Each of 100 files has bytes changed, or lacks its end; any decoder error is one line."""
    random = np.random.RandomState(0)
    originals = [
        saved(RGB, ending) for ending in ('PNG', 'JPEG', 'TIFF', 'GIF', 'BMP', 'WEBP', 'PPM')
    ]
    originals += [
        FORMS['grey of 16 bits, PNG'][0](),
        lying('TIFF', compression='tiff_lzw'),
        saved(palette(), 'PNG'),
    ]
    path, outcomes = tmp_path / 'mutated', {'read': 0, 'refused': 0}
    for k in range(100):
        content = bytearray(originals[k % len(originals)])
        for place in random.randint(0, len(content), 1 + k % 5):
            content[place] = random.randint(256)
        path.write_bytes(content[: random.randint(1, len(content))] if k % 3 == 0 else content)
        try:
            image = frames.load_image(path)
            assert image.mode == 'RGB' and image.size[0] > 0
            outcomes['read'] += 1
        except InputError as error:
            assert '\n' not in str(error)
            outcomes['refused'] += 1
    assert outcomes['read'] > 10 and outcomes['refused'] > 30


@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_exif_orientation_agrees_with_pillow(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = databases.picture(tmp_path / 'photo.jpg', exif=exif)
    assert np.array_equal(
        frames.load_image(path, exif_rotation=True), ImageOps.exif_transpose(Image.open(path))
    )


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    for mode in ('L', 'P', 'RGBA', 'LA', '1', 'CMYK'):
        path = tmp_path / f'{mode}.tif'
        Image.new(mode, (230, 240)).save(path)
        assert np.asarray(frames.load_image(path)).shape == (240, 230, 3)


def test_unreadable_image(tmp_path):
    path = databases.picture(tmp_path / 'cut.jpg', size=(300, 300))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match='cut.jpg cannot be read as an image'):
        frames.load_image(path)


def test_a_wide_gamut_is_converted_for_photos_and_own_tables_alone(tmp_path, program):
    pixels = (
        np.random.RandomState(0).randint(40, 220, (10, 12, 3), np.uint8).repeat(24, 0).repeat(20, 1)
    )
    picture, srgb = (
        Image.fromarray(pixels),
        ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')),
    )
    for k in range(10):
        picture.save(
            tmp_path / f'{k}.png', icc_profile=databases.DISPLAY_P3 if k < 3 else srgb.tobytes()
        )
    truth = np.asarray(
        ImageCms.profileToProfile(
            picture, io.BytesIO(databases.DISPLAY_P3), srgb, renderingIntent=1
        )
    ).astype(int)
    converted = np.asarray(frames.load_image(tmp_path / '0.png', srgb=True)).astype(int)
    assert np.abs(converted - truth).max() <= 2 and np.abs(truth - pixels).max() > 20
    assert np.array_equal(
        np.asarray(frames.load_image(tmp_path / '0.png')), pixels
    )  # as databases are published
    assert np.array_equal(np.asarray(frames.load_image(tmp_path / '5.png', srgb=True)), pixels)
    assert np.array_equal(np.asarray(rgb_of(Image.open(tmp_path / '0.png'))), converted)
    picture.save(tmp_path / 'broken.png', icc_profile=databases.DISPLAY_P3[:300])
    assert np.array_equal(np.asarray(frames.load_image(tmp_path / 'broken.png', srgb=True)), pixels)

    (tmp_path / 't.csv').write_text('image,score\n' + ''.join(f'{k}.png,{k}\n' for k in range(10)))
    done = program('--dataset', 'csv', '--csv', 't.csv', '--check')
    assert 'In a wide-gamut profile' in done.stdout and '3: in a table of your own' in done.stdout
    database = folders.OpenDatabase('csv', tmp_path / 't.csv')
    database.open_frames(224)
    assert np.array_equal(database.frames[0], converted)
    # as for a run of an earlier version, in a cache of its own
    database = folders.OpenDatabase('csv', tmp_path / 't.csv', srgb=False)
    database.open_frames(224)
    assert np.array_equal(database.frames[0], pixels)
    assert len(list((tmp_path / '.hyperiqa_cache').glob('*.frames'))) == 2


SRGB = ImageCms.createProfile('sRGB')


def converted(image, profile):
    return np.asarray(
        ImageCms.profileToProfile(
            image, io.BytesIO(profile), SRGB, renderingIntent=1, outputMode='RGB'
        )
    )


def test_colours_are_converted_before_transparency_is_shown_on_white(tmp_path):
    shadow = saved(with_alpha(ALPHA), 'PNG', icc_profile=databases.DISPLAY_P3)
    (tmp_path / 'shadow.png').write_bytes(shadow)
    colours = converted(Image.fromarray(RGB), databases.DISPLAY_P3)
    meant = np.where(ALPHA[..., None] > 0, colours, 255)
    read = np.asarray(frames.load_image(tmp_path / 'shadow.png', srgb=True))
    assert np.array_equal(read, meant) and np.abs(meant.astype(int) - ON_WHITE).max() > 10
    assert np.array_equal(np.asarray(frames.load_image(tmp_path / 'shadow.png')), ON_WHITE)
    found = read_picture(str(tmp_path / 'shadow.png'), True).oddities
    assert sorted(found) == ['in a wide-gamut profile', 'transparent']


def test_a_profile_for_print_is_used_where_colours_are_converted(tmp_path):
    inks = Image.fromarray(RGB).convert('CMYK')
    path = tmp_path / 'print.tif'
    inks.save(path, icc_profile=databases.PRINT_PROFILE)
    plain = np.asarray(inks.convert('RGB'))
    meant = converted(inks, databases.PRINT_PROFILE)
    assert np.array_equal(np.asarray(frames.load_image(path, srgb=True)), meant)
    assert np.abs(meant.astype(int) - plain).max() > 20
    assert np.array_equal(np.asarray(frames.load_image(path)), plain)
    assert read_picture(str(path), True).oddities == ['in a profile for print']
    # A profile that is not of the picture's own kind says nothing.
    Image.fromarray(RGB).save(tmp_path / 'other.png', icc_profile=databases.PRINT_PROFILE)
    assert np.array_equal(np.asarray(frames.load_image(tmp_path / 'other.png', srgb=True)), RGB)


def test_only_an_opened_file_is_turned_by_its_tag(tmp_path):
    """A picture that its owner has turned keeps the tag, and is not turned a second time."""
    (tmp_path / 'lying.png').write_bytes(lying('PNG'))
    for load in (False, True):
        image = Image.open(tmp_path / 'lying.png')
        if load:
            image.load()
        assert np.array_equal(np.asarray(rgb_of(image)), RGB)
        upright = image.transpose(Image.Transpose.ROTATE_270)
        assert upright.getexif()[0x0112] == 6
        assert np.array_equal(np.asarray(rgb_of(upright)), RGB)
        assert np.array_equal(np.asarray(rgb_of(ImageOps.exif_transpose(image))), RGB)
        assert np.array_equal(np.asarray(rgb_of(image.copy())), np.asarray(image))


def test_a_raw_file_is_refused_from_python_too(tmp_path):
    (tmp_path / 'mosaic.tif').write_bytes(tiff_with_mosaic())
    with pytest.raises(InputError, match="the image cannot be read .* a camera's raw file"):
        rgb_of(Image.open(tmp_path / 'mosaic.tif'))


def test_which_pictures_earlier_versions_showed_in_another_way(tmp_path):
    files = {  # by whether they differ without and with the conversion to sRGB
        'blank.bmp': (bmp32(0), (True, True)),
        'alpha.bmp': (bmp32(ALPHA), (False, False)),
        'white.png': (saved(with_alpha(0), 'PNG'), (False, False)),
        'shadow.png': (
            saved(with_alpha(ALPHA), 'PNG', icc_profile=databases.DISPLAY_P3),
            (False, True),
        ),
        'opaque.png': (
            saved(with_alpha(255), 'PNG', icc_profile=databases.DISPLAY_P3),
            (False, False),
        ),
        'wide.png': (saved(RGB, 'PNG', icc_profile=databases.DISPLAY_P3), (False, False)),
        'print.tif': (
            saved(
                Image.fromarray(RGB).convert('CMYK'), 'TIFF', icc_profile=databases.PRINT_PROFILE
            ),
            (False, True),
        ),
        'inks.tif': (FORMS['CMYK'][0](), (False, False)),
    }
    for name, (content, differs) in files.items():
        (tmp_path / name).write_bytes(content)
        found = tuple(frames.is_shown_differently(tmp_path / name, srgb) for srgb in (False, True))
        assert found == differs, name
