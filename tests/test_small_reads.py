"""Large JPEG files decoded small: what a sample becomes, against the whole image decoded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from navit_backbone.tasks.common.jitter import LargeScaleJitter
from navit_backbone.tasks.common.resize import REDUCTION, ResizeToTokenBudget
from navit_backbone.tasks.common.sample import SampleSeed
from navit_backbone.tasks.common.small_reads import LoadImageSmall, read_small

KINDS = {
    'baseline': dict(),
    'progressive': dict(progressive=True),
    'CMYK': dict(mode='CMYK'),
    'gray': dict(mode='L'),
    'turned': dict(orientation=6),
    'mirrored and turned': dict(orientation=7),
    'upside down': dict(orientation=3),
    'fine chroma': dict(subsampling=0),
}


@cache
def scene(h: int, w: int, seed: int = 0) -> Image.Image:
    """An image with detail at every scale, as a photo has it: less of it the finer it is."""
    rng = np.random.default_rng(seed)
    image = np.zeros((h, w, 3))
    for cell in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = rng.integers(0, 256, (-(-h // cell), -(-w // cell), 3), dtype=np.uint8)
        octave = np.asarray(Image.fromarray(noise).resize((w, h), Image.Resampling.BILINEAR))
        image += octave * cell**0.25
    image = (image - image.min()) / np.ptp(image) * 255
    return Image.fromarray(image.astype(np.uint8))


def save(file, image, *, mode='RGB', orientation=None, **options) -> None:
    if orientation:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    image.convert(mode).save(file, 'JPEG', quality=92, **options)


def sample(file, planner, *, small: bool):
    transforms = [LoadImageFromFile(), planner]
    if small:
        read_small(transforms)
    boxes = np.array([[3.5, 20, 700, 40], [0, 0, 1, 1]], dtype=np.float32)
    results = {'img_path': str(file), 'sample_seed': SampleSeed(1, 2, 3), 'gt_bboxes': boxes}
    for transform in transforms:
        results = transform(results)
    assert REDUCTION not in results
    return results


@pytest.mark.parametrize('planner', [
    ResizeToTokenBudget(196),
    ResizeToTokenBudget(12, random=dict(low_tokens=1)),
    ResizeToTokenBudget(196, square=True),
    LargeScaleJitter(75),
], ids=['one budget', 'random', 'squashed', 'jitter'])  # fmt: skip
@pytest.mark.parametrize('size', [(769, 1027), (768, 1024)], ids=['odd', 'even'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_sample_is_that_of_the_whole_image(tmp_path, kind, size, planner):
    file = tmp_path / 'a.jpg'
    save(file, scene(*size), **KINDS[kind])
    small, whole = sample(file, planner, small=True), sample(file, planner, small=False)
    for key in ('ori_shape', 'img_shape', 'scale_factor'):
        assert small[key] == whole[key], key
    for key in ('gt_bboxes', 'homography_matrix'):
        np.testing.assert_array_equal(small[key], whole[key])
    difference = small['img'].astype(float) - whole['img'].astype(float)
    assert small['img'].dtype == whole['img'].dtype
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize(
    ('native', 'max_tokens', 'loaded'),
    [
        ((3072, 4096), 784, (768, 1024)),  # shown as 384 x 512
        ((3072, 4096), 783, (768, 1024)),
        ((3072, 4096), 1024, (1536, 2048)),  # 448 x 576
        ((3071, 4096), 192, (768, 1024)),  # 192 x 256
        ((3072, 4096), 36, (384, 512)),
        ((3072, 4096), 4096, (3072, 4096)),
        ((1, 4001), 9, (1, 4001)),
        ((450, 450), 784, (450, 450)),
    ],
)
def test_it_is_decoded_as_small_as_the_planned_size_allows(tmp_path, native, max_tokens, loaded):
    file = tmp_path / 'a.jpg'
    save(file, Image.new('RGB', native[::-1], (200, 100, 50)))
    planner = ResizeToTokenBudget(max_tokens)
    results = LoadImageSmall(LoadImageFromFile(), planner)({'img_path': str(file)})
    assert results['img'].shape[:2] == loaded
    assert results['ori_shape'] == results['img_shape'] == native
    target = planner.target_size(*native)
    assert all(
        side >= 2 * wanted or side == whole
        for side, wanted, whole in zip(loaded, target, native, strict=True)
    )


@pytest.mark.parametrize('orientation', [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_turned_image_is_decoded_small_where_that_shifts_nothing(tmp_path, orientation):
    for size, small in (((640, 960), True), ((641, 961), orientation == 1)):
        save(tmp_path / 'a.jpg', scene(*size), orientation=orientation)
        loader = LoadImageSmall(LoadImageFromFile(), ResizeToTokenBudget(9))
        results = loader({'img_path': str(tmp_path / 'a.jpg')})
        assert (REDUCTION in results) == small
        assert results['ori_shape'] == (size if orientation < 5 else size[::-1])


@pytest.mark.parametrize('suffix', ['png', 'webp', 'bmp', 'tif'])
def test_other_formats_are_decoded_whole_whatever_their_name(tmp_path, suffix):
    scene(600, 800).save(tmp_path / f'a.{suffix}')
    file = (tmp_path / f'a.{suffix}').rename(tmp_path / 'a.jpg')
    planner = ResizeToTokenBudget(9)
    np.testing.assert_array_equal(
        sample(file, planner, small=True)['img'], sample(file, planner, small=False)['img']
    )


@pytest.mark.parametrize(
    'transforms',
    [
        [LoadImageFromFile(color_type='grayscale'), ResizeToTokenBudget(9)],
        [LoadImageFromFile(color_type='color_ignore_orientation'), ResizeToTokenBudget(9)],
        [LoadImageFromFile(imdecode_backend='pillow'), ResizeToTokenBudget(9)],
        [LoadImageFromFile(), ResizeToTokenBudget(9, interpolation='bicubic')],
        [LoadImageFromFile(), lambda results: results, ResizeToTokenBudget(9)],
        [LoadImageFromFile()],
        [],
    ],
)
def test_what_could_notice_keeps_the_whole_image(transforms):
    kept = list(transforms)
    read_small(transforms)
    assert transforms == kept


def test_float32_and_repeated_set_up_are_kept(tmp_path):
    save(tmp_path / 'a.jpg', scene(600, 800))
    transforms = [LoadImageFromFile(to_float32=True), ResizeToTokenBudget(9)]
    read_small(transforms)
    once = transforms[0]
    read_small(transforms)
    assert transforms[0] is once
    image = once({'img_path': str(tmp_path / 'a.jpg')})['img']
    assert (image.dtype, image.shape) == (np.float32, (150, 200, 3))


def test_a_damaged_file_fails_as_it_does_whole(tmp_path):
    file = tmp_path / 'a.jpg'
    save(file, scene(300, 400))
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(AssertionError, match=r'a\.jpg'):
        LoadImageSmall(LoadImageFromFile(), ResizeToTokenBudget(9))({'img_path': str(file)})
