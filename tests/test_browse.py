"""Pictures of the data show what the model receives, and mistakes end with a sentence."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from PIL import Image

from navit_backbone.tasks.common import pictures
from navit_backbone.tasks.common.batch_sampler import TokenBudgetBatchSampler
from navit_backbone.tasks.common.drawings import CLASSES
from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.common.pictures import Shown, batch_picture, grid_of, sample_picture
from navit_backbone.tasks.common.resize import token_budget_size
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.common.sampling import SeededSampler
from navit_backbone.tools import browse as tool

TOOL = Path(__file__).parents[1] / 'tools' / 'browse.py'


@pytest.fixture
def headings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text that is written above pictures."""
    texts: list[str] = []
    original = pictures._under_heading

    def recorded(picture: Image.Image, heading: str, details: str) -> Image.Image:
        texts.extend([heading, details])
        return original(picture, heading, details)

    monkeypatch.setattr(pictures, '_under_heading', recorded)
    return texts


def flat_tiles(grid: tuple[int, int], p: int, first: int) -> np.ndarray:
    """A picture whose patches have a colour each, told apart by red and green."""
    h, w = grid
    numbers = first + np.arange(h * w).reshape(h, w)
    tiles = np.stack([numbers % 16 * 16, numbers // 16 * 16, np.full_like(numbers, 60)], -1)
    return tiles.repeat(p, 0).repeat(p, 1).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6))
