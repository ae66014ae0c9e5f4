"""Pictures of label maps: at the picture's own size, with every label in the legend."""

import numpy as np
import pytest
from PIL import Image

from navit_backbone.tasks.common.overlay import (
    label_picture,
    labelled,
    legend,
    overlay,
    shares,
)
from navit_backbone.tasks.common.palette import palette

CLASSES = [f'class {number}' for number in range(150)]
COLOURS = palette(150)


def picture(size, seed=0):
    random = np.random.default_rng(seed)
    image = random.integers(256, size=(*size, 3)).astype(np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    labels[size[0] // 2 :] = 7
    labels[:, : size[1] // 3] = 255
    return image, labels


@pytest.mark.parametrize('size', [(1, 40), (37, 1), (211, 97)])
def test_colours_lie_on_the_regions_and_ignored_pixels_stay(size):
    image, labels = picture(size)
    drawn = np.asarray(overlay(image, labels, COLOURS))
    assert drawn.shape == image.shape
    inner = np.ones(size, dtype=bool)  # away from the borders of regions
    inner[1:] &= labels[1:] == labels[:-1]
    inner[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    assert (drawn[inner & (labels == 255)] == image[inner & (labels == 255)]).all()
    for label in (0, 7):
        here = inner & (labels == label)
        expected = image[here] // 2 + np.array(COLOURS[label]) // 2
        assert (drawn[here] == expected).all()


def test_shares_are_of_the_whole_picture():
    found = shares(np.array([[1, 1, 2], [1, 255, 2]]))
    assert found == {1: 0.5, 2: pytest.approx(1 / 3), 255: pytest.approx(1 / 6)}
    assert list(found) == [1, 2, 255], 'the largest first'


@pytest.mark.parametrize('count', [1, 9, 150])
def test_the_legend_has_room_for_all(count):
    panel = np.asarray(legend(dict.fromkeys(range(count), 1 / count), CLASSES, COLOURS, 400))
    assert panel.shape[0] == 400
    shown = {tuple(colour) for colour in panel.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in COLOURS[:count]} <= shown


def test_the_picture_stands_at_its_own_size():
    image, labels = picture((211, 97))
    sheet = np.asarray(labelled(image, [labels], CLASSES, COLOURS))
    assert (sheet[:211, :97] == np.asarray(overlay(image, labels, COLOURS))).all()
    titled = labelled(image, [labels, labels], CLASSES, COLOURS, titles=['truth', 'prediction'])
    assert titled.width == 2 * sheet.shape[1]


def test_label_pictures_hold_the_numbers(tmp_path):
    _, labels = picture((20, 30))
    label_picture(labels, COLOURS).save(tmp_path / 'labels.png')
    with Image.open(tmp_path / 'labels.png') as read:
        assert (np.array(read) == labels).all()
        assert read.convert('RGB').getpixel((29, 19)) == COLOURS[7]
