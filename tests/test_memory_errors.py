"""An out-of-memory error says which batch it was, under every loop; others are left alone."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from navit_backbone.tasks.common.memory_errors import BatchMemoryError, MemoryErrorHook, _limits
from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tools import train
from navit_backbone.vit import NaViT

CONFIG = Path(__file__).resolve().parents[1] / 'configs/detection/retinanet_navit-ti_20e_sample.py'
SIZES = [(40, 70), (33, 17), (64, 64)]


def true_failure(*_):
    """More than there are addresses: the allocator of the CPU refuses at once."""
    torch.empty(2**50)


def cuda_failure(*_):
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')


def cublas_failure(*_):
    raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`')


def python_failure(*_):
    raise MemoryError


def other_failure(*_):
    raise RuntimeError('shapes do not match')


class Model(BaseModel):
    """Fails at its third batch, in forward or, in training, in backward."""

    def __init__(self, fail, in_backward=False):
        super().__init__()
        self.fail, self.in_backward, self.calls = fail, in_backward, 0
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs, mode):
        out, self.calls = self.linear(torch.ones(1, 1)), self.calls + 1
        if self.calls == 3 and self.in_backward:
            out.register_hook(self.fail)
        elif self.calls == 3:
            self.fail()
        return dict(loss=out.sum()) if mode == 'loss' else list(inputs)


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def run(mode, folder, fail, **options):
    """One epoch of a runner with the hook; pictures of `SIZES` in each batch."""
    pictures = [torch.zeros(3, h, w) for h, w in SIZES] * 4
    loader = DataLoader(pictures, batch_size=3, collate_fn=lambda batch: dict(inputs=batch))
    parts = dict(test_dataloader=loader, test_evaluator=NoMetric(), test_cfg={})
    if mode == 'train':
        parts = dict(train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=1))
        parts['optim_wrapper'] = dict(optimizer=dict(type='SGD', lr=0.1))
    hooks = [dict(type=MemoryErrorHook.__name__)]
    runner = Runner(
        Model(fail, **options),
        str(folder),
        custom_hooks=hooks,
        experiment_name=folder.name,
        **parts,
    )
    getattr(runner, mode)()


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('fail', [true_failure, cuda_failure, cublas_failure, python_failure])
def test_the_batch_and_the_ways_out_are_named(mode, fail, tmp_path):
    with pytest.raises(BatchMemoryError) as caught:
        run(mode, tmp_path, fail)
    text = str(caught.value)
    assert text.startswith('out of memory at 3 pictures of 40 x 70, 33 x 17, 64 x 64 pixels')
    assert '37 tokens, and 60 on the canvases of 64 x 70' in text  # 3 x 5 + 3 x 2 + 4 x 4
    assert f'{mode}_dataloader.batch_size=3' in text
    assert ('with_cp' in text) == (mode == 'train')
    assert isinstance(caught.value, torch.OutOfMemoryError)
    assert type(caught.value.__cause__) in (torch.OutOfMemoryError, RuntimeError, MemoryError)
    if fail is true_failure:
        assert f'you tried to allocate {2**52} bytes' in text


def test_backward_counts_too(tmp_path):
    with pytest.raises(BatchMemoryError, match='3 pictures'):
        run('train', tmp_path, true_failure, in_backward=True)


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_other_errors_are_left_alone(mode, tmp_path):
    with pytest.raises(RuntimeError, match='shapes do not match') as caught:
        run(mode, tmp_path, other_failure)
    assert caught.type is RuntimeError


def test_the_budget_of_a_batch_is_named_too():
    class Budgeted:
        max_tokens, batch_size = 900, 32

    data = SimpleNamespace(dataset=SimpleNamespace(pipeline=Compose([ResizeToTokenBudget(49)])))
    found = list(_limits('train', SimpleNamespace(batch_sampler=Budgeted(), dataset=data)))
    limits = ['Budgeted(max_tokens=900)', 'ResizeToTokenBudget(max_tokens=49)']
    assert found == [*limits, 'train_dataloader.batch_size=32']


def test_a_user_is_told_in_a_sentence_with_the_budget(tmp_path, monkeypatch):
    write_sample_set(tmp_path / 'set', seed=0, num_pictures=dict(train=4, val=1))
    monkeypatch.setattr(NaViT, 'forward', cuda_failure)
    options = [f'data_root={tmp_path / "set"}', 'train_dataloader.num_workers=0']
    options += ['train_dataloader.persistent_workers=False', 'model.backbone.arch.num_layers=1']
    arguments = ['train', str(CONFIG), '--work-dir', str(tmp_path), '--cfg-options', *options]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit) as caught:
        train.main()
    text = str(caught.value)
    assert text.startswith('error: out of memory at 4 pictures of ')
    assert 'In use: ResizeToTokenBudget(max_tokens=196), train_dataloader.batch_size=8.' in text
    assert text.endswith('The allocator said: CUDA out of memory. Tried to allocate 20.00 GiB')
