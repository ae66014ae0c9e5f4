"""Does it see time? ViT-Ti from DeiT's ImageNet weights on clips whose class is how they move, cut
from still photos: left, right, up, down, in, out, clockwise, anticlockwise.

8 of 16 frames, each in patches of its own, at most 25 tokens a frame. The two motions of a pair are
told apart by the order of the frames alone, so the temporal position, which begins at zero, learns
20 times as fast as the rest. 36 minutes on one CPU core under bfloat16, top1 97.8 % (2026-11-22).

NAVIT_DATA is the folder that holds `coco128/` and `weights/` (unset: ../shared/data).
python tools/prepare_data.py motions $NAVIT_DATA/coco128/images/train2017 \\
    $NAVIT_DATA/coco128/images/val2017 --train 4000 --val 400 --out data/motions
python tools/train.py configs/video/cls_navit-ti_5e_motions.py
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 5
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
        arch=dict(preset='tiny', prefix_tokens=1, pooling='mean'),
        patch_size=patch_size,
        temporal_position=dict(max_size=64),
        drop_path_rate=0.0,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$NAVIT_DATA:../shared/data}}/weights/deit_tiny_patch16_224.pt',
        ),
    ),
    head=dict(type='NaViTClipHead', num_classes=8),
)

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=200,
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

data_root = 'data/motions/'
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=16,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=16 * 200, steps_per_epoch=250),
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

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=1)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(custom_keys=dict(temporal_position=dict(lr_mult=20.0, decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
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
