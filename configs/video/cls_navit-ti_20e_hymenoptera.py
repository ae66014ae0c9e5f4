"""ViT-Ti from DeiT's ImageNet weights on photos of ants and bees: 100 to train on, 50 held out.

A picture is a clip of one frame. Native aspect, at most 256 tokens. 4 to 7 minutes on one CPU core
under bfloat16, top1 96.0 %, mean of three seeds (2026-11-22).

NAVIT_DATA is the folder that holds `hymenoptera/` and `weights/` (unset: ../shared/data).
python tools/train.py configs/video/cls_navit-ti_20e_hymenoptera.py
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 20
patch_size = 16
model = dict(
    type='VideoClassifier',
    data_preprocessor=dict(
        type='NaViTClipDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(
        type='NaViTClipBackbone',
        arch=dict(preset='tiny', prefix_tokens=1, pooling='token'),
        patch_size=patch_size,
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$NAVIT_DATA:../shared/data}}/weights/deit_tiny_patch16_224.pt',
        ),
    ),
    head=dict(type='NaViTClipHead', num_classes=2),
)

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=256,
    patch_size=patch_size,
)
train_pipeline = [
    dict(type='LoadClip'),
    dict(random=dict(low_tokens=128), **budget),
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

data_root = '{{$NAVIT_DATA:../shared/data}}/hymenoptera/'
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=16,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=16 * 256, steps_per_epoch=7),
    dataset=dict(
        data_root=data_root,
        kind='pictures',
        data_prefix=dict(clips='train'),
        pipeline=train_pipeline,
    ),
    collate_fn=collate_fn,
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        kind='pictures',
        data_prefix=dict(clips='val'),
        pipeline=test_pipeline,
    ),
    collate_fn=collate_fn,
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=14),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)
