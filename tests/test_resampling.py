"""Resampling against Pillow, torch and float64 formulas written out here."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from navit_backbone.tasks.common.clip_budget import ClipToTokenBudget, LoadFrames
from navit_backbone.tasks.common.clip_mixing import ClipMixing, fitted
from navit_backbone.tasks.common.jitter import LargeScaleJitter
from navit_backbone.tasks.common.resampling import (
    FILTERS,
    resize_frames,
    resize_image,
    resize_labels,
)
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sample import SampleSeed

SIDES = st.integers(1, 90)
DTYPES = {np.uint8: 255, np.uint16: 65535, np.float32: 1.0}
PILLOW = {
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'lanczos': Image.Resampling.LANCZOS,
}
CELL = 16


def noise(h: int, w: int, channels: int, dtype: type, seed: int = 0) -> np.ndarray:
    """[h, w, channels], or [h, w] for 0 channels, over all of the dtype's range."""
    shape = (h, w, channels) if channels else (h, w)
    return (np.random.default_rng(seed).random(shape) * DTYPES.get(dtype, 1.0)).astype(dtype)


# --------------------------------------------------------------------------------------------------
# Pillow's filters


@settings(max_examples=150, deadline=None)
@given(
    SIDES, SIDES, SIDES, SIDES, st.integers(0, 5), st.sampled_from(list(DTYPES)),
    st.sampled_from(list(PILLOW)), st.integers(0, 99),
)  # fmt: skip
def test_pillow_filters_equal_pillow_to_the_bit(h, w, rows, columns, channels, dtype, name, seed):
    image = noise(h, w, channels, dtype, seed)
    resized = resize_image(image, (rows, columns), name)
    assert resized.dtype == dtype and resized.shape == (rows, columns, *image.shape[2:])

    def pillow(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((columns, rows), PILLOW[name]))

    if channels == 0:
        expected = pillow(image)
    elif channels == 3 and dtype == np.uint8:
        expected = pillow(image)  # in mode RGB
    else:
        split = [pillow(np.ascontiguousarray(image[..., c])) for c in range(channels)]
        expected = np.stack(split, -1)
    assert np.array_equal(resized, expected)


def test_a_fourth_channel_is_no_transparency():
    """Pillow's mode RGBA would weigh colours by the fourth channel, LA the first by the second."""
    for channels in (2, 4):
        image = noise(40, 50, channels, np.uint8)
        image[..., -1] = 0
        for name in FILTERS:
            resized = resize_image(image, (20, 30), name)
            for c in range(channels):
                alone = resize_image(image[..., c], (20, 30), name)
                assert np.array_equal(resized[..., c], alone), name


# --------------------------------------------------------------------------------------------------
# The default: area where an axis shrinks, cubic where it grows


def default_rows(old: int, new: int) -> np.ndarray:
    """[new, old] float64: the weights of 'area' along one axis."""
    weights, scale = np.zeros((new, old)), Fraction(old, new)
    for i in range(new):
        if new < old:
            low, high = i * scale, (i + 1) * scale
            for j in range(old):
                weights[i, j] = max(Fraction(0), min(high, j + 1) - max(low, j)) / scale
            continue
        centre = float((i + Fraction(1, 2)) * scale - Fraction(1, 2))
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            d = abs(centre - j)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(j, 0), old - 1)] += near if d <= 1 else far
    return weights


@settings(max_examples=100, deadline=None)
@given(
    SIDES, SIDES, SIDES, SIDES, st.integers(1, 6), st.sampled_from(list(DTYPES)), st.integers(0, 99)
)
def test_the_default_equals_its_formula_on_each_axis(h, w, rows, columns, channels, dtype, seed):
    image = noise(h, w, channels, dtype, seed)
    expected = np.einsum(
        'ih,hwc,jw->ijc',
        default_rows(h, rows),
        image.astype(np.float64),
        default_rows(w, columns),
        optimize=True,
    )
    if dtype != np.float32:
        expected = expected.clip(0, DTYPES[dtype])
    # integers are rounded once on each axis, and cubic weights to 11 bits for bytes
    tolerance = 2e-5 if dtype == np.float32 else 2.0
    resized = resize_image(image, (rows, columns))
    assert np.abs(resized - expected).max() <= tolerance


