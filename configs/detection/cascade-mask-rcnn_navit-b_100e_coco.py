"""Cascade Mask R-CNN on a plain ViT-B from MAE's weights, COCO: ViTDet's recipe, native resolution.

The recipe and its differences from ViTDet's are those of mask-rcnn_navit-b_100e_coco.py; boxes are
refined in three stages, whose losses and weights are mmdet's. LayerNorm stands wherever a head
takes a norm (the RPN takes none). Cost and AP: not measured yet.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_base.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/detection/cascade-mask-rcnn_navit-b_100e_coco.py --amp
"""

_base_ = ['../_base_/runtime_detection.py', '../_base_/coco_instance.py']

weights = '{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_base.pth'
strides = [4, 8, 16, 32, 64]
norm = dict(type='LayerNorm2d', eps=1e-6)
regions = dict(type='SingleRoIExtractor', out_channels=256, featmap_strides=strides[:4])
proposals = dict(max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
model = dict(
    type='CascadeRCNN',
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
        arch=dict(preset='base', prefix_tokens=1),
        patch_size=16,
        window_size=14,  # blocks 2, 5, 8 and 11 stay global
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    neck=dict(type='SimpleFeaturePyramid', in_channels=768, out_channels=256, strides=strides),
    rpn_head=dict(
        type='RPNHead',
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=strides
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), **regions
        ),
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead',
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                num_classes=80,
                norm_cfg=norm,
                reg_class_agnostic=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=[1 / s, 1 / s, 2 / s, 2 / s]
                ),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0),
            )
            for s in (10, 20, 30)
        ],
        mask_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0), **regions
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            norm_cfg=norm,
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
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                ),
                sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25),
                mask_size=28,
                pos_weight=-1,
            )
            for iou in (0.5, 0.6, 0.7)
        ],
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

max_epochs = 100
num_steps = max_epochs * _base_.steps_per_epoch
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=10)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.7),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, milestones=[num_steps * 8 // 9, num_steps * 26 // 27]),
]
auto_scale_lr = dict(base_batch_size=64)
