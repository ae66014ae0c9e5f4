"""IoU of regions and boundaries against plain numpy, and against mmseg's own metric."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image

from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.segmentation import metric as metric_module
from navit_backbone.tasks.segmentation.metric import NaViTIoUMetric, boundaries

CLASSES = ('sky', 'grass', 'cow', 'unicorn')


def maps(size, seed, classes=3):
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=size)
    found = np.where(random.random(size) < 0.6, truth, random.integers(classes, size=size))
    truth[random.random(size) < 0.2] = 255
    return found, truth


def evaluated(pairs, metric=None, classes=CLASSES):
    metric = metric or NaViTIoUMetric()
    metric.dataset_meta = dict(classes=classes, palette=palette(len(classes)))
    for number, (found, truth) in enumerate(pairs):
        sample = SegDataSample(metainfo=dict(img_path=f'{number}.jpg'))
        sample.pred_sem_seg = PixelData(data=torch.as_tensor(found)[None])
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(pairs))


def by_hand(pairs, num):
    """Straight from the definitions, pixel by pixel."""
    inside, outside, labelled = (np.zeros(num) for _ in range(3))
    for found, truth in pairs:
        valid = truth != 255
        for label in range(num):
            inside[label] += ((found == label) & (truth == label) & valid).sum()
            outside[label] += (((found == label) | (truth == label)) & valid).sum()
            labelled[label] += (truth == label).sum()
    with np.errstate(invalid='ignore'):
        iou, acc = inside / outside, inside / labelled
    return dict(
        aAcc=100 * inside.sum() / labelled.sum(),
        mIoU=100 * np.nanmean(iou),
        mAcc=100 * np.nanmean(acc),
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 23), st.integers(1, 31), st.integers(0, 10**6)),
        min_size=1,
        max_size=4,
    )
)
def test_as_the_definitions_and_as_mmseg(sizes):
    pairs = [maps((h, w), seed) for h, w, seed in sizes]
    if all((truth == 255).all() for _, truth in pairs):
        return
    found = evaluated(pairs)
    for key, value in by_hand(pairs, len(CLASSES)).items():
        assert found[key] == pytest.approx(value, abs=0.0051), key
    theirs = evaluated(pairs, IoUMetric())
    for key in ('aAcc', 'mIoU', 'mAcc'):
        assert found[key] == pytest.approx(float(theirs[key]), abs=0.011), key


def test_a_class_without_a_pixel_stays_out_and_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(metric_module, 'print_log', lambda text, *_: said.append(text))
    truth = np.zeros((8, 8), dtype=np.int64)
    truth[4:] = 1
    found = evaluated([(truth, truth)])
    assert found['mIoU'] == 100
    assert '2 of 4 classes have no pixel in truth or prediction' in said[-1]
    assert 'cow, unicorn' in said[-1]


def plain_boundaries(found, truth, width, label):
    """Pixels from which the square of that width reaches beyond the region, one by one."""

    def boundary(region):
        padded = np.pad(region, width)
        h, w = region.shape
        out = np.zeros_like(region)
        for y in range(h):
            for x in range(w):
                window = padded[y : y + 2 * width + 1, x : x + 2 * width + 1]
                out[y, x] = region[y, x] and not window.all()
        return out

    valid = truth != 255
    ours, theirs = (boundary((item == label) | ~valid) for item in (found, truth))
    return (ours & theirs & valid).sum(), (ours | theirs)[valid].sum()


@pytest.mark.parametrize('size', [(1, 40), (17, 31), (40, 3)])
@pytest.mark.parametrize('ratio', [0.02, 0.1])
def test_boundaries_pixel_by_pixel(size, ratio):
    random = np.random.default_rng(0)
    truth = np.kron(random.integers(3, size=(4, 4)), np.ones((10, 10), dtype=int))
    truth = truth[: size[0], : size[1]].astype(np.uint8)
    found = np.roll(truth, 1, axis=1)
    truth[0, 0] = 255
    width = max(1, round(ratio * np.hypot(*size)))
    for label, both, either in boundaries(found, truth, truth != 255, ratio=ratio):
        assert (both, either) == plain_boundaries(found, truth, width, label)


def test_right_on_every_labelled_pixel_is_right_on_every_boundary():
    truth = np.zeros((100, 120), dtype=np.int64)
    truth[20:80, 20:80] = 1
    ignored = truth.copy()
    ignored[10:50, 30:60] = ignored[90:, 100:] = 255
    found = evaluated([(truth, ignored)], classes=('paper', 'square'))
    assert found['mIoU'] == found['mBIoU'] == 100


def test_a_shifted_region_loses_more_of_its_boundary():
    truth = np.zeros((100, 100), dtype=np.int64)
    truth[20:80, 20:80] = 1
    found = evaluated([(np.roll(truth, 2, axis=0), truth)], classes=('paper', 'square'))
    assert found['mBIoU'] < found['mIoU'] - 10
    assert 'mBIoU' not in evaluated([(truth, truth)], NaViTIoUMetric(boundary_ratio=None))


def test_more_pixels_than_float32_counts():
    """mmseg counts in float32, whose whole numbers end at 2 ** 24."""
    truth = np.zeros((1, 2**24 + 3), dtype=np.uint8)
    found = truth.copy()
    found[0, :2] = 1
    metric = NaViTIoUMetric(boundary_ratio=None)
    metric.dataset_meta = dict(classes=('a', 'b'))
    counts = metric._count(torch.as_tensor(found[0]), torch.as_tensor(truth[0]), 2)
    assert counts.confusion.tolist() == [[0, 0, 2**24 + 1], [0, 1, 2]]


def test_files(tmp_path):
    pairs = [maps((30, 40), 0)]
    found = evaluated(pairs, NaViTIoUMetric(output_dir=str(tmp_path)))
    listed = json.loads((tmp_path / 'per_class.json').read_text())
    assert list(listed) == list(CLASSES)
    assert listed['unicorn']['IoU'] is None
    mean = np.mean([listed[name]['IoU'] for name in CLASSES[:3]])
    assert 100 * mean == pytest.approx(found['mIoU'], abs=0.01)
    confusion = np.array(json.loads((tmp_path / 'confusion.json').read_text())['pixels'])
    assert confusion.sum() == (pairs[0][1] != 255).sum()
    (picture,) = json.loads((tmp_path / 'pictures.json').read_text())['pictures']
    assert picture['size'] == [30, 40]
    assert sum(pixels for *_, pixels in picture['confusion']) == confusion.sum()
    kept = np.array(Image.open(tmp_path / 'labels' / picture['labels']))
    assert (kept == pairs[0][0]).all()
    truth = np.array(Image.open(tmp_path / 'truth' / picture['labels']))
    assert (truth == pairs[0][1]).all()
    assert Image.open(tmp_path / 'confusion.png').width > 100


@pytest.mark.parametrize(
    ('size', 'told'),
    [((9, 8), 'LoadSegMap must come after the resize'), (None, 'without its truth')],
)
def test_a_prediction_without_its_truth_is_refused(size, told):
    metric = NaViTIoUMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    sample = dict(img_path='a.jpg', pred_sem_seg=dict(data=torch.zeros(1, 8, 8)))
    if size:
        sample['gt_sem_seg'] = dict(data=torch.zeros(1, *size))
    with pytest.raises(ValueError, match=told):
        metric.process({}, [sample])
