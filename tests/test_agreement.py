"""Parts of an experiment that do not agree are refused before the first step."""

import json
from types import SimpleNamespace

import pytest
import torch
from coco_files import write_coco, write_lvis
from detectors import FASTER_RCNN, RETINANET, batch, stock_detector
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, METRICS, init_default_scope
from torch import nn

from navit_backbone.tasks.common.class_check import check_classes, check_same_classes
from navit_backbone.tasks.detection.agreement import (
    check_channels,
    check_evaluator,
    limit_remarks,
)

TRAIN, VAL = (f'annotations/instances_{split}.json' for split in ('train', 'val'))


def build(root, ann_file=TRAIN, kind='NaViTCocoDataset'):
    init_default_scope('mmdet')
    data = dict(type=kind, data_root=str(root), ann_file=ann_file)
    return DATASETS.build(dict(data_prefix=dict(img=''), pipeline=[], **data))


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def test_a_head_that_counts_otherwise_is_refused(tmp_path):
    write_coco(tmp_path, TRAIN)
    data = build(tmp_path)
    right = nn.ModuleDict({'bbox_head': Head(3), 'rpn_head': Head(1), 'backbone': Head(1000)})
    check_classes(right, data)
    wrapped = nn.ModuleDict({'module': nn.ModuleDict({'bbox_head': Head(80)})})
    for model in (wrapped, wrapped['module']):
        with pytest.raises(
            ValueError, match=r'bbox_head \(Head\) has num_classes=80, but .*\.json has 3 classes'
        ) as error:
            check_classes(model, data)
        assert 'set model.bbox_head.num_classes=3' in str(error.value)


def test_splits_with_other_classes_are_refused(tmp_path):
    write_coco(tmp_path, TRAIN, classes=('a', 'b'))
    write_coco(tmp_path, VAL, classes=('b', 'a'))
    with pytest.raises(ValueError, match=r"has \['a', 'b'\], .*instances_val.json \['b', 'a'\]"):
        check_same_classes(build(tmp_path), build(tmp_path, VAL))


def test_label_maps_that_are_read_in_two_ways_are_refused():
    parts = [
        SimpleNamespace(metainfo=dict(classes=['a']), reduce_zero_label=value, ann_file=name)
        for name, value in (('train', True), ('val', False))
    ]
    check_same_classes(parts[0], parts[0])
    with pytest.raises(ValueError, match='reduce_zero_label differs: train has True, val False'):
        check_same_classes(*parts)


# --------------------------------------------------------------------------------------------------
# Channels


@pytest.mark.parametrize(
    ('config', 'strides'), [(RETINANET, [8, 16, 32, 64, 128]), (FASTER_RCNN, [4, 8, 16, 32, 64])]
)
def test_channels_that_fit_are_taken(config, strides):
    check_channels(stock_detector(config, strides=strides))


@pytest.mark.parametrize(
    ('config', 'strides', 'part', 'field'),
    [
        (RETINANET, [8, 16, 32, 64, 128], 'bbox_head', 'in_channels'),
        (FASTER_RCNN, [4, 8, 16, 32, 64], 'rpn_head', 'in_channels'),
        (FASTER_RCNN, [4, 8, 16, 32, 64], 'roi_head.bbox_roi_extractor', 'out_channels'),
    ],
)
def test_a_head_for_other_maps_is_refused(config, strides, part, field):
    model = stock_detector(config, strides=strides, channels=16)
    setattr(model.get_submodule(part), field, 24)
    for wrapped in (model, nn.ModuleDict({'module': model})):
        with pytest.raises(
            ValueError, match=f'{part} has {field}=24, but the neck gives maps of 16 channels: set '
        ) as error:
            check_channels(wrapped)
    assert f'model.{part}.{field}=16, or model.neck.out_channels=24' in str(error.value)


def test_a_neck_for_another_backbone_is_refused_at_the_first_step():
    model = stock_detector(RETINANET, strides=[8, 16, 32, 64, 128])
    model.neck.in_channels = 256
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r'in_channels=256, but is given maps of 24 channels: set'),
    ):
        model.test_step(batch([(40, 56)]))


# --------------------------------------------------------------------------------------------------
# The evaluator's annotations


def evaluator(path, kind='NaViTCocoMetric'):
    return Evaluator(dict(type=kind, ann_file=str(path)))


