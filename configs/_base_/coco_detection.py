"""COCO 2017 with boxes: photos of at most 4096 tokens (1024 x 1024 pixels' worth) at a patch of 16.

`coco/` is laid out as mmdet has it: `annotations/instances_{train,val}2017.json`, `train2017/`,
`val2017/`. NAVIT_DATA is the folder that holds it (unset: data).
"""

_base_ = './coco_format.py'

# ViTDet's: 0.1 to 2 times the sides that the budget allows, and cropped to the budget
jitter = dict(type='LargeScaleJitter', max_tokens=4096, patch_size=16, scale_range=(0.1, 2.0))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    jitter,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=4096, patch_size=16),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

# 22,912 tokens a device are 8 photos, since the jitter leaves a photo 0.7 of the budget of 4096 on
# average; so 8 devices take 64 photos a step, as ViTDet does, and all 117,266 in 1832 steps
steps_per_epoch = 1832
data_root = '{{$NAVIT_DATA:data}}/coco/'
train_dataloader = dict(
    batch_size=64,  # at most
    num_workers=8,
    batch_sampler=dict(
        type='TokenBudgetBatchSampler', max_tokens=22912, steps_per_epoch=steps_per_epoch
    ),
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
