"""A small database that is generated, not downloaded: it shows that training works, in minutes and without ImageNet weights.

Each scene is a smooth coloured background with shapes under a fine grain. Every scene is blurred, defocused and reduced in
resolution, each in another of four strengths; the score falls linearly from 4.8 to 1.2 with the strength and carries a little
observer noise. What makes it learnable from random weights in a few hundred patches: all kinds take fine detail away, and equal
strengths take about equally much. With noise among the kinds, which adds detail, the same network stays near the constant
prediction for as long.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from util.errors import InputError
from util.files import locked, write_table

SIDE = 256
SCENES = 40
STRENGTHS = [k / 3 for k in range(4)]
OBSERVER_NOISE = 0.12
SEED = 2020
DEFAULTS = {
    'lr': 1e-4,
    'batch_size': 8,
    'train_patch_num': 1,
    'test_patch_num': 4,
    'train_test_num': 1,
    'weights': 'none',
}


def generate(root):
    """Make the database in the folder `root` unless it or something else is there; its labels come last and mark it as whole.

    Raises:
        InputError: the folder cannot be written.
    """
    root = Path(root)
    try:
        if root.exists() and not all(name.startswith('scene') for name in os.listdir(root)):
            return
        root.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / f'.{root.name}.lock'):
            if not (
                root / 'labels.csv'
            ).exists():  # otherwise another process was faster, with the same files
                rows = [row for k in range(SCENES) for row in write_scene(root, k)]
                write_table(root / 'labels.csv', list(rows[0]), rows)
    except OSError as error:
        raise InputError(
            f'the demo database cannot be generated in {root}: {error}; --data_root DIR names another place'
        )


def write_scene(folder, k):
    """Write the distorted versions of scene `k`; yields their label rows."""
    rng = np.random.RandomState((SEED, k))
    scene = make_scene(rng)
    for turn, (kind, distort) in enumerate(DISTORTIONS.items()):
        level = (k + turn) % len(STRENGTHS)
        name = f'scene{k + 1:02d}_{kind}_{level + 1}.png'
        distort(scene, STRENGTHS[level]).save(folder / name, compress_level=1)
        score = 4.8 - 3.6 * STRENGTHS[level] + OBSERVER_NOISE * rng.standard_normal()
        yield {'image': name, 'score': f'{score:.4f}', 'content': f'scene{k + 1:02d}'}


def make_scene(rng):
    """A pristine RGB image."""
    background = np.stack([fractal_noise(rng, 1.6) for _ in range(3)], axis=-1)
    canvas = Image.fromarray(to_uint8(rng.uniform(60, 190, 3) + 28 * background))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(14, 30)):
        draw_shape(draw, rng)
    return Image.fromarray(to_uint8(np.asarray(canvas) + 28 * fractal_noise(rng, 0.5)[..., None]))


def fractal_noise(rng, exponent):
    """(SIDE, SIDE) noise whose amplitude falls with frequency ** exponent; zero mean, unit deviation."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = 1
    field = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) / frequency**exponent, s=(SIDE, SIDE)
    )
    return (field - field.mean()) / field.std()


def draw_shape(draw, rng):
    """One ellipse, polygon, bundle of lines or chessboard, of random place, size and colour."""
    x, y = rng.uniform(0, SIDE, 2)
    radius = rng.uniform(8, 60)
    colour = tuple(rng.randint(20, 235, 3).tolist())
    step = rng.randint(4, 12)
    kind = rng.randint(4)
    if kind == 0:
        draw.ellipse([x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius], fill=colour)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.randint(3, 7)))
        draw.polygon(
            [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles],
            fill=colour,
        )
    elif kind == 2:
        for offset in range(0, int(radius), step):
            draw.line(
                [x - radius, y + offset, x + radius, y + offset + rng.uniform(-6, 6)],
                fill=colour,
                width=2,
            )
    else:
        for row in range(int(radius) // step):
            for column in range(row % 2, int(radius) // step, 2):
                left, top = x + column * step, y + row * step
                draw.rectangle([left, top, left + step, top + step], fill=colour)


def kernel_deviation(strength):
    """Standard deviation in pixels of the blur that a kind has at `strength` 0 ... 1."""
    return 0.5 * 12**strength


def blur(image, strength):
    return image.filter(ImageFilter.GaussianBlur(kernel_deviation(strength)))


def defocus(image, strength):
    """A box of side 2r + 1 has the variance ((2r + 1)^2 - 1) / 12."""
    side = (12 * kernel_deviation(strength) ** 2 + 1) ** 0.5
    return image.filter(ImageFilter.BoxBlur((side - 1) / 2))


def lower_resolution(image, strength):
    """Shrinking by f adds the variance f^2 / 12 of a box, enlarging again the f^2 / 6 of a triangle: f / 2 in all."""
    side = round(SIDE / (2 * kernel_deviation(strength)))
    return image.resize((side, side), Image.Resampling.BOX).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )


def to_uint8(values):
    return np.clip(values, 0, 255).astype(np.uint8)


DISTORTIONS = {'blur': blur, 'defocus': defocus, 'lowres': lower_resolution}
IMAGES = SCENES * len(DISTORTIONS)
