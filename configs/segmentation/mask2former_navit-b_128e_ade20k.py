"""Mask2Former on a plain ViT-B from DeiT's weights, ADE20K at native resolution.

Over ViTDet's simple feature pyramid, LayerNorm in the pixel decoder in the place of GroupNorm,
which sees padding. Needs mmdet, and mmcv's compiled operators on a GPU. Cost and mIoU: not measured
yet.

NAVIT_DATA is the folder that holds `ade/` and `weights/` (unset: data). The weights are
deit_base_patch16_224-b5f2ef4d.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/segmentation/mask2former_navit-b_128e_ade20k.py --amp
"""

_base_ = ['../_base_/runtime_segmentation.py', '../_base_/ade20k.py']
custom_imports = dict(
    imports=['mmdet.models', 'navit_backbone.tasks.segmentation'], allow_failed_imports=False
)
strides = [4, 8, 16, 32]
weights = '{{$NAVIT_DATA:data}}/weights/deit_base_patch16_224-b5f2ef4d.pth'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='NaViTSegDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=strides[-1],
    ),
    backbone=dict(
        type='NaViTBackbone',
        arch=dict(preset='base', prefix_tokens=1),
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    neck=dict(
        type='SimpleFeaturePyramid',
        in_channels=768,
        out_channels=256,
        strides=strides,
        in_stride=16,
    ),
    decode_head=dict(
        type='Mask2FormerHead',
        in_channels=[256] * 4,
        strides=strides,
        feat_channels=256,
        out_channels=256,
        num_classes=150,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='LayerNorm2d', eps=1e-6),  # stock: GroupNorm, which sees padding
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=256, num_heads=8, num_levels=3, num_points=4, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=256, feedforward_channels=1024),
                ),
            ),
            positional_encoding=dict(num_feats=128, normalize=True),
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8, batch_first=True),
                cross_attn_cfg=dict(embed_dims=256, num_heads=8, batch_first=True),
                ffn_cfg=dict(embed_dims=256, feedforward_channels=2048),
            ),
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss', loss_weight=2.0, class_weight=[1.0] * 150 + [0.1]
        ),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(
            type='mmdet.DiceLoss', use_sigmoid=True, naive_dice=True, eps=1.0, loss_weight=5.0
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=2.0),
                    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

max_epochs = 128
num_steps = max_epochs * _base_.steps_per_epoch
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=16)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=num_steps),
]
auto_scale_lr = dict(base_batch_size=16)
