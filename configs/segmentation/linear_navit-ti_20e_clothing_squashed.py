"""Control arm of linear_navit-ti_20e_clothing.py: the photos squashed to squares.

Everything else is the same: weights, head, schedule, and the random budget that a photo draws in an
epoch; at evaluation every photo is 384 x 384 pixels, 576 tokens. mIoU 16.06, mean of three seeds.

python tools/train.py configs/segmentation/linear_navit-ti_20e_clothing_squashed.py
"""

_base_ = './linear_navit-ti_20e_clothing.py'

resize = dict(type='ResizeToTokenBudget', max_tokens=576, patch_size=16, square=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='PhotoMetricDistortion'),
    dict(random=dict(low_tokens=256), **resize),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadSegMap'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
