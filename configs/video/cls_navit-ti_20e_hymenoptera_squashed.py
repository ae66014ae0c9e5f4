"""Control arm of cls_navit-ti_20e_hymenoptera.py: the photos squashed to squares.

Everything else is the same: weights, head, schedule, and the random budget that a photo draws in an
epoch; at evaluation every photo is 256 x 256 pixels, 256 tokens.

python tools/train.py configs/video/cls_navit-ti_20e_hymenoptera_squashed.py
"""

_base_ = './cls_navit-ti_20e_hymenoptera.py'

budget = dict(type='ClipToTokenBudget', max_tokens=256, patch_size=16, square=True)
train_pipeline = [
    dict(type='LoadClip'),
    dict(random=dict(low_tokens=128), **budget),
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
