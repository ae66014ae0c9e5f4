"""everything_with_a_state.py in batches of a token budget, whose passes are no whole epochs."""

_base_ = ['everything_with_a_state.py']

train_dataloader = dict(
    batch_size=4,
    batch_sampler=dict(type='TokenBudgetBatchSampler', max_tokens=98, steps_per_epoch=7),
)
