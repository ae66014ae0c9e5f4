"""Segmenter from random weights on drawings of coloured shapes.

The paper's block at the width of Ti, but 4 blocks deep; 320 drawings to train on, 40 held out, at
most 196 tokens each. Cost and mIoU: not measured yet.

python tools/prepare_data.py sample --out data/sample
python tools/train.py configs/segmentation/segmenter_navit-ti_20e_sample.py
"""

_base_ = [
    '../_base_/runtime_segmentation.py',
    '../_base_/seg_folder.py',
    '../_base_/navit-ti.py',
]

max_epochs = 20
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='NaViTSegDataPreprocessor',
        mean=[127.5] * 3,
        std=[50.0] * 3,
        bgr_to_rgb=True,
        size_divisor=16,
    ),
    backbone=dict(arch=dict(num_layers=4), position=dict(max_size=196)),
    decode_head=dict(
        type='NaViTSegmenterHead',
        in_channels=192,
        in_stride=16,
        channels=192,
        num_layers=2,
        num_heads=3,
        num_classes=6,
        loss_decode=dict(type='NaViTCrossEntropyLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='ResizeToTokenBudget', max_tokens=196, patch_size=16, random=dict(low_tokens=100)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=196, patch_size=16),
    dict(type='LoadSegMap'),  # behind the resize: the truth keeps its own size
    dict(type='PackSegInputs'),
]

data_root = 'data/sample/'
data = dict(
    data_root=data_root,
    ann_file='',
    metainfo=dict(classes=['paper', 'circle', 'square', 'triangle', 'star', 'ring']),
)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        pipeline=train_pipeline,
        data_prefix=dict(img_path='train/', seg_map_path='masks/train/'),
        **data,
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=test_pipeline,
        data_prefix=dict(img_path='val/', seg_map_path='masks/val/'),
        **data,
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=4)
