"""A data set in COCO's format, every draw of a sample seeded. A config adds where it lies
(`data_root`, `ann_file`, `data_prefix`), batch sizes and pipelines."""

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    dataset=dict(
        type='NaViTCocoDataset',
        ann_file='annotations/instances_train.json',
        filter_cfg=dict(filter_empty_gt=True, min_size=1),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='SeededSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='NaViTCocoDataset', ann_file='annotations/instances_val.json', test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='NaViTCocoMetric', metric='bbox')
test_evaluator = val_evaluator
