"""EXIF orientation: arrays turned as Pillow turns images, and maps that lie on their side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from navit_backbone.tasks.common.orientation import is_on_its_side, orientation_of, turn


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('shape', [(4, 7), (5, 5), (1, 3), (6, 2, 3)])
def test_arrays_are_turned_as_pillow_turns_images(
    tmp_path: Path, orientation: int, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / 'a.png'
    Image.fromarray(array).save(file, exif=exif)
    assert orientation_of(str(file)) == orientation
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = turn(array, orientation)
    assert found.flags.c_contiguous
    assert (found == expected).all()


def test_images_without_a_known_orientation_are_upright(tmp_path: Path) -> None:
    Image.new('L', (3, 2)).save(tmp_path / 'a.png')
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new('L', (3, 2)).save(tmp_path / 'b.jpg', exif=exif)
    (tmp_path / 'c.jpg').write_bytes(b'broken')
    for name in ('a.png', 'b.jpg', 'c.jpg'):
        assert orientation_of(str(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ('size', 'shown', 'expected'),
    [
        ((60, 40), (40, 60), True),
        ((101, 100), (100, 101), True),
        ((30, 20), (40, 60), True),  # at half its size
        ((31, 21), (40, 60), True),  # rounded
        ((40, 60), (40, 60), False),
        ((20, 30), (40, 60), False),
        ((512, 512), (40, 60), False),  # squashed to a square: nothing shows a turn
        ((50, 50), (100, 101), False),
        ((50, 50), (50, 50), False),
    ],
)
def test_a_map_lies_on_its_side(
    size: tuple[int, int], shown: tuple[int, int], expected: bool
) -> None:
    assert is_on_its_side(size, shown) == expected
