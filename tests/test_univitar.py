"""UniViTAR whole: its sizes, clips and pictures in one pack, time, and one file for every task."""

from pathlib import Path

import foreign
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from oracles import perturb

import navit_backbone.backbone  # noqa: F401  registers
from navit_backbone import NaViT, pack, patchify
from navit_backbone.checkpoint import load_weights, save_navit
from navit_backbone.conversion import convert
from navit_backbone.tasks.common.clip_budget import ClipToTokenBudget
from navit_backbone.tools.token_curve import NATIVE, with_budget

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
TUBELET = (2, 14, 14)
SMALL = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=40)
FOREIGN = dict(
    embed_dims=foreign.D,
    num_layers=foreign.DEPTH,
    num_heads=foreign.HEADS,
    feedforward_channels=foreign.HIDDEN,
)
SIZES = [
    ('0.3b', 1024, 24, 16, 4224, 309_885_952),
    ('0.6b', 1280, 32, 16, 5184, 636_554_496),
    ('1b', 1920, 32, 24, 7680, 1_418_820_480),
]


def parameters(d, layers, intermediate):
    """By the formulas of the paper and of its released code."""
    h = int(2 / 3 * intermediate)
    tubelets = 3 * 2 * 14 * 14 * d + d
    attention = 3 * d * d + 2 * d + d * d + d  # q, k, v; norms of q and k; projection
    mlp = 2 * (d * h + h) + h + h * d + d  # gate and value; the norm inside; out
    return tubelets + layers * (attention + mlp + 2 * d + 2 * d)  # norms; LayerScale


@pytest.mark.parametrize(('size', 'd', 'layers', 'heads', 'intermediate', 'count'), SIZES)
def test_the_published_number_of_parameters(size, d, layers, heads, intermediate, count):
    with torch.device('meta'):
        model = NaViT(f'univitar_{size}', patch_size=TUBELET, position=None)
    found = sum(p.numel() for p in model.parameters())
    assert found == parameters(d, layers, intermediate) == count
    assert model.arch.num_heads == heads
    assert round(found / 1e6) == {'0.3b': 310, '0.6b': 637, '1b': 1419}[size]


@pytest.mark.parametrize('size', [size for size, *_ in SIZES])
def test_the_base_of_each_size_is_its_preset_for_pictures(size):
    backbone = Config.fromfile(CONFIGS / f'_base_/univitar-{size}.py').model.backbone
    with torch.device('meta'):
        vit = MODELS.build(backbone).vit
        assert vit.arch == NaViT(f'univitar_{size}', patch_size=14, position=None).arch
    assert vit.patch_shapes == [(1, 14, 14)]
    assert vit.position is None


def model_of(**options):
    torch.manual_seed(0)
    arch = {'preset': 'univitar_0.3b', **SMALL, **options.pop('arch', {})}
    return NaViT(arch, patch_size=TUBELET, position=None, **options).double()


def tokens_of(model, clip):
    return model(patchify(clip, TUBELET)).tokens.unflatten(0, (clip.shape[1] // 2, -1))


def test_time_is_seen_where_it_is_asked_for():
    clip = torch.randn(3, 4, 28, 42).double()
    turned = clip[:, [2, 3, 0, 1]]

    def sees_time(model):
        first, second = tokens_of(model, clip), tokens_of(model, turned).flip(0)
        return not torch.allclose(first, second, rtol=0, atol=1e-10)

    plain = perturb(model_of())
    assert not sees_time(plain)  # as published
    assert sees_time(perturb(model_of(arch=dict(rope=dict(time=True)))))
    added = model_of(temporal_position=dict(max_size=4))
    added.load_state_dict(
        {k: t for k, t in plain.state_dict().items() if not k.startswith('_')}, strict=False
    )
    assert torch.equal(tokens_of(added, clip), tokens_of(plain, clip))  # zero at the start
    assert sees_time(perturb(added))


def test_published_weights_on_a_picture_and_a_clip_in_one_pack():
    """A picture fills its tubelet by repeating its only frame, a clip of 3 frames by its last."""
    theirs = foreign.univitar()
    model = model_of(arch=FOREIGN, temporal_position=dict(max_size=8))
    report = load_weights(model, convert(theirs.state))
    assert report.share == 1
    clips = [
        torch.randn(3, t, h, w).double() for t, h, w in ((1, 28, 70), (4, 42, 14), (3, 14, 28))
    ]
    output = model(pack([patchify(clip, TUBELET) for clip in clips]))
    full = [clips[0].repeat(1, 2, 1, 1), clips[1], clips[2][:, [0, 1, 2, 2]]]
    for index, clip in enumerate(full):
        own = output.tokens[output.segment_ids == index]
        assert torch.allclose(own, theirs.answer(clip).tokens, rtol=0, atol=1e-9)


TASKS = {
    'mmdet': 'detection/mask-rcnn_univitar-0.3b_100e_coco.py',
    'mmseg': 'segmentation/linear_univitar-0.3b_64e_ade20k.py',
    'mmengine': 'video/cls_univitar-0.3b_30e_kinetics400.py',
}


@pytest.mark.parametrize('patch_size', [14, 16])
@pytest.mark.parametrize('scope', TASKS)
def test_one_file_starts_every_task(scope, patch_size, tmp_path):
    theirs, file = foreign.univitar(), tmp_path / 'univitar.safetensors'
    save_navit(file, convert(theirs.state, num_heads=foreign.HEADS))
    cfg = Config.fromfile(CONFIGS / TASKS[scope])
    backbone = cfg.model.backbone
    backbone.arch.update(FOREIGN)
    backbone.init_cfg.checkpoint = str(file)
    if patch_size == 16:  # another patch, resampled
        backbone.init_cfg.patch_resize = 'flexivit'
        backbone.patch_size = (2, 16, 16) if scope == 'mmengine' else 16
    init_default_scope(scope)
    found = MODELS.build(backbone)
    found.init_weights()
    image = torch.randn(3, 28, 42)
    (shape,) = found.vit.patch_shapes
    if patch_size == 14:
        tokens = found.vit.double().eval()(patchify(image[:, None].double(), shape)).tokens
        expected = theirs.answer(image.double()).tokens
        assert torch.allclose(tokens, expected, rtol=0, atol=1e-5)  # the kernel is float32
    weight = theirs.state['encoder.layers.1.mlp.fc2.weight']
    assert torch.equal(found.vit.blocks[1].mlp.fc2.weight.float(), weight)


def test_clips_are_tried_at_other_budgets_than_univitars():
    cfg = Config.fromfile(CONFIGS / TASKS['mmengine'])
    cfg.work_dir = 'work_dirs/none'

    def size_at(budget):
        chosen = with_budget(cfg, budget) if budget else cfg
        (step,) = (s for s in chosen.test_dataloader.dataset.pipeline if 'max_tokens' in s)
        options = {key: value for key, value in step.items() if key != 'type'}
        return ClipToTokenBudget(**options).plan(256, 340, 64, 25.0).size

    assert size_at(None) == size_at(NATIVE) == (18 * 14, 24 * 14)  # 3456 of 4096 tokens
    assert size_at(800) == (9 * 14, 11 * 14)  # 100 a step, the largest grid of that aspect