@pytest.mark.parametrize(
    ('write', 'kind'),
    [
        (write_coco, 'NaViTCocoDataset'),
        (write_lvis, 'NaViTLVISDataset'),
    ],
)
def test_an_evaluator_of_other_pictures_is_refused(tmp_path, write, kind):
    metric = kind.replace('Dataset', 'Metric')
    own = write(tmp_path, VAL, sizes=[(61, 113), (97, 64)])
    others = write(tmp_path / 'others', VAL, sizes=[(61, 113), (64, 97)])
    more = write(tmp_path / 'more', VAL, sizes=[(61, 113), (97, 64), (50, 40)])
    data = build(tmp_path, VAL, kind)
    check_evaluator(evaluator(own, metric), data)
    check_evaluator(evaluator(more, metric), data)  # of which the data set may be a part
    with pytest.raises(ValueError, match=rf'{metric} compares with .*others/.*does not have image'):
        check_evaluator(evaluator(others, metric), data)


def test_stock_metrics_are_left_alone(tmp_path):
    path = write_coco(tmp_path, VAL)
    other = json.loads(path.read_text())
    for image in other['images']:
        image['id'] += 100
    (tmp_path / 'other.json').write_text(json.dumps(other | dict(annotations=[])))
    check_evaluator(evaluator(tmp_path / 'other.json', 'CocoMetric'), build(tmp_path, VAL))


def test_sizes_that_annotations_lack_are_those_of_the_data_set(tmp_path):
    path = write_coco(tmp_path, VAL)
    content = json.loads(path.read_text())
    sizes = {image['id']: (image.pop('height'), image.pop('width')) for image in content['images']}
    path.write_text(json.dumps(content))
    lacking = evaluator(path)
    check_evaluator(lacking, build(tmp_path, VAL))
    assert lacking.metrics[0].picture_sizes == sizes


@pytest.mark.parametrize(
    ('write', 'kind'), [(write_coco, 'NaViTCocoDataset'), (write_lvis, 'NaViTLVISDataset')]
)
@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (None, 'has no annotations: there is no box to compare with'),
        (dict(image_id='0007'), 'Of 8 boxes 8 of an image_id that is not listed .*"0007"'),
        (dict(bbox=[9, 9, -5, 5]), 'Of 8 boxes 8 0 pixels wide or high, .* width and height posit'),
    ],
)
def test_an_evaluation_without_a_box_to_compare_with_is_refused(
    tmp_path, write, kind, changes, words
):
    path = write(tmp_path, VAL)
    content = json.loads(path.read_text())
    content['annotations'] = [item | changes for item in content['annotations'] if changes]
    path.write_text(json.dumps(content))
    init_default_scope('mmdet')
    data = DATASETS.build(
        dict(
            type=kind,
            data_root=str(tmp_path),
            ann_file=VAL,
            data_prefix=dict(img=''),
            pipeline=[],
            test_mode=True,
        )
    )
    with pytest.raises(ValueError, match=f'instances_val.json.*{words}'):
        check_evaluator(evaluator(path, kind.replace('Dataset', 'Metric')), data)


# --------------------------------------------------------------------------------------------------
# Limits


@pytest.mark.parametrize(
    ('model', 'keys'),
    [
        (dict(test_cfg=dict(max_per_img=3)), ['model.test_cfg.max_per_img=3']),
        (dict(test_cfg=dict(max_per_img=4)), []),
        (dict(test_cfg=dict(max_per_img=-1)), []),
        (dict(module=dict(test_cfg=dict(max_per_img=3))), ['model.test_cfg.max_per_img=3']),
        (dict(num_queries=2, test_cfg=dict(max_per_img=300)), ['model.num_queries=2']),
        (
            dict(test_cfg=dict(rpn=dict(max_per_img=1), rcnn=dict(max_per_img=2))),
            ['model.test_cfg.rpn.max_per_img=1', 'model.test_cfg.rcnn.max_per_img=2'],
        ),
        ({}, []),
    ],
)
def test_limits_that_images_exceed_are_reported(tmp_path, model, keys):
    path = write_coco(tmp_path, VAL)
    content = json.loads(path.read_text())
    for item in content['annotations'][:5]:
        item['image_id'] = 1
    content['annotations'][4]['iscrowd'] = 1
    path.write_text(json.dumps(content))
    remarks = list(limit_remarks(model, evaluator(path).metrics))
    for remark, key in zip(remarks, keys, strict=True):
        name = key.split('=')[0]
        assert f'an image holds 4 objects, but {key} lets at most' in remark
        assert remark.startswith(str(path)) and remark.endswith(f'set {name}=4 or more')


def test_the_limit_of_lvis_is_reported(tmp_path):
    path = write_lvis(tmp_path, VAL)
    metric = METRICS.build(dict(type='NaViTLVISMetric', ann_file=str(path), max_dets=1))
    (remark,) = limit_remarks({}, [metric])
    assert 'holds 2 objects, but evaluator.max_dets=1 lets' in remark
