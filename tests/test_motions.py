"""Clips whose class is their motion: what must not tell the class, and what does."""

import cv2
import numpy as np
import pytest
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_backbone.tasks.common.groups import GroupFile
from navit_backbone.tasks.video.motions import MOTIONS, PAIRS, path, render
from navit_backbone.tools import prepare_data

motions = pytest.mark.parametrize('motion', MOTIONS)


def way_of(motion, seed=0, picture=(240, 320), clip=(96, 112), frames=9):
    return path(motion, picture, clip, frames, np.random.default_rng(seed))


@settings(deadline=None)
@given(st.sampled_from(MOTIONS), st.integers(0, 10**6), st.integers(60, 400), st.integers(60, 400))
def test_windows_stay_inside_the_picture(motion, seed, h, w):
    """A white picture with black beyond its border gives white clips."""
    white = np.full((h, w, 3), 255, np.uint8)
    frames = render(white, way_of(motion, seed, (h, w)), (96, 112))
    assert frames.min() == 255


@pytest.mark.parametrize('pair', PAIRS)
@pytest.mark.parametrize('seed', range(3))
def test_a_pair_is_one_path_forward_and_backward(pair, seed):
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    one, other = (render(noise, way_of(motion, seed), (96, 112)) for motion in pair)
    assert np.array_equal(one, other[::-1])
    assert not np.array_equal(one[0], one[-1])


def test_the_middle_frame_is_that_of_every_motion():
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    middles = [render(noise, way_of(motion, 5), (96, 112))[4] for motion in MOTIONS]
    assert all(np.abs(m.astype(int) - middles[0]).max() <= 1 for m in middles)


def moved(motion, seed=3):
    """Optical flow from one frame to the next, [h, w, 2] (x, y), of a smooth picture."""
    noise = np.random.default_rng(2).integers(0, 256, (480, 640), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)
    frames = render(
        np.stack([smooth] * 3, 2), way_of(motion, seed, (480, 640), (96, 96), 17), (96, 96)
    )
    return cv2.calcOpticalFlowFarneback(
        frames[8, ..., 0], frames[9, ..., 0], None, 0.5, 3, 15, 5, 5, 1.1, 0
    )[16:-16, 16:-16]


@motions
def test_the_content_moves_as_the_class_says(motion):
    flow = moved(motion)
    across, down = flow[..., 0], flow[..., 1]
    y, x = np.mgrid[-1 : 1 : flow.shape[0] * 1j, -1 : 1 : flow.shape[1] * 1j]
    seen = {
        'right': across.mean(),
        'down': down.mean(),
        'in': (across * x + down * y).mean(),
        'clockwise': (down * x - across * y).mean(),  # rows grow downward
    }
    seen |= {'left': -seen['right'], 'up': -seen['down'], 'out': -seen['in']}
    seen['anticlockwise'] = -seen['clockwise']
    assert max(seen, key=seen.get) == motion


def test_prepare_data_writes_the_set_once(tmp_path, monkeypatch, capsys):
    pictures = tmp_path / 'pictures'
    for split in ('train', 'val'):
        (pictures / split).mkdir(parents=True)
        noise = np.random.default_rng(1).integers(0, 256, (200, 260, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / split / 'a.png')
    command = ['motions', pictures / 'train', pictures / 'val', '--out', tmp_path / 'set',
               '--train', 9, '--val', 8]  # fmt: skip
    assert call(monkeypatch, prepare_data, *command) is None
    lines = (tmp_path / 'set/train.txt').read_text().splitlines()
    assert [line.split()[1] for line in lines] == [str(i % 8) for i in range(9)]
    assert (tmp_path / 'set/classes.txt').read_text().split() == list(MOTIONS)
    assert len(list((tmp_path / 'set/val').glob('*.mp4'))) == 8
    groups = GroupFile(tmp_path / 'set')  # clips of one image depend on each other
    for split, count in (('train', 9), ('val', 8)):
        clips = [tmp_path / f'set/{split}/{i:05d}.mp4' for i in range(count)]
        assert {groups[clip] for clip in clips} == {f'{split}/a.png'}
    assert call(monkeypatch, prepare_data, *command) is None
    assert 'holds this set already' in capsys.readouterr().out
    assert 'nothing is overwritten' in call(monkeypatch, prepare_data, *command, '--seed', 1)


def test_clips_without_frames_are_refused(tmp_path, monkeypatch, capsys):
    arguments = ['motions', '--out', tmp_path / 'set', '--frames', 0]
    assert call(monkeypatch, prepare_data, *arguments) == 2
    assert '--frames: 0 is not 1 or more' in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()