def wave(h: int, w: int, period_y: float, period_x: float, phase: float) -> np.ndarray:
    """[h, w] float32 of mean 127.5 and amplitude 100; periods are in pixels."""
    y, x = np.mgrid[:h, :w] + 0.5
    angle = 2 * np.pi * (y / period_y + x / period_x) + phase
    return (127.5 + 100 * np.cos(angle)).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(8, 200), st.integers(8, 200), st.integers(4, 200), st.integers(4, 200),
    st.floats(8, 40), st.floats(0, 6.28), st.booleans(), st.sampled_from([np.uint8, np.float32]),
)  # fmt: skip
def test_the_default_stays_near_bicubic_where_the_target_resolves_the_image(
    h, w, rows, columns, pixels, phase, across, dtype
):
    """A wave of 8 target pixels or more: at most 4 of 255 on average, at most 9 anywhere."""
    along = pixels * max(1.0, w / columns if across else h / rows)
    image = wave(h, w, *((np.inf, along) if across else (along, np.inf)), phase).astype(dtype)
    got, reference = (
        resize_image(image, (rows, columns), name).astype(float) for name in ('area', 'bicubic')
    )
    assert np.abs(got - reference).mean() <= 4
    assert np.abs(got - reference).max() <= 9


@settings(max_examples=100, deadline=None)
@given(
    st.integers(8, 40), st.integers(8, 40), st.floats(4, 9), st.floats(4, 9), st.floats(0, 1),
    st.floats(0, 6.28), st.booleans(), st.integers(1, 4), st.sampled_from([np.uint8, np.float32]),
)  # fmt: skip
def test_patterns_beyond_the_target_are_averaged_as_by_bicubic(
    rows, columns, shrink_y, shrink_x, share, phase, across, channels, dtype
):
    """Stripes from 2 source pixels to 1 target pixel, with a contrast of 200 of 255.

    The means agree to 1 %, the distance is at most 26 on average, and what is left of the stripes
    is at most 30 to each side of the mean; without antialiasing it is 100.
    """
    h, w = round(rows * shrink_y), round(columns * shrink_x)
    longest = w / columns if across else h / rows
    period = 2 + share * (longest - 2)
    stripes = wave(h, w, *((np.inf, period) if across else (period, np.inf)), phase)
    image = np.stack([stripes] * channels, -1).astype(dtype)
    got, reference = (
        resize_image(image, (rows, columns), name).astype(float) for name in ('area', 'bicubic')
    )
    assert abs(got.mean() - reference.mean()) <= 2.55
    assert np.abs(got - reference).mean() <= 26
    assert np.abs(got - got.mean()).max() <= 30


@pytest.mark.parametrize('name', FILTERS)
def test_odd_arrays_are_resized_as_their_plain_copies(name):
    """Reversed, strided, transposed, read-only; sides of one pixel; sides beyond 32,767 pixels."""
    big = noise(60, 80, 3, np.uint8)
    big.flags.writeable = False
    for view in (
        big[::-1, ::-1],
        big[..., ::-1],
        big[::3, 1::2],
        big.transpose(1, 0, 2),
        big[..., :1],
    ):
        got = resize_image(view, (17, 90), name)
        assert np.array_equal(got, resize_image(view.copy(), (17, 90), name))
        assert got.shape == (17, 90, view.shape[2])
    for h, w in ((1, 1), (1, 70), (70, 1)):
        got = resize_image(np.full((h, w, 3), 77, np.uint8), (5, 9), name)
        assert (got == 77).all()
    long = np.full((2, 70_000), 9, np.uint16)
    long[:, 35_000:] = 60_000
    got = resize_image(long, (3, 15), name)
    assert (got[:, :4] == 9).all()
    assert got[:, -4:] == pytest.approx(60_000, rel=1e-4), 'cv2 sums in float32'
    assert resize_image(big[:2, :2], (40_000, 2), name).shape == (40_000, 2, 3)


