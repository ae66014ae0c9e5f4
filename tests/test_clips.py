"""Clips of any length, height and width in one pack, and pictures as clips of one frame."""

import pytest
import torch
from oracles import perturb
from test_vit import FULL, assert_same_gradients, gradients, packs

from navit_backbone import NaViT, drop_tokens, pack, patchify
from navit_backbone.checkpoint import build, load_weights, save_navit, tensors_of, weights_of
from navit_backbone.conversion import NaViTWeights
from navit_backbone.vit import patch_shapes

# (frames, height, width): one frame, lengths that do not fill a tubelet, strips, prime sides
CLIPS = [(5, 33, 16), (1, 16, 47), (8, 8, 8), (2, 61, 23), (3, 5, 90)]
TIME = dict(max_size=16)
MODELS = {
    'joint': dict(patch_size=(2, 8, 8)),
    'frames': dict(patch_size=(1, 8, 8)),
    'fractional time': dict(patch_size=(2, 8, 8), temporal_position=dict(TIME, fractional=True)),
    'class token': dict(patch_size=(3, 8, 8), arch=dict(FULL, prefix_tokens=2, pooling='token')),
    'rope': dict(patch_size=(2, 8, 8), arch=dict(FULL, rope={}, pooling='mean'), position=None),
    'windowed': dict(patch_size=(2, 8, 8), window_size=2, global_attn_indexes=(1,)),
    'per frame': dict(patch_size=(2, 8, 8), time_attention='per_frame'),
    'per frame, class token': dict(
        patch_size=(2, 8, 8),
        time_attention='per_frame',
        arch=dict(FULL, prefix_tokens=2, pooling='token'),
    ),
}
every_model = pytest.mark.parametrize('name', MODELS)


def clips(sizes=CLIPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


def model_of(*, perturbed=True, **options):
    torch.manual_seed(0)
    model = NaViT(**{'arch': FULL, 'temporal_position': TIME, **options}).double().eval()
    return perturb(model) if perturbed else model


def shapes_of(model):
    return [embed.patch_shape for embed in model.patch_embed.values()]


def packed(model, items):
    """One pack of clips for each patch shape of the model."""
    return [pack([patchify(clip, shape) for clip in items]) for shape in shapes_of(model)]


def results(model, packs):
    output = model(packs, (0, -1))
    per_token = torch.cat([*output.features, output.tokens], 1)
    per_example = torch.cat([output.prefix.flatten(1), model.classify(output)], 1)
    return per_token, per_example


def same(a, b, atol=1e-10):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    'options',
    [*MODELS.values(), dict(patch_size=[(2, 8, 8), (1, 8, 8), (4, 16, 4)])],
    ids=[*MODELS, 'three shapes'],
)
def test_a_batch_equals_its_clips_alone(options):
    model, items = model_of(**options), clips()
    tokens, examples = results(model, packed(model, items))
    alone = [results(model, packed(model, [clip])) for clip in items]
    assert tokens.std() > 0.1
    assert same(tokens, torch.cat([item[0] for item in alone]))
    assert same(examples, torch.cat([item[1] for item in alone]))

    weight = torch.randn(examples.shape[1], dtype=torch.float64)
    together = gradients(model, (examples @ weight).sum())
    summed = {}
    for clip in items:
        own = gradients(model, (results(model, packed(model, [clip]))[1] @ weight).sum())
        summed = {key: summed.get(key, 0) + value for key, value in own.items()}
    assert_same_gradients(together, {key: summed[key] for key in together})


def test_frames_apart_are_pictures():
    """Without temporal position, per-frame attention makes of each frame what it makes of it as a
    picture; the prefix is the mean over the frames, each of which has a copy."""
    options = dict(patch_size=8, arch=dict(FULL, prefix_tokens=2), temporal_position=None)
    model, items = model_of(time_attention='per_frame', **options), clips()
    output = model(packed(model, items)[0])
    for number, clip in enumerate(items):
        frames = [model(patchify(frame, (1, 8, 8))) for frame in clip.unbind(1)]
        own = output.segment_ids == number
        assert same(output.tokens[own], torch.cat([frame.tokens for frame in frames]))
        mean = torch.cat([frame.prefix for frame in frames]).mean(0)
        assert same(output.prefix[number], mean)


