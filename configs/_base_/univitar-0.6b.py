"""UniViTAR-0.6B (arXiv 2504.01792), 637 M parameters: 32 blocks 1280 wide, 16 heads; RMSNorm,
SwiGLU with a norm inside, 2-D RoPE before the norm of queries and keys, LayerScale, no final norm.

Its patches are tubelets of 2 frames of 14 x 14 pixels. For pictures their kernel is summed over
time, which is exact; for clips a config sets NaViTClipBackbone and patch_size=(2, 14, 14)."""

model = dict(
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='univitar_0.6b'),
        patch_size=14,
        position=None,  # RoPE alone
    )
)
