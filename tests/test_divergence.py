"""Training stops at the first NaN or infinity, names it, and keeps the last good checkpoint."""

import math
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import NO_WORKERS, call
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import distributed as dist
from torch.multiprocessing import start_processes

from navit_backbone.tasks.common.checkpoints import noted_checkpoint
from navit_backbone.tasks.common.clip_sample import ClipDataSample
from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.divergence import (
    DivergenceError,
    DivergenceHook,
    nonfinite,
    sample_names,
)
from navit_backbone.tasks.common.drawings import draw
from navit_backbone.tasks.common.sample_set import write_sample_set
from navit_backbone.tasks.video.motions import write_motions
from navit_backbone.tools import train as train_tool
from navit_backbone.tools.command_line import read_config

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / 'tests/faults'
NUM_SAMPLES, BATCH_SIZE = 8, 2
BAD = 5  # with samples in order: in the third of four batches


@DATASETS.register_module()
class NumberedFiles(SeededSamples, BaseDataset):
    """Numbers from files that need not exist."""

    def load_data_list(self):
        return [dict(number=float(i), img_path=f'photos/{i}.jpg') for i in range(NUM_SAMPLES)]


def with_sample(results):
    sample = BaseDataElement(metainfo=dict(img_path=results['img_path']))
    return dict(inputs=torch.tensor([results['number']]), data_samples=sample)


class Model(BaseModel):
    """Linear model with a loss that is wrong in a given way from sample `BAD` on."""

    def __init__(self, fault=None, epoch=1, mask=False):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        if mask:
            self.register_buffer('mask', torch.tensor([0.0, -math.inf]))
        self.fault, self.epoch, self.seen = fault, epoch, 0

    def forward(self, inputs, data_samples, mode):
        x = torch.stack(inputs)
        if mode == 'predict':
            return data_samples
        first, second = self.layer(x).square().mean(), self.layer(x).abs().mean()
        if (x == BAD).any():
            self.seen += 1
            if self.seen >= self.epoch:
                first, second = self.spoilt(first, second)
        return dict(loss_first=first, loss_second=second, accuracy=torch.tensor(math.nan))

    def spoilt(self, first, second):
        if self.fault == 'gradient':  # d sqrt(z) / dz at 0 is infinite, times 0 is NaN
            return first, second + (self.layer.weight * 0).sum().sqrt()
        if self.fault == 'matching':
            raise ValueError('matrix contains invalid numeric entries')
        if self.fault == 'mistake':
            raise ValueError('an error of another kind')
        wrong = {'nan': math.nan, 'inf': math.inf, None: 1.0}[self.fault]
        return first, second * wrong


class Scores(BaseMetric):
    """Metrics that are given beforehand, one for each evaluation."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=self.values.pop(0))


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """As mmengine's AmpOptimWrapper, which asserts a GPU: losses are scaled, overflows skipped."""

    def __init__(self, scaler, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', **scaler)
        self._scale_update_param = None
        self.scales = []

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()
        self.scales.append(self.loss_scaler.get_scale())


class At(Hook):
    """Calls a function after a step, later than the hooks that check."""

    priority = 'LOW'

    def __init__(self, step, action):
        self.step, self.action = step, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            self.action(runner)


def build(work_dir, model, *, hook=None, scores=(1.0,) * 9, optim=None, hooks=(), **changes):
    loader = dict(
        dataset=dict(type='NumberedFiles', pipeline=[with_sample]),
        sampler=dict(type='SeededSampler', shuffle=False),
        batch_size=BATCH_SIZE,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    optim = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.001)) | (optim or {})
    checkpoint = dict(type='ExactCheckpointHook', interval=1, max_keep_ckpts=1) | (hook or {})
    parts = dict(
        train_dataloader=loader,
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=4, val_interval=1),
        val_dataloader=loader,
        val_evaluator=Evaluator(Scores(scores)),
        val_cfg=dict(),
        optim_wrapper=optim,
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[*hooks, dict(type='DivergenceHook')],
        randomness=dict(seed=3),
        log_level='WARNING',
    )
    name = f'{work_dir.name}-{time.monotonic_ns()}'
    return Runner(model, str(work_dir), experiment_name=name, **(parts | changes))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)


