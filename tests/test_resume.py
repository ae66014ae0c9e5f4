"""What was stopped goes on as if it had not been: the same batches, losses, scores and weights."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import distributed as dist
from torch.multiprocessing import start_processes

from navit_backbone.checkpoint import read_checkpoint
from navit_backbone.tasks.common import stop_signal
from navit_backbone.tasks.common.checkpoints import INTERRUPTED, find_checkpoint
from navit_backbone.tasks.common.dataset import SeededSamples
from navit_backbone.tasks.common.generators import generator_states, restore_generators

sys.path.insert(0, str(Path(__file__).parent / 'faults'))
from kill_and_resume import Kill, compare, differences

NUM_SAMPLES, BATCH_SIZE, NUM_EPOCHS = 11, 2, 3
STEPS_PER_EPOCH = 6
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH


# --------------------------------------------------------------------------------------------------
# A small training in which everything draws


@DATASETS.register_module()
class NoisyNumbers(SeededSamples, BaseDataset):
    """Each number, with noise that its pipeline draws from numpy's generator."""

    def load_data_list(self):
        return [dict(number=i, img_path=f'{i}') for i in range(NUM_SAMPLES)]


def add_noise(results):
    return dict(number=results['number'], noise=np.random.rand() + random.random())


class Model(BaseModel):
    """Draws at every step, from each of the generators."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))

    def forward(self, number, noise, mode):
        if mode == 'predict':
            return [float(p.double().sum()) for p in self.parameters()]
        x = torch.stack([torch.as_tensor(number).float(), torch.as_tensor(noise).float()], dim=1)
        x = torch.nn.functional.dropout(x) + random.random() + np.random.rand()
        return dict(loss=self.layer(x).square().mean())


class WeightSum(BaseMetric):
    """A score that depends on the weights."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(acc=sum(results))


class Stopped(Exception):
    """The end of a process."""


class Watch(Hook):
    """Notes what each step saw and gave; ends after step `stop`, before any checkpoint of it."""

    priority = 'VERY_HIGH'

    def __init__(self, steps, stop=None, stop_in_validation=False, signal_at=None, number=15):
        self.steps, self.stop, self.in_validation = steps, stop, stop_in_validation
        self.signal_at, self.number = signal_at, number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step = runner.iter + 1
        seen = {name: values.tolist() for name, values in data_batch.items()}
        seen |= dict(epoch=runner.epoch, batch=batch_idx, loss=outputs['loss'].item())
        seen |= runner.optim_wrapper.get_lr()
        assert self.steps.setdefault(step, seen) == seen, f'step {step} went otherwise before'
        if step == self.stop:
            raise Stopped
        if step == self.signal_at:
            signal_all(runner, self.number)

    def before_val(self, runner):
        if self.in_validation:
            raise Stopped


def signal_all(runner, number):
    """SIGTERM to this process and its workers, from a third one, as a scheduler does."""
    workers = getattr(runner.train_dataloader._iterator, '_workers', [])
    pids = [str(process.pid) for process in workers]
    subprocess.run(['kill', f'-{int(number)}', *pids, str(os.getpid())], check=True)


