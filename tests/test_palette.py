"""Colours that can be told apart."""

import cv2
import numpy as np
import pytest

from navit_backbone.tasks.common.palette import palette


@pytest.mark.parametrize(('count', 'apart'), [(2, 80), (20, 40), (59, 20), (150, 14), (255, 10)])
def test_no_two_look_alike(count, apart):
    """By CIE76, of which 2.3 is a difference just seen."""
    colours = np.array(palette(count), dtype=np.float32)[None] / 255
    lab = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distances[~np.eye(count, dtype=bool)].min() > apart


def test_a_class_keeps_its_colour():
    assert palette(255)[:59] == palette(59)
    assert palette(0) == []
    assert palette(1) == [(255, 51, 51)]
    assert all(0 <= part <= 255 for colour in palette(255) for part in colour)


def test_behind_the_last_colour_the_first_comes_again():
    colours = palette(1203)  # LVIS
    assert len(set(colours[:768])) > 700  # a few candidates round to one
    assert colours[768:] == colours[: 1203 - 768]
