"""ViT-Ti on tubelets from DeiT's ImageNet weights, on videos in a folder for each class.

`data_root` holds train/CLASS/*.mp4 and val/CLASS/*.mp4, of any format; NAVIT_DATA is the folder
that holds `weights/` (unset: ../shared/data). 8 frames over the whole clip, at its own shape, at
most 784 tokens. As cls_navit-ti_10e_fight.py, where 96 clips are passed in 50 seconds on a core.

CONFIG=configs/video/cls_navit-ti_20e_folder.py
python tools/train.py $CONFIG --cfg-options data_root=/data/mine
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 20
patch_size = (2, 16, 16)
model = dict(
    type='VideoClassifier',
    data_preprocessor=dict(
        type='NaViTClipDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(
        type='NaViTClipBackbone',
        arch=dict(preset='tiny', prefix_tokens=1, pooling='mean'),
        patch_size=patch_size,
        temporal_position=dict(max_size=64),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$NAVIT_DATA:../shared/data}}/weights/deit_tiny_patch16_224.pt',
        ),
    ),
    head=dict(type='NaViTClipHead', num_classes=2, label_smoothing=0.1),
)

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=784,
    patch_size=patch_size,
    sampling=dict(kind='uniform', num_frames=8),
)
train_pipeline = [
    dict(type='LoadClip'),
    dict(random=dict(low_tokens=392), **budget),
    dict(type='LoadFrames'),
    dict(type='ClipFlip', prob=0.5),
    dict(type='ClipColorJitter'),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='PackClipInputs'),
]

data_root = 'data/mine/'
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=8,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=8 * 784),
    dataset=dict(data_root=data_root, data_prefix=dict(clips='train'), pipeline=train_pipeline),
    collate_fn=collate_fn,
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, data_prefix=dict(clips='val'), pipeline=test_pipeline),
    collate_fn=collate_fn,
)
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
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=24),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=8)
