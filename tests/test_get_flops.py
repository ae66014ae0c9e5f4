"""FLOPs: those that torch counts of plain attention, over the sizes that the loader will give."""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coco_files import SIZES, write_data_of
from detectors import ARCH, DINO, MASK_RCNN, RETINANET, STOCK, STRIDES, narrow
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from oracles import ODD_SIZES, on_canvas, pictures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from navit_backbone import layers
from navit_backbone.backbone import NaViTBackbone
from navit_backbone.tasks.common.classes import override, set_num_classes
from navit_backbone.tasks.common.flops import BackboneFlops, parameters_after, parameters_of
from navit_backbone.tasks.common.resize import token_budget_size
from navit_backbone.tasks.detection.flops import HeadFlops
from navit_backbone.tools import get_flops

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = next((ROOT / 'configs/detection').glob('retinanet_navit-ti_*_sample.py'))


def plain_attention(q_THK, k_THK, v_THK, segments, policy):
    """One call of torch's own attention for each segment, and no operator of ours."""
    parts = zip(*(x.split(segments.lengths.tolist()) for x in (q_THK, k_THK, v_THK)), strict=True)
    outs = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)) for part in parts]
    return torch.cat(outs, 1).transpose(0, 1)


@pytest.fixture
def counted(monkeypatch):
    """What torch's counter counts of a backbone that computes, without our operator."""

    def counted(backbone, sizes, dtype=torch.float32):
        monkeypatch.setattr(layers, 'attention', plain_attention)
        height, width = (max(sides) + 9 for sides in zip(*sizes, strict=True))
        canvas = on_canvas(pictures(sizes, dtype), height=height, width=width)
        return counted_of(lambda: backbone(canvas))

    return counted


def counted_of(run):
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


MODELS_OF = {
    'plain': {},
    'patch 14': dict(patch_size=14),
    'windows': dict(window_size=3, global_attn_indexes=(1,)),
    'windows, patch 14': dict(window_size=2, global_attn_indexes=(0,), patch_size=14),
    'no prefix': dict(arch={**ARCH, 'prefix_tokens': 0}),
    'registers': dict(arch={**ARCH, 'prefix_tokens': 5}, window_size=2, global_attn_indexes=(1,)),
    'RoPE': dict(arch={**ARCH, 'rope': {}}, position=None),
    'qk-norm': dict(arch={**ARCH, 'qk_norm': True, 'qkv_bias': False}, position='factorised'),
    'SwiGLU, RMSNorm': dict(arch={**ARCH, 'mlp': 'swiglu', 'norm': 'rms_norm', 'layer_scale': 1.0}),
    'fourier': dict(position='fourier'),
    'learned table': dict(position='learned_2d', out_indices=(0, 1)),
}


@pytest.mark.parametrize('sizes', [ODD_SIZES, [(61, 53)] * 2], ids=len)
@pytest.mark.parametrize('name', MODELS_OF)
def test_flops_are_those_that_torch_counts_of_plain_attention(name, sizes, counted):
    options = {'arch': ARCH, **MODELS_OF[name]}
    ours = BackboneFlops(dict(type='NaViTBackbone', **options)).of(sizes)
    assert sum(ours.values()) == counted(NaViTBackbone(**options), sizes)


def test_parts_are_what_their_formulas_say():
    arch = dict(ARCH, prefix_tokens=0)
    ours = BackboneFlops(dict(type='NaViTBackbone', arch=arch, position='factorised'))
    parts = ours.of([(33, 70), (16, 16)])
    tokens, squares = 3 * 5 + 1, 15**2 + 1
    dim, hidden, depth = (arch[k] for k in ('embed_dims', 'feedforward_channels', 'num_layers'))
    assert parts == {
        'patch embedding': 2 * 768 * dim * tokens,
        'positions, prefix': 0,  # tables are looked up
        'attention projections': depth * 8 * dim**2 * tokens,
        'attention': depth * 4 * dim * squares,
        'MLP': depth * 4 * dim * hidden * tokens,
        'pooling': 0,
    }
    parameters = parameters_of(ours.backbone)
    assert sum(parameters.values()) == sum(p.numel() for p in ours.backbone.parameters())
    assert parameters['MLP'] == depth * (2 * dim * hidden + dim + hidden)
    assert parameters['attention'] == 0


