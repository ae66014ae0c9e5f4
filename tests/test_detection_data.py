"""COCO-format data, and what follows from its classes."""

import json

import pytest
from coco_files import write_coco
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from navit_backbone.tasks.detection.data import (
    check_classes,
    check_same_classes,
    class_names,
    follow_classes,
    override,
    palette,
    set_num_classes,
)

ANNOTATIONS = 'annotations/instances_train.json'


def dataset_cfg(root, **options):
    data = dict(type='NaViTCocoDataset', data_root=str(root), ann_file=ANNOTATIONS)
    return {**data, 'data_prefix': dict(img='images/'), 'pipeline': [], **options}


def build(root, **options):
    init_default_scope('mmdet')
    return DATASETS.build(dataset_cfg(root, **options))


def test_classes_come_from_the_file(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images', classes=('zebra', 'ant', 'cat'))
    data = build(tmp_path)
    assert data.metainfo['classes'] == ('zebra', 'ant', 'cat')
    assert len(data.metainfo['palette']) == 3
    info = data.get_data_info(1)
    assert [item['bbox_label'] for item in info['instances']] == [1, 2]
    assert info['img_path'].endswith('images/1.jpg')


def test_classes_are_known_before_the_samples_are_read(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images')
    data = build(tmp_path, lazy_init=True)
    assert data.metainfo['classes'] == ('a', 'b', 'c')
    assert not data._fully_initialized
    assert class_names(dataset_cfg(tmp_path)) == ('a', 'b', 'c')


def test_a_part_of_the_classes(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images')
    data = build(tmp_path, metainfo=dict(classes=['a', 'c']))
    labels = [i['bbox_label'] for n in range(len(data)) for i in data.get_data_info(n)['instances']]
    assert data.metainfo['classes'] == ('a', 'c')
    assert set(labels) == {0, 1}
    assert data.get_data_info(1)['instances'][0]['bbox_label'] == 1  # of b and c the latter


@pytest.mark.parametrize('classes', [['c', 'a'], ['a', 'd'], []])
def test_other_classes_or_another_order_are_refused(tmp_path, classes):
    """mmdet would take them, and number them as the file does: names and labels would part."""
    write_coco(tmp_path, ANNOTATIONS, 'images')
    with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\]"):
        build(tmp_path, metainfo=dict(classes=classes))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r'no annotation file at .*instances_train.json: set data_root'
    ):
        build(tmp_path)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"images": [', 'is not JSON'),
        ('[1, 2]', 'has no categories'),
        ('{"images": [], "annotations": []}', 'has no categories'),
        ('{"images": [], "annotations": [], "categories": []}', 'has no categories'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', 'a category without name'),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, text, words):
    path = write_coco(tmp_path, ANNOTATIONS, 'images')
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        build(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ('part', 'field'), [('annotations', 'area'), ('annotations', 'bbox'), ('images', 'height')]
)
def test_a_missing_field_is_named(tmp_path, part, field):
    path = write_coco(tmp_path, ANNOTATIONS, 'images')
    content = json.loads(path.read_text())
    del content[part][1][field]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"lacks the field '{field}'"):
        build(tmp_path)


def test_a_palette_has_as_many_different_colours():
    for count in (1, 5, 80):
        colours = palette(count)
        assert len({*colours}) == count
        assert all(0 <= value <= 255 for colour in colours for value in colour)


# --------------------------------------------------------------------------------------------------
# Overrides, and models that follow


def config(root, **model):
    """As our configs are: one root, which loaders and metric repeat."""
    loaders = {
        split: dict(dataset=dataset_cfg(root, ann_file=f'annotations/instances_{split}.json'))
        for split in ('train', 'val')
    }
    return Config(
        dict(
            data_root=f'{root}/',
            default_scope='mmdet',
            model=model
            or dict(type='RetinaNet', bbox_head=dict(type='RetinaHead', num_classes=80)),
            train_dataloader=loaders['train'],
            val_dataloader=loaders['val'],
            test_dataloader=loaders['val'],
            val_evaluator=dict(
                type='CocoMetric', ann_file=f'{root}/annotations/instances_val.json'
            ),
        )
    )


def test_data_root_moves_all_that_stands_under_it(tmp_path):
    cfg = config('old/set')
    cfg.merge_from_dict({'test_dataloader.dataset.data_root': 'old/settled'})
    override(cfg, {'data_root': 'new', 'model.bbox_head.num_classes': 7})
    assert cfg.data_root == 'new'
    assert cfg.train_dataloader.dataset.data_root == 'new'
    assert cfg.val_dataloader.dataset.data_root == 'new'
    assert cfg.test_dataloader.dataset.data_root == 'old/settled'  # another set stays
    assert cfg.val_evaluator.ann_file == 'new/annotations/instances_val.json'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train.json'
    assert cfg.model.bbox_head.num_classes == 7


def test_data_root_may_lie_below_the_old_one_and_other_options_win():
    cfg = config('old')
    override(cfg, {'data_root': 'old/set', 'train_dataloader.dataset.data_root': 'old/other'})
    assert cfg.data_root == 'old/set'
    assert cfg.train_dataloader.dataset.data_root == 'old/other'
    assert cfg.val_evaluator.ann_file == 'old/set/annotations/instances_val.json'


def test_classes_reach_every_data_set():
    cfg = config('set')
    wrapped = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = wrapped
    override(cfg, {'classes': 'a'})  # as `classes=a` on the command line is read
    assert cfg.train_dataloader.dataset.dataset.metainfo.classes == ['a']
    assert cfg.val_dataloader.dataset.metainfo.classes == ['a']


def test_the_model_follows_the_data(tmp_path):
    for split in ('train', 'val'):
        write_coco(tmp_path, f'annotations/instances_{split}.json', 'images')
    cfg = config(tmp_path)
    assert follow_classes(cfg) == ('a', 'b', 'c')
    assert cfg.model.bbox_head.num_classes == 3


def test_every_head_follows_but_those_of_other_classes():
    model = dict(
        backbone=dict(num_classes=1000),
        rpn_head=dict(num_classes=1),
        roi_head=dict(
            bbox_head=[dict(type='A', num_classes=80), dict(type='B', num_classes=80)],
            mask_head=dict(num_classes=80),
            semantic_head=dict(num_classes=183),
        ),
    )
    set_num_classes(model, 3)
    heads = model['roi_head']
    assert [head['num_classes'] for head in (*heads['bbox_head'], heads['mask_head'])] == [3] * 3
    assert (model['backbone'], model['rpn_head']) == (dict(num_classes=1000), dict(num_classes=1))
    assert heads['semantic_head']['num_classes'] == 183


def test_splits_that_disagree_are_refused(tmp_path):
    write_coco(tmp_path, 'annotations/instances_train.json', 'images', classes=('a', 'b'))
    write_coco(tmp_path, 'annotations/instances_val.json', 'images', classes=('b', 'a'))
    with pytest.raises(ValueError, match='disagree in their classes'):
        follow_classes(config(tmp_path))
    train, val = (
        build(tmp_path, ann_file=f'annotations/instances_{split}.json')
        for split in ('train', 'val')
    )
    with pytest.raises(ValueError, match=r"has \['a', 'b'\], .*instances_val.json \['b', 'a'\]"):
        check_same_classes(train, val)


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def test_a_head_that_counts_otherwise_is_refused(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images')
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
