"""DINO (DETR) on a plain ViT-B from MAE's weights, COCO, at native resolution.

mmdet's DINO with 4 scales; backbone, pyramid and jitter are ViTDet's (arXiv 2203.16527). The
pyramid takes the place of the ChannelMapper, whose GroupNorm sees padding; the transformer's norms
are LayerNorm of each token, and it leaves padding out by masks of its own. Photos without boxes are
left out, as in all configs here, where mmdet's DINO keeps them. Half as many photos a step as in
the other configs.
Cost and AP: not measured yet.

NAVIT_DATA is the folder that holds `coco/` and `weights/` (unset: data). The weights are
mae_pretrain_vit_base.pth of https://github.com/facebookresearch/mae.
python tools/train.py configs/detection/dino_navit-b_50e_coco.py --amp
"""

_base_ = ['../_base_/runtime_detection.py', '../_base_/coco_detection.py']

strides = [8, 16, 32, 64]
weights = '{{$NAVIT_DATA:data}}/weights/mae_pretrain_vit_base.pth'
model = dict(
    type='DINO',
    num_queries=900,
    with_box_refine=True,
    as_two_stage=True,
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
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.0),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
        ),
    ),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.0),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=128, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        num_classes=80,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=300),
)

steps_per_epoch = 2 * _base_.steps_per_epoch  # 32 photos a step on 8 devices
train_dataloader = dict(
    batch_sampler=dict(max_tokens=11456, steps_per_epoch=steps_per_epoch),
)
max_epochs = 50
num_steps = max_epochs * steps_per_epoch
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=10)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.7),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, milestones=[num_steps * 4 // 5]),
]
auto_scale_lr = dict(base_batch_size=32)
