"""Annotation files: what is against the format is named, what mmdet leaves out is found."""

import json

import numpy as np
import pytest
from coco_files import SIZES, write_coco
from mmdet.datasets import CocoDataset

from navit_backbone.tasks.detection.annotations import read_annotations

NAN = float('nan')


def write(tmp_path, part=None, number=1, **fields):
    """The file, with fields of one entry changed (None: removed)."""
    path = write_coco(tmp_path, 'some.json', 'images')
    content = json.loads(path.read_text())
    for key, value in fields.items():
        content[part][number][key] = value
        if value is None:
            del content[part][number][key]
    path.write_text(json.dumps(content))
    return path


def test_a_sound_file_is_read_as_it_is(tmp_path):
    path = write(tmp_path)
    found = read_annotations(str(path))
    content = json.loads(path.read_text())
    assert found.images == content['images']
    assert found.annotations == content['annotations']
    assert found.categories == content['categories']
    assert found.picture_sizes() == dict(enumerate(SIZES))
    assert found.unusable() == {}


@pytest.mark.parametrize(
    ('part', 'fields', 'rule'),
    [
        ('images', dict(file_name=None), "each needs the field 'file_name'"),
        ('images', dict(file_name=7), 'file_name must be a text'),
        ('images', dict(height=None), "each needs the field 'height'"),
        ('images', dict(height=0), 'height must be 1 pixel or more'),
        ('images', dict(width=-5), 'width must be 1 pixel or more'),
        ('images', dict(width='640'), 'width must be 1 pixel or more'),
        ('images', dict(width=NAN), 'width must be 1 pixel or more'),
        ('images', dict(width=10**400), 'width must be 1 pixel or more'),
        ('images', dict(id=0), 'each id must stand once'),
        ('images', dict(id=[1]), 'id must be a number or a text'),
        ('categories', dict(id=2), 'each id must stand once'),
        ('categories', dict(name=None), "each needs the field 'name'"),
        ('categories', dict(name=7), 'name must be a text'),
        ('annotations', dict(id=1), 'each id must stand once'),
        ('annotations', dict(id=None), "each needs the field 'id'"),
        ('annotations', dict(image_id=None), "each needs the field 'image_id'"),
        ('annotations', dict(image_id={}), 'image_id must be a number or a text'),
        ('annotations', dict(category_id=77), r'one of the 3 categories \(2, 5, 8\)'),
        ('annotations', dict(category_id='2'), r'one of the 3 categories \(2, 5, 8\)'),
        ('annotations', dict(bbox=None), "each needs the field 'bbox'"),
        ('annotations', dict(bbox=[1, 2, 3]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=['1', '2', '3', '4']), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, NAN, 4]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, 3, [4]]), 'bbox must be four numbers'),
        ('annotations', dict(bbox='whole'), 'bbox must be four numbers'),
        ('annotations', dict(area='12'), 'area must be a number'),
        ('annotations', dict(area=float('inf')), 'area must be a number'),
        ('annotations', dict(area=10**400), 'area must be a number'),
        ('annotations', dict(iscrowd='0'), 'iscrowd must be 0, or 1'),
        ('annotations', dict(iscrowd=3), 'iscrowd must be 0, or 1'),
    ],
)
def test_what_is_against_the_format_is_named(tmp_path, part, fields, rule):
    path = write(tmp_path, part, **fields)
    with pytest.raises(ValueError, match=rule) as error:
        read_annotations(str(path))
    said = str(error.value)
    total = dict(images=4, categories=3, annotations=8)[part]
    assert said.startswith(f'{path}, {part}: ')
    assert f'; 1 of {total} is against it, the first: {{"' in said