def test_the_sequence_holds_each_patch_once_in_order(grids):
    lengths = [h * w for h, w in grids]
    starts = np.cumsum([0, *lengths])
    images = [flat_tiles(grid, 8, int(s)) for grid, s in zip(grids, starts, strict=False)]
    drawn: list[Image.Image] = []
    original = pictures._sequence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, '_sequence', lambda *a: drawn.append(original(*a)) or drawn[-1])
        batch_picture(images, 8)
    (picture,) = drawn
    columns = max(24, math.ceil(math.sqrt(sum(lengths) * 1.2)))
    tile = picture.width // columns
    line = picture.height // math.ceil(sum(lengths) / columns)
    pixels = np.asarray(picture)
    for i in range(sum(lengths)):
        x, y = i % columns * tile, i // columns * line
        assert tuple(pixels[y + 4, x + 4]) == (i % 16 * 16, i // 16 * 16, 60)
        example = int(np.searchsorted(starts, i, side='right')) - 1
        bar = tuple(pixels[y + tile + 1, x + 4])
        assert bar == pictures.COLOURS[example % len(pictures.COLOURS)]


def test_the_batch_states_tokens_and_what_padding_costs(headings):
    batch_picture([flat_tiles((2, 6), 16, 0), flat_tiles((5, 3), 16, 0)], 16)
    text = ' '.join(headings)
    assert 'Packed: 27 tokens' in text and f'{12**2 + 15**2} pairs' in text
    # both on a canvas of 5 x 6 patches
    assert 'Padded: 60 tokens, 55% of them padding' in text and '1,800 pairs' in text


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([14, 16, 32]))
def test_a_sample_is_drawn_on_whole_patches(h, w, p):
    image = np.full((h, w, 3), 90, dtype=np.uint8)
    picture = sample_picture(Shown(image=image, name='a.jpg'), p)
    rows, columns = grid_of((h, w), p)
    assert (rows - 1) * p < h <= rows * p and (columns - 1) * p < w <= columns * p
    zoom = max(1, 1000 // max(rows * p, columns * p))
    assert picture.width >= columns * p * zoom and picture.height > rows * p * zoom


def test_a_sample_shows_its_boxes_tokens_and_size(headings):
    shown = Shown(
        image=np.full((160, 320, 3), 120, dtype=np.uint8),
        name='a.jpg',
        native_size=(81, 163),
        boxes=np.array([[40.0, 40, 120, 120]]),
        labels=['star'],
        classes=[2],
        masks=np.zeros((1, 160, 320), dtype=bool),
    )
    pixels = np.asarray(sample_picture(shown, 16))
    assert headings[0] == '10 x 20 patches of 16 px = 200 tokens'
    assert 'a.jpg' in headings[1] and '160 x 320 px' in headings[1] and '81 x 163' in headings[1]
    blue = (pixels == np.array(pictures.COLOURS[2])).all(-1)
    rows, columns = np.nonzero(blue)
    zoom = 1000 // 320
    assert columns.min() == 16 + 40 * zoom and columns.max() == 16 + 120 * zoom
    assert rows.max() == 84 + 120 * zoom


def test_a_sample_names_the_classes_of_its_regions(headings):
    regions = np.full((160, 320), 255, dtype=np.uint8)
    regions[:80] = 1
    options = dict(regions=regions, names=['sky', 'road'], palette=palette(2))
    image = np.full((160, 320, 3), 120, dtype=np.uint8)
    plain, shown = (sample_picture(Shown(image=image, name='a', **o), 16) for o in ({}, options))
    assert '2 class(es)' in headings[-1]
    panel = np.asarray(shown)[:, plain.width :]
    assert (panel == np.array(palette(2)[1])).all(-1).sum() > 100


def test_regions_and_masks_tint_what_they_cover_alone():
    image = np.full((32, 48, 3), 100, dtype=np.uint8)
    regions = np.full((32, 48), 255, dtype=np.uint8)
    regions[:16] = 3
    shown = Shown(image=image, name='a', regions=regions, palette=palette(4))
    tinted = pictures._tinted(shown)
    assert (tinted[17:] == 100).all()  # a dark line runs along the border
    assert (tinted[:16] != 100).any(-1).all()
    masks = np.zeros((1, 32, 48), dtype=bool)
    masks[0, 5, 7] = True
    tinted = pictures._tinted(
        Shown(image=image, name='a', masks=masks, boxes=np.zeros((1, 4)), classes=[1])
    )
    assert [tuple(p) for p in np.argwhere((tinted != 100).any(-1))] == [(5, 7)]


# ---------------------------------------------------------------------------- the tool


CONFIG = """
default_scope = 'mmdet'
data_root = {root!r}
custom_imports = dict(imports=['navit_backbone.tasks.common'], allow_failed_imports=False)
model = dict(backbone=dict(type='NaViTBackbone', patch_size=14))
train_dataloader = dict(
    batch_size=3,
    dataset=dict(
        type='CocoDataset',
        data_root={root!r},
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes={classes!r}),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PhotoMetricDistortion'),
            dict(type='ResizeToTokenBudget', max_tokens=100, patch_size=14),
            dict(type='PackDetInputs'),
        ],
    ),
)
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip('mmdet')
    folder = tmp_path_factory.mktemp('browse')
    write_sample_set(folder / 'sample', seed=0, num_pictures=dict(train=6, val=1))
    file = folder / 'config.py'
    file.write_text(CONFIG.format(root=str(folder / 'sample'), classes=CLASSES))
    return file


def browse(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_browse_draws_the_first_samples_of_training(config, tmp_path):
    done = browse(config, '--out-dir', tmp_path / 'new', '--num', 2, '--seed', 4)
    assert done.returncode == 0, done.stderr
    sampler = SeededSampler(range(6), seed=4)
    expected = [f'{n:04d}_{i:05d}.png' for n, i in enumerate(list(sampler)[:2])]
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [*expected, 'batch.png']
    for file in (tmp_path / 'new').iterdir():
        assert np.asarray(Image.open(file)).std() > 5
    sizes = [Image.open(config.parent / f'sample/train/{i:05d}.jpg').size for i in sampler][:2]
    tokens = [
        math.prod(token_budget_size(h, w, patch_size=14, max_tokens=100)) // 14**2 for w, h in sizes
    ]
    assert f'tokens a sample: {min(tokens)} to {max(tokens)}, mean' in done.stdout


@pytest.mark.parametrize('masks', [False, True])
def test_truth_that_evaluation_keeps_at_its_size_is_resized_with_the_image(config, masks):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeToTokenBudget', max_tokens=16, patch_size=14),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='PackDetInputs', meta_keys=('img_path', 'ori_shape', 'img_shape')),
    ]
    init_default_scope('mmdet')
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.update(pipeline=pipeline, test_mode=True)
    dataset = tool.build_dataset(cfg, cfg.train_dataloader)
    shown = tool.shown_of(dataset[0], dataset.metainfo)
    (height, width), (h, w) = shown.native_size, shown.image.shape[:2]
    native = np.array([item['bbox'] for item in dataset.get_data_info(0)['instances']])
    assert h < height and w < width
    np.testing.assert_allclose(shown.boxes, native * ([w / width, h / height] * 2), rtol=1e-4)
    assert not masks or shown.masks.shape[1:] == (h, w)


def test_label_maps_that_evaluation_keeps_at_their_size_are_resized_with_the_image(tmp_path):
    segmentation_data = pytest.importorskip('navit_backbone.tasks.segmentation.data')
    init_default_scope('mmseg')
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    labels = np.zeros((80, 120), np.uint8)
    labels[:, 60:] = 1
    Image.fromarray(labels).save(tmp_path / 'masks/a.png')
    Image.fromarray(labels * 200).convert('RGB').save(tmp_path / 'images/a.png')
    dataset = segmentation_data.NaViTSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=['left', 'right']),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeToTokenBudget', max_tokens=6, patch_size=16),
            dict(type='LoadSegMap'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
    )
    tool.load_truth_first(dataset.pipeline.transforms)
    shown = tool.shown_of(dataset[0], dataset.metainfo)
    assert shown.regions.shape == shown.image.shape[:2] == (32, 48)
    assert (shown.regions == (np.arange(48) >= 24)).all()
    sample_picture(shown, 16)


def test_fractions_are_rounded_and_kept_between_black_and_white():
    structures = pytest.importorskip('mmdet.structures')
    image = torch.tensor([-30.0, 0.4, 99.6, 255.4, 300.0]).repeat(3, 2, 1)
    packed = dict(inputs=image, data_samples=structures.DetDataSample())
    shown = tool.shown_of(packed, {}).image
    assert shown.dtype == np.uint8
    assert shown[1, :, 2].tolist() == [0, 0, 100, 255, 255]


def test_the_first_batch_is_that_of_training_by_tokens_too():
    class Photos(list):
        max_tokens = 9

        def complete_sizes(self): ...

        def num_tokens(self, index):
            return 3 + int(index) % 7

    sampler = SeededSampler(Photos(range(20)), seed=4)
    config = dict(type='TokenBudgetBatchSampler', max_tokens=20)
    loader = ConfigDict(batch_size=5, batch_sampler=config)
    batches = list(TokenBudgetBatchSampler(sampler, 5, max_tokens=20))
    expected = [index for batch in batches for index in batch]
    for num in (1, 9):
        indices, first = tool.first_samples(loader, sampler, num, None)
        assert first == len(batches[0])
        assert indices == expected[: max(num, first)]
    plain = list(sampler)
    assert tool.first_samples(loader, sampler, 3, 4) == (plain[:4], 4)
    assert tool.first_samples(ConfigDict(batch_size=2), sampler, 3, None) == (plain[:3], 2)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['nowhere.py'], 'no config at nowhere.py'),
        (['CONFIG', '--split', 'val'], 'has no val_dataloader'),
        (
            ['CONFIG', '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'],
            'gone.json',
        ),
        (['CONFIG', '--cfg-options', 'data_root=gone/folder'], 'gone/folder'),
        (['CONFIG', '--cfg-options', 'train_dataloader.dataset.typo=1'], 'typo'),
        (['CONFIG', '--cfg-options', 'train_dataloader.dataset.type=NoSuchSet'], 'NoSuchSet'),
        (['CONFIG', '--num', '0'], 'at least 1'),
        (['CONFIG', '--epoch', '-1'], '--epoch -1 .* at least 0'),
        (['CONFIG', '--seed', '-3'], '--seed -3 must be at least 0'),
    ],
)
def test_a_mistake_ends_with_a_sentence(config, tmp_path, monkeypatch, capsys, arguments, words):
    arguments = [str(config) if a == 'CONFIG' else a for a in arguments]
    monkeypatch.setattr(sys, 'argv', ['browse.py', *arguments, '--out-dir', str(tmp_path / 'none')])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    message = str(stopped.value) + capsys.readouterr().err
    assert re.search(rf'error: .*{words}', message, re.DOTALL)
    assert stopped.value.code not in (0, None)
    assert not (tmp_path / 'none').exists()