@pytest.mark.parametrize('name', FILTERS)
@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-5), (np.float16, 2e-3)])
def test_other_floats_keep_their_dtype(name, dtype, tolerance):
    image = noise(30, 40, 2, np.float32).astype(dtype)
    got = resize_image(image, (12, 55), name)
    assert got.dtype == dtype
    expected = resize_image(image.astype(np.float32), (12, 55), name)
    np.testing.assert_allclose(got, expected, atol=tolerance)


def test_an_image_of_the_size_asked_for_is_untouched():
    image, frames = noise(8, 9, 3, np.uint8), noise(4, 5, 3, np.uint8)[None]
    assert resize_image(image, (8, 9)) is image
    assert resize_frames(frames, (4, 5)) is frames


@pytest.mark.parametrize(
    'image, size, words',
    [
        (np.zeros((4, 4), bool), (2, 2), 'dtype bool'),
        (np.zeros((4, 4), np.int32), (2, 2), 'dtype int32.*resize_labels'),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), r'shape \[0, 4, 3\]'),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), '0 x 2 pixels'),
        (np.zeros((1, 4, 4, 3), np.uint8), (2, 2), r'shape \[1, 4, 4, 3\]'),
    ],
)
def test_what_is_no_image_is_refused(image, size, words):
    with pytest.raises(ValueError, match=words):
        resize_image(image, size)


# --------------------------------------------------------------------------------------------------
# Label maps


@settings(max_examples=200, deadline=None)
@given(
    SIDES, SIDES, SIDES, SIDES, st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, bool]),
    st.sampled_from([(), (1,), (3,)]),
)  # fmt: skip
def test_labels_are_taken_at_the_centre_of_each_target_pixel(h, w, rows, columns, dtype, channels):
    labels = np.random.default_rng(h * w).integers(0, 70_000, (h, w, *channels)).astype(dtype)
    got = resize_labels(labels, (rows, columns))
    y, x = (
        [int((i + Fraction(1, 2)) * Fraction(old, new)) for i in range(new)]
        for old, new in ((h, rows), (w, columns))
    )
    assert got.dtype == dtype
    assert np.array_equal(got, labels[np.ix_(y, x)])


@pytest.mark.parametrize('size', [(8, 12), (64, 96), (31, 45), (1, 1), (33, 200)])
def test_labels_equal_nearest_exact_of_torch(size):
    labels = np.arange(32 * 48, dtype=np.int32).reshape(32, 48)
    expected = F.interpolate(
        torch.from_numpy(labels)[None, None].double(), size, mode='nearest-exact'
    )
    assert np.array_equal(resize_labels(labels, size), expected[0, 0].int().numpy())


def test_a_label_map_keeps_its_place_under_its_image():
    """A square of class 1 and its image: centres of mass differ by less than a tenth of a pixel."""
    labels = np.zeros((256, 256), dtype=np.uint8)
    labels[72:200, 40:168] = 1
    results = dict(img=np.stack([labels * 255] * 3, -1), ori_shape=(256, 256), gt_seg_map=labels)
    results = ResizeToTokenBudget(16)(results)
    assert results['img_shape'] == (64, 64)
    assert np.array_equal(results['gt_seg_map'], (results['img'][..., 0] > 127).astype(np.uint8))


def test_bitmaps_of_mmdet_are_resized_as_label_maps():
    masks_of = pytest.importorskip('mmdet.structures.mask').BitmapMasks
    bitmaps = np.random.default_rng(0).integers(0, 2, (3, 50, 70), dtype=np.uint8)
    for count in (3, 0):
        results = dict(img=noise(50, 70, 3, np.uint8), ori_shape=(50, 70))
        results['gt_masks'] = masks_of(bitmaps[:count], 50, 70)
        masks = ResizeToTokenBudget(12, patch_size=16)(results)['gt_masks']
        assert type(masks) is masks_of and (masks.height, masks.width) == (48, 64)
        assert masks.masks.shape == (count, 48, 64)
        for got, bitmap in zip(masks.masks, bitmaps, strict=False):
            assert np.array_equal(got, resize_labels(bitmap, (48, 64)))