def train(
    work_dir,
    steps,
    *,
    hook,
    stops=None,
    workers=0,
    batch_size=BATCH_SIZE,
    num_samples=NUM_SAMPLES,
    sampler=None,
    optim=None,
    classes=('cat', 'dog', 'cow'),
    **changes,
):
    """One process's share of a training; `changes` are of the runner's arguments."""
    loader = dict(
        dataset=dict(
            type='NoisyNumbers',
            pipeline=[add_noise],
            indices=num_samples,
            metainfo=dict(classes=classes),
        ),
        sampler=sampler or dict(type='SeededSampler'),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dict(type='default_collate'),
    )
    in_order = dict(sampler=dict(type='SeededSampler', shuffle=False), batch_size=NUM_SAMPLES)
    optim = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)) | (optim or {})
    parts = dict(
        train_dataloader=loader,
        val_dataloader=loader | in_order,
        val_evaluator=Evaluator(WeightSum()),
        train_cfg=dict(type='ResumableEpochLoop', max_epochs=NUM_EPOCHS, val_interval=2),
        val_cfg=dict(),
        optim_wrapper=optim,
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9),
            dict(type='MultiStepLR', milestones=[1, 3]),
        ],
        default_hooks=dict(checkpoint=dict(type='ExactCheckpointHook', save_best='acc', **hook)),
        custom_hooks=[
            Watch(steps, **(stops or {})),
            dict(type='EMAHook'),
            dict(type='LoadedWeightsHook'),
            dict(type='ClassCheckHook'),
        ],
        randomness=dict(seed=3),
        log_level='WARNING',
    )
    name = f'{work_dir.name}-{time.monotonic_ns()}'
    model = MMDistributedDataParallel(Model()) if dist.is_initialized() else Model()
    runner = Runner(model, str(work_dir), experiment_name=name, **(parts | deepcopy(changes)))
    try:
        runner.train()
    finally:
        for part in (runner._train_loop, runner._val_loop):
            if getattr(getattr(part, 'dataloader', None), '_iterator', None) is not None:
                part.dataloader._iterator._shutdown_workers()  # left to the collector it takes 10 s
    return runner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what takes a runner most of its time here: looking about, collecting, waiting."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr('mmengine.dataset.base_dataset.gc.collect', lambda: 0)
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)


# --------------------------------------------------------------------------------------------------
# Exactly


BY_ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=NUM_STEPS, val_interval=9)
EVERY_FOURTH = dict(by_epoch=False, interval=4)
EVERY_EPOCH = dict(interval=1)
TRAININGS = {
    'saved within epochs': dict(hook=EVERY_FOURTH),
    'saved at every step': dict(hook=dict(by_epoch=False, interval=1, max_keep_ckpts=1)),
    'saved between epochs': dict(hook=EVERY_EPOCH),
    'gradients of three steps': dict(hook=EVERY_FOURTH, optim=dict(accumulative_counts=3)),
    'gradients across epochs': dict(hook=EVERY_EPOCH, optim=dict(accumulative_counts=4)),
    'by iterations': dict(hook=EVERY_FOURTH, train_cfg=BY_ITERATIONS),
    'by iterations, after a pass': dict(
        hook=dict(by_epoch=False, interval=STEPS_PER_EPOCH), train_cfg=BY_ITERATIONS
    ),
    'two workers': dict(hook=EVERY_FOURTH, workers=2),
}


@pytest.mark.parametrize('name', TRAININGS)
def test_goes_on_with_the_same_batches_losses_and_scores(name, tmp_path):
    options, steps = TRAININGS[name], {}
    whole = train(tmp_path / 'whole', steps, **options)
    assert len(steps) == NUM_STEPS
    random.seed(name)
    for stop in sorted(random.sample(range(1, NUM_STEPS + 1), 2)):
        with pytest.raises(Stopped):
            train(tmp_path / 'cut', steps, resume=True, stops=dict(stop=stop), **options)
    again = train(tmp_path / 'cut', steps, resume=True, **options)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    for key in ('best_score', 'iter', 'epoch'):
        assert whole.message_hub.get_info(key) == again.message_hub.get_info(key), key
    files = [{file.name for file in run.glob('*.pth*')} for run in tmp_path.iterdir()]
    assert files[0] == files[1]


