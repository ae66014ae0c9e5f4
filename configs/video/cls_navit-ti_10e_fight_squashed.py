"""Control arm of cls_navit-ti_10e_fight.py: the clips squashed to squares.

Everything else is the same: weights, head, schedule, and the random budget that a clip draws in an
epoch; at evaluation every clip is 8 frames of 224 x 224 pixels, 784 tokens.

python tools/train.py configs/video/cls_navit-ti_10e_fight_squashed.py
"""

_base_ = './cls_navit-ti_10e_fight.py'

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=784,
    patch_size=(2, 16, 16),
    sampling=dict(kind='uniform', num_frames=8),
    square=True,
)
train_pipeline = [
    dict(type='LoadClip'),
    dict(random=dict(low_tokens=392), **budget),
    dict(type='LoadFrames'),
    dict(type='ClipFlip', prob=0.5),
    dict(type='ClipColorJitter'),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='PackClipInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
