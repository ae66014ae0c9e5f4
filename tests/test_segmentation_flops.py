"""FLOPs of segmentation heads: arithmetic for our linear head, torch's own counts for others."""

import pytest
import torch
from mmengine.registry import MODELS
from mmseg.structures import SegDataSample
from oracles import on_canvas, pictures
from segmentors import LINEAR, NUM_CLASSES, PYRAMID, SEGMENTER, SETR, UPERNET, config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from navit_backbone.tasks.segmentation.flops import HeadFlops

SIZES = [(37, 90), (64, 64), (113, 16)]
CANVAS = (128, 96)
TOKENS = 3 * 6 + 4 * 4 + 8 * 1


def counted(run):
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_linear_head_is_one_product_of_the_tokens():
    parts = HeadFlops(config(LINEAR)).of(SIZES, CANVAS)
    assert parts == {'neck': 0, 'head': 2 * TOKENS * 24 * NUM_CLASSES}


def test_segmenter_pays_for_its_tokens_and_not_for_the_canvas():
    flops = HeadFlops(config(SEGMENTER))
    parts = flops.of(SIZES, CANVAS)
    head = MODELS.build(config(SEGMENTER)).eval().decode_head
    maps = torch.randn(3, 24, 8, 6)
    maps.image_sizes = SIZES
    assert parts['head'] == counted(lambda: head([maps, maps])) > 0
    assert flops.of(SIZES, (256, 256)) == parts
    assert flops.of(SIZES[:1], CANVAS)['head'] < parts['head'] / 2


@pytest.mark.parametrize('head', [UPERNET, {**SETR, 'in_channels': 16, 'in_index': 2}])
def test_a_stock_head_pays_for_the_canvas_of_each_picture(head):
    stated = config(head, neck=PYRAMID)
    parts = HeadFlops(stated).of(SIZES, CANVAS)
    model = MODELS.build(stated).eval()
    canvas = on_canvas(pictures(SIZES, torch.float32), height=CANVAS[0], width=CANVAS[1])
    samples = [
        SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=CANVAS))
        for size in SIZES
    ]
    after = counted(lambda: model(canvas, samples, mode='predict')) - counted(
        lambda: model.backbone(canvas)
    )
    assert parts['neck'] + parts['head'] == pytest.approx(after, rel=1e-3)
