"""A small database that is generated, so that training can be tried without a download.

A network learns it in minutes, even without ImageNet weights. Each scene is a smooth coloured
background with shapes under a fine grain. Every scene is blurred, defocused and reduced in
resolution, each with a different one of four strengths. The score falls linearly from 4.8 to 1.2
with the strength, and has a little observer noise.

It can be learned from random weights in a few hundred patches because all kinds of distortion
remove fine detail, and equal strengths remove about the same amount. With a kind that adds detail,
such as noise, the same network still predicts a constant after as many patches.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from util.errors import InputError
from util.files import locked, write_table

SIDE = 256  # pixels of each image
SCENES = 40
STRENGTHS = [k / 3 for k in range(4)]
OBSERVER_NOISE = 0.12  # standard deviation, in the unit of the scores
SEED = 2020
DEFAULTS = {  # options of the script
    'lr': 1e-4,
    'batch_size': 8,
    'train_patch_num': 1,
    'test_patch_num': 4,
    'train_test_num': 1,
    'weights': 'none',
}


def generate(root):
    """Make the database in the folder `root`, unless the folder has other files or is complete.

    Raises:
        InputError: the folder cannot be written.
    """
    root = Path(root)
    labels = root / 'labels.csv'
    try:
        # Only images are there if another process was stopped before it wrote the labels.
        if root.exists() and not all(name.startswith('scene') for name in os.listdir(root)):
            return
        root.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / f'.{root.name}.lock'):
            # Another process may have made the same files while this one waited.
            if labels.exists():
                return
            rows = []
            for k in range(SCENES):
                rows += write_scene(root, k)
            # The labels come last: with them, the database is complete.
            write_table(labels, list(rows[0]), rows)
    except OSError as error:
        raise InputError(
            f'the demo database cannot be generated in {root}: {error}; '
            '--data_root DIR names another place'
        )


def write_scene(folder, k):
    """Write the distorted images of scene `k`.

    Returns:
        their rows of labels.csv.
    """
    rng = np.random.RandomState((SEED, k))
    scene = make_scene(rng)
    rows = []
    for turn, (kind, distort) in enumerate(DISTORTIONS.items()):
        # The strengths go round, so that neither the scene nor the kind gives away the score.
        level = (k + turn) % len(STRENGTHS)
        name = f'scene{k + 1:02d}_{kind}_{level + 1}.png'
        distort(scene, STRENGTHS[level]).save(folder / name, compress_level=1)
        score = 4.8 - 3.6 * STRENGTHS[level] + OBSERVER_NOISE * rng.standard_normal()
        rows.append({'image': name, 'score': f'{score:.4f}', 'content': f'scene{k + 1:02d}'})
    return rows


def make_scene(rng):
    """A pristine RGB image."""
    background = np.stack([fractal_noise(rng, 1.6) for _ in range(3)], axis=-1)
    canvas = Image.fromarray(to_uint8(rng.uniform(60, 190, 3) + 28 * background))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(14, 30)):
        draw_shape(draw, rng)
    # The same grey grain in all three channels is the fine detail that distortions remove.
    grain = fractal_noise(rng, 0.5)[..., None]
    return Image.fromarray(to_uint8(np.asarray(canvas) + 28 * grain))


def fractal_noise(rng, exponent):
    """Noise whose amplitude falls with frequency ** exponent.

    Returns:
        (SIDE, SIDE), of mean 0 and standard deviation 1.
    """
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    # The mean has frequency 0, and is subtracted below.
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    field = np.fft.irfft2(spectrum / frequency**exponent, s=(SIDE, SIDE))
    return (field - field.mean()) / field.std()


def draw_shape(draw, rng):
    """Draw an ellipse, polygon, bundle of lines or chessboard of random place, size and colour."""
    x, y = rng.uniform(0, SIDE, 2)
    radius = rng.uniform(8, 60)
    colour = tuple(rng.randint(20, 235, 3).tolist())
    step = rng.randint(4, 12)
    kind = rng.randint(4)
    if kind == 0:
        draw.ellipse([x - radius, y - 0.7 * radius, x + radius, y + 0.7 * radius], fill=colour)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.randint(3, 7)))
        corners = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
        draw.polygon(corners, fill=colour)
    elif kind == 2:
        for offset in range(0, int(radius), step):
            end = y + offset + rng.uniform(-6, 6)
            draw.line([x - radius, y + offset, x + radius, end], fill=colour, width=2)
    else:
        for row in range(int(radius) // step):
            for column in range(row % 2, int(radius) // step, 2):
                left = x + column * step
                top = y + row * step
                draw.rectangle([left, top, left + step, top + step], fill=colour)


def kernel_deviation(strength):
    """The standard deviation in pixels of the blur of every kind at `strength` 0 ... 1."""
    return 0.5 * 12**strength


def blur(image, strength):
    return image.filter(ImageFilter.GaussianBlur(kernel_deviation(strength)))


def defocus(image, strength):
    # A box of side 2r + 1 has the variance ((2r + 1)^2 - 1) / 12.
    side = (12 * kernel_deviation(strength) ** 2 + 1) ** 0.5
    return image.filter(ImageFilter.BoxBlur((side - 1) / 2))


def lower_resolution(image, strength):
    # Shrinking by f is a blur of variance f^2 / 12 (a box), and enlarging again one of f^2 / 6
    # (a triangle). Together that is the standard deviation f / 2.
    side = round(SIDE / (2 * kernel_deviation(strength)))
    small = image.resize((side, side), Image.Resampling.BOX)
    return small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def to_uint8(values):
    return np.clip(values, 0, 255).astype(np.uint8)


DISTORTIONS = {'blur': blur, 'defocus': defocus, 'lowres': lower_resolution}
IMAGES = SCENES * len(DISTORTIONS)
