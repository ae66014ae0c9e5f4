"""ViT-Ti on tubelets from DeiT's ImageNet weights: clips of surveillance cameras, fight or not.

8 frames of 2 s, at the clip's own shape, at most 784 tokens. The 120 clips lie in 5 folds, those of
one scene in one fold (fight_folds.csv, whose scenes were found by eye among clips of like
backgrounds); without more said fold 0 is held out. 11 minutes a fold on one busy CPU core under
bfloat16, top1 69.2 % over all folds (2026-11-28).

NAVIT_DATA is the folder that holds `fight/` and `weights/` (unset: ../shared/data).
python tools/train.py configs/video/cls_navit-ti_10e_fight.py
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 10
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

data_root = '{{$NAVIT_DATA:../shared/data}}/fight/'
data = dict(data_root=data_root, ann_file='{{ fileDirname }}/fight_folds.csv', group='scene')
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=8,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=8 * 784, steps_per_epoch=12),
    dataset=dict(pipeline=train_pipeline, where_not=dict(fold='0'), **data),
    collate_fn=collate_fn,
)
val_dataloader = dict(
    dataset=dict(pipeline=test_pipeline, where=dict(fold='0'), **data), collate_fn=collate_fn
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
