"""NaViT-B/16, the block of the paper (arXiv 2307.06304, section 2.1): queries and keys normalised,
no bias in their projection, factorised positions, attention pooling.

Positions have a row for each of `max_size` patches of a side. The longest picture of a token budget
is a strip: a config sets `max_size` to the `max_tokens` of its resize."""

model = dict(
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='base', qk_norm=True, qkv_bias=False, pooling='map'),
        patch_size=16,
        position=dict(kind='factorised', max_size=256),
    )
)
