"""NaViT-S/16, the block of the paper (arXiv 2307.06304, section 2.1): queries and keys normalised,
no bias in their projection and in the LayerNorms of the blocks, factorised positions, attention
pooling. The paper takes QK-norm and "removal of biases" from ViT-22B, which keeps those of the MLP
and of the projection behind attention; the pooling is Zhai et al.'s as it was, with all of its own.

Positions have a row for each of `max_size` patches of a side. The longest image of a token budget
is a strip: a config sets `max_size` to the `max_tokens` of its resize."""

model = dict(
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='small', norm_bias=False, qk_norm=True, qkv_bias=False, pooling='map'),
        patch_size=16,
        position=dict(kind='factorised', max_size=256),
    )
)
