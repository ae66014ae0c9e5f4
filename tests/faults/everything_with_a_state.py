"""A tiny RetinaNet on drawings, with all that a resumption could lose, for kill_and_resume.py.

data_root, the workers and the number of epochs come by --cfg-options.
"""

_base_ = ['../../configs/detection/retinanet_navit-ti_20e_sample.py']

custom_imports = dict(imports=['navit_backbone.tasks.detection', 'step_log'])
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=0.01),
    dict(type='StepLogHook'),
]
default_hooks = dict(
    checkpoint=dict(
        _delete_=True,
        type='ExactCheckpointHook',
        by_epoch=False,
        interval=3,
        max_keep_ckpts=2,
        save_best='coco/bbox_mAP',
    )
)

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=24,
            num_layers=2,
            num_heads=2,
            feedforward_channels=32,
            prefix_tokens=1,
        ),
        drop_path_rate=0.3,  # draws from torch's generator
    ),
    neck=dict(in_channels=24, out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='ResizeToTokenBudget', max_tokens=49, patch_size=16, random=dict(low_tokens=16)),
    dict(type='PhotoMetricDistortion'),  # draws from numpy's generator
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=3, dataset=dict(pipeline=train_pipeline)
)  # 7 steps of 20 samples
train_cfg = dict(type='ResumableEpochLoop', val_interval=2)

optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='MultiStepLR', by_epoch=True, milestones=[3, 6], gamma=0.5),
]
