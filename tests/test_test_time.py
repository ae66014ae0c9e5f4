"""Views of a picture are merged into the objects of the picture itself, masks included."""

from pathlib import Path

import pytest
import torch
from coco_files import write_coco
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import InstanceData

from navit_backbone.tasks.detection.inference import with_flips

ROOT = Path(__file__).resolve().parents[1]
FLIPS = {'horizontal': [-1], 'vertical': [-2], 'diagonal': [-1, -2]}


class Nothing(BaseModel):
    """The merger wraps a model, which these tests do without."""

    def forward(self, inputs, data_samples=None, mode='predict'):
        raise AssertionError('not to be called')


def merger(max_per_img=100):
    settings = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=max_per_img)
    tta = dict(type='MaskTTAModel', module=Nothing(), tta_cfg=ConfigDict(settings))
    return MODELS.build(tta)


def found(masks, scores, labels, direction=None):
    """What a model finds in a view of a picture with objects of these masks [n, h, w]."""
    if direction is not None:
        masks = masks.flip(FLIPS[direction])
    h, w = masks.shape[1:]
    boxes = [
        torch.stack([m.any(0).nonzero().min(), m.any(1).nonzero().min(),
                     m.any(0).nonzero().max() + 1, m.any(1).nonzero().max() + 1])
        for m in masks
    ]  # fmt: skip
    sample = DetDataSample(
        metainfo=dict(ori_shape=(h, w), flip=direction is not None, flip_direction=direction)
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.stack(boxes).float() if boxes else torch.zeros(0, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=masks,
    )
    return sample


@pytest.fixture
def masks():
    """Three objects far apart, none of them symmetric, in a picture of odd sides."""
    masks = torch.zeros(3, 37, 53, dtype=torch.bool)
    masks[0, 2:9, 3:20] = masks[1, 20:35, 5:11] = masks[2, 12:17, 30:51] = True
    masks[0, 2, 3] = masks[1, 20, 5:9] = masks[2, 12:15, 30] = False
    return masks


@pytest.mark.parametrize('direction', FLIPS)
def test_object_of_both_views_is_found_once_where_it_is(masks, direction):
    plain = found(masks, [0.9, 0.5, 0.7], [1, 0, 2])
    other = found(masks, [0.8, 0.6, 0.3], [1, 0, 2], direction)
    (merged,) = merger().merge_preds([[other, plain]])
    result = merged.pred_instances
    assert result.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert result.labels.tolist() == [1, 2, 0]
    expected = found(masks, [0, 0, 0], [0, 0, 0]).pred_instances
    order = [0, 2, 1]
    assert torch.equal(result.masks, masks[order])
    torch.testing.assert_close(result.bboxes, expected.bboxes[order])


def test_what_one_view_alone_finds_stays_and_the_most_are_kept(masks):
    other = found(masks, [0.8, 0.6, 0.3], [1, 0, 2], 'horizontal')
    (merged,) = merger(max_per_img=2).merge_preds([[found(masks[:0], [], []), other]])
    assert merged.pred_instances.scores.tolist() == pytest.approx([0.8, 0.6])
    assert torch.equal(merged.pred_instances.masks, masks[:2])
    empty = [found(masks[:0], [], [], direction) for direction in (None, 'vertical')]
    (merged,) = merger().merge_preds([empty])
    assert len(merged.pred_instances) == 0


def test_boxes_without_masks(masks):
    views = [found(masks, [0.9, 0.5, 0.7], [1, 0, 2], d) for d in (None, 'horizontal')]
    for view in views:
        del view.pred_instances.masks
    (merged,) = merger().merge_preds([views])
    assert len(merged.pred_instances) == 3
    assert 'masks' not in merged.pred_instances


@pytest.mark.parametrize('family', ['retinanet', 'mask-rcnn'])
def test_whole_detector_through_its_pipeline(family, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/detection/{family}_navit-ti_20e_sample.py')
    init_default_scope('mmdet')
    data, limits = cfg.test_dataloader.dataset, cfg.model.test_cfg
    data.data_root, sizes = str(tmp_path), [(61, 113), (97, 64)]
    write_coco(tmp_path, data.ann_file, data.data_prefix.img, sizes=sizes)
    limits.get('rcnn', limits).update(score_thr=0.0, max_per_img=7)
    cfg.model.backbone.arch.num_layers = 1
    with_flips(cfg)
    dataset, model = DATASETS.build(data), MODELS.build(cfg.model).eval()
    items = [dataset[0], dataset[1]]
    batch = {key: list(map(list, zip(*(i[key] for i in items), strict=True))) for key in items[0]}
    with torch.no_grad():
        results = model.test_step(batch)
    for result, size in zip(results, sizes, strict=True):
        assert result.ori_shape == size
        assert len(result.pred_instances) == 7
        if family == 'mask-rcnn':
            assert result.pred_instances.masks.shape == (7, *size)
