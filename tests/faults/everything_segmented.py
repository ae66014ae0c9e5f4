"""As everything_with_a_state.py, of a tiny segmentor with Segmenter's head.

data_root, the workers and the number of epochs come by --cfg-options.
"""

_base_ = ['../../configs/segmentation/segmenter_navit-ti_20e_sample.py']

custom_imports = dict(
    imports=['navit_backbone.tasks.segmentation', 'step_log'], allow_failed_imports=False
)
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
        save_best='mIoU',
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
    decode_head=dict(in_channels=24, channels=16, num_heads=2, drop_path_rate=0.3),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(type='LargeScaleJitter', max_tokens=49, patch_size=16, scale_range=(0.5, 2.0)),
    dict(type='PhotoMetricDistortion'),  # draws from numpy's generator
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
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
