"""Detectors at a patch of 14: maps at strides 3.5 to 56 stay where their pixels are."""

import itertools
from pathlib import Path

import pytest
import torch
from detectors import FCOS, MASK_RCNN, RETINANET, batch, narrow, stock_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from oracles import on_canvas, perturb, pictures
from torch import nn

CONFIG = Path(__file__).resolve().parents[1] / (
    'configs/detection/mask-rcnn_univitar-0.3b_100e_coco.py'
)
STRIDES = (3.5, 7, 14, 28, 56)
SIZE, CANVAS = (70, 112), dict(height=112, width=168)


def detector(scale=0.05):
    """The config's own model, narrow, shallow and in float64."""
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmdet')
    narrow(cfg.model, 32)
    backbone = cfg.model.backbone
    backbone.arch.update(num_layers=2, embed_dims=24, num_heads=2, feedforward_channels=48)
    backbone.init_cfg, cfg.model.neck.in_channels = None, 24
    torch.manual_seed(0)
    return perturb(MODELS.build(cfg.model), scale=scale).eval().double()


def still(model):
    """Leave in a detector's maps nothing that carries values from one patch or cell to another."""
    with torch.no_grad():
        for block in model.backbone.vit.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        for module in model.neck.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                centre = module.weight[:, :, 1, 1].clone()
                module.weight.zero_()
                module.weight[:, :, 1, 1] = centre
    return model


def test_a_cell_sees_the_pixels_that_its_stride_says():
    """By the gradient of single cells: the patch around the cell's centre, or the patches in it."""
    model, (image,) = still(detector()), pictures([SIZE])
    image.requires_grad_()
    canvas = nn.functional.pad(image, (0, CANVAS['width'] - SIZE[1], 0, CANVAS['height'] - SIZE[0]))
    canvas = canvas[None]
    canvas.image_sizes = [SIZE]
    for level, stride in zip(model.extract_feat(canvas), STRIDES, strict=True):
        assert level.shape[2:] == (112 / stride, 168 / stride)
        h, w = (-(-side // stride) for side in SIZE)
        for i, j in itertools.product(range(level.shape[2]), range(level.shape[3])):
            if i >= h or j >= w:
                assert not level[0, :, i, j].any()
                continue
            if (i * 7 + j) % 5:  # a fifth of them will do
                continue
            value = (level[0, :, i, j] * torch.linspace(1, 2, 32)).sum()
            (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
            reach = max(stride, 14)
            seen = gradient.abs().sum(0).nonzero()
            for axis, index in enumerate((i, j)):
                start = (index + 0.5) * stride // reach * reach
                assert start <= seen[:, axis].min()
                assert seen[:, axis].max() < start + reach


def test_anchors_that_nothing_moves_come_back_as_they_are_in_pixels_of_the_photo():
    model = detector().float()  # NMS knows no float64
    head = model.rpn_head
    with torch.no_grad():
        head.rpn_reg.weight.zero_()
        head.rpn_reg.bias.zero_()
    canvas = on_canvas(pictures([SIZE], torch.float32), **CANVAS)
    maps = model.extract_feat(canvas)
    # the photo was 50 x 160 pixels, and is seen at 70 x 112
    factor = torch.tensor([112 / 160, 70 / 50])
    meta = dict(img_shape=SIZE, scale_factor=tuple(factor.tolist()))
    cfg = dict(nms_pre=10**6, max_per_img=10**6, min_bbox_size=-1)
    cfg['nms'] = dict(type='nms', iou_threshold=1.0)
    (found,) = head.predict_by_feat(
        *head(maps), batch_img_metas=[meta], cfg=Config(cfg), rescale=True
    )
    anchors = []
    for stride, level in zip(STRIDES, maps, strict=True):
        for i, j in itertools.product(range(level.shape[2]), range(level.shape[3])):
            for ratio in (0.5, 1.0, 2.0):  # height over width, of the area (8 * stride) squared
                h, w = 8 * stride * ratio**0.5, 8 * stride / ratio**0.5
                x, y = j * stride, i * stride
                anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    expected = torch.tensor(anchors)
    expected[:, 0::2] = expected[:, 0::2].clamp(0, SIZE[1]) / factor[0]
    expected[:, 1::2] = expected[:, 1::2].clamp(0, SIZE[0]) / factor[1]
    distance = torch.cdist(found.bboxes.double(), expected.double(), p=1)
    assert distance.shape == (len(anchors), len(anchors))
    assert distance.min(0).values.max() < 0.01
    assert distance.min(1).values.max() < 0.01


@pytest.mark.parametrize('scale', [6, 30, 60, 130, 300])
def test_regions_are_read_where_they_lie_on_every_level(scale):
    """Maps whose values are the pixel that is each cell's centre: a region reads its own pixels."""
    extractor = detector().roi_head.bbox_roi_extractor
    maps = []
    for stride in STRIDES[:4]:
        y, x = ((torch.arange(side / stride) + 0.5) * stride for side in (560, 784))
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))])
        maps.append(grid[None].repeat(1, 16, 1, 1).float())
    box = torch.tensor([203.0, 151, 203 + scale, 151 + scale / 2])
    regions = torch.cat([torch.zeros(1), box])[None]
    found = extractor(tuple(maps), regions)[0, :2]
    steps = (torch.arange(7) + 0.5) / 7
    assert torch.allclose(found[0, 0], box[0] + steps * scale, atol=1e-3)
    assert torch.allclose(found[1, :, 0], box[1] + steps * scale / 2, atol=1e-3)


def test_regions_go_to_the_levels_that_they_would_at_a_patch_of_16():
    """Sides of 14 / 16: both go by the size in cells."""
    ours = detector().roi_head.bbox_roi_extractor
    stock = stock_detector(MASK_RCNN).roi_head.bbox_roi_extractor
    sides = torch.linspace(5, 900, 500)
    regions = torch.stack([torch.zeros(500), 0 * sides, 0 * sides, sides, sides * 0.7], 1)
    smaller = regions * torch.tensor([1, 14 / 16, 14 / 16, 14 / 16, 14 / 16])
    levels = ours.map_roi_levels(smaller, 4)
    assert torch.equal(levels, stock.map_roi_levels(regions, 4))
    assert set(levels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize('config', [RETINANET, FCOS, MASK_RCNN], ids=['retinanet', 'fcos', 'mask'])
def test_stock_heads_train_and_predict_at_half_strides(config):
    model = stock_detector(config, channels=64, patch_size=14)
    data = batch([(98, 70), (61, 113)])
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    data = batch([(98, 70), (61, 113)])
    with torch.no_grad():
        for found in model.eval().test_step(data):
            assert isinstance(found, DetDataSample)
            h, w = found.img_shape
            assert (found.pred_instances.bboxes <= torch.tensor([w, h] * 2) + 1e-3).all()
