"""Our losses are means over examples: one batch, ranks and accumulation steps give one gradient."""

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from test_video_model import SIZES, classifier, clip_samples
from torch import nn

import navit_backbone.tasks.segmentation  # noqa: F401  registers
from navit_backbone.tasks.common.clip_packing import pack_clips
from navit_backbone.tasks.common.example_mean import mean_over_ranks

IGNORED = 255


class Segmentor(nn.Module):
    """A linear layer per pixel and two losses, as a decode head and an auxiliary one have."""

    def __init__(self, **loss):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.auxiliary = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.loss = MODELS.build(dict(type='NaViTCrossEntropyLoss', **loss))

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            loss = self(*data)
        optim_wrapper.update_params(loss)

    def forward(self, pixels, labels):
        main, other = self.head(pixels), self.auxiliary(pixels)
        return self.loss(main, labels) + 0.4 * self.loss(other, labels)


class ParallelSegmentor(nn.parallel.DistributedDataParallel):
    train_step = Segmentor.train_step


def label_maps():
    """Six images; the labelled share differs, and one has no labelled pixel."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, 5, 7, generator=random, dtype=torch.float64)
    labels = torch.randint(4, (6, 5, 7), generator=random)
    for number in range(6):
        ignored = torch.rand(5, 7, generator=random) < number / 5
        labels[number][ignored] = IGNORED
    return pixels, labels


def updated(model, steps, clip_grad=None, **wrapper):
    """Return the change of all weights by one SGD update accumulated over the batches `steps`."""
    before = [p.detach().clone() for p in model.parameters()]
    options = dict(accumulative_counts=len(steps), clip_grad=clip_grad)
    options |= dict(type='ExampleMeanOptimWrapper', optimizer=dict(type='SGD', lr=1.0)) | wrapper
    wrapper = build_optim_wrapper(model, options)
    wrapper.initialize_count_status(model, 0, len(steps))
    for data in steps:
        model.train_step(data, optim_wrapper=wrapper)
    return torch.cat(
        [(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]
    )


def clips_of(numbers):
    items = clip_samples([*SIZES, (4, 16, 32)])
    return pack_clips([items[i] for i in numbers], patch_size=(2, 16, 16))


def maps_of(numbers):
    pixels, labels = label_maps()
    return pixels[list(numbers)], labels[list(numbers)]


TASKS = {
    'clips': (lambda: classifier(), clips_of, MMDistributedDataParallel),
    'clips, sigmoid': (lambda: classifier(multi_label=True), clips_of, MMDistributedDataParallel),
    'label maps': (lambda: Segmentor().double(), maps_of, ParallelSegmentor),
    'label maps, weighted': (
        lambda: Segmentor(class_weight=[0.01, 0.5, 1.0, 3.0]).double(), maps_of, ParallelSegmentor,
    ),
}  # fmt: skip
every_task = pytest.mark.parametrize('task', TASKS)
# what each of two ranks sees at each accumulation step
RANKS = {
    '5 and 1': [[[0, 1, 2, 3, 4]], [[5]]],
    '3 + 1 and 1 + 1': [[[0, 3, 1], [5]], [[4], [2]]],
}


@every_task
@pytest.mark.parametrize('cuts', [(1, 3), (1, 2, 4, 5), (5,)])
@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=0.01)])
def test_uneven_accumulation_steps_are_one_batch(task, cuts, clip_grad):
    build, batch_of, _ = TASKS[task]
    expected = updated(build(), [batch_of(range(6))], clip_grad)
    parts = [range(*ends) for ends in itertools.pairwise([0, *cuts, 6])]
    found = updated(build(), [batch_of(part) for part in parts], clip_grad)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_task
@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=0.01)])
@pytest.mark.parametrize('loss_scale', ['dynamic', 512.0])
def test_scaled_losses_are_means_over_examples_too(task, clip_grad, loss_scale, monkeypatch):
    """The wrapper of float16, with a loss scaler that runs on the CPU; float64 is not cast."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = functools.partial(torch.amp.GradScaler, 'cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    build, batch_of, _ = TASKS[task]
    parts = [range(0, 1), range(1, 4), range(4, 6)]
    expected = updated(build(), [batch_of(range(6))], clip_grad)
    options = dict(type='ExampleMeanAmpOptimWrapper', loss_scale=loss_scale)
    found = updated(build(), [batch_of(part) for part in parts], clip_grad, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ('kind', 'options', 'words'),
    [
        ('ExampleMeanOptimWrapper', dict(accumulative_counts=1.5), 'counts=1.5 must be a whole'),
        ('BFloat16OptimWrapper', dict(accumulative_counts=0), 'counts=0 must be at least 1'),
        ('ExampleMeanAmpOptimWrapper', {}, 'gpu.*Fix: .*optim_wrapper.type=BFloat16OptimWrapper'),
    ],
)
def test_what_cannot_accumulate_is_refused(kind, options, words, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=words):
        OPTIM_WRAPPERS.build(dict(type=kind, optimizer=optimizer, **options))