def test_stock_backbones_are_refused():
    init_default_scope('mmdet')
    with pytest.raises(ValueError, match='ResNet: FLOPs are counted of NaViTBackbone alone'):
        BackboneFlops(dict(type='ResNet', depth=18))


# --------------------------------------------------------------------------------------------------
# Neck and head


def detector(kind):
    """A narrow stock detector on our backbone, whose stages hand on all that they may."""
    init_default_scope('mmdet')
    model = Config.fromfile(STOCK / kind).model
    narrow(model, 16)
    model.data_preprocessor.update(
        type='NaViTDetDataPreprocessor', pad_size_divisor=STRIDES[kind][-1]
    )
    model.backbone = dict(type='NaViTBackbone', arch=ARCH)
    model.neck = dict(
        type='SimpleFeaturePyramid', in_channels=24, out_channels=16, strides=STRIDES[kind]
    )
    set_num_classes(model, 3)
    if 'rcnn' in model.test_cfg:
        model.test_cfg.rpn.max_per_img = 7
        model.test_cfg.rpn.nms.iou_threshold = 1.0
        model.test_cfg.rcnn.update(max_per_img=3, score_thr=0.0)
    return model


@pytest.mark.parametrize('kind', [RETINANET, MASK_RCNN, DINO])
def test_neck_and_head_on_a_canvas_are_what_the_whole_detector_has(kind):
    canvas = (256, 640)
    torch.manual_seed(0)
    model = MODELS.build(detector(kind)).eval()
    inputs = torch.zeros(1, 3, *canvas)
    inputs.image_sizes = [canvas]
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = {**dict.fromkeys(names, canvas), 'scale_factor': (1.0, 1.0)}
    samples = [DetDataSample(metainfo=meta)]
    whole = counted_of(lambda: model(inputs, samples, mode='predict'))
    ours = HeadFlops(detector(kind))
    after = ours.of([canvas], canvas)
    backbone = BackboneFlops(detector(kind).backbone).of([canvas])
    assert sum(after.values()) + sum(backbone.values()) == pytest.approx(whole, rel=1e-9)
    assert after['neck'] > 0
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(parameters_after(ours.model).values()) == parameters - sum(
        p.numel() for p in model.backbone.parameters()
    )


# --------------------------------------------------------------------------------------------------
# Over a data set


@pytest.fixture(autouse=True)
def _without_garbage_collection(monkeypatch):
    """A data set of mmengine collects all garbage when it is built, which is most of its time."""
    monkeypatch.setattr(gc, 'collect', int)


