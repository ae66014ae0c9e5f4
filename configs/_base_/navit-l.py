"""NaViT-L/16, the block of the paper (arXiv 2307.06304, section 2.1): queries and keys normalised,
no bias in their projection, factorised positions, attention pooling."""

model = dict(
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='large', qk_norm=True, qkv_bias=False, pooling='map'),
        patch_size=16,
        position='factorised',
    )
)