def state_of(file):
    return torch.load(file, weights_only=False)['state_dict']


def names_of(work_dir):
    return sorted(file.name for file in work_dir.glob('*.pth'))


STEP_7 = r'diverged at step 7 of 16: '
BATCH = r'batch: photos/4.jpg, photos/5.jpg\. '
TERMS = {  # of the second epoch, whose third step is number 7
    'nan': rf'{STEP_7}loss_second is nan\. Learning rate 0.001, gradient norm nan, {BATCH}',
    'inf': rf'{STEP_7}loss_second is inf\. Learning rate 0.001, gradient norm \w+, {BATCH}',
    'gradient': rf'{STEP_7}the loss is [\d.]+, but its gradients are not finite.*norm nan, {BATCH}',
    'matching': r'diverged at step 7: predictions are NaN or infinite .photos/4.jpg, photos/5.jpg',
}
BY_ITERATIONS = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4))
KINDS = {
    'float32': {},
    'bfloat16': dict(optim=dict(type='BFloat16OptimWrapper')),
    'clipped': dict(optim=dict(clip_grad=dict(max_norm=1.0))),
    'accumulated': dict(optim=dict(accumulative_counts=3)),
    'by iterations': dict(BY_ITERATIONS, hook=dict(by_epoch=False, interval=4)),
    "mmengine's own checkpoints": dict(hook=dict(type='CheckpointHook')),
}


@pytest.mark.parametrize(
    ('fault', 'kind'),
    [*((fault, 'float32') for fault in TERMS), *(('nan', kind) for kind in KINDS)],
)
def test_stops_at_the_step_and_keeps_the_last_good_checkpoint(fault, kind, tmp_path):
    runner = build(tmp_path, Model(fault, epoch=2), **KINDS[kind])
    message = TERMS[fault]
    if kind == 'accumulated':  # no optimizer step has been taken
        message = message.replace('norm nan', 'norm not measured')
    with pytest.raises(DivergenceError, match=message) as caught:
        runner.train()
    saved = 'iter_4.pth' if kind == 'by iterations' else 'epoch_1.pth'
    assert names_of(tmp_path) == [saved]
    assert noted_checkpoint(tmp_path) == tmp_path / saved
    assert nonfinite(state_of(tmp_path / saved)) == []
    text = str(caught.value)
    assert f'The last good checkpoint is {tmp_path / saved}. Try: a lower learning rate' in text
    assert f'load_from={tmp_path / saved} optim_wrapper.optimizer.lr=0.0001; --resume' in text
    assert ('clip_grad' in text) == (kind != 'clipped')
    assert ('without --amp' in text) == (kind == 'bfloat16')


def test_accumulated_gradients_name_all_their_samples(tmp_path):
    """Of steps 7 and 8, which are used at step 8; number 5 is the bad one."""
    runner = build(tmp_path, Model('gradient', epoch=2), optim=dict(accumulative_counts=2))
    names = ', '.join(f'photos/{i}.jpg' for i in (4, 5, 6, 7))
    with pytest.raises(DivergenceError, match=rf'step 8 .* gradients are not finite.*: {names}\. '):
        runner.train()
    assert names_of(tmp_path) == ['epoch_1.pth']


def test_trains_to_the_end_where_all_is_finite_but_a_mask_and_a_figure(tmp_path):
    runner = build(tmp_path, Model(mask=True))
    runner.train()
    assert names_of(tmp_path) == ['epoch_4.pth']
    assert nonfinite(state_of(tmp_path / 'epoch_4.pth')) == ['mask']


def test_nothing_saved_yet_is_said(tmp_path):
    with pytest.raises(
        DivergenceError, match=r'at step 3 of 16.*No checkpoint was saved before it'
    ):
        build(tmp_path, Model('nan')).train()


def test_an_error_of_another_kind_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match='^an error of another kind$'):
        build(tmp_path, Model('mistake')).train()


def test_values_on_a_device_are_read_now_and_then_and_before_every_save(tmp_path, monkeypatch):
    monkeypatch.setattr('navit_backbone.tasks.common.divergence.get_world_size', lambda: 2)
    model = Model('nan', epoch=2)
    steps = []
    watch = At(8, lambda runner: steps.append(8))
    with pytest.raises(DivergenceError, match=TERMS['nan']):
        build(tmp_path, model, hooks=[watch]).train()
    assert steps == [8], 'step 7 was named, though the training had gone on'
    assert names_of(tmp_path) == ['epoch_1.pth']


