"""Clips and their classes, every draw of a sample seeded, batches packed in the workers. A config
adds where the clips lie, batch sizes and pipelines, and its `patch_size` to every collate_fn."""

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    dataset=dict(type='NaViTClipDataset'),
    collate_fn=dict(type='pack_clips'),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='SeededSampler', shuffle=False, round_up=False),
    dataset=dict(type='NaViTClipDataset', test_mode=True),
    collate_fn=dict(type='pack_clips'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='NaViTClipMetric', topk=(1,))
test_evaluator = val_evaluator