def test_the_first_of_many_is_named_and_the_others_are_counted(tmp_path):
    path = write(tmp_path, 'annotations', 2, bbox=[NAN] * 4)
    content = json.loads(path.read_text())
    for item in content['annotations'][5:]:
        item['bbox'] = [1, 2]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'4 of 8 are against it, the first: {"id": 3, "image_id"'):
        read_annotations(str(path))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{"images": [', 'is not JSON'),
        ('\udcff', 'is not JSON'),
        ('[1, 2]', 'has no categories'),
        ('{"images": [], "annotations": []}', 'has no categories'),
        ('{"images": [], "annotations": [], "categories": []}', 'has no categories'),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', 'lists no images: each needs'),
        ('{"images": {"id": 1}, "categories": [{"id": 1, "name": "a"}]}', 'images must be a list'),
        ('{"images": [1], "categories": [{"id": 1, "name": "a"}]}', 'images must be a list'),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, words):
    path = tmp_path / 'some.json'
    path.write_text(content, errors='surrogateescape')
    with pytest.raises(ValueError, match=words) as error:
        read_annotations(str(path))
    assert str(path) in str(error.value)


def test_no_annotations_are_legal(tmp_path):
    """As in COCO's own test sets."""
    path = write_coco(tmp_path, 'some.json', 'images')
    content = json.loads(path.read_text())
    del content['annotations']
    path.write_text(json.dumps(content))
    found = read_annotations(str(path))
    assert found.annotations == []
    assert found.unusable() == {}


def test_ids_of_coco128_are_legal(data_root):
    found = read_annotations(str(data_root / 'coco128/annotations/instances_train2017.json'))
    assert [item['id'] for item in found.categories] == list(range(80))


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        (dict(bbox=[10, 10, 0, 20]), 'less than 1 pixel wide or high'),
        (dict(bbox=[10, 10, 20, 0.9]), 'less than 1 pixel wide or high'),
        (dict(bbox=[50, 50, -20, 20]), 'less than 1 pixel wide or high'),
        (dict(bbox=[-30, 0, 30, 20]), 'outside the picture'),
        (dict(bbox=[0, 97, 30, 20]), 'outside the picture'),
        (dict(area=0), 'of area 0 or less'),
        (dict(image_id=99), 'of an image_id that is not listed'),
        (dict(image_id='1'), 'of an image_id that is not listed'),
    ],
)
def test_a_box_that_cannot_be_used_is_found(tmp_path, fields, reason):
    found = read_annotations(str(write(tmp_path, 'annotations', 2, **fields)))
    ((said, (box,)),) = found.unusable().items()
    assert said == reason
    assert box['id'] == 3


@pytest.mark.parametrize('seed', range(5))
def test_boxes_that_cannot_be_used_are_those_that_mmdet_leaves_out(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = write_coco(tmp_path, 'some.json', 'images')
    content = json.loads(path.read_text())
    template = content['annotations'][0]
    content['annotations'] = [
        template
        | dict(id=i, image_id=int(random.integers(4)), area=float(random.integers(-1, 4)))
        | dict(bbox=[float(x) for x in random.integers([-90, -90, -3, -3], [90, 90, 90, 90])])
        for i in range(300)
    ]
    path.write_text(json.dumps(content))
    names, prefix = dict(classes=('a', 'b', 'c')), dict(img='')
    stock = CocoDataset(ann_file=str(path), metainfo=names, data_prefix=prefix, pipeline=[])
    used = sum(len(stock.get_data_info(i)['instances']) for i in range(len(stock)))
    unusable = read_annotations(str(path)).unusable()
    assert len(unusable) == 3
    assert sum(map(len, unusable.values())) == 300 - used


@pytest.mark.parametrize(
    ('segmentation', 'rule'),
    [
        (dict(size=[5, 5], counts=[25]), "in run lengths must be the picture's height and width"),
        (dict(counts=[25]), 'must be a list of polygons'),
        (dict(size=[61, 113], counts=None), 'must be a list of polygons'),
        ('polygon', 'must be a list of polygons'),
        ([1, 2, 3, 4, 5, 6], 'must be a list of polygons'),
        ([[1, 2, 3, 4, 5, '6']], 'must be a list of polygons'),
        ([[1, 2, 3, 4, 5, NAN]], 'must be a list of polygons'),
    ],
)
def test_a_mask_against_the_format_is_named_where_masks_are_asked_for(tmp_path, segmentation, rule):
    found = read_annotations(str(write(tmp_path, 'annotations', segmentation=segmentation)))
    with pytest.raises(ValueError, match=f'{rule}.*; 1 of 8 is against it, the first: {{"id": 2'):
        found.without_mask()


@pytest.mark.parametrize('segmentation', [None, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]])
def test_annotations_without_a_mask_are_found(tmp_path, segmentation):
    path = write(tmp_path, 'annotations', segmentation=segmentation)
    assert [item['id'] for item in read_annotations(str(path)).without_mask()] == [2]


@pytest.mark.parametrize(
    'segmentation',
    [[[1, 2, 3, 4]] * 2 + [[0, 0, 9, 0, 9, 9]], dict(size=[61, 113], counts=[61 * 113])],
)
def test_masks_of_all_forms_are_masks(tmp_path, segmentation):
    path = write(tmp_path, 'annotations', segmentation=segmentation)
    assert read_annotations(str(path)).without_mask() == []