@pytest.mark.parametrize(('scale', 'skips'), [(2.0**16, False), (2.0**127, True)])
def test_a_loss_scaler_may_skip_steps(scale, skips, tmp_path):
    scaler = dict(init_scale=scale, growth_interval=10**6)
    runner = build(tmp_path, Model(), optim=dict(type='ScaledOptimWrapper', scaler=scaler))
    runner.train()
    assert (runner.optim_wrapper.scales[-1] < scale) == skips, 'float32 ends at 2 ** 128'
    assert names_of(tmp_path) == ['epoch_4.pth']


def test_a_collapsed_loss_scale_stops(tmp_path):
    scaler = dict(init_scale=1e-3, growth_interval=10**6, backoff_factor=0.01)
    model = Model('gradient')
    fault = r'step 3 of 16.*batch: photos/4.jpg, photos/5.jpg\. The loss scale fell to 1.0e-05'
    with pytest.raises(DivergenceError, match=fault):
        build(tmp_path, model, optim=dict(type='ScaledOptimWrapper', scaler=scaler)).train()


class ListedLosses(Model):
    """Model with a `train_step` of its own, which returns losses of shape [1]."""

    def train_step(self, data, optim_wrapper):
        losses = super().train_step(data, optim_wrapper)
        return {name: value.reshape(1) for name, value in losses.items()}


def test_losses_may_be_vectors_of_one_value(tmp_path):
    with pytest.raises(DivergenceError, match=TERMS['nan']):
        build(tmp_path, ListedLosses('nan', epoch=2)).train()


def test_a_loss_scaler_does_not_hide_a_loss_that_is_nan(tmp_path):
    optim = dict(type='ScaledOptimWrapper', scaler={})
    with pytest.raises(
        DivergenceError, match=TERMS['nan'].replace('norm nan', 'norm not measured')
    ):
        build(tmp_path, Model('nan', epoch=2), optim=optim).train()


# --------------------------------------------------------------------------------------------------
# Saving and evaluation


def poison(runner):
    with torch.no_grad():
        runner.model.layer.weight.fill_(math.nan)


def poison_and_stop(runner):
    poison(runner)
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('checkpoint', ['ExactCheckpointHook', 'CheckpointHook'])
@pytest.mark.parametrize(
    'action', [poison, poison_and_stop, lambda runner: (poison(runner), runner.save_checkpoint(
        runner.work_dir, 'mine.pth'))])  # fmt: skip
def test_weights_that_are_not_finite_are_never_saved(action, checkpoint, tmp_path):
    """After step 8, the last of an epoch, in time for every hook that saves."""
    hook = dict(type=checkpoint)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(
            DivergenceError, match='after step 8: NaN or infinity in .*layer.weight'
        ):
            build(tmp_path, Model(), hook=hook, hooks=[At(8, action)]).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert names_of(tmp_path) == ['epoch_1.pth']
    assert noted_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'


@pytest.mark.parametrize(
    ('scores', 'rule', 'best'),
    [
        ((math.nan, 0.2, math.nan, 0.1), 'greater', 2),
        ((0.2, math.inf, 0.3, math.nan), 'greater', 3),
        ((math.nan, 0.2, -math.inf, 0.1), 'less', 4),
        ((math.nan,) * 4, 'greater', None),
    ],
)
@pytest.mark.parametrize('judged', ['acc', 'auto'])
def test_a_metric_that_is_not_finite_is_never_the_best(
    scores, rule, best, judged, tmp_path, capsys
):
    hook = dict(save_best=judged, rule=rule)
    build(tmp_path, Model(), hook=hook, scores=scores).train()
    wanted = [] if best is None else [f'best_acc_epoch_{best}.pth']
    assert names_of(tmp_path) == [*wanted, 'epoch_4.pth']
    assert 'this evaluation counts for no best model' in capsys.readouterr().out


