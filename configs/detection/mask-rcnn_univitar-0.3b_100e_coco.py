"""Mask R-CNN on UniViTAR-0.3B, COCO: ViTDet's recipe at native resolution and at a patch of 14.

As mask-rcnn_navit-b_100e_coco.py, but that maps have strides of 3.5 to 56 pixels, and regions go to
them at 14 / 16 of the usual sizes. For maps of stride 4 to 64 resample the kernel as it is loaded:
patch_size=16 and init_cfg=dict(patch_resize='flexivit'), with the data of coco_instance.py.
Cost and AP: not measured yet.
NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
those of https://huggingface.co/MM-MVR/UniViTAR-0.3B, converted first:
python tools/convert_weights.py hf://MM-MVR/UniViTAR-0.3B data/weights/univitar-0.3b.safetensors
python tools/train.py configs/detection/mask-rcnn_univitar-0.3b_100e_coco.py --amp
"""

_base_ = [
    '../_base_/runtime_detection.py',
    '../_base_/univitar-0.3b.py',
    '../_base_/coco_instance_patch14.py',
]

weights = '{{$NAVIT_DATA:data}}/weights/univitar-0.3b.safetensors'
strides = [3.5, 7, 14, 28, 56]
norm = dict(type='LayerNorm2d', eps=1e-6)
regions = dict(
    type='SingleRoIExtractor', out_channels=256, featmap_strides=strides[:4], finest_scale=49
)
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
        window_size=14,  # blocks 5, 11, 17 and 23 stay global
        drop_path_rate=0.4,
        with_cp=True,  # activations of 24 blocks would not fit
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    neck=dict(
        type='SimpleFeaturePyramid',
        in_channels=1024,
        out_channels=256,
        in_stride=14,
        strides=strides,
    ),
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
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), **regions
        ),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            num_classes=80,
            norm_cfg=norm,
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
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
            ),
            sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25),
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

max_epochs = 100
num_steps = max_epochs * _base_.steps_per_epoch
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=10)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, milestones=[num_steps * 8 // 9, num_steps * 26 // 27]),
]
auto_scale_lr = dict(base_batch_size=64)
