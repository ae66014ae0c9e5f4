"""As everything_with_a_state.py, of a tiny classifier of clips, in batches of a token budget.

data_root, the workers and the number of epochs come by --cfg-options.
"""

_base_ = ['../../configs/video/cls_navit-ti_30e_sample.py']

custom_imports = dict(
    imports=['navit_backbone.tasks.video', 'step_log'], allow_failed_imports=False
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
        save_best='top1',
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
            pooling='map',
        ),
        drop_path_rate=0.3,  # draws from torch's generator
    ),
    head=dict(dropout_ratio=0.2),
)

train_pipeline = [
    dict(type='LoadClip'),
    dict(
        type='ClipToTokenBudget',
        max_tokens=48,
        patch_size=16,
        sampling=dict(kind='fps', num_frames=8, fps=5),
        random=dict(low_tokens=16),
        drop=dict(mean=0.25, max_rate=0.5),
    ),
    dict(type='LoadFrames'),
    dict(type='ClipFlip', swap={'left': 'right', 'clockwise': 'anticlockwise'}),
    dict(type='ClipRandAugment'),
    dict(type='ClipErasing', prob=0.5),
    dict(type='PackClipInputs'),
]
train_dataloader = dict(
    batch_size=4,
    batch_sampler=dict(max_tokens=128, steps_per_epoch=7),
    dataset=dict(pipeline=train_pipeline),
    collate_fn=dict(mixing=dict(mixup=0.8, cutmix=1.0, prob=0.5)),
)
train_cfg = dict(type='ResumableEpochLoop', val_interval=2)

optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='MultiStepLR', by_epoch=True, milestones=[3, 6], gamma=0.5),
]
