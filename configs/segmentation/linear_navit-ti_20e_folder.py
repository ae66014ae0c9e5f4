"""One linear layer per token on a plain ViT-Ti from DeiT's ImageNet weights, on any folder of
pictures and label maps.

`data_root` holds images/, masks/, classes.txt, train.txt and val.txt; NAVIT_DATA is the folder that
holds `weights/` (unset: ../shared/data). Cost and mIoU: not measured yet.

CONFIG=configs/segmentation/linear_navit-ti_20e_folder.py
python tools/train.py $CONFIG --cfg-options data_root=/data/mine
"""

_base_ = ['../_base_/runtime_segmentation.py', '../_base_/seg_folder.py']

max_epochs = 20
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='NaViTSegDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=16,
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
    decode_head=dict(
        type='NaViTLinearHead',
        in_channels=192,
        in_stride=16,
        num_classes=2,
        loss_decode=dict(type='NaViTCrossEntropyLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='PhotoMetricDistortion'),
    dict(type='ResizeToTokenBudget', max_tokens=576, patch_size=16, random=dict(low_tokens=256)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', max_tokens=576, patch_size=16),
    dict(type='LoadSegMap'),  # behind the resize: the truth keeps its own size
    dict(type='PackSegInputs'),
]

data_root = 'data/mine/'
data = dict(data_root=data_root, data_prefix=dict(img_path='images/', seg_map_path='masks/'))
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
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