@pytest.mark.parametrize('hook', [EVERY_EPOCH, EVERY_FOURTH])
def test_validation_that_was_cut_off_comes_first(hook, tmp_path):
    whole = train(tmp_path / 'whole', {}, hook=hook)
    with pytest.raises(Stopped):
        train(tmp_path / 'cut', {}, stops=dict(stop_in_validation=True), hook=hook)
    assert not list((tmp_path / 'cut').glob('best*'))
    again = train(tmp_path / 'cut', {}, resume=True, hook=hook)
    scores = [run.message_hub.get_scalar('val/acc').data[0].tolist() for run in (whole, again)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2


def test_mmengines_loop_trains_the_same_but_numbers_batches_from_zero(tmp_path):
    stock = dict(type='EpochBasedTrainLoop', max_epochs=NUM_EPOCHS, val_interval=2)
    options = dict(hook=EVERY_FOURTH, train_cfg=stock)
    train(tmp_path / 'whole', steps := {}, **options)
    with pytest.raises(Stopped):
        train(tmp_path / 'cut', {}, stops=dict(stop=9), **options)
    train(tmp_path / 'cut', found := {}, resume=True, **options)
    assert (steps[9]['batch'], found[9]['batch']) == (2, 0)
    for step, seen in found.items():
        assert seen | dict(batch=0) == steps[step] | dict(batch=0), step


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_a_step_that_is_saved(number, workers, tmp_path, capfd):
    options = dict(workers=workers, hook=EVERY_EPOCH)
    train(tmp_path / 'whole', steps := {}, hook=EVERY_EPOCH)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit, match=str(128 + number)):
        train(tmp_path / 'cut', {}, stops=dict(signal_at=8, number=number), **options)
    assert signal.getsignal(number) is before
    said = capfd.readouterr()
    assert f'{number.name}: stopped after step 8 of 18' in said.out + said.err
    assert find_checkpoint(tmp_path / 'cut').name == INTERRUPTED
    assert ('Ctrl-C again ends it at once' in said.err) == (number == signal.SIGINT)
    train(tmp_path / 'cut', found := {}, resume=True, **options)
    assert found == {step: steps[step] for step in range(9, NUM_STEPS + 1)}
    assert not (tmp_path / 'cut' / INTERRUPTED).exists()


def test_a_second_ctrl_c_ends_at_once_and_leaves_sigterm_handled():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop_signal.StopRequest().listen()  # of a training that failed
    request = stop_signal.StopRequest()
    request.listen()
    try:
        signal.raise_signal(signal.SIGINT)
        assert request.agreed(1) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == request._note
    finally:
        request.ignore()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


CHANGES = {
    'batch size: 2 .now 3.': dict(batch_size=3),
    'seed: 3 .now 4.': dict(randomness=dict(seed=4)),
    'samples: 11 .now 8.': dict(num_samples=8),
}


@pytest.mark.parametrize('told', CHANGES)
def test_another_run_is_refused_within_an_epoch_and_told_between(told, tmp_path, capsys):
    for name, hook in (('amid', EVERY_FOURTH), ('between', EVERY_EPOCH)):
        with pytest.raises(Stopped):
            train(tmp_path / name, {}, stops=dict(stop=9), hook=hook)
    with pytest.raises(ValueError, match=rf'iter_8.pth was saved in the middle.*{told}.*load_from'):
        train(tmp_path / 'amid', {}, resume=True, hook=EVERY_FOURTH, **CHANGES[told])
    train(tmp_path / 'between', steps := {}, resume=True, hook=EVERY_EPOCH, **CHANGES[told])
    assert re.search(rf'epoch_1.pth is of a run with .*{told}', capsys.readouterr().out)
    assert min(steps) == STEPS_PER_EPOCH + 1


@pytest.mark.parametrize('others', [('dog', 'cat', 'cow'), ('dog', 'fox', 'cow')])
def test_classes_with_other_numbers_are_refused_naming_both_orders(others, tmp_path, capsys):
    with pytest.raises(Stopped):
        train(tmp_path, {}, stops=dict(stop=9), hook=EVERY_EPOCH)
    message = (
        rf"has the classes {list(others)}, and .* trained on ['cat', 'dog', 'cow']: 'dog' is "
        r"number 0 here and was 1. .*classes=['cat', 'dog', 'cow']"
    )
    message = message.replace('[', r'\[')
    with pytest.raises(ValueError, match=message):
        train(tmp_path, {}, resume=True, hook=EVERY_EPOCH, classes=others)
    renamed = ('cat', 'hound', 'cow')
    train(tmp_path, steps := {}, resume=True, hook=EVERY_EPOCH, classes=renamed)
    assert min(steps) == STEPS_PER_EPOCH + 1
    assert 'had the classes cat, dog, cow, ' in (out := capsys.readouterr().out)
    assert 'has cat, hound, cow' in out


