"""ViT-S on tubelets from DeiT's weights, UCF101, split 1: 16 frames over the whole clip, at most
1568 tokens.

HMDB51 and the other splits: data_root, ann_file and num_classes, which follows.

Cost and accuracy: not measured yet.

NAVIT_DATA is the folder that holds `ucf101/` and `weights/` (unset: data). The weights are
deit_small_patch16_224-cd65a155.pth of https://github.com/facebookresearch/deit.
python tools/train.py configs/video/cls_navit-s_50e_ucf101.py --amp
"""

_base_ = ['../_base_/runtime_video.py', '../_base_/clip_folder.py']

max_epochs = 50
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
        arch=dict(preset='small', prefix_tokens=1, pooling='mean'),
        patch_size=patch_size,
        temporal_position=dict(max_size=64),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$NAVIT_DATA:data}}/weights/deit_small_patch16_224-cd65a155.pth',
        ),
    ),
    head=dict(type='NaViTClipHead', num_classes=101, label_smoothing=0.1),
)

budget = dict(
    type='ClipToTokenBudget',
    max_tokens=1568,
    patch_size=patch_size,
    sampling=dict(kind='uniform', num_frames=16),
)
train_pipeline = [
    dict(type='LoadClip'),
    dict(random=dict(low_tokens=784), **budget),
    dict(type='LoadFrames'),
    dict(type='ClipFlip', prob=0.5),
    dict(type='ClipRandAugment', num_ops=2, magnitude=7.0),
    dict(type='ClipErasing', prob=0.25),
    dict(type='PackClipInputs'),
]
test_pipeline = [
    dict(type='LoadClip'),
    dict(test_mode=True, **budget),
    dict(type='LoadFrames'),
    dict(type='PackClipInputs'),
]

data_root = '{{$NAVIT_DATA:data}}/ucf101/'
collate_fn = dict(patch_size=patch_size)
train_dataloader = dict(
    batch_size=32,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=32 * 1568, steps_per_epoch=300),
    dataset=dict(
        data_root=data_root,
        ann_file='ucf101_train_split_1_videos.txt',
        data_prefix=dict(clips='videos'),
        pipeline=train_pipeline,
    ),
    collate_fn=dict(mixing=dict(mixup=0.8, cutmix=1.0), **collate_fn),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='ucf101_val_split_1_videos.txt',
        data_prefix=dict(clips='videos'),
        pipeline=test_pipeline,
    ),
    collate_fn=collate_fn,
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator

train_cfg = dict(type='ResumableEpochLoop', max_epochs=max_epochs, val_interval=1)

optim_wrapper = dict(
    type='ExampleMeanOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=600),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=32)
