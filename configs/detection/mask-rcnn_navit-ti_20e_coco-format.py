"""Mask R-CNN on a plain ViT-Ti from DeiT's ImageNet weights, for any data set in COCO's format.

As retinanet_navit-ti_20e_coco-format.py, which takes boxes alone; here every annotation has a
`segmentation`, polygons or run lengths. Cost and AP: not measured yet.
NAVIT_DATA is the folder that holds `weights/` (unset: ../shared/data).
python tools/train.py configs/detection/mask-rcnn_navit-ti_20e_coco-format.py \\
    --cfg-options data_root=/data/mine "classes=['cat', 'dog']"

mmdet's own scripts take the folder from the environment (DATA_ROOT=/data/mine), and need
model.roi_head.bbox_head.num_classes=N and model.roi_head.mask_head.num_classes=N.
"""

_base_ = ['../_base_/runtime_detection.py', '../_base_/coco_format.py']

max_epochs = 20
weights = '{{$NAVIT_DATA:../shared/data}}/weights/deit_tiny_patch16_224.pt'
strides = [4, 8, 16, 32, 64]
regions = dict(type='SingleRoIExtractor', out_channels=128, featmap_strides=strides[:4])
proposals = dict(max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='NaViTDetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=strides[-1],
    ),
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='tiny', prefix_tokens=1),
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    neck=dict(type='SimpleFeaturePyramid', in_channels=192, out_channels=128, strides=strides),
    rpn_head=dict(
        type='RPNHead',
        in_channels=128,
        feat_channels=128,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=strides
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
            in_channels=128,
            fc_out_channels=512,
            num_classes=80,  # tools/train.py: as many as the data has
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
            loss_bbox=dict(type='L1Loss'),
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0), **regions
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=128,
            conv_out_channels=128,
            num_classes=80,  # tools/train.py: as many as the data has
            norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False
            ),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=2000, **proposals),
        rcnn=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=128, pos_fraction=0.25),
            mask_size=28,
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, **proposals),
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
    dict(type='ResizeToTokenBudget', max_tokens=784, patch_size=16, random=dict(low_tokens=400)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=784, patch_size=16),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]

data_root = '{{$DATA_ROOT:data/coco_format}}/'
data = dict(data_root=data_root, data_prefix=dict(img='images/'))
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=4)
