"""FCOS on a plain ViT-Ti from DeiT's ImageNet weights: 158 photos of raccoons, 42 held out.

Photos keep their aspect, at most 784 tokens (448 x 448 pixels' worth) each; in training they are
cropped and change in colour first. Cost: 40 minutes on one CPU core. Box AP 0.505, AP50 0.911 at
batch 1 with seed 0 (2026-11-21).

NAVIT_DATA is the folder that holds `raccoon/` and `weights/` (unset: ../shared/data).
python tools/train.py configs/detection/fcos_navit-ti_20e_raccoon.py
"""

_base_ = ['../_base_/runtime_detection.py', '../_base_/coco_format.py']

max_epochs = 20
strides = [16, 32, 64, 128]  # hardly a raccoon is smaller than 64 pixels at this size
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='NaViTDetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=strides[-1],
    ),
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='tiny', prefix_tokens=1),
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$NAVIT_DATA:../shared/data}}/weights/deit_tiny_patch16_224.pt',
        ),
    ),
    neck=dict(
        type='SimpleFeaturePyramid',
        in_channels=192,
        out_channels=128,
        strides=strides,
        in_stride=16,
    ),
    bbox_head=dict(
        type='FCOSHead',
        num_classes=1,
        in_channels=128,
        feat_channels=128,
        stacked_convs=4,
        strides=strides,
        regress_ranges=((-1, 128), (128, 256), (256, 512), (512, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion'),
    dict(
        type='RandomCrop',
        crop_type='relative_range',  # each side to 0.6 to 1 of its length
        crop_size=(0.6, 0.6),
        allow_negative_crop=True,
    ),
    dict(type='ResizeToTokenBudget', max_tokens=784, patch_size=16, random=dict(low_tokens=400)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=784, patch_size=16),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

data_root = '{{$NAVIT_DATA:../shared/data}}/raccoon/'
data = dict(data_root=data_root, data_prefix=dict(img='images/'))
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=80),
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
