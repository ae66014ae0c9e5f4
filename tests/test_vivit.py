"""On clips our model gives what Hugging Face's ViViT gives, with joint space-time attention."""

import pytest
import torch
from oracles import perturb

from navit_backbone import NaViT, pack, patchify

ARCH = dict(
    embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=40, prefix_tokens=1,
    pooling='token',
)  # fmt: skip
OURS_TO_THEIRS = {
    'blocks.': 'layers.',
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'attn.proj': 'attention.o_proj',
}


def their_state(ours, frames):
    """Our weights under their names; their table has a row for each place in space and time."""
    state = {}
    for key, tensor in ours.state_dict().items():
        if '.attn.qkv.' in key:
            layer, kind = key.split('.')[1], key.split('.')[-1]
            for name, part in zip('qkv', tensor.chunk(3), strict=True):
                state[f'layers.{layer}.attention.{name}_proj.{kind}'] = part
        elif key.startswith(('blocks.', 'norm.')):
            for old, new in OURS_TO_THEIRS.items():
                key = key.replace(old, new)
            state[f'layer{key}' if key.startswith('norm.') else key] = tensor
    p, q, r = ours.patch_shapes[0]
    name = f'patch_embed.{p}x{q}x{r}'
    kernel = ours.state_dict()[f'{name}.weight'].unflatten(1, (3, p, q, r))
    space = ours.position.table.flatten(0, 1)
    table = (ours.temporal_position.t[:frames:p, None] + space).flatten(0, 1)
    no_place = torch.zeros_like(table[:1])  # the class token has it in itself
    return state | {
        'embeddings.cls_token': ours.prefix[None],
        'embeddings.position_embeddings': torch.cat([no_place, table])[None],
        'embeddings.patch_embeddings.projection.weight': kernel,
        'embeddings.patch_embeddings.projection.bias': ours.state_dict()[f'{name}.bias'],
    }


@pytest.mark.parametrize(
    ('tubelet', 'frames', 'side'),
    [((2, 8, 8), 6, 32), ((1, 8, 8), 5, 24), ((4, 16, 16), 8, 16), ((3, 7, 7), 9, 35)],
)
def test_clips_give_what_vivit_gives(tubelet, frames, side):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    config = transformers.VivitConfig(
        image_size=side,
        num_frames=frames,
        tubelet_size=list(tubelet),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        hidden_act='gelu',
    )
    torch.manual_seed(0)
    ours = NaViT(
        ARCH,
        patch_size=tubelet,
        position=dict(kind='learned_1d', grid=(side // tubelet[1],) * 2),
        temporal_position=dict(max_size=frames),
    )
    ours = perturb(ours).double().eval()
    theirs = transformers.VivitModel(config, add_pooling_layer=False).double().eval()
    theirs.load_state_dict(their_state(ours, frames), strict=True)
    clips = torch.randn(2, 3, frames, side, side, dtype=torch.float64)
    other = torch.randn(3, 1, 3 * side, side, dtype=torch.float64)  # beside them in the pack
    packed = pack([patchify(clip, tubelet) for clip in (*clips, other)])
    with torch.no_grad():
        expected = theirs(clips.transpose(1, 2)).last_hidden_state
        output = ours(packed)
        found = ours.pooled(output)
    tokens = output.tokens.split(packed.lengths.tolist())[:2]
    assert torch.allclose(torch.stack(tokens), expected[:, 1:], atol=1e-10)
    assert torch.allclose(found[:2], expected[:, 0], atol=1e-10)
