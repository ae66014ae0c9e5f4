"""A folder of pictures, one of label maps and classes.txt, every draw of a sample seeded. A config
adds where they lie (`data_root`, `data_prefix`, `ann_file`), batch sizes and pipelines."""

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    dataset=dict(type='NaViTSegDataset', ann_file='train.txt'),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='SeededSampler', shuffle=False, round_up=False),
    dataset=dict(type='NaViTSegDataset', ann_file='val.txt', test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='NaViTIoUMetric')
test_evaluator = val_evaluator
