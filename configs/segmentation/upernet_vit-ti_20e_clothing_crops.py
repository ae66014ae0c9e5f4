"""mmsegmentation's own ViT-Ti and UPerNet of 128 channels at 384 x 384, to compare with
upernet_navit-ti_20e_clothing_crops.py: not a line of this project is in the model.

As its configs/vit have it: `MultiLevelNeck`, BatchNorm, an auxiliary head, and batches of one size,
so it is evaluated at batch 1. Photos, crops, augmentation, schedule and layer decay are those of
the other config. Control arm; mmsegmentation's converter writes DeiT's weights under its names:

CONVERTERS=$(python -c 'import mmseg; print(mmseg.__path__[0])')/.mim/tools/model_converters
python $CONVERTERS/vit2mmseg.py $NAVIT_DATA/weights/deit_tiny_patch16_224.pt work_dirs/vit-ti.pth
python tools/train.py configs/segmentation/upernet_vit-ti_20e_clothing_crops.py
"""

_base_ = './upernet_navit-ti_20e_clothing_crops.py'

model = dict(
    _delete_=True,
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(384, 384),
    ),
    pretrained='work_dirs/vit-ti.pth',
    backbone=dict(
        type='VisionTransformer',
        img_size=(384, 384),
        patch_size=16,
        embed_dims=192,
        num_layers=12,
        num_heads=3,
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
        norm_cfg=dict(type='LN', eps=1e-6),
        interpolate_mode='bicubic',
    ),
    neck=dict(
        type='MultiLevelNeck',
        in_channels=[192] * 4,
        out_channels=128,
        scales=[4, 2, 1, 0.5],
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[128] * 4,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=128,
        dropout_ratio=0.1,
        num_classes=59,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=128,
        in_index=3,
        channels=128,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=59,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# the constructor of the other config asks the backbone how deep a layer lies; this says the same
below = dict(lr_mult=0.75**13)
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'backbone.patch_embed': below,
            'backbone.pos_embed': dict(decay_mult=0.0, **below),
            'backbone.cls_token': dict(decay_mult=0.0, **below),
            **{f'backbone.layers.{i}.': dict(lr_mult=0.75 ** (12 - i)) for i in range(12)},
        },
    ),
)