# --------------------------------------------------------------------------------------------------
# Every transform


class StripedFrames:
    """A reader of 3072 x 4096 frames with every eighth column white: a mean of 31.9."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.num_frames, self.fps = frames, len(frames), 25.0
        self.times = np.arange(len(frames)) / 25

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.frames[np.asarray(indices)]


def striped() -> np.ndarray:
    image = np.zeros((3072, 4096, 3), dtype=np.uint8)
    image[:, ::8] = 255
    return image


def shown_in_detection_and_segmentation(name: str) -> np.ndarray:
    transform = dict(type='ResizeToTokenBudget', max_tokens=784, patch_size=CELL)
    return TRANSFORMS.build(transform | dict(interpolation=name))(dict(img=striped()))['img']


def shown_by_jitter(name: str) -> np.ndarray:
    jitter = LargeScaleJitter(784, scale_range=(0.1, 0.9), interpolation=name)
    return jitter(dict(img=striped(), sample_seed=SampleSeed(0, 0, 0)))['img']


def shown_in_crops(name: str) -> np.ndarray:
    scale = dict(scale=(512, 512), ratio_range=(1.0, 1.0), keep_ratio=True, interpolation=name)
    resize = dict(type='RandomResize', resize_type='AntialiasedResize', **scale)
    return TRANSFORMS.build(resize)(dict(img=striped()))['img']


def shown_in_clips(name: str) -> np.ndarray:
    plan = ClipToTokenBudget(max_tokens=784, sampling=dict(num_frames=1), test_mode=True)
    results = dict(reader=StripedFrames(striped()[None]), measured=(3072, 4096, 1, 25.0))
    return LoadFrames(interpolation=name).transform(plan.transform(results))['imgs']


def shown_in_mixing(name: str) -> np.ndarray:
    clip = torch.from_numpy(striped()).permute(2, 0, 1)[None, :, None]
    return fitted(clip, (1, 384, 512), name).numpy()


@pytest.mark.parametrize('name', FILTERS)
@pytest.mark.parametrize(
    'show',
    [
        shown_in_detection_and_segmentation,
        shown_by_jitter,
        shown_in_crops,
        shown_in_clips,
        shown_in_mixing,
    ],
)
def test_a_large_image_of_thin_columns_keeps_its_mean_in_every_task(show, name):
    shown = show(name)
    assert shown.dtype == np.uint8 and shown.size < 3 * 784 * CELL**2 + 1
    assert shown.mean() == pytest.approx(255 / 8, rel=0.01)


@pytest.mark.parametrize(
    'build',
    [
        lambda name: ResizeToTokenBudget(64, interpolation=name),
        lambda name: LargeScaleJitter(64, interpolation=name),
        lambda name: LoadFrames(interpolation=name),
        lambda name: ClipMixing(mixup=0.5, interpolation=name),
        lambda name: TRANSFORMS.build(
            dict(type='AntialiasedResize', scale=(9, 9), interpolation=name)
        ),
    ],
)
def test_every_owner_of_a_filter_refuses_unknown_names(build):
    for name in FILTERS:
        build(name)
    allowed = "'area', 'bilinear', 'bicubic', 'lanczos'"
    with pytest.raises(ValueError, match=f"interpolation='cubic' is not one of {allowed}"):
        build('cubic')
    with pytest.raises(ValueError, match="interpolation='nearest'.*aliases.*'area', the default"):
        build('nearest')


def test_antialiased_resize_writes_what_mmcv_does():
    stock = pytest.importorskip('mmcv.transforms').Resize
    for options in (
        dict(scale=(33, 50), keep_ratio=True),
        dict(scale=(33, 50)),
        dict(scale_factor=(1.7, 0.6)),
    ):
        seg, boxes = np.ones((40, 61), np.uint8), np.array([[3.0, 4, 50, 39]])
        results = dict(img=noise(40, 61, 3, np.uint8), gt_seg_map=seg, gt_bboxes=boxes)
        expected = stock(**options)(dict(results))
        got = TRANSFORMS.build(dict(type='AntialiasedResize', **options))(dict(results))
        assert got['img'].shape == expected['img'].shape
        assert got['gt_seg_map'].shape == expected['gt_seg_map'].shape
        assert np.array_equal(got['gt_bboxes'], expected['gt_bboxes'])
        for key in ('img_shape', 'scale', 'scale_factor', 'keep_ratio'):
            assert got[key] == expected[key], key
        assert np.array_equal(got['img'], resize_image(results['img'], got['img_shape']))


def test_antialiased_resize_carries_boxes_and_masks_of_mmdet():
    boxes = pytest.importorskip('mmdet.structures.bbox').HorizontalBoxes
    stock = pytest.importorskip('mmdet.datasets.transforms').Resize
    masks = pytest.importorskip('mmdet.structures.mask').BitmapMasks
    bitmaps = np.random.default_rng(0).integers(0, 2, (1, 50, 70), dtype=np.uint8)
    expected, got = (
        transform(
            dict(
                img=noise(50, 70, 3, np.uint8),
                gt_bboxes=boxes(torch.tensor([[-5.0, 10, 35, 90]])),
                gt_masks=masks(bitmaps, 50, 70),
            )
        )
        for transform in (
            stock(scale=(35, 30), keep_ratio=True),
            TRANSFORMS.build(dict(type='AntialiasedResize', scale=(35, 30), keep_ratio=True)),
        )
    )
    torch.testing.assert_close(got['gt_bboxes'].tensor, expected['gt_bboxes'].tensor)
    assert np.array_equal(got['gt_masks'].masks[0], resize_labels(bitmaps[0], (25, 35)))
    np.testing.assert_allclose(got['homography_matrix'], expected['homography_matrix'])


def test_no_config_resizes_without_antialiasing():
    """Stock transforms that resize have cv2's bilinear filter, whose place is taken by ours."""
    paths = sorted((Path(__file__).resolve().parents[1] / 'configs').rglob('*.py'))
    assert len(paths) > 80
    for path in paths:
        text = path.read_text()
        assert not re.search(r"type='(Resize|RandomChoiceResize|Mosaic|MixUp|CopyPaste)'", text), (
            path
        )
        assert text.count("'RandomResize'") == text.count("resize_type='AntialiasedResize'"), path