def test_a_model_that_is_not_finite_is_not_evaluated(tmp_path):
    model = Model()
    runner = build(tmp_path, model, train_dataloader=None, train_cfg=None, optim_wrapper=None)
    poison(SimpleNamespace(model=model))
    runner.load_checkpoint = lambda *_: None
    hook = next(hook for hook in runner.hooks if isinstance(hook, DivergenceHook))
    with pytest.raises(
        DivergenceError, match=r'cannot be evaluated.*layer.weight; give an earlier'
    ):
        hook.before_val(runner)


# --------------------------------------------------------------------------------------------------
# Several processes


def one_of_two(rank, folder):
    """Rank 1 alone meets the bad sample: its batches are (1, 3), (5, 7)."""
    dist.init_process_group('gloo', f'file://{folder}/meeting', rank=rank, world_size=2)
    model = MMDistributedDataParallel(Model('nan', epoch=2))
    message = r'diverged at step 4 of 8: loss_second is nan.*batch: photos/5.jpg, photos/7.jpg\. '
    with pytest.raises(DivergenceError, match=message):
        build(folder / 'work', model).train()
    assert names_of(folder / 'work') == ['epoch_1.pth']
    dist.destroy_process_group()


def test_all_processes_stop_and_name_the_batch_of_the_one(tmp_path):
    start_processes(one_of_two, (tmp_path,), nprocs=2, start_method='fork')


# --------------------------------------------------------------------------------------------------
# Every task and every config


TASKS = {
    'detection': 'everything_with_a_state.py',
    'segmentation': 'everything_segmented.py',
    'video': 'everything_of_clips.py',
}


@pytest.mark.parametrize('task', TASKS)
def test_a_learning_rate_far_too_high_ends_in_a_sentence(task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FAULTS))
    sample = tmp_path / 'set'
    if task == 'video':
        write_motions(
            lambda split, i: (f'{split} {i}', draw(0, split, i).image),
            sample,
            num_clips=dict(train=8, val=1),
        )
    else:
        write_sample_set(sample, seed=0, num_pictures=dict(train=8, val=2))
    options = [f'data_root={sample}', 'optim_wrapper.optimizer.lr=1e30', *NO_WORKERS]
    options += ['train_cfg.max_epochs=9', 'default_hooks.checkpoint.interval=1']
    arguments = [FAULTS / TASKS[task], '--work-dir', tmp_path, '--cfg-options', *options]
    told = call(monkeypatch, train_tool, *arguments)
    assert told.startswith('error: training diverged at'), told
    assert 'optim_wrapper.optimizer.lr=' in told
    for file in tmp_path.glob('*.pth'):
        assert nonfinite(state_of(file)) == []


def test_every_config_stops(tmp_path):
    bare = tmp_path / 'bare.py'
    bare.write_text("model = dict(type='BaseModel')\n")
    assert {'type': 'DivergenceHook'} in read_config(bare, {}).custom_hooks
    for file in sorted((ROOT / 'configs/_base_').glob('runtime_*.py')):
        kinds = [hook['type'] for hook in Config.fromfile(file).custom_hooks]
        assert kinds.count('DivergenceHook') == 1, file
        read = [hook['type'] for hook in read_config(file, {}).custom_hooks]
        assert read.count('DivergenceHook') == 1, file


def test_samples_are_named_in_every_task():
    detected = DetDataSample(metainfo=dict(img_path='a.jpg'))
    clip = ClipDataSample(metainfo=dict(video_path='b.mp4', img_shape=(1, 2)))
    assert list(sample_names(dict(inputs=[], data_samples=[detected, clip]))) == ['a.jpg', 'b.mp4']
    branches = dict(sup=[detected], student=[clip])
    assert list(sample_names(dict(data_samples=branches))) == ['a.jpg', 'b.mp4']
    assert list(sample_names([torch.ones(2)])) == []


def test_an_arithmetic_error_of_weights_that_are_nan_is_explained(tmp_path):
    class Overflowing(Model):
        def spoilt(self, first, second):
            with torch.no_grad():
                self.layer.weight.fill_(math.nan)
            raise OverflowError('cannot convert float infinity to integer')

    with pytest.raises(DivergenceError, match='NaN or infinity in the weights layer.weight') as e:
        build(tmp_path, Overflowing()).train()
    assert isinstance(e.value.__cause__, OverflowError)
