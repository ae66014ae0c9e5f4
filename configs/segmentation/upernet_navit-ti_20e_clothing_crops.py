"""Control arm of upernet_navit-ti_20e_clothing.py: random square crops, mmsegmentation's recipe.

A photo is scaled with its aspect, to 0.5 to 2 times the sides of 384 x 384 pixels' worth, and a
crop of at most 384 x 384 (576 tokens) is cut out of it, whose largest class has at most 0.75 of it.
Everything else is the same: weights, head, schedule, and the evaluation on whole photos.
mIoU 7.57, seed 0.

python tools/train.py configs/segmentation/upernet_navit-ti_20e_clothing_crops.py
"""

_base_ = './upernet_navit-ti_20e_clothing.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='PhotoMetricDistortion'),
    dict(
        type='RandomResize',  # 472 x 312 pixels are 576 tokens at the photos' aspect
        resize_type='AntialiasedResize',
        scale=(472, 472),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=(384, 384), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
