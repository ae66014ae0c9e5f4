"""How a classifier is run, in every config; nothing here decides a result but the seed."""

default_scope = 'mmengine'
custom_imports = dict(imports=['navit_backbone.tasks.video'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='ExactCheckpointHook', interval=1, max_keep_ckpts=2, save_best='top1'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='ClassCheckHook'),
    dict(type='ClipCheckHook'),
    dict(type='MultiLabelCheckHook'),
    dict(type='DuplicateCheckHook'),
    dict(type='BitDepthHook'),
    dict(type='LoadedWeightsHook'),
    dict(type='DivergenceHook'),
    dict(type='PretrainedHook'),
    dict(type='BadSampleHook'),
    dict(type='ThroughputHook'),
    dict(type='WarmupCheckHook'),
    dict(type='MemoryErrorHook'),
]

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# the seed of the weights, and of every draw of a sample together with its epoch and index
randomness = dict(seed=0)

env_cfg = dict(
    cudnn_benchmark=False,  # clips of many sizes: tuning for each would never end
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
