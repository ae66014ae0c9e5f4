"""Real DeiT-Ti weights give what Hugging Face's ViT gives, at any grid and packed with others."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles import pictures

from navit_backbone import NaViT, pack, patchify
from navit_backbone.checkpoint import build, load_weights, read_weights, save_navit
from navit_backbone.conversion import convert

ARCH = dict(preset='tiny', prefix_tokens=1, pooling='token', num_classes=1000)
PLAIN_BICUBIC = dict(kind='learned_1d', grid=(14, 14), interpolation='bicubic', antialias=False)
# square and odd grids, one row, one column, a single patch, larger and smaller than 14 x 14
SIZES = [(224, 224), (160, 352), (16, 16), (48, 32), (16, 176), (208, 16), (304, 272)]


@pytest.fixture(scope='module')
def weights_file(data_root):
    return data_root / 'weights' / 'deit_tiny_patch16_224.pt'


@pytest.fixture(scope='module')
def ours(weights_file):
    model = NaViT(ARCH, patch_size=16, position=PLAIN_BICUBIC).eval()
    report = load_weights(model, weights_file)
    assert report.share == 1
    assert not report.missing
    return model


@pytest.fixture(scope='module')
def theirs(weights_file):
    """Hugging Face's model from a config alone; the weights are put under its names here."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        layer_norm_eps=1e-6,
        num_labels=1000,
    )
    model = transformers.ViTForImageClassification(config).eval()
    state = torch.load(weights_file, weights_only=True)
    model.load_state_dict(hugging_face_names(state), strict=True)
    return model


def hugging_face_names(state):
    renamed = {}
    for key, tensor in state.items():
        if '.attn.qkv.' in key:
            layer, kind = key.split('.')[1], key.split('.')[-1]
            for name, part in zip('qkv', tensor.chunk(3), strict=True):
                renamed[f'vit.layers.{layer}.attention.{name}_proj.{kind}'] = part
            continue
        for old, new in (
            ('blocks.', 'vit.layers.'),
            ('attn.proj', 'attention.o_proj'),
            ('norm1', 'layernorm_before'),
            ('norm2', 'layernorm_after'),
            ('cls_token', 'vit.embeddings.cls_token'),
            ('pos_embed', 'vit.embeddings.position_embeddings'),
            ('patch_embed.proj', 'vit.embeddings.patch_embeddings.projection'),
            ('head.', 'classifier.'),
        ):
            key = key.replace(old, new)
        renamed['vit.layernorm' + key[4:] if key.startswith('norm.') else key] = tensor
    return renamed


@torch.no_grad()
def hugging_face(model, image):
    hidden = model.vit(image[None], interpolate_pos_encoding=True).last_hidden_state[0]
    logits = model(image[None], interpolate_pos_encoding=True).logits[0]
    return hidden[1:], hidden[0], logits


def assert_close(got, expected):
    """Equal to 1e-5 of the largest value: tokens reach 10, where float32 itself ends at 1e-6."""
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, f'relative error {error:.1e}'


@pytest.mark.parametrize('size', SIZES, ids=lambda size: f'{size[0]}x{size[1]}')
@torch.no_grad()
def test_one_picture_matches_hugging_face(ours, theirs, size):
    image = pictures([size], torch.float32)[0]
    output = ours(pack([patchify(image, (1, 16, 16))]))
    tokens, class_token, logits = hugging_face(theirs, image)
    assert_close(output.tokens, tokens)
    assert_close(output.prefix[0, 0], class_token)
    assert_close(ours.classify(output)[0], logits)


@torch.no_grad()
def test_pictures_packed_together_match_hugging_face(ours, theirs):
    images = pictures(SIZES, torch.float32)
    output = ours(pack([patchify(image, (1, 16, 16)) for image in images]))
    expected = [hugging_face(theirs, image) for image in images]
    tokens, class_tokens, logits = (list(part) for part in zip(*expected, strict=True))
    assert_close(output.tokens, torch.cat(tokens))
    assert_close(output.prefix[:, 0], torch.stack(class_tokens))
    assert_close(ours.classify(output), torch.stack(logits))


@torch.no_grad()
def test_float64_matches_hugging_face_without_rounding(weights_file, theirs):
    """What float32 leaves open is rounding and no difference of the models."""
    state = torch.load(weights_file, weights_only=True)
    weights = convert({key: item.double() for key, item in state.items()}, family='deit')
    model = build(weights).double().eval()
    load_weights(model, weights)
    reference = copy.deepcopy(theirs).double()
    for image in pictures(SIZES[1:5], torch.float64):
        output = model(pack([patchify(image, (1, 16, 16))]))
        tokens, class_token, logits = hugging_face(reference, image)
        torch.testing.assert_close(output.tokens, tokens, rtol=0, atol=1e-9)
        torch.testing.assert_close(output.prefix[0, 0], class_token, rtol=0, atol=1e-9)
        torch.testing.assert_close(model.classify(output)[0], logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('grid', [(14, 14), (10, 22), (3, 2), (1, 11), (13, 1), (29, 5)])
@torch.no_grad()
def test_positions_follow_the_rule_of_their_origin(weights_file, grid, antialias):
    state = torch.load(weights_file, weights_only=True)
    state = {key: item.double() for key, item in state.items()}
    weights = convert(state, family='timm-deit' if antialias else 'deit')
    assert weights.position['antialias'] is antialias
    model = build(weights).double()
    load_weights(model, weights)
    image = torch.zeros(3, 16 * grid[0], 16 * grid[1], dtype=torch.float64)
    got = model.position(pack([patchify(image, (1, 16, 16))])).unflatten(0, grid)
    table = state['pos_embed'][0, 1:].unflatten(0, (14, 14))
    # torch 2.13 on CPU, antialias and output width 1: right only from [1, H, W, D] permuted, and
    # wrong from contiguous input, even from an [H, W, D] permuted before the batch axis is added
    expected = F.interpolate(
        table[None].permute(0, 3, 1, 2), size=grid, mode='bicubic', antialias=antialias
    )
    torch.testing.assert_close(got, expected[0].permute(1, 2, 0), rtol=0, atol=1e-12)


@torch.no_grad()
def test_converted_file_gives_the_same_answer(ours, weights_file, tmp_path):
    save_navit(tmp_path / 'deit.safetensors', read_weights(weights_file, family='deit'))
    weights = read_weights(tmp_path / 'deit.safetensors')
    model = build(weights).eval()
    load_weights(model, weights)
    packed = pack([patchify(image, (1, 16, 16)) for image in pictures(SIZES[1:4], torch.float32)])
    assert torch.equal(model.classify(model(packed)), ours.classify(ours(packed)))
