"""UPerNet on a plain ViT-B from DeiT's weights, Cityscapes at native resolution.

Over ViTDet's simple feature pyramid, LayerNorm in the place of BatchNorm, which sees padding. Cost
and mIoU: not measured yet.

NAVIT_DATA is the folder that holds `cityscapes/` and `weights/` (unset: data). The weights are
deit_base_patch16_224-b5f2ef4d.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/segmentation/upernet_navit-b_215e_cityscapes.py --amp
"""

_base_ = ['../_base_/runtime_segmentation.py', '../_base_/cityscapes.py']

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
        type='UPerHead',
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type='LayerNorm2d', eps=1e-6),
        loss_decode=dict(type='NaViTCrossEntropyLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

max_epochs = 215
num_steps = max_epochs * _base_.steps_per_epoch
train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=26)

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
auto_scale_lr = dict(base_batch_size=8)
