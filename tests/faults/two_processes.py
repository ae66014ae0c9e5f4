"""Two processes against one: whose gradients are the same, and what the others give.

    python tests/faults/two_processes.py [--heads NAME...]

Two gloo processes share four pictures of different sizes and numbers of boxes, on one canvas, and
DDP averages their gradients; one process gets all four. Where a loss is divided by the counts of
all processes, the gradients agree. Where each process divides by its own, the outcome is the mean
of the gradients that the two shares have alone. Each head must do what is said of it here, or the
exit status is 1.

What a head draws at random is switched off: samplers take all, and DINO's denoising queries come
in one group without noise. All is computed in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mmcv.ops
import torch
import torch.distributed as dist
from mmdet.models.dense_heads import rpn_head
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import MODELS
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as pytest has it
from detectors import ARCH, DINO, FASTER_RCNN, FCOS, MASK_RCNN, RETINANET, sample, stock_detector
from oracles import perturb

CASCADE = 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
CANVAS = 256
PICTURES = [(96, 70, 2), (61, 113, 1), (128, 128, 2), (33, 50, 0)]  # height, width, boxes
# How many of the pictures the first process gets. Shares are told apart by their most boxes too:
# DINO pads its denoising queries to these, so both shares of the first two have the same.
SPLITS = {'1 + 3': 1, '2 + 2': 2, '3 + 1 without a box': 3}


@dataclass(frozen=True)
class Head:
    """A detector, and by what it divides its losses."""

    config: str
    synced: bool
    tolerance: float = 1e-6  # mmdet adds 1.2e-7 to what it divides by


HEADS = {
    'backbone and pyramid': Head('', synced=True, tolerance=1e-10),
    'FCOS': Head(FCOS, synced=True),
    'DINO': Head(DINO, synced=True),
    'RetinaNet': Head(RETINANET, synced=False),
    'Faster R-CNN': Head(FASTER_RCNN, synced=False),
    'Mask R-CNN': Head(MASK_RCNN, synced=False),
    'Cascade Mask R-CNN': Head(CASCADE, synced=False),
}


class Maps(BaseModel):
    """Our parts alone, under a sum over pictures divided by the mean count of all processes."""

    def __init__(self) -> None:
        scale = dict(mean=[127.0] * 3, std=[50.0] * 3)
        super().__init__(data_preprocessor=dict(type='NaViTDetDataPreprocessor', **scale))
        neck = dict(in_channels=24, out_channels=16, strides=(8, 16, 32))
        self.backbone = MODELS.build(dict(type='NaViTBackbone', arch=ARCH, position='factorised'))
        self.neck = MODELS.build(dict(type='SimpleFeaturePyramid', **neck))

    def forward(self, inputs, data_samples, mode):
        count = torch.tensor(float(len(inputs)))
        all_reduce(count, 'mean')
        weights = torch.linspace(-1, 2, 16)[:, None, None]
        maps = self.neck(self.backbone(inputs))
        return dict(loss=sum((level.square() * weights).sum() for level in maps) / count)


def build(head: Head) -> nn.Module:
    """The same model in every process, nothing about it random."""
    torch.manual_seed(0)
    if not head.config:
        return perturb(Maps()).train()
    strides = (4, 8, 16, 32, 64) if head.config == CASCADE else None
    model = stock_detector(head.config, strides=strides).train()
    model.init_weights()  # before, some of DINO's parameters are whatever memory held
    perturb(model, scale=0.05)
    model.data_preprocessor.pad_size_divisor = CANVAS
    for part in (getattr(model, 'rpn_head', None), getattr(model, 'roi_head', None)):
        for name in ('sampler', 'bbox_sampler'):
            samplers = getattr(part, name, [])
            for sampler in samplers if isinstance(samplers, list) else [samplers]:
                sampler.num = 10**6
    if head.config == DINO:
        queries = model.dn_query_generator
        queries.dynamic_dn_groups, queries.num_groups = False, 1
        queries.label_noise_scale = queries.box_noise_scale = 1e-14
        model.positional_encoding.register_forward_hook(lambda *call: call[-1].double())
    return model


def batch(pictures):
    """Pictures as a loader collates them."""
    pairs = []
    for h, w, num_boxes in pictures:
        image, data_sample = sample((h, w), seed=h)
        data_sample.gt_instances = data_sample.gt_instances[:num_boxes]
        pairs.append((image, data_sample))
    images, samples = zip(*pairs, strict=True)
    return dict(inputs=list(images), data_samples=list(samples))


def gradient(head: Head, pictures) -> Tensor:
    """That of a training step, all parameters in one vector; DDP's where there are processes."""
    with in_float64():
        model = build(head).double()
        step = MMDistributedDataParallel(model) if dist.is_initialized() else model
        data = model.data_preprocessor(batch(pictures), True)
        loss, _ = model.parse_losses(step(**data, mode='loss'))
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@contextlib.contextmanager
def in_float64():
    """All of a detector in float64, but for mmcv's NMS, which picks regions in float32 alone."""

    def batched_nms(boxes, scores, *args):
        return mmcv.ops.batched_nms(boxes.float(), scores.float(), *args)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(rpn_head, 'batched_nms', batched_nms):
            yield
    finally:
        torch.set_default_dtype(before)