def test_number_of_workers_may_change(tmp_path):
    train(tmp_path / 'whole', steps := {}, hook=EVERY_FOURTH)
    for stop, workers in ((9, 2), (14, 0)):
        options = dict(workers=workers, stops=dict(stop=stop), hook=EVERY_FOURTH)
        with pytest.raises(Stopped):
            train(tmp_path / 'cut', steps, resume=True, **options)
    train(tmp_path / 'cut', steps, resume=True, workers=1, hook=EVERY_FOURTH)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (
            dict(optim=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))),
            'an optimizer with betas, this config has momentum',
        ),
        (
            dict(optim=dict(paramwise_cfg=dict(bias_lr_mult=2.0))),
            r'1 .4 tensors., this config has 4 .4 tensors.',
        ),
        (dict(param_scheduler=[]), r'schedules .* 2, this config has 0'),
    ],
)
def test_another_optimizer_is_refused_by_its_file(change, told, tmp_path):
    with pytest.raises(Stopped):
        train(tmp_path, {}, stops=dict(stop=9), hook=EVERY_EPOCH)
    with pytest.raises(ValueError, match=rf'epoch_1.pth is of a training with.*{told}'):
        train(tmp_path, {}, resume=True, hook=EVERY_EPOCH, **change)


def test_what_others_saved_is_told(tmp_path, capsys):
    train(tmp_path, {}, hook=EVERY_EPOCH)
    (best,) = tmp_path.glob('best*.pth')
    with pytest.raises(ValueError, match=rf'{best.name} holds no state of the optimizer'):
        train(tmp_path, {}, resume=True, load_from=str(best), hook=EVERY_EPOCH)
    content = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    torch.save(content | dict(exact_resume={}), tmp_path / 'epoch_2.pth')
    with pytest.raises(ValueError, match=r'epoch_2.pth is damaged: its exact_resume'):
        train(tmp_path, {}, resume=True, load_from=str(tmp_path / 'epoch_2.pth'), hook=EVERY_EPOCH)
    del content['exact_resume']
    torch.save(content, tmp_path / 'epoch_2.pth')
    train(tmp_path, {}, resume=True, load_from=str(tmp_path / 'epoch_2.pth'), hook=EVERY_EPOCH)
    assert (
        'epoch_2.pth holds neither the place in the data nor the generators'
        in capsys.readouterr().out
    )


@pytest.mark.parametrize('by', ['epochs', 'iters'])
def test_a_resume_with_nothing_left_names_the_length_to_raise(by, tmp_path, capsys):
    options = dict(hook=EVERY_EPOCH)
    if by == 'iters':
        options = dict(hook=EVERY_FOURTH, train_cfg=BY_ITERATIONS)
    train(tmp_path, {}, **options)
    assert 'nothing is left' not in capsys.readouterr().out
    done = NUM_EPOCHS if by == 'epochs' else NUM_STEPS
    for end in (done, done - 1):
        cfg = options.get('train_cfg', dict(type='ResumableEpochLoop', val_interval=2))
        options['train_cfg'] = cfg | {f'max_{by}': end}
        train(tmp_path, steps := {}, resume=True, **options)
        assert steps == {}
        unit = 'epochs' if by == 'epochs' else 'steps'
        assert (
            f'nothing is left to train: the checkpoint is of {done} {unit}, and '
            f'train_cfg.max_{by} is {end}. Fix: to train on, raise it'
        ) in capsys.readouterr().out


