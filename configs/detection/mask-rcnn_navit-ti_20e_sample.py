"""Mask R-CNN from random weights on drawings of coloured shapes, with their masks.

The paper's block at the width of Ti, but 4 blocks deep; 320 drawings to train on, 40 held out, at
most 196 tokens each. Cost and AP: not measured yet.

python tools/prepare_data.py sample --out data/sample
python tools/train.py configs/detection/mask-rcnn_navit-ti_20e_sample.py
"""

_base_ = [
    '../_base_/runtime_detection.py',
    '../_base_/coco_format.py',
    '../_base_/navit-ti.py',
]

max_epochs = 20
strides = [8, 16, 32]
regions = dict(type='SingleRoIExtractor', out_channels=96, featmap_strides=strides)
proposals = dict(max_per_img=200, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='NaViTDetDataPreprocessor',
        mean=[127.5] * 3,
        std=[50.0] * 3,
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=strides[-1],
    ),
    backbone=dict(arch=dict(num_layers=4), position=dict(max_size=196)),
    neck=dict(type='SimpleFeaturePyramid', in_channels=192, out_channels=96, strides=strides),
    rpn_head=dict(
        type='RPNHead',
        in_channels=96,
        feat_channels=96,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=strides
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), **regions
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=96,
            fc_out_channels=256,
            num_classes=5,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
            loss_bbox=dict(type='L1Loss'),
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0), **regions
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=96,
            conv_out_channels=96,
            num_classes=5,
            norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=500, **proposals),
        rcnn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25),
            mask_size=28,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, **proposals),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='ResizeToTokenBudget', max_tokens=196, patch_size=16, random=dict(low_tokens=100)),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=196, patch_size=16),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

data_root = 'data/sample/'
train_dataloader = dict(
    batch_size=8,
    dataset=dict(data_root=data_root, data_prefix=dict(img='train/'), pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(img='val/'), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),  # from random weights all layers learn alike
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-6, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=8)
