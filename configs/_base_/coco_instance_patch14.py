"""COCO 2017 as in coco_instance.py, for UniViTAR: a patch of 14 and its filter, Pillow's bicubic.

4096 tokens are 896 x 896 pixels' worth.
"""

_base_ = './coco_instance.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='LargeScaleJitter',
        max_tokens=4096,
        patch_size=14,
        interpolation='bicubic',
        scale_range=(0.1, 2.0),
        recompute_bbox=True,  # around what a crop leaves of a mask
    ),
    dict(type='FilterAnnotations', by_mask=True, min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=4096, patch_size=14, interpolation='bicubic'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
