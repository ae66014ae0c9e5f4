"""COCO-format data, and what follows from its classes."""

import json

import pytest
import torch
from coco_files import write_coco
from detectors import STRIDES, batch, stock_detector
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData

from navit_backbone.tasks.common.classes import (
    class_names,
    follow_classes,
    override,
    set_num_classes,
)
from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.detection import data as data_module

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


@pytest.mark.parametrize(
    ('classes', 'words'),
    [
        (['c', 'a'], r"in its order, \['a', 'c'\]"),
        ([], r"in its order, \['a', 'b', 'c'\]"),
        (['a', 'd'], "'d' is none of the 3 categories of .*which has a, b, c"),
        ('a', r"must be a list of names, as \['a'\]"),
    ],
)
def test_other_classes_or_another_order_are_refused(tmp_path, classes, words):
    """mmdet would take them, and number them as the file does: names and labels would part."""
    write_coco(tmp_path, ANNOTATIONS, 'images')
    with pytest.raises(ValueError, match=words):
        build(tmp_path, metainfo=dict(classes=classes))


def test_a_slip_in_a_class_is_told_with_what_was_meant(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images', classes=('cat', 'raccoon', 'zebra'))
    with pytest.raises(ValueError, match="'racoon' is none of .*, which has raccoon: take"):
        build(tmp_path, metainfo=dict(classes=['cat', 'racoon']))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r'no annotation file at .*instances_train.json: set data_root'
    ):
        build(tmp_path)


def test_a_file_against_the_format_is_refused(tmp_path):
    path = write_coco(tmp_path, ANNOTATIONS, 'images')
    change(path, lambda content: content['annotations'][1].update(bbox='1 2 3 4'))
    with pytest.raises(ValueError, match='annotations: bbox must be four numbers'):
        build(tmp_path)


def test_pictures_may_lie_in_the_root(tmp_path):
    write_coco(tmp_path, ANNOTATIONS)
    data = DATASETS.build(
        dict(type='NaViTCocoDataset', data_root=str(tmp_path), ann_file=ANNOTATIONS, pipeline=[])
    )
    assert data.get_data_info(0)['img_path'] == str(tmp_path / '0.jpg')


def test_samples_are_those_of_mmdet(data_root):
    options = dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='images/'))
    options |= dict(data_root=str(data_root / 'coco128'), filter_cfg=dict(filter_empty_gt=True))
    ours = build('', **options)
    theirs = build(
        '', type='CocoDataset', metainfo=dict(classes=ours.metainfo['classes']), **options
    )
    assert len(ours) == len(theirs) > 100
    infos = [[data.get_data_info(i) for i in range(len(data))] for data in (ours, theirs)]
    assert infos[0] == infos[1]
    assert [ours.get_cat_ids(i) for i in range(5)] == [theirs.get_cat_ids(i) for i in range(5)]


# --------------------------------------------------------------------------------------------------
# What is legal, and yet most likely not meant

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='ResizeToTokenBudget', max_tokens=16, patch_size=16),
    dict(type='PackDetInputs'),
]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def remarks(root, monkeypatch, edit, **options):
    """What is logged of a file with a change, and the data set."""
    change(write_coco(root, ANNOTATIONS, 'images'), edit)
    lines = []
    monkeypatch.setattr(data_module, 'print_log', lambda text, *_: lines.append(text))
    return build(root, **options), lines


def test_a_sound_file_is_read_in_silence(tmp_path, monkeypatch):
    assert remarks(tmp_path, monkeypatch, lambda content: None, pipeline=PIPELINE)[1] == []


def test_boxes_left_out_are_counted(tmp_path, monkeypatch):
    def edit(content):
        for item in content['annotations'][:6]:
            item['bbox'][2] = 0
        content['annotations'][6]['bbox'][0] = 5000

    data, lines = remarks(tmp_path, monkeypatch, edit)
    assert lines == [
        f'{data.ann_file}: 6 of 8 boxes are left out of training, less than 1 pixel wide or high: '
        'id 1, 2, 3, 4, 5, ...',
        f'{data.ann_file}: 1 of 8 boxes are left out of training, outside the image: id 7',
        f'{data.ann_file}: 1 of 8 boxes reach beyond the right or lower border of their images: '
        'check that width, height and bbox are of the same images',
    ]
    assert [len(data.get_data_info(i)['instances']) for i in range(4)] == [0, 0, 0, 1]


def test_classes_without_a_box_are_told_but_only_those_in_use(tmp_path, monkeypatch):
    def edit(content):
        content['categories'] += [dict(id=20, name='d'), dict(id=21, name='e')]

    data, lines = remarks(tmp_path, monkeypatch, edit, metainfo=dict(classes=['a', 'd']))
    assert lines == [f'{data.ann_file}: 1 of 2 classes have no box: d']


