"""RetinaNet on a plain ViT-B from MAE's weights, COCO: ViTDet's recipe at native resolution.

As in ViTDet (arXiv 2203.16527): large-scale jitter, windows of 14 patches in all but 4 blocks, the
simple feature pyramid, LayerNorm in the head (RetinaNet's own has no norm). Otherwise: nothing is
padded, so that 4096 tokens are all picture, and no relative positions, with which attention could
not be fused, and gradients are clipped.
Cost and AP: not measured yet.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_base.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/detection/retinanet_navit-b_100e_coco.py --amp
"""

_base_ = ['../_base_/runtime_detection.py', '../_base_/coco_detection.py']

strides = [8, 16, 32, 64, 128]
weights = '{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_base.pth'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='NaViTDetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
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
    bbox_head=dict(
        type='RetinaHead',
        num_classes=80,
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=strides,
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),  # the focal loss takes all anchors
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)

max_epochs = 100
num_steps = max_epochs * _base_.steps_per_epoch
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