def test_the_last_window_may_be_shorter():
    """7 steps in windows of 3: the last update has one step, and counts it whole."""
    model, reference = Segmentor().double(), Segmentor().double()
    batches = [maps_of([number % 5]) for number in range(7)]
    optim = dict(type='ExampleMeanOptimWrapper', optimizer=dict(type='SGD', lr=0.5))
    wrapper = build_optim_wrapper(model, dict(optim, accumulative_counts=3))
    wrapper.initialize_count_status(model, 0, 7)
    for batch in batches:
        model.train_step(batch, wrapper)
    plain = build_optim_wrapper(reference, optim)
    for window in (batches[:3], batches[3:6], batches[6:]):
        joined = tuple(torch.cat(parts) for parts in zip(*window, strict=True))
        reference.train_step(joined, plain)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_loss_that_counts_nothing_is_the_mean_of_the_steps():
    """As mmengine has it: stock losses do not say how many examples they are of."""
    model = nn.Linear(3, 1).double()
    optim = dict(type='ExampleMeanOptimWrapper', optimizer=dict(type='SGD', lr=1.0))
    wrapper = build_optim_wrapper(model, dict(optim, accumulative_counts=2))
    wrapper.initialize_count_status(model, 0, 2)
    start, inputs = model.weight.detach().clone(), torch.randn(2, 3, dtype=torch.float64)
    for vector in inputs:
        with wrapper.optim_context(model):
            loss = model(vector).sum()
        wrapper.update_params(loss)
    torch.testing.assert_close(model.weight, start - inputs.mean(0), rtol=0, atol=1e-12)


def test_no_examples_at_all_are_no_loss_and_no_gradient():
    value = torch.tensor(3.0, requires_grad=True)
    loss = mean_over_ranks(value * 0, 0)
    loss.backward()
    assert loss.item() == 0 and value.grad.item() == 0
    labels = torch.full((2, 3, 3), IGNORED)
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    MODELS.build(dict(type='NaViTCrossEntropyLoss'))(logits, labels).backward()
    assert not logits.grad.any()


def test_cross_entropy_is_that_of_torch_on_labelled_pixels():
    pixels, labels = label_maps()
    logits, weight = torch.cat([pixels, pixels[:, :1]], 1), [0.5, 1.0, 2.0, 0.1]
    for options, more in (({}, {}), ({'class_weight': weight}, {'weight': torch.tensor(weight)})):
        loss = MODELS.build(dict(type='NaViTCrossEntropyLoss', loss_weight=0.4, **options))
        more = {key: value.double() for key, value in more.items()}
        expected = 0.4 * F.cross_entropy(logits, labels, ignore_index=IGNORED, **more)
        torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-6, atol=0)
    assert loss.loss_name == 'loss_ce'  # mmseg adds up what begins so


def work(rank, address, folder):
    """One of two processes: all tasks and shares, their updates saved by the first."""
    dist.init_process_group('gloo', init_method=f'file://{address}', rank=rank, world_size=2)
    for (task, (build, batch_of, parallel)), name in itertools.product(TASKS.items(), RANKS):
        model = parallel(build())
        change = updated(model, [batch_of(part) for part in RANKS[name][rank]])
        if rank == 0:
            torch.save(change, folder / f'{task}, {name}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(work, args=(folder / 'address', folder), nprocs=2)
    return folder


@every_task
@pytest.mark.parametrize('share', RANKS)
def test_uneven_ranks_are_one_batch(task, share, two_ranks):
    build, batch_of, _ = TASKS[task]
    expected = updated(build(), [batch_of(range(6))])
    found = torch.load(two_ranks / f'{task}, {share}.pt', weights_only=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
