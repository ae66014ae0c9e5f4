"""As cls_navit-ti_5e_motions.py from random weights, with the block of the paper 4 blocks deep, on
clips cut from drawings: the sample set. Nothing is downloaded.

320 clips to train on, 80 held out. Cost and accuracy: not measured yet.

python tools/prepare_data.py motions --out data/motions-sample
python tools/train.py configs/video/cls_navit-ti_30e_sample.py
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 30
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
        arch=dict(
            preset='tiny',
            num_layers=4,
            norm_bias=False,
            qk_norm=True,
            qkv_bias=False,
            pooling='map',
        ),
        patch_size=patch_size,
        position=dict(kind='factorised', max_size=64),
        temporal_position=dict(max_size=64),
    ),
    head=dict(type='NaViTClipHead', num_classes=8),
)

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=392,
    patch_size=patch_size,
    sampling=dict(kind='uniform', num_frames=8),
)
train_pipeline = [
    dict(type='LoadClip'),
    budget,
    dict(type='LoadFrames'),
    dict(type='ClipFlip', swap={'left': 'right', 'clockwise': 'anticlockwise'}),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='PackClipInputs'),
]

data_root = 'data/motions-sample/'
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=16,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=16 * 392, steps_per_epoch=20),
    dataset=dict(data_root=data_root, ann_file='train.txt', pipeline=train_pipeline),
    collate_fn=collate_fn,
)
val_dataloader = dict(
    batch_size=16,
    dataset=dict(data_root=data_root, ann_file='val.txt', pipeline=test_pipeline),
    collate_fn=collate_fn,
)
test_dataloader = val_dataloader
val_evaluator = dict(pairs=True)
test_evaluator = val_evaluator

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=5)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
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