def work(rank: int, names: list[str], splits: list[str], port: int, out: str) -> None:
    """One of the two processes: the gradients of its shares."""
    torch.set_num_threads(1)
    MMLogger.get_instance(__name__, log_level='ERROR')
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    found = {
        (name, split): gradient(HEADS[name], shares(split)[rank])
        for name in names
        for split in splits
    }
    torch.save(found, f'{out}/{rank}.pt')
    dist.destroy_process_group()


def shares(split: str):
    """The pictures of the two processes."""
    return PICTURES[: SPLITS[split]], PICTURES[SPLITS[split] :]


def of_two(names: list[str], splits: list[str]) -> dict[tuple[str, str], Tensor]:
    """By head and split, the gradient that both processes end up with."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as out:
        torch.multiprocessing.spawn(work, (names, splits, port, out), nprocs=2)
        first, second = (torch.load(f'{out}/{rank}.pt') for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first), 'the processes differ'
    return first


@dataclass(frozen=True)
class Comparison:
    """How far the gradient of two processes is from that of one, |two - one| / |one|, by split;
    and from the mean of what the two shares give alone.
    """

    head: Head
    to_one: dict[str, float]
    to_mean: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether the head does what `HEADS` says of it, and not the other."""
        near, far = (self.to_one, self.to_mean) if self.head.synced else (self.to_mean, self.to_one)
        worst = max(near[split] for split in near if self._promised(split))
        return worst < self.head.tolerance < 0.01 < far['1 + 3']

    def _promised(self, split: str) -> bool:
        return self.head.config != DINO or split != '3 + 1 without a box'


def compare(names: list[str], splits: list[str]) -> dict[str, Comparison]:
    """Each head with two processes and with one."""
    found, result = of_two(names, splits), {}
    for name in names:
        head = HEADS[name]
        one = gradient(head, PICTURES)
        result[name] = Comparison(head, {}, {})
        for split in splits:
            mean = sum(gradient(head, share) for share in shares(split)) / 2
            result[name].to_one[split] = distance(found[name, split], one)
            result[name].to_mean[split] = distance(found[name, split], mean)
    return result


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--heads', nargs='+', choices=HEADS, default=list(HEADS), metavar='NAME')
    names = parser.parse_args().heads
    MMLogger.get_instance(__name__, log_level='ERROR')
    result = compare(names, list(SPLITS))
    print('Distance of the gradient of two processes from that of one, by pictures a process:')
    print(f'{"":22}{"divided by counts of":22}', *(f'{split:>21}' for split in SPLITS))
    for name, item in result.items():
        by = 'all processes' if item.head.synced else 'each process'
        figures = (f'{item.to_one[split]:21.1e}' for split in SPLITS)
        print(f'{name:22}{by:22}', *figures, '' if item.holds else '  NOT what is said of it')
    apart = max((max(i.to_mean.values()) for i in result.values() if not i.head.synced), default=0)
    print(f'Those of "each process" are at most {apart:.1e} from the mean of what the shares give.')
    return 0 if all(item.holds for item in result.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
