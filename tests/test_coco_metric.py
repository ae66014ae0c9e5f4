"""COCO's figures: mmdet's own, and right where those are wrong or absent."""

import json
import multiprocessing
import re

import numpy as np
import pytest
import torch
from coco_files import SIZES, write_coco, write_lvis
from mmengine.registry import METRICS, init_default_scope
from pycocotools import mask as coco_mask

from navit_backbone.tasks.detection import metric as metric_module
from navit_backbone.tasks.detection.average_precision import Truth

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
        corners = np.array([item['bbox'] for item in boxes], dtype=float).reshape(-1, 4)
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
    outside = [[900, 70, 930, 70, 930, 90]]
    changed(path, lambda content: content['annotations'][1].update(segmentation=outside))
    with pytest.raises(ValueError, match=r'1 of 8 annotations have a mask outside their image'):
        build(path, metric=['bbox', 'segm'])
    changed(path, lambda content: content['annotations'][1].update(bbox=[1, 2, 3]))
    with pytest.raises(ValueError, match='bbox must be four numbers'):
        build(path)


# --------------------------------------------------------------------------------------------------
# More objects than COCO's evaluation counts, and boxes that nothing can match


def dense(tmp_path, side=12):
    """An image of side x side objects of one class, with their masks."""
    boxes = [[20 * (k % side) + 2, 20 * (k // side) + 2, 14, 12] for k in range(side * side)]
    content = dict(
        images=[dict(id=1, file_name='x.jpg', height=20 * side, width=20 * side)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b'), dict(id=3, name='c')],
        annotations=[],
    )
    for number, (x, y, w, h) in enumerate(boxes, start=1):
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        shape = dict(bbox=[x, y, w, h], area=w * h, segmentation=[corners], iscrowd=0)
        content['annotations'].append(dict(id=number, image_id=1, category_id=1, **shape))
    path = tmp_path / 'dense.json'
    path.write_text(json.dumps(content))
    return path, content


def refuse_process(process: multiprocessing.process.BaseProcess) -> None:
    raise AssertionError(f'{process} would be forked from a process with threads, and may hang')


@pytest.mark.parametrize('nums', [(100, 300, 1000), (1000, 1000, 1000), (10, 50, 100)])
@pytest.mark.parametrize('use_mp_eval', [False, True])
def test_the_truth_has_ap_1_with_more_than_100_objects_of_a_class(
    tmp_path, nums, use_mp_eval, monkeypatch
):
    monkeypatch.setattr(multiprocessing.process.BaseProcess, 'start', refuse_process)
    path, content = dense(tmp_path)
    metric = build(
        path, metric=['bbox', 'segm'], proposal_nums=nums, use_mp_eval=use_mp_eval, classwise=True
    )
    assert metric.proposal_nums[-1] == max(144, nums[-1])
    found = figures(metric, content, masks=True)
    assert found['coco/bbox_mAP'] == found['coco/segm_mAP'] == found['coco/bbox_mAP_50'] == 1
    assert found['coco/a_precision'] == 1


def test_the_limit_that_is_raised_is_reported(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(metric_module, 'print_log', lambda text, *_: lines.append(text))
    path, _ = dense(tmp_path)
    build(path)
    assert lines == [
        f'{path}: an image holds 144 objects of one class: AP counts the 1,000 best detections of '
        "a class in an image (the last of proposal_nums), where COCO's counts 100"
    ]
    changed(path, lambda content: content['annotations'].__delitem__(slice(100, None)))
    assert build(path).proposal_nums == [100, 300, 1000]
    assert len(lines) == 1


def test_mmdet_is_left_as_it_was(tmp_path):
    path, content = dense(tmp_path)
    figures(build(path), content)
    stock = figures(build(path, 'CocoMetric'), content)
    assert stock['coco/bbox_mAP'] < 0.75 < stock['coco/bbox_mAP_50']


def test_boxes_that_nothing_can_match_do_not_count(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(metric_module, 'print_log', lambda text, *_: lines.append(text))
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    sound = json.loads(path.read_text())
    beyond = dict(sound['annotations'][0], id=99, bbox=[5000, 5, 9, 9])
    flat = dict(sound['annotations'][1], id=98, bbox=[5, 5, -9, 9])
    changed(path, lambda content: content['annotations'].extend([beyond, flat]))
    assert set(figures(build(path), sound).values()) == {1}
    assert lines == [
        f'{path}: 1 of 10 boxes are left out of the evaluation, 0 pixels wide or high, or less: '
        'id 98',
        f'{path}: 1 of 10 boxes are left out of the evaluation, outside the image: id 99',
    ]


def test_all_evaluations_leave_out_the_same_boxes(tmp_path):
    """COCO's, LVIS's and our own AP of the truth are 1, whatever nothing can match."""
    path = write_lvis(tmp_path, 'val.json', classes=CLASSES)
    sound = json.loads(path.read_text())

    def edit(content):
        for item in content['images']:
            item['file_name'] = 'x.jpg'
        for number, change in enumerate(
            (dict(bbox=[5000, 5, 9, 9]), dict(bbox=[5, 5, 9, 0]), dict(image_id=77))
        ):
            content['annotations'].append(dict(sound['annotations'][0], id=90 + number, **change))

    changed(path, edit)
    for kind in ('NaViTCocoMetric', 'NaViTLVISMetric'):
        found = figures(build(path, kind, metric=['bbox', 'segm']), sound, masks=True)
        assert {value for value in found.values() if value >= 0} == {1}
    (ap,) = Truth(path, CLASSES).match([dict(box, score=0.5) for box in sound['annotations']])
    np.testing.assert_allclose(ap(np.ones((1, len(SIZES)), dtype=int)), 1, rtol=0, atol=1e-12)


def test_our_own_ap_counts_as_many_detections_as_the_metric(tmp_path):
    path, content = dense(tmp_path)
    (ap,) = Truth(path, CLASSES).match([dict(b, score=0.5) for b in content['annotations']])
    assert ap(np.ones((1, 1), dtype=int)).min() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('metric', ['bbox,segm', 'mAP', [], ['bbox', 'mask']])
def test_an_unknown_metric_is_refused(tmp_path, metric):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    with pytest.raises(ValueError, match=re.escape(f'metric={metric!r} must be one of bbox, ')):
        build(path, metric=metric)


def test_a_degenerate_polygon_before_a_sound_one_is_no_box(tmp_path):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    sound = json.loads(path.read_text())

    def edit(content):
        for item in content['annotations'][::2]:
            item['segmentation'].insert(0, [1, 2, 30, 40])

    changed(path, edit)
    found = figures(build(path, metric=['bbox', 'segm']), sound, masks=True)
    assert found['coco/segm_mAP'] == 1


def test_ids_that_are_text_in_places_count(tmp_path):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)

    def edit(content):
        content['images'][2]['id'] = 'two'
        for item in content['annotations'][4:6]:
            item['image_id'] = 'two'

    content = changed(path, edit)
    for item in content['images']:
        item['id'] = str(item['id'])
    for item in content['annotations']:
        item['image_id'] = str(item['image_id'])
    assert set(figures(build(path, metric=['bbox', 'segm']), content, masks=True).values()) == {1}


def test_sizes_that_the_file_lacks_are_taken_from_the_data(tmp_path):
    path = write_coco(tmp_path, 'val.json', classes=CLASSES)
    content = json.loads(path.read_text())

    def edit(content):
        for item in content['images']:
            del item['height'], item['width']

    changed(path, edit)
    metric = build(path, metric=['bbox', 'segm'])
    assert set(metric.picture_sizes.values()) == {None}
    metric.complete_sizes(dict(enumerate(SIZES)))
    assert metric.picture_sizes == dict(enumerate(SIZES))
    assert set(figures(metric, content, masks=True).values()) == {1}
