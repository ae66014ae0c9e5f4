"""ADE20K (SceneParse150): photos with their aspect, of at most 1024 tokens (512 x 512 pixels'
worth) in training, and at their own size in evaluation, at a patch of 16.

`ade/ADEChallengeData2016/` is laid out as mmsegmentation has it: `images/{training,validation}/`,
`annotations/{training,validation}/`. NAVIT_DATA is the folder that holds `ade/` (unset: data).
"""

_base_ = './seg_folder.py'

# NaViT's (arXiv 2307.06304, section 3.6): no squash and no crop, a random area up to R_max squared
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSegMap'),
    dict(
        type='ResizeToTokenBudget',
        max_tokens=1024,
        patch_size=16,
        random=dict(low_tokens=256, by='area'),
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeToTokenBudget', min_tokens=64, max_tokens=4096, patch_size=16),
    dict(type='LoadSegMap'),  # behind the resize: the truth keeps its own size
    dict(type='PackSegInputs'),
]

# 1280 tokens a device are 2 photos on average; so 8 devices take 16 photos a step, and all 20,210
# in 1263 steps
steps_per_epoch = 1263
data_root = '{{$NAVIT_DATA:data}}/ade/ADEChallengeData2016/'
data = dict(
    _delete_=True,
    type='NaViTADE20KDataset',
    data_root=data_root,
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=16,  # at most
    num_workers=4,
    batch_sampler=dict(
        type='TokenBudgetBatchSampler', max_tokens=1280, steps_per_epoch=steps_per_epoch
    ),
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
        **data,
    ),
)
val_dataloader = dict(
    num_workers=4,
    dataset=dict(
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
        test_mode=True,
        **data,
    ),
)
test_dataloader = val_dataloader