def test_crowds_are_ignored_in_training_wherever_a_picture_is_shown(tmp_path, monkeypatch):
    data, lines = remarks(
        tmp_path,
        monkeypatch,
        lambda content: content['annotations'][1].update(iscrowd=1),
        pipeline=PIPELINE,
        test_mode=True,
    )
    sample = data[0]['data_samples']
    assert lines == []
    assert len(sample.gt_instances) == len(sample.ignored_instances) == 1
    (height, width), (x1, y1, x2, y2) = sample.img_shape, sample.ignored_instances.bboxes.tensor[0]
    assert (x1 / width, y1 / height) == pytest.approx((0.2, 0.1), abs=1e-5)
    assert (x2 / width, y2 / height) == pytest.approx((0.7, 0.7), abs=1e-5)


@pytest.mark.parametrize('segmentation', [None, [], [[1, 2, 3, 4]]])
def test_a_box_without_a_mask_is_ignored_and_counted(tmp_path, monkeypatch, segmentation):
    data, lines = remarks(
        tmp_path,
        monkeypatch,
        lambda content: content['annotations'][1].update(segmentation=segmentation),
        pipeline=PIPELINE,
        test_mode=True,
    )
    assert lines == [f'{data.ann_file}: 1 of 8 boxes have no mask and are ignored: id 2']
    sample = data[0]['data_samples']
    assert len(sample.gt_instances) == len(sample.ignored_instances) == 1
    assert (
        build(tmp_path, pipeline=PIPELINE[:1]).get_data_info(0)['instances'][1]['ignore_flag'] == 0
    )


def test_masks_outside_their_image_are_ignored_and_counted(tmp_path, monkeypatch):
    outside = [[20, 70, 30, 70, 30, 90]]  # of an image 61 pixels high
    data, lines = remarks(
        tmp_path,
        monkeypatch,
        lambda content: content['annotations'][1].update(segmentation=outside),
        pipeline=PIPELINE,
        test_mode=True,
    )
    assert lines[0].endswith('1 of 8 boxes have a mask outside their image and are ignored: id 2')
    assert '1 of 8 masks lie outside their boxes: id 2' in lines[1]
    sample = data[0]['data_samples']
    assert len(sample.gt_instances) == len(sample.ignored_instances) == 1


def test_a_file_of_masks_outside_their_images_is_refused(tmp_path):
    def edit(content):
        for item in content['annotations']:
            item['segmentation'] = [[900, 70, 930, 70, 930, 90]]

    change(write_coco(tmp_path, ANNOTATIONS, 'images'), edit)
    with pytest.raises(ValueError, match='loads masks: 8 have a mask outside their image'):
        build(tmp_path, pipeline=PIPELINE)


def test_a_file_without_any_mask_is_refused_where_masks_are_loaded(tmp_path):
    def edit(content):
        for item in content['annotations']:
            del item['segmentation']

    change(write_coco(tmp_path, ANNOTATIONS, 'images'), edit)
    build(tmp_path)
    with pytest.raises(ValueError, match='no annotation has a segmentation with a pixel'):
        build(tmp_path, pipeline=PIPELINE)


# --------------------------------------------------------------------------------------------------
# Pictures without boxes


def without_boxes(content, *numbers):
    content['annotations'] = [i for i in content['annotations'] if i['image_id'] not in numbers]


def test_a_picture_without_boxes_is_kept_or_left_out_as_asked(tmp_path):
    change(write_coco(tmp_path, ANNOTATIONS, 'images'), lambda content: without_boxes(content, 1))
    for filter_cfg, count in ((None, 4), (dict(filter_empty_gt=True), 3)):
        data = build(tmp_path, filter_cfg=filter_cfg, pipeline=PIPELINE)
        assert len(data) == count
    empty = build(tmp_path, pipeline=PIPELINE, test_mode=True)[1]['data_samples'].gt_instances
    assert empty.bboxes.tensor.shape == (0, 4)
    assert empty.masks.masks.shape[0] == len(empty.labels) == 0


def test_a_file_that_leaves_nothing_is_named(tmp_path):
    write_coco(tmp_path, ANNOTATIONS, 'images')
    with pytest.raises(ValueError, match=r'instances_train.json: none of its 4 images is left'):
        build(tmp_path, filter_cfg=dict(min_size=1000))


def test_a_palette_has_as_many_different_colours():
    for count in (1, 5, 80):
        colours = palette(count)
        assert len({*colours}) == count
        assert all(0 <= value <= 255 for colour in colours for value in colour)


@pytest.mark.parametrize('config', STRIDES, ids=lambda config: config.split('/')[0])
def test_a_batch_of_an_empty_picture_and_a_crowd_can_be_trained_on(config):
    torch.manual_seed(0)
    model, data = stock_detector(config), batch([(61, 113), (97, 64)])
    empty, crowd = data['data_samples']
    crowd.ignored_instances = InstanceData(bboxes=crowd.gt_instances.bboxes)
    for sample in (empty, crowd):
        sample.gt_instances = sample.gt_instances[:0]
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode='loss'))
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


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


def test_the_weights_of_classes_follow_too():
    head = dict(type='H', num_classes=80, loss_cls=dict(class_weight=[1.0] * 80 + [0.1]))
    set_num_classes(dict(head=head), 3)
    assert head['loss_cls']['class_weight'] == [1.0, 1.0, 1.0, 0.1]
    uneven = dict(type='H', num_classes=2, loss_cls=dict(class_weight=[1.0, 2.0, 0.1]))
    with pytest.raises(ValueError, match='H weighs 2 classes one by one'):
        set_num_classes(dict(head=uneven), 3)


