"""The demo database is the same everywhere, and its scores follow the strength of each distortion."""

import filecmp
import os

import numpy as np

import folders
from util import demo_database


def test_it_is_generated_once_the_same_every_time_and_whole(tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'deep' / 'er' / 'second'
    second.mkdir(parents=True)
    (second.parent / '.second-killed').mkdir()
    (second.parent / '.second-killed' / 'scene01_blur_1.png').touch()
    demo_database.generate(first)
    demo_database.generate(second)
    names = sorted(os.listdir(first))
    assert len(names) == demo_database.IMAGES + 1
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])
    assert sorted(os.listdir(second.parent)) == ['.second.lock', 'second']

    changed = (first / 'labels.csv').stat().st_mtime_ns
    demo_database.generate(first)
    assert (first / 'labels.csv').stat().st_mtime_ns == changed


def test_scores_fall_with_strength_and_every_scene_has_every_kind(tmp_path):
    samples = folders.read_samples('demo', tmp_path / 'demo')
    scores = np.array([sample.score for sample in samples]).reshape(demo_database.SCENES, -1, len(demo_database.STRENGTHS))
    assert scores.shape[1] == len(demo_database.DISTORTIONS) >= 3
    assert (np.diff(scores.mean((0, 1))) < 0).all()
    residual = scores - (4.8 - 3.6 * np.array(demo_database.STRENGTHS))
    assert 0.08 < residual.std() < 0.16
    contents = np.array([sample.content for sample in samples]).reshape(demo_database.SCENES, -1)
    assert (contents == contents[:, :1]).all() and len(set(contents[:, 0])) == demo_database.SCENES