def test_sampler_that_cannot_skip_is_refused_within_an_epoch(tmp_path):
    options = dict(sampler=dict(type='DefaultSampler', shuffle=True), hook=EVERY_FOURTH)
    with pytest.raises(Stopped):
        train(tmp_path, {}, stops=dict(stop=9), **options)
    with pytest.raises(ValueError, match=r'iter_8.pth was saved in the middle.*SeededSampler'):
        train(tmp_path, {}, resume=True, **options)


def one_of_two(rank, folder):
    """A process that trains beside another, with draws of its own; stopped twice."""
    dist.init_process_group('gloo', f'file://{folder}/meeting', rank=rank, world_size=2)
    options = dict(hook=EVERY_FOURTH, randomness=dict(seed=3, diff_rank_seed=True))
    options['train_cfg'] = dict(type='ResumableEpochLoop', max_epochs=4, val_interval=2)
    train(folder / 'whole', steps := {}, **options)
    assert len(steps) == 4 * 3
    with pytest.raises(Stopped):
        train(folder / 'cut', steps, resume=True, stops=dict(stop=6), **options)
    stops = dict(signal_at=7) if rank == 1 else {}
    with pytest.raises(SystemExit, match='143'):  # both, though one alone was told
        train(folder / 'cut', found := {}, resume=True, stops=stops, **options)
    assert sorted(found) == list(range(5, 11))  # they talk about it every tenth step
    train(folder / 'cut', found, resume=True, **options)
    assert found == {step: steps[step] for step in range(5, 13)}
    gathered = [None, None]
    dist.all_gather_object(gathered, [seen['loss'] for seen in steps.values()])
    assert gathered[0] != gathered[1], 'nothing was of its own'
    dist.destroy_process_group()


def test_two_processes_go_on_each_with_its_own_draws(tmp_path):
    start_processes(one_of_two, (tmp_path,), nprocs=2, start_method='fork')


def test_generators_go_on_where_they_were(tmp_path):
    def draws():
        return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.rand(3).tolist()]

    random.gauss(0, 1), np.random.randn(3)  # leave half of a pair in each
    torch.save({'state': generator_states()}, tmp_path / 'generators.pth')
    expected = draws()
    assert draws() != expected
    restore_generators(read_checkpoint(tmp_path / 'generators.pth')['state'])
    assert draws() == expected


@pytest.mark.parametrize(('accumulated', 'most'), [(1, 10), (4, 12), (7, 14), (9, 18)])
def test_ranks_soon_hear_of_a_signal_however_rarely_a_step_asks(accumulated, most, monkeypatch):
    monkeypatch.setattr(stop_signal, 'get_world_size', lambda: 2)
    monkeypatch.setattr(stop_signal, 'all_reduce', lambda *_: None)
    request = stop_signal.StopRequest()
    asking = range(accumulated, 200, accumulated)  # steps at which no gradients wait
    assert not any(request.agreed(step) for step in asking if step <= 100)
    request._handlers_before[15] = signal.getsignal(15)
    request._note(15)
    heard = next(step for step in asking if step > 100 and request.agreed(step))
    assert heard - 100 <= most


@pytest.mark.parametrize('batches', ['tokens', 'segmentation', 'clips'])
def test_killed_twice_a_model_is_trained_the_same(batches, tmp_path):
    kills = [Kill(4), Kill(7, in_write=True)]
    assert compare(tmp_path, batches=batches, workers=2, steps=14, kills=kills) == []


def test_comparison_of_logs_sees_every_difference():
    expected = [(step, dict(loss=f'{step}', samples=[step])) for step in (1, 2, 3)]
    assert differences(expected, [expected[0], *expected]) == []
    other = (2, dict(loss='2', samples=[7]))
    assert differences(expected, [*expected, other]) == ['2: samples is [7], not [2]']
    assert differences(expected, [expected[0], other]) == [
        '3: never reached',
        '2: samples is [7], not [2]',
    ]
