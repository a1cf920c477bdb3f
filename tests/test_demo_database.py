"""The demo database is the same everywhere; its scores follow the strength of each distortion."""

import filecmp
import os
from pathlib import Path

import numpy as np

import folders
from experiment.options import make_parser
from HyerIQASolver import learning_rates
from util import demo_database


def test_it_is_generated_once_the_same_every_time_and_whole(tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'deep' / 'er' / 'second'
    second.mkdir(parents=True)
    (second / 'scene01_blur_1.png').touch()  # as a process leaves it that is killed
    demo_database.generate(first)
    demo_database.generate(second)
    names = sorted(os.listdir(first))
    assert len(names) == demo_database.IMAGES + 1
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])
    assert sorted(os.listdir(second.parent)) == ['.second.lock', 'second']

    changed = (first / 'labels.csv').stat().st_mtime_ns
    demo_database.generate(first)
    assert (first / 'labels.csv').stat().st_mtime_ns == changed


def test_scores_fall_with_strength_and_every_scene_has_every_kind_each_in_another_strength(
    tmp_path,
):
    samples = folders.read_labels('demo', tmp_path / 'demo').samples
    kinds = len(demo_database.DISTORTIONS)
    scores = np.array([sample.score for sample in samples]).reshape(demo_database.SCENES, kinds)
    names = np.array([Path(sample.path).stem.split('_') for sample in samples]).reshape(
        demo_database.SCENES, kinds, 3
    )
    assert all(set(row) == set(demo_database.DISTORTIONS) for row in names[:, :, 1])
    levels = names[:, :, 2].astype(int) - 1
    assert all(len(set(row)) == kinds >= 3 for row in levels)
    for kind in range(kinds):  # neither the scene nor the kind gives away the score
        assert set(np.bincount(levels[:, kind])) == {
            demo_database.SCENES // len(demo_database.STRENGTHS)
        }
    assert (
        np.diff([scores[levels == level].mean() for level in range(len(demo_database.STRENGTHS))])
        < 0
    ).all()
    residual = scores - (4.8 - 3.6 * np.array(demo_database.STRENGTHS)[levels])
    assert 0.08 < residual.std() < 0.16
    contents = np.array([sample.content for sample in samples]).reshape(demo_database.SCENES, -1)
    assert (contents == contents[:, :1]).all() and len(set(contents[:, 0])) == demo_database.SCENES


def test_the_demo_trains_through_the_whole_schedule():
    epochs = range(make_parser().get_default('epochs'))
    rates = {
        learning_rates(epoch - 1, demo_database.DEFAULTS['lr'], 10) for epoch in epochs if epoch
    }
    assert len(rates) == 4