def test_splits_that_disagree_are_refused(tmp_path):
    write_coco(tmp_path, 'annotations/instances_train.json', 'images', classes=('a', 'b'))
    write_coco(tmp_path, 'annotations/instances_val.json', 'images', classes=('b', 'a'))
    with pytest.raises(ValueError, match='disagree in their classes'):
        follow_classes(config(tmp_path))


# --------------------------------------------------------------------------------------------------
# What is completed, left out or refused before the first step


def test_images_left_out_are_counted_with_the_option_that_keeps_them(tmp_path, monkeypatch):
    def edit(content):
        without_boxes(content, 1, 3)
        content['annotations'][0]['bbox'][2] = 0  # still an image with a box for mmdet

    data, lines = remarks(tmp_path, monkeypatch, edit, filter_cfg=dict(filter_empty_gt=True))
    assert len(data) == 2
    assert lines[-1] == (
        f'{data.ann_file}: 2 of 4 images have no box to learn from and are left out; '
        'filter_cfg.filter_empty_gt=False of this data set keeps them'
    )
    kept, lines = remarks(tmp_path, monkeypatch, edit, filter_cfg=dict(filter_empty_gt=False))
    assert len(kept) == 4
    assert not any('left out; filter_cfg' in line for line in lines)


def test_images_of_few_pixels_are_counted(tmp_path, monkeypatch):
    data, lines = remarks(tmp_path, monkeypatch, lambda _: None, filter_cfg=dict(min_size=12))
    assert len(data) == 3
    assert lines == [
        f'{data.ann_file}: 1 of 4 images are left out, smaller than filter_cfg.min_size=12'
    ]


def test_a_training_set_without_a_box_is_refused_and_a_test_set_is_not(tmp_path):
    path = write_coco(tmp_path, ANNOTATIONS, 'images')
    change(path, lambda content: [item.update(iscrowd=1) for item in content['annotations']])
    with pytest.raises(ValueError, match=r'no box of a, b, c to learn from. Of 8 boxes 8 a crowd'):
        build(tmp_path)
    change(path, lambda content: content.pop('annotations'))
    with pytest.raises(ValueError, match=r'instances_train.json has no annotations'):
        build(tmp_path)
    assert len(build(tmp_path, test_mode=True)) == 4


def test_sizes_and_areas_are_completed(tmp_path, monkeypatch):
    def edit(content):
        for item in content['images']:
            del item['height'], item['width']
        for item in content['annotations']:
            del item['area']

    plain = build(write_coco(tmp_path, ANNOTATIONS, 'images').parents[1])
    data, lines = remarks(tmp_path, monkeypatch, edit)
    assert [data.get_data_info(i) for i in range(4)] == [plain.get_data_info(i) for i in range(4)]
    assert lines == [
        f'{data.ann_file}: 8 of 8 annotations have no area, which is taken from their mask or box'
    ]


def test_an_image_without_a_size_that_cannot_be_read_is_left_out_of_training(tmp_path, monkeypatch):
    def edit(content):
        del content['images'][1]['height'], content['images'][1]['width']
        (tmp_path / 'images/1.jpg').write_bytes(b'')

    data, (line,) = remarks(tmp_path, monkeypatch, edit)
    assert [data.get_data_info(i)['img_id'] for i in range(len(data))] == [0, 2, 3]
    assert line.startswith(f'{data.ann_file}: 1 of 4 images have no height and width, and the file')
    assert 'images/1.jpg' in line
    with pytest.raises(ValueError, match=r'1 of 4 images have no height and width.*images/1.jpg'):
        build(tmp_path, test_mode=True)


def test_file_names_with_backslashes_and_urls_are_found(tmp_path, monkeypatch):
    def edit(content):
        for item, name in zip(content['images'], ('a\\0.jpg', 'http://x/1.jpg?w=1'), strict=False):
            item['file_name'] = name

    data, lines = remarks(tmp_path, monkeypatch, edit)
    assert [data.get_data_info(i)['img_path'] for i in range(2)] == [
        str(tmp_path / 'images/0.jpg'),
        str(tmp_path / 'images/1.jpg'),
    ]
    assert lines == [
        f'{data.ann_file}: file_name is a URL in 1 of 4 images: the last part of each is looked '
        'for in data_prefix.img'
    ]


def test_one_of_two_categories_of_a_name_can_be_chosen(tmp_path):
    path = write_coco(tmp_path, ANNOTATIONS, 'images')
    change(path, lambda content: content['categories'].insert(0, dict(id=0, name='a')))
    for options in ({}, dict(metainfo=dict(classes=['a', 'b', 'c']))):
        data = build(tmp_path, **options)
        assert data.metainfo['classes'] == ('a', 'b', 'c')
        assert [item['bbox_label'] for item in data.get_data_info(1)['instances']] == [1, 2]
