"""As cls_navit-ti_30e_sample.py, seen through tubelets of three shapes at once, as the paper
fine-tunes on Kinetics-400 (arXiv 2307.06304): short ones, wide ones and long ones. All tokens of a
clip attend to one another.

The paper does not say which shapes. These have 22 tokens for 8 frames of 32 x 32 pixels, where
single patches of 16 have 32. Positions are factorised in space, in units of 16 pixels, the side
that divides those of all shapes, and in time (phi_t, a row for each frame, zero at the start). Cost
and accuracy: not measured yet.

python tools/prepare_data.py motions --out data/motions-sample
python tools/train.py configs/video/cls_navit-ti_30e_sample_tubelets.py
"""

_base_ = './cls_navit-ti_30e_sample.py'

patch_size = [(2, 16, 16), (4, 32, 32), (8, 16, 16)]
model = dict(backbone=dict(patch_size=patch_size))

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=392,
    patch_size=patch_size,
    sampling=dict(kind='uniform', num_frames=8),
)
train_pipeline = [
    dict(type='LoadClip'),
    budget,
    dict(type='LoadFrames'),
    dict(type='ClipFlip', swap={'left': 'right', 'clockwise': 'anticlockwise'}),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='PackClipInputs'),
]

collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline), collate_fn=collate_fn)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline), collate_fn=collate_fn)
test_dataloader = val_dataloader