def test_frames_apart_of_clips_with_dropped_and_shuffled_tokens():
    """Whole frames may be gone, and tokens may stand in any order."""
    model = model_of(**MODELS['per frame, class token'])
    whole = packed(model, clips())[0]
    generator = torch.Generator().manual_seed(3)
    few = (whole.lengths // 5).clamp(min=1)
    kept = drop_tokens(whole, few, generator=generator)
    draw = torch.rand(len(kept.patches), generator=generator, dtype=torch.float64)
    order = torch.argsort(kept.segment_ids + draw)
    shuffled = kept.take(order, kept.lengths)
    assert not torch.equal(order, order.sort().values)
    assert same(model(shuffled).tokens, model(kept).tokens[order])
    assert same(model(shuffled).prefix, model(kept).prefix)


@pytest.mark.parametrize('name', ['joint', 'frames', 'rope', 'per frame', 'per frame, class token'])
def test_a_clip_of_one_repeated_frame_is_the_picture(name):
    """Its tokens, and with joint attention only where no prefix token dilutes the attention."""
    model = model_of(**MODELS[name])
    with torch.no_grad():
        model.temporal_position.t.zero_()
    picture = clips([(1, 33, 20)])[0]
    repeated = picture.expand(-1, 6, -1, -1)
    still, clip = (model(packed(model, [item])[0]) for item in (picture, repeated))
    steps = 6 // shapes_of(model)[0][0]
    assert same(clip.tokens, still.tokens.repeat(steps, 1))
    assert same(clip.prefix, still.prefix)
    assert same(model.classify(clip), model.classify(still))


def test_with_prefix_tokens_and_joint_attention_it_differs():
    """The frames weigh six times in attention, and the prefix tokens once."""
    model = model_of(patch_size=(1, 8, 8), arch=dict(FULL, prefix_tokens=2))
    with torch.no_grad():
        model.temporal_position.t.zero_()
    picture = clips([(1, 33, 20)])[0]
    still, clip = (
        model(packed(model, [item])[0]) for item in (picture, picture.expand(-1, 6, -1, -1))
    )
    assert (clip.tokens[: len(still.tokens)] - still.tokens).abs().max() > 1e-3


def test_temporal_position_is_a_row_of_the_first_frame_of_each_tubelet():
    model = model_of(patch_size=[(2, 8, 8), (1, 8, 8)])
    items = clips([(5, 8, 16)])
    table = model.temporal_position.t
    for item, step in zip(packed(model, items), (2, 1), strict=True):
        expected = torch.cat([table[t].expand(2, -1) for t in range(0, 5, step)])
        assert same(model.temporal_position(item), expected)


def test_fractional_time_of_a_clip_as_long_as_the_table_is_the_absolute_one():
    absolute = model_of(patch_size=(1, 8, 8))
    fractional = model_of(patch_size=(1, 8, 8), temporal_position=dict(TIME, fractional=True))
    item = packed(absolute, clips([(16, 8, 8)]))[0]
    assert same(absolute.temporal_position(item), fractional.temporal_position(item))
    assert len(fractional.temporal_position(packed(fractional, clips([(90, 8, 8)]))[0])) == 90


def test_time_starts_at_zero():
    with_time, without = (
        model_of(perturbed=False),
        model_of(perturbed=False, temporal_position=None),
    )
    assert with_time.temporal_position.t.count_nonzero() == 0
    without.load_state_dict(tensors_of(with_time), strict=False)
    item = patchify(clips()[0], (1, 16, 16))
    assert torch.equal(with_time(item).tokens, without(item).tokens)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(temporal_position=dict(size=3)), 'takes max_size and fractional'),
        (dict(time_attention='divided'), "time_attention='divided' is not one of"),
        (dict(time_attention='per_frame', window_size=2), 'set it to None'),
        (dict(patch_size=[(1, 8, 8), (2, 8, 8)], time_attention='per_frame'), "'joint'"),
        (dict(patch_size=[(1, 8, 8), (2, 8, 8)], window_size=2), 'set it to None'),
        (dict(patch_size=(16, 16)), 'give a side in pixels, as 16; a tubelet'),
        (dict(patch_size=[]), r'patch_size=\[\]: give a side'),
        (dict(patch_size='16'), "patch_size='16': give a side"),
        (dict(patch_size=[(2, 8, 8), 0]), 'a patch of 1x0x0 is empty'),
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NaViT(FULL, **options)


