"""The arithmetic of detection's benchmark, and that its rows run. No timing."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_files import write_coco
from hypothesis import given
from hypothesis import strategies as st
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from navit_backbone.tasks.common.resize import ResizeToTokenBudget
from navit_backbone.tools import benchmark
from navit_backbone.tools import benchmark_detection as detection
from navit_backbone.tools.run_record import RunRecord

SIZES = [(61, 113), (97, 64), (130, 88), (53, 170), (75, 75), (160, 59)] * 2
sides = st.integers(8, 900)


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """Of a folder with pictures laid out as coco128's are."""
    folder = tmp_path_factory.mktemp('benchmark')
    classes = [str(number) for number in range(80)]
    root = folder / 'coco128'
    write_coco(root, detection.TRAIN, 'images/train2017', sizes=SIZES, classes=classes)
    arguments = ['--smoke', '--data', str(folder), '--device', 'cpu', '--pairs', '2']
    args = benchmark.parse_args([*arguments, '--batch-size', '2', '--scale', '0.5'])
    return benchmark.setting_of(args)


@pytest.fixture
def shallow(monkeypatch):
    """One block in the models of the rows: nothing that is tried here depends on depth."""
    whole = detection.config_of

    def config_of(head, data):
        cfg = whole(head, data)
        cfg.model.backbone.arch.num_layers = 1
        return cfg

    monkeypatch.setattr(detection, 'config_of', config_of)


def labelled(size, boxes):
    """A picture with boxes, as a loader gives it."""
    sample = DetDataSample(metainfo=dict(img_shape=size))
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(tensor))
    return sample


def test_masks_are_the_boxes_filled():
    boxes = [[2, 3, 5, 6], [0, 0, 0.4, 0.4], [6.5, 1, 9, 8]]
    samples = [labelled((8, 9), boxes), labelled((5, 7), [])]
    found = detection.filled_boxes(dict(data_samples=samples))['data_samples']
    masks = found[0].gt_instances.masks.to_ndarray()
    expected = np.zeros((3, 8, 9), bool)
    expected[0, 3:7, 2:6] = expected[1, 0, 0] = expected[2, 1:, 6:] = True
    assert np.array_equal(masks.astype(bool), expected)
    assert found[1].gt_instances.masks.to_ndarray().shape == (0, 5, 7)


class Photos:
    """What is asked of a data set for the sizes of its pictures."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def get_data_info(self, index):
        return dict(zip(('height', 'width'), self.sizes[index], strict=True))


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=8), st.integers(1, 1000))
def test_resized_by_stock_mmdet_photos_have_as_many_pixels(sizes, max_tokens):
    """By the factor of mmcv's `rescale_size`: the long and the short side within the scale."""
    resize = ResizeToTokenBudget(max_tokens, patch_size=16)
    short = detection._short_side(Photos(sizes), resize)
    long = short * 1333 / 800
    factors = [min(long / max(size), short / min(size)) for size in sizes]
    theirs = sum(h * w * k * k for (h, w), k in zip(sizes, factors, strict=True))
    assert theirs == pytest.approx(sum(math.prod(resize.target_size(*size)) for size in sizes))


def test_padded_photos_count_the_canvas_of_their_batch(setting):
    cfg = detection.config_of('RetinaNet', setting.data)
    batch = dict(inputs=[torch.zeros(3, *size) for size in [(130, 40), (16, 129)]])
    assert detection._canvas_tokens(cfg, batch) == (256 // 16) ** 2  # its divisor is 128


def test_a_step_of_each_head_is_compared(setting, shallow):
    rows = detection.step_rows(setting, 'tiny')
    assert [row.what.split(':')[0] for row in rows] == list(detection.HEADS)
    for row in rows:
        assert '2 rounds: no figure' in row.figure
        assert float(row.flops.split()[0]) > 1  # a canvas is more than its pictures


def test_the_pipelines_are_compared_at_equal_pixels_without_a_warning(setting, recwarn):
    (row,) = detection.pipeline_rows(setting)
    (ratio,) = re.findall(r'theirs has (\S+) the pixels', row.detail)
    assert 0.8 < float(ratio) < 1.25  # the photos of two rounds are not all
    assert '2 rounds: no figure' in row.figure
    assert not [warning for warning in recwarn if 'plain index' in str(warning.message)]


def test_batches_are_below_their_budget_and_close_to_it(setting):
    (row,) = detection.sampler_rows(setting)
    mean, most = (float(share) for share in re.findall(r'([\d.]+) ?%', row.figure))
    assert 0 <= mean <= most < 10  # there are few pictures to choose from
    assert f'of {len(SIZES)} photos' in row.detail


def test_a_run_records_every_step(setting, shallow):
    threads = torch.get_num_threads()
    seen = detection.training_run(str(setting.data), 3, threads)
    assert [len(values) for values in (seen.took, seen.waited, seen.bytes)] == [3] * 3
    assert all(0 <= wait <= took for wait, took in zip(seen.waited, seen.took, strict=True))
    assert min(seen.bytes) > 2**24


def test_of_a_run_the_waiting_and_the_growth_are_told(setting, monkeypatch):
    """The first tenth warms up; the last tenth is compared with the second."""
    took, waited = [9.0] * 100 + [1.0] * 900, [9.0] * 100 + [0.25] * 900
    held = [1] * 10 + [100] * 10 + [500] * 70 + [110] * 10
    record = RunRecord(took, waited, held, every=10)
    monkeypatch.setattr(detection, 'in_new_process', lambda *_: record)
    wait, growth = detection.run_rows(replace(setting, smoke=False))
    assert (wait.figure, growth.figure) == ('25.00%', '1.100')
    assert 'smoke' in detection.run_rows(setting)[0].figure
