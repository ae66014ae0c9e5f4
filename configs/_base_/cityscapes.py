"""Cityscapes at its own size: 2048 x 1024 pixels, 8192 tokens at a patch of 16.

`cityscapes/` is laid out as mmsegmentation has it: `leftImg8bit/{train,val}/`,
`gtFine/{train,val}/` with the *_labelTrainIds.png of cityscapesScripts. NAVIT_DATA is the folder
that holds it (unset: data).
"""

_base_ = './seg_folder.py'

# a street is scaled to 0.5 to 2 times its sides, and cropped to 4096 tokens at its own aspect
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='LargeScaleJitter', max_tokens=4096, patch_size=16, scale_range=(0.71, 2.83)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=8192, patch_size=16),
    dict(type='LoadSegMap'),  # behind the resize: the truth keeps its own size
    dict(type='PackSegInputs'),
]

# 4096 tokens a device are a photo; so 8 devices take 8 photos a step, and all 2975 in 372 steps
steps_per_epoch = 372
data_root = '{{$NAVIT_DATA:data}}/cityscapes/'
data = dict(
    _delete_=True,
    type='NaViTCityscapesDataset',
    data_root=data_root,
)
train_dataloader = dict(
    batch_size=8,  # at most
    num_workers=4,
    batch_sampler=dict(
        type='TokenBudgetBatchSampler', max_tokens=4096, steps_per_epoch=steps_per_epoch
    ),
    dataset=dict(
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=train_pipeline,
        **data,
    ),
)
val_dataloader = dict(
    num_workers=4,
    dataset=dict(
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=test_pipeline,
        test_mode=True,
        **data,
    ),
)
test_dataloader = val_dataloader