def test_no_module_resizes_images_by_itself():
    """cv2, Pillow and mmcv resize in `resampling.py` alone."""
    root = Path(__file__).resolve().parents[1]
    calls = re.compile(r'imresize|imrescale|cv2\.resize|(?<!masks)\.resize\(')
    found = {
        path.name
        for folder in ('navit_backbone', 'tasks', 'tools')
        for path in (root / folder).rglob('*.py')
        if calls.search(path.read_text())
    }
    assert found == {'resampling.py'}


@pytest.mark.parametrize(
    'kind, config',
    [
        ('mmdet.apis:DetInferencer', 'detection/retinanet_navit-ti_20e_raccoon.py'),
        ('mmseg.apis:MMSegInferencer', 'segmentation/linear_navit-ti_20e_clothing.py'),
    ],
)
def test_stock_inferencers_show_images_antialiased(kind, config):
    module, name = kind.split(':')
    inferencer = getattr(pytest.importorskip(module), name)
    cfg = Config.fromfile(Path(__file__).resolve().parents[1] / 'configs' / config)
    cfg.test_dataloader.dataset.pipeline[1].max_tokens = 784
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        pipeline = inferencer.__new__(inferencer)._init_pipeline(cfg)
        shown = pipeline(striped())['inputs']
    assert tuple(shown.shape) == (3, 384, 512)
    assert shown.float().mean().item() == pytest.approx(255 / 8, rel=0.01)