def test_three_numbers_are_a_tubelet_in_a_list_too():
    """JSON and the command line know no tuples."""
    assert patch_shapes([2, 16, 8]) == patch_shapes((2, 16, 8)) == [(2, 16, 8)]
    assert patch_shapes([16, [2, 8, 8]]) == [(1, 16, 16), (2, 8, 8)]


def test_a_clip_beyond_the_table_is_refused():
    model = model_of(patch_size=(2, 8, 8))
    model(packed(model, clips([(16, 8, 8)]))[0])
    with pytest.raises(ValueError, match='9 tubelets of 2 frames .* max_size=16'):
        model(packed(model, clips([(17, 8, 8)]))[0])


# --------------------------------------------------------------------------------------------------
# Weights of pictures in models of clips, and the other way


def picture_weights(**options):
    return weights_of(model_of(patch_size=8, temporal_position=None, **options))


@pytest.mark.parametrize('inflation', ['central', 'mean'])
@pytest.mark.parametrize('shape', [(2, 8, 8), (3, 8, 8), [(2, 8, 8), (4, 8, 8)]])
def test_weights_of_pictures_see_in_a_repeated_frame_the_picture(inflation, shape):
    weights = picture_weights()
    picture_model, model = build(weights).double().eval(), model_of(patch_size=shape)
    load_weights(picture_model, weights)
    with torch.no_grad():
        model.temporal_position.t.zero_()
    report = load_weights(model, weights, inflation=inflation)
    assert report.share == 1
    assert 'inflated' in str(report)
    picture = clips([(1, 21, 40)])[0]
    expected = picture_model(patchify(picture, (1, 8, 8))).tokens
    for item in packed(model, [picture.expand(-1, 12, -1, -1)]):
        got = model(item).tokens
        assert same(got, expected.repeat(len(got) // len(expected), 1))


def test_central_and_mean_frames():
    """The token of a tubelet is that of its middle frame, or of the mean of its frames."""
    weights = picture_weights()
    picture_model = build(weights).double()
    load_weights(picture_model, weights)
    (clip,) = clips([(4, 8, 8)])
    embed = picture_model.patch_embed['1x8x8']
    for inflation, frame in (('central', clip[:, 2:3]), ('mean', clip.mean(1, keepdim=True))):
        model = model_of(patch_size=(4, 8, 8))
        load_weights(model, weights, inflation=inflation)
        got = model.patch_embed['4x8x8'](patchify(clip, (4, 8, 8)).patches)
        assert same(got, embed(patchify(frame, (1, 8, 8)).patches))


def test_weights_of_clips_make_of_pictures_what_they_made_of_them(tmp_path):
    model = model_of(patch_size=(2, 8, 8))
    save_navit(tmp_path / 'clips.safetensors', weights_of(model))
    pictures_model = model_of(patch_size=8, temporal_position=None)
    report = load_weights(pictures_model, tmp_path / 'clips.safetensors')
    assert 'summed over time' in str(report)
    items = clips([(1, 33, 20), (1, 8, 8)])
    got = pictures_model(pack(packs([item[:, 0] for item in items], 8))).tokens
    assert same(got, model(packed(model, items)[0]).tokens)


def test_our_format_keeps_time(tmp_path):
    for time in (TIME, dict(max_size=5, fractional=True), None):
        model = model_of(patch_size=[(2, 8, 8), (1, 8, 8)], temporal_position=time)
        file = tmp_path / f'{time}.safetensors'
        save_navit(file, weights_of(model))
        again = model_of(patch_size=[(2, 8, 8), (1, 8, 8)], temporal_position=time, perturbed=False)
        assert load_weights(again, file).share == 1
        items = packed(model, clips([(5, 9, 9), (2, 8, 30)]))
        assert torch.equal(again(items).tokens, model(items).tokens)


def test_weights_with_time_need_a_model_with_the_same_time():
    weights = weights_of(model_of(patch_size=(2, 8, 8)))
    for other in (None, dict(max_size=7)):
        with pytest.raises(ValueError, match="set temporal_position={'max_size': 16"):
            load_weights(model_of(patch_size=(2, 8, 8), temporal_position=other), weights)


def test_patches_of_another_side_are_refused_as_ever():
    weights: NaViTWeights = picture_weights()
    with pytest.raises(ValueError, match=r'of 2x16x16: set patch_size=\(2, 8, 8\), or resample'):
        load_weights(model_of(patch_size=(2, 16, 16)), weights)