@pytest.fixture
def config(tmp_path):
    """A config of few channels and its data, four pictures of prime sides."""
    cfg = Config.fromfile(SAMPLE)
    write_data_of(cfg, tmp_path / 'set')
    override(cfg, {'data_root': str(tmp_path / 'set')})
    cfg.model.backbone = dict(type='NaViTBackbone', arch=ARCH)
    cfg.model.neck.update(in_channels=24, out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
    cfg.train_dataloader.update(batch_size=3, num_workers=0, persistent_workers=False)
    return cfg


def head_flops(model, known={}):  # noqa: B006  one model serves most tests
    key = json.dumps(model.to_dict(), sort_keys=True)
    if key not in known:
        known[key] = HeadFlops(model)
    return known[key]


@pytest.fixture
def flops(config, tmp_path, monkeypatch, capsys):
    """Runs the tool; gives what it writes and prints."""

    monkeypatch.setattr('navit_backbone.tasks.detection.flops.HeadFlops', head_flops)

    def flops(*arguments, status=None):
        (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
        out = tmp_path / 'flops' / 'out.json'
        command = ['get_flops', tmp_path / 'config.json', '--out', out, *arguments]
        monkeypatch.setattr(sys, 'argv', [str(item) for item in command])
        with pytest.raises(SystemExit) as stopped:
            get_flops.main()
        if status is not None:
            assert status in str(stopped.value.code)
            return None
        assert stopped.value.code is None
        return json.loads(out.read_text()), capsys.readouterr().out

    return flops


def test_sizes_are_those_that_the_pipeline_plans(config, flops):
    content, printed = flops('--split', 'val')
    budget = next(t for t in config.test_dataloader.dataset.pipeline if 'max_tokens' in t)
    planned = [
        token_budget_size(h, w, patch_size=16, max_tokens=budget.max_tokens) for h, w in SIZES
    ]
    tokens = [h * w // 256 for h, w in planned]
    assert content['pictures'] == len(SIZES)
    assert content['tokens']['mean'] == np.mean(tokens)
    assert content['tokens']['max'] == max(tokens)
    assert content['tokens']['median'] == np.median(tokens)
    backbone, head = BackboneFlops(config.model.backbone), head_flops(config.model)
    alone = [
        sum(backbone.of([size]).values()) + sum(head.of([size], whole(config, size)).values())
        for size in planned
    ]
    assert content['gflops']['mean'] == pytest.approx(np.mean(alone) / 1e9)
    assert content['gflops']['max'] == pytest.approx(max(alone) / 1e9)
    parts = content['parts']
    assert sum(part['gflops'] for part in parts.values()) == pytest.approx(np.mean(alone) / 1e9)
    model = MODELS.build(config.model)
    assert sum(part['parameters'] for part in parts.values()) == sum(
        p.numel() for p in model.parameters()
    )
    assert f'{content["gflops"]["mean"]:,.2f}' in printed


def whole(config, size):
    step = config.model.data_preprocessor.pad_size_divisor
    return tuple(-(-side // step) * step for side in size)


def test_batches_are_those_of_the_loader(config, flops):
    config.train_dataloader.sampler = dict(type='SeededSampler', shuffle=False)
    for item in config.train_dataloader.dataset.pipeline:
        item.pop('random', None)
    content, _ = flops('--split', 'train')
    budget = next(t for t in config.train_dataloader.dataset.pipeline if 'max_tokens' in t)
    planned = [
        token_budget_size(h, w, patch_size=16, max_tokens=budget.max_tokens) for h, w in SIZES
    ]
    batches = [planned[:3], planned[3:]]
    packed = [sum(h * w for h, w in batch) / 256 for batch in batches]
    padded = [len(batch) * np.prod(whole(config, np.max(batch, axis=0))) / 256 for batch in batches]
    tokens = content['batch']['tokens']
    assert (tokens['packed'], tokens['padded']) == (np.mean(packed), np.mean(padded))
    assert tokens['ratio'] == np.mean(padded) / np.mean(packed)
    assert content['batch']['backbone_gflops']['ratio'] > tokens['ratio']  # attention is quadratic
    assert content['batch']['pictures'] == 2


def test_batches_by_token_budget_are_followed(config, flops):
    config.train_dataloader.batch_sampler = dict(type='TokenBudgetBatchSampler', max_tokens=2048)
    content, _ = flops('--split', 'train')
    assert content['batch']['tokens']['packed'] <= 2048
    assert content['batch']['pictures'] == 3


def test_few_pictures_where_few_are_asked_for(flops):
    content, _ = flops('--split', 'train', '--max-images', 2)
    assert content['pictures'] == 2
    flops('--max-images', '0', status='--max-images 0 must be at least 1')


def test_a_preprocessor_that_tells_no_sizes_pays_for_its_canvas(config, flops):
    native, _ = flops('--split', 'val')
    config.model.data_preprocessor.type = 'DetDataPreprocessor'
    padded, printed = flops('--split', 'val')
    assert padded['gflops']['mean'] > native['gflops']['mean']
    assert padded['gflops']['mean'] == pytest.approx(padded['batch']['gflops']['padded'])
    assert native['gflops']['mean'] == pytest.approx(native['batch']['gflops']['packed'])
    assert 'tells the backbone no sizes' in printed


def test_sizes_that_nothing_plans_are_refused(config, flops):
    pipeline = config.val_dataloader.dataset.pipeline
    pipeline[1] = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    flops('--split', 'val', status='the pipeline needs a transform that plans sizes')
    config.val_dataloader.dataset.type = 'CocoDataset'
    flops('--split', 'val', status='cannot say how many tokens a sample will have')
