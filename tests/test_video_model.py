"""The classifier: a batch of mixed clips equals its clips alone; losses are plain maths."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from oracles import perturb

import navit_backbone.tasks.video  # noqa: F401  registers
from navit_backbone.tasks.common.clip_mixing import ClipMixing, cut_in, fitted
from navit_backbone.tasks.common.clip_packing import pack_clips
from navit_backbone.tasks.common.clip_sample import ClipDataSample
from navit_backbone.tasks.common.sample import SampleSeed

SIZES = [(5, 32, 16), (1, 16, 48), (8, 16, 16), (2, 64, 32), (3, 16, 80)]
ARCH = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=32, pooling='map')
MEAN, STD = [123.0, 116.0, 103.0], [58.0, 57.0, 57.0]
SHAPES = {
    'tubelets': (2, 16, 16),
    'frames': 16,
    'three shapes': [(2, 16, 16), (1, 8, 8), (4, 16, 8)],
}


def classifier(patch_size=(2, 16, 16), *, num_classes=4, backbone=(), **head):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='VideoClassifier',
            data_preprocessor=dict(type='NaViTClipDataPreprocessor', mean=MEAN, std=STD),
            backbone={
                'type': 'NaViTClipBackbone', 'arch': ARCH, 'patch_size': patch_size,
                'temporal_position': dict(max_size=16), **dict(backbone),
            },
            head=dict(type='NaViTClipHead', num_classes=num_classes, **head),
        )
    )  # fmt: skip
    model.init_weights()
    return perturb(model).double().eval()


def clip_samples(sizes=SIZES, views=1, num_classes=4):
    generator = torch.Generator().manual_seed(1)
    found = []
    for i, size in enumerate(sizes):
        meta = dict(num_views=views, sample_seed=SampleSeed(0, 0, i), video_path=f'{i}.mp4')
        sample = ClipDataSample(metainfo=meta)
        sample.gt_label = torch.tensor([i % num_classes])
        sample.gt_score = F.one_hot(sample.gt_label[0], num_classes).float()
        clip = torch.randint(256, (views, 3, *size), generator=generator, dtype=torch.uint8)
        found.append(dict(inputs=clip, data_samples=sample))
    return found


def prepared(model, items, patch_size=(2, 16, 16), **options):
    return model.data_preprocessor(pack_clips(items, patch_size=patch_size, **options))


@pytest.mark.parametrize('patch_size', SHAPES.values(), ids=SHAPES)
def test_a_batch_gives_what_its_clips_give_alone(patch_size):
    model, items = classifier(patch_size), clip_samples()

    def vectors(items):
        return model(**prepared(model, items, patch_size), mode='tensor')

    together, alone = vectors(items), torch.cat([vectors([item]) for item in items])
    assert together.std() > 0.1
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)
    weight = torch.randn(together.shape[1], dtype=torch.float64)
    parameters = list(model.backbone.parameters())
    one = torch.autograd.grad((together @ weight).sum(), parameters)
    other = torch.autograd.grad((alone @ weight).sum(), parameters)
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10 * max(1, b.abs().max().item()))


def test_pixels_are_normalised_by_channel():
    model, items = classifier(), clip_samples([(2, 16, 16)])
    (packed,) = prepared(model, items)['inputs']
    clip = items[0]['inputs'][0].double()
    expected = (clip - torch.tensor(MEAN)[:, None, None, None]) / torch.tensor(STD)[
        :, None, None, None
    ]
    assert torch.allclose(packed.patches[0].double(), expected.flatten(), atol=1e-6)


def test_the_loss_is_the_cross_entropy_with_smoothed_classes():
    model, items = classifier(label_smoothing=0.2), clip_samples()
    data = prepared(model, items)
    losses = model(**data, mode='loss')
    logits = model.head(model(**data, mode='tensor')).float()
    labels = torch.tensor([i % 4 for i in range(len(SIZES))])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert losses['loss_cls'].item() == pytest.approx(expected.item(), abs=1e-6)
    hits = (logits.argmax(1) == labels).float().mean()
    assert losses['top1_acc'].item() == pytest.approx(hits.item())


def test_several_classes_at_once():
    model, items = classifier(multi_label=True), clip_samples()
    for item in items:
        item['data_samples'].gt_score[3] = 1.0
    data = prepared(model, items)
    target = torch.stack([item['data_samples'].gt_score for item in items])
    logits = model.head(model(**data, mode='tensor'))
    # the sum over the classes, the mean over the clips (sigmoid cross entropy, written out)
    p = 1 / (1 + torch.exp(-logits))
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()
    assert model(**data, mode='loss')['loss_cls'].item() == pytest.approx(expected.item(), abs=1e-9)
    scores = model(**data, mode='predict')[0].pred_score
    assert torch.allclose(scores.double(), logits[0].sigmoid(), atol=1e-6)


def test_one_class_is_for_a_sigmoid_only():
    fields = dict(type='NaViTClipHead', num_classes=1, in_channels=8)
    with pytest.raises(
        ValueError, match='softmax over num_classes=1 .* model.head.multi_label=True'
    ):
        MODELS.build(fields)
    assert MODELS.build(dict(fields, multi_label=True)).fc.out_features == 1


def test_a_sigmoid_starts_far_below_zero():
    """At the start each class has the score sigmoid(-10), whatever the clip."""
    head = MODELS.build(
        dict(type='NaViTClipHead', num_classes=500, in_channels=8, multi_label=True)
    )
    head.init_weights()
    sample = clip_samples(SIZES[:1], num_classes=500)[0]['data_samples']
    logits = head(torch.randn(1, 8))
    assert (logits == -10).all()
    loss = head.loss(torch.randn(1, 8), [sample])['loss_cls'].item()
    # one class of 500 is missed; with biases at 0 the start would cost 500 ln 2 = 347
    assert loss == pytest.approx(math.log1p(math.exp(10)) + 499 * math.log1p(math.exp(-10)), 1e-4)


@pytest.mark.parametrize('multi_label', [False, True])
def test_smoothing_spreads_its_share_over_all_classes(multi_label):
    """The loss is lowest where a class has 1 - s + s / C, the others s / C each."""
    head = MODELS.build(
        dict(
            type='NaViTClipHead', num_classes=5, in_channels=2, multi_label=multi_label,
            label_smoothing=0.2,
        )
    )  # fmt: skip
    sample = clip_samples(SIZES[:1], num_classes=5)[0]['data_samples']
    best = torch.tensor([0.84, 0.04, 0.04, 0.04, 0.04], dtype=torch.float64)
    logits = (best.logit() if multi_label else best.log()).requires_grad_()
    head.forward = lambda vectors: logits[None]
    loss = head.loss(torch.zeros(1, 2), [sample])['loss_cls']
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-12


def test_top1_is_logged_where_a_clip_has_one_class():
    model, items = classifier(multi_label=True), clip_samples()
    items[0]['data_samples'].gt_label = torch.tensor([0, 3])
    data = prepared(model, items)
    logits = model.head(model(**data, mode='tensor'))
    labels = torch.tensor([i % 4 for i in range(len(SIZES))])
    expected = (logits.argmax(1) == labels)[1:].double().mean().item()
    assert model(**data, mode='loss')['top1_acc'].item() == pytest.approx(expected)
    for item in items:
        item['data_samples'].gt_label = torch.tensor([0, 3])
    assert set(model(**prepared(model, items), mode='loss')) == {'loss_cls'}


@pytest.mark.parametrize('average', ['prob', 'score'])
def test_views_are_averaged(average):
    model = classifier(average_clips=average)
    items = clip_samples(SIZES[:2], views=3)
    found = model(**prepared(model, items), mode='predict')
    for item, sample in zip(items, found, strict=True):
        singles = [
            dict(inputs=view[None], data_samples=clip_samples(SIZES[:1])[0]['data_samples'])
            for view in item['inputs']
        ]
        logits = model.head(model(**prepared(model, singles), mode='tensor')).float()
        expected = logits.softmax(1).mean(0) if average == 'prob' else logits.mean(0).softmax(0)
        assert torch.allclose(sample.pred_score, expected, atol=1e-6)
        assert sample.pred_label.item() == expected.argmax().item()


def test_a_picture_is_a_clip_of_one_frame():
    """The classifier gives a clip of one repeated frame what it gives the picture."""
    model = classifier()
    with torch.no_grad():
        model.backbone.vit.temporal_position.t.zero_()
    (item,) = clip_samples([(1, 32, 48)])
    repeated = dict(item, inputs=item['inputs'].expand(-1, -1, 6, -1, -1))
    still, clip = (model(**prepared(model, [x]), mode='tensor') for x in (item, repeated))
    assert torch.allclose(still, clip, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------------------
# Mixing


def test_mixup_shares_pixels_and_classes_alike():
    """White and black clips: the grey that comes out tells the share, and so must the classes."""
    items = clip_samples([(4, 32, 32), (2, 16, 64)], num_classes=2)
    items[0]['inputs'] = torch.full_like(items[0]['inputs'], 255)
    items[1]['inputs'] = torch.zeros_like(items[1]['inputs'])
    clips = ClipMixing(mixup=1.0)(
        [item['inputs'] for item in items], [item['data_samples'] for item in items], 16
    )
    for clip, item, size in zip(clips, items, [(4, 32, 32), (2, 16, 64)], strict=True):
        assert clip.shape == (1, 3, *size)
        assert clip.unique().numel() == 1
        share = clip.float().mean().item() / 255
        assert item['data_samples'].gt_score[0].item() == pytest.approx(share, abs=0.003)


def test_cutmix_counts_classes_by_patches():
    items = clip_samples([(4, 64, 96), (2, 32, 64)], num_classes=2)
    items[0]['inputs'] = torch.full_like(items[0]['inputs'], 255)
    items[1]['inputs'] = torch.zeros_like(items[1]['inputs'])
    packs = pack_clips(items, patch_size=(2, 16, 16), mixing=dict(cutmix=1.0))['inputs']
    white = packs[0].patches.float() / 255
    assert set(white.unique().tolist()) <= {0.0, 1.0}
    assert (white.std(1) == 0).all()
    for number, item in enumerate(items):
        share = white[packs[0].segment_ids == number].mean().item()
        assert item['data_samples'].gt_score[0].item() == pytest.approx(share, abs=1e-6)


def test_mixing_depends_on_the_seed_alone():
    runs = []
    for _ in range(2):
        items = clip_samples()
        torch.rand(3)
        runs.append(pack_clips(items, patch_size=16, mixing=dict(mixup=0.8, cutmix=1.0)))
    assert torch.equal(runs[0]['inputs'][0].patches, runs[1]['inputs'][0].patches)
    assert any(sample.gt_score.max() < 1 for sample in runs[0]['data_samples'])


def test_a_clip_alone_is_not_mixed():
    items = clip_samples(SIZES[:1])
    before = items[0]['inputs'].clone()
    mixed = ClipMixing(mixup=1.0)([items[0]['inputs']], [items[0]['data_samples']], 16)
    assert torch.equal(mixed[0], before)


def test_a_partner_of_the_same_size_is_untouched_and_others_are_fitted():
    clip = clip_samples([(4, 32, 48)])[0]['inputs']
    assert fitted(clip, (4, 32, 48)) is clip
    assert fitted(clip, (9, 16, 80)).shape == (1, 3, 9, 16, 80)
    still = clip[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert (fitted(still, (7, 32, 48)) == still[:, :, :1]).all()


def test_the_box_of_a_share_of_one_is_empty():
    import numpy as np

    clip = clip_samples([(4, 32, 48)])[0]['inputs']
    draws = np.random.default_rng(0)
    mixed, share = cut_in(clip, 255 - clip, 1.0, 16, draws)
    assert share == 1.0
    assert torch.equal(mixed, clip)
    mixed, share = cut_in(clip, 255 - clip, 0.0, 16, draws)
    assert share == 0.0
    assert torch.equal(mixed, 255 - clip)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(mixup=0.0), 'one of them is above'),
        (dict(mixup=1.0, prob=2.0), r'prob=2.0 must lie in \[0, 1\]'),
        (dict(alpha=1.0), r"not \['alpha'\]"),
    ],
)
def test_mixing_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClipMixing.of(fields)


# --------------------------------------------------------------------------------------------------
# What does not fit together


def test_clips_that_are_not_whole_patches_are_refused():
    with pytest.raises(ValueError, match='a clip of 30 x 16 pixels is not whole patches of 16'):
        pack_clips(clip_samples([(2, 30, 16)]), patch_size=(2, 16, 16))


def test_tokens_counted_of_another_patch_are_refused():
    items = clip_samples([(2, 32, 16)])
    items[0]['data_samples'].set_metainfo(dict(patch_shapes=[(1, 16, 16)]))
    with pytest.raises(ValueError, match='counted tokens of 1x16x16, and collate_fn cuts 2x16x16'):
        pack_clips(items, patch_size=(2, 16, 16))


def test_a_batch_that_is_not_packed_is_refused():
    model, items = classifier(), clip_samples()
    with pytest.raises(ValueError, match='set collate_fn=dict'):
        model.data_preprocessor(dict(inputs=[item['inputs'] for item in items], data_samples=[]))


def test_patches_of_another_shape_are_refused():
    model, items = classifier(), clip_samples()
    with pytest.raises(ValueError, match=r'\(1, 16, 16\), but this model'):
        model(**prepared(model, items, 16), mode='tensor')


def test_a_backbone_of_clips_without_pooling_is_refused():
    with pytest.raises(ValueError, match='needs arch.pooling'):
        MODELS.build(dict(type='NaViTClipBackbone', arch={**ARCH, 'pooling': None}))


@pytest.mark.parametrize('stages', [-1, 0, 2, 3])
def test_frozen_stages(stages):
    model = classifier(backbone=dict(frozen_stages=stages)).train()
    vit = model.backbone.vit
    learns = {name for name, p in vit.named_parameters() if p.requires_grad}
    assert any(name.startswith('pool') for name in learns)
    assert ('norm.weight' in learns) == (stages < 3)
    assert ('temporal_position.t' in learns) == (stages < 0)
    assert any(name.startswith('blocks.1') for name in learns) == (stages < 2)


# --------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize('with_time', [True, False])
def test_a_few_clips_are_fitted_and_their_order_by_temporal_position_alone(with_time):
    """Clips of two sizes, each forward and backward: without a position in time they are alike."""
    torch.manual_seed(0)
    model = classifier(
        16, num_classes=2, backbone=dict(temporal_position=dict(max_size=8) if with_time else None)
    ).float()
    items = clip_samples([(6, 32, 16), (6, 16, 48), (4, 16, 16)], num_classes=2)
    both = []
    for item in items:
        for label, clip in enumerate((item['inputs'], item['inputs'].flip(2))):
            sample = ClipDataSample(metainfo=item['data_samples'].metainfo)
            sample.gt_label = torch.tensor([label])
            sample.gt_score = F.one_hot(sample.gt_label[0], 2).float()
            both.append(dict(inputs=clip, data_samples=sample))
    data = prepared(model, both, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        losses = model(**data, mode='loss')
        losses['loss_cls'].backward()
        optimizer.step()
    if with_time:
        assert losses['top1_acc'] == 1
        assert losses['loss_cls'] < 0.1
    else:
        assert losses['loss_cls'] > 0.69
