"""Control arm of cls_navit-ti_5e_motions.py: frames in a random order, in
training and evaluation.

python tools/train.py configs/video/cls_navit-ti_5e_motions_shuffled.py
"""

_base_ = './cls_navit-ti_5e_motions.py'

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=200,
    patch_size=16,
    sampling=dict(kind='uniform', num_frames=8),
)
train_pipeline = [
    dict(type='LoadClip'),
    budget,
    dict(type='LoadFrames'),
    dict(type='ClipShuffle'),
    dict(type='ClipFlip', swap={'left': 'right', 'clockwise': 'anticlockwise'}),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='ClipShuffle'),
    dict(type='PackClipInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
