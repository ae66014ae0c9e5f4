"""COCO's figures: mmdet's own, and right where those are wrong or absent."""

import json

import numpy as np
import pytest
import torch
from coco_files import SIZES, write_coco
from mmengine.registry import METRICS, init_default_scope
from pycocotools import mask as coco_mask

import navit_backbone.tasks.detection  # noqa: F401  registers

CLASSES = ('a', 'b', 'c')


def build(path, kind='NaViTCocoMetric', **options):
    init_default_scope('mmdet')
    metric = METRICS.build(dict(type=kind, ann_file=str(path), **options))
    metric.dataset_meta = dict(classes=CLASSES)
    return metric


def figures(metric, content, *, offset=0.0, nothing=False, masks=False):
    """Of detections that are the truth, moved by random offsets."""
    random = np.random.default_rng(0)
    labels = {item['id']: label for label, item in enumerate(content['categories'])}
    for image in content['images']:
        boxes = [item for item in content['annotations'] if item['image_id'] == image['id']]
        boxes = [] if nothing else boxes
        corners = np.array([item['bbox'] for item in boxes]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners += random.normal(0, offset, corners.shape)
        found = dict(
            bboxes=torch.tensor(corners),
            scores=torch.linspace(0.9, 0.5, len(boxes)),
            labels=torch.tensor([labels[item['category_id']] for item in boxes], dtype=torch.long),
        )
        size = image['height'], image['width']
        if masks:
            codes = [coco_mask.frPyObjects(item['segmentation'], *size) for item in boxes]
            found['masks'] = [coco_mask.merge(code) for code in codes]
        sample = dict(img_id=image['id'], ori_shape=size, pred_instances=found)
        metric.process(None, [sample])
    return metric.evaluate(len(content['images']))


def changed(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return content


@pytest.mark.parametrize('offset', [0.0, 3.0, 8.0])
def test_figures_are_those_of_mmdet(tmp_path, offset):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    content = changed(path, lambda content: content['annotations'][2].update(iscrowd=1))
    kinds = dict(metric=['bbox', 'segm'], classwise=True)
    ours, theirs = (
        figures(build(path, kind, **kinds), content, offset=offset, masks=True)
        for kind in ('NaViTCocoMetric', 'CocoMetric')
    )
    assert ours == theirs
    assert (ours['coco/bbox_mAP'] < 1) == (offset > 0)


def number_from_0(content):
    for number, item in enumerate(content['annotations']):
        item['id'] = number


def leave_out_iscrowd(content):
    for item in content['annotations']:
        del item['iscrowd']


@pytest.mark.parametrize('edit', [number_from_0, leave_out_iscrowd])
def test_the_truth_has_ap_1_whatever_the_ids_and_without_iscrowd(tmp_path, edit):
    """Stock, id 0 costs 0.19 of the AP here, and a box without iscrowd ends the evaluation."""
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    content = changed(path, edit)
    assert set(figures(build(path), content).values()) == {1}


@pytest.mark.parametrize('metric', ['bbox', ['bbox', 'segm']])
def test_nothing_found_has_ap_0(tmp_path, metric):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES, sizes=SIZES[:2])
    content = json.loads(path.read_text())
    masks = metric != 'bbox'
    found = figures(build(path, metric=metric), content, nothing=True, masks=masks)
    assert len(found) == 6 * (1 + masks)
    assert {name: value for name, value in found.items() if name.endswith('mAP')} == {
        f'coco/{kind}_mAP': 0 for kind in ('bbox', 'segm')[: 1 + masks]
    }
    assert found['coco/bbox_mAP_l'] == -1  # there are no large boxes, as COCO says it


def test_nothing_there_and_nothing_found_is_no_error(tmp_path):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES, annotations=[])
    found = figures(build(path), json.loads(path.read_text()))
    assert set(found.values()) == {-1}


def test_annotations_against_the_format_are_refused_at_the_start(tmp_path):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    changed(path, lambda content: content['annotations'][1].update(segmentation=[]))
    build(path)
    with pytest.raises(ValueError, match=r'val.json: 1 of 8 annotations have no mask \(id 2\)'):
        build(path, metric=['bbox', 'segm'])
    changed(path, lambda content: content['annotations'][1].update(bbox=[1, 2, 3]))
    with pytest.raises(ValueError, match='bbox must be four numbers'):
        build(path)
