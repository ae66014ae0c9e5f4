"""FLOPs of clips: those that torch counts of plain attention, over the views of a data set."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_files import write_video
from commands import call
from mmengine.registry import MODELS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import navit_backbone.tasks.video  # noqa: F401  registers
from navit_backbone import layers, pack, patchify
from navit_backbone.tasks.common.flops import parameters_after, parameters_of
from navit_backbone.tasks.video.flops import BackboneFlops, ClipTokens, HeadFlops
from navit_backbone.tools import get_flops

SIZES = [(5, 33, 16), (1, 16, 47), (8, 32, 32), (3, 16, 90)]
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32, prefix_tokens=1)
MODELS_OF = {
    'tubelets': dict(patch_size=(2, 16, 16), temporal_position=dict(max_size=8)),
    'per frame': dict(patch_size=16, time_attention='per_frame'),
    'two shapes': dict(patch_size=[(2, 16, 16), (4, 32, 32)]),
    'attentive': dict(patch_size=(2, 16, 16), arch=dict(ARCH, pooling='map')),
}


def plain_attention(q_THK, k_THK, v_THK, segments, policy):
    """One call of torch's own attention for each segment, and no operator of ours."""
    parts = zip(*(x.split(segments.lengths.tolist()) for x in (q_THK, k_THK, v_THK)), strict=True)
    outs = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)) for part in parts]
    return torch.cat(outs, 1).transpose(0, 1)


def model_cfg(name):
    backbone = {'arch': dict(ARCH, pooling='mean'), **MODELS_OF[name]}
    return dict(
        type='VideoClassifier',
        backbone=dict(type='NaViTClipBackbone', **backbone),
        head=dict(type='NaViTClipHead', num_classes=5),
    )


@pytest.mark.parametrize('name', MODELS_OF)
def test_flops_and_parameters_are_those_of_the_model(name, monkeypatch):
    cfg = model_cfg(name)
    model = MODELS.build(cfg).eval()
    shapes = model.backbone.vit.patch_shapes
    packs = [pack([patchify(torch.randn(3, *size), shape) for size in SIZES]) for shape in shapes]
    after, before = HeadFlops(cfg), BackboneFlops(cfg['backbone'])
    ours = {**before.of(SIZES), **after.of(SIZES, after.tokens.canvas(SIZES))}
    monkeypatch.setattr(layers, 'attention', plain_attention)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.head(model(packs))
    assert sum(ours.values()) == counter.get_total_flops()
    assert (ours['pooling'] > 0) == (name == 'attentive')
    parameters = parameters_of(before.backbone) | parameters_after(after.model)
    assert sum(parameters.values()) == sum(p.numel() for p in model.parameters())
    assert after.tokens.real(SIZES) == sum(int(item.lengths.sum()) for item in packs)


def test_a_canvas_is_as_long_high_and_wide_as_any():
    tokens = ClipTokens([(2, 16, 16)])
    assert tokens.canvas(SIZES) == (8, 33, 90)
    assert tokens.padded(SIZES) == 4 * 4 * 3 * 6


def test_the_tool_counts_every_view(tmp_path, monkeypatch, capsys):
    for split in ('train', 'val'):
        (tmp_path / 'set' / split / 'a').mkdir(parents=True)
        for number, size in enumerate([(48, 64), (64, 48), (32, 96)]):
            write_video(tmp_path / 'set' / split / 'a' / f'{number}.mp4', frames=9, size=size)
    pipeline = [
        dict(type='LoadClip'),
        dict(
            type='ClipToTokenBudget', max_tokens=40, patch_size=(2, 16, 16), test_mode=True,
            sampling=dict(kind='uniform', num_frames=4), num_clips=2, native=True,
        ),
        dict(type='LoadFrames'),
        dict(type='PackClipInputs'),
    ]  # fmt: skip
    loader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='SeededSampler', shuffle=False),
        dataset=dict(
            type='NaViTClipDataset', data_root=str(tmp_path / 'set'), test_mode=True,
            data_prefix=dict(clips='val'), pipeline=pipeline,
        ),
    )  # fmt: skip
    cfg = dict(
        default_scope='navit_backbone', model=model_cfg('tubelets'), val_dataloader=loader,
        custom_imports=dict(imports=['navit_backbone.tasks.video'], allow_failed_imports=False),
    )  # fmt: skip
    (tmp_path / 'config.json').write_text(json.dumps(cfg))
    out = tmp_path / 'out.json'
    call(monkeypatch, get_flops, tmp_path / 'config.json', '--out', out)
    content = json.loads(out.read_text())
    planned = [(4, 48, 64), (4, 64, 48), (4, 32, 96)]
    costs = [sum(BackboneFlops(cfg['model']['backbone']).of([size]).values()) for size in planned]
    assert content['pictures'] == 6  # two views of each of three clips
    assert content['batch']['pictures'] == 3
    head = content['parts']['head']['gflops']
    assert content['gflops']['mean'] == pytest.approx(np.mean(costs) / 1e9 + head)
    packed, padded = (4 * 24 + 2 * 24) / 2, (4 * 32 + 2 * 24) / 2  # canvases of 64 x 64, of 32 x 96
    assert content['batch']['tokens'] == dict(packed=packed, padded=padded, ratio=padded / packed)
    assert '6 views of clips' in capsys.readouterr().out
