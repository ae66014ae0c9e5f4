"""Annotation files: what is against the format is named, what mmdet leaves out is found."""

import json
import re

import numpy as np
import pytest
from coco_files import SIZES, write_coco
from hypothesis import given
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from pycocotools import mask as coco_mask

from navit_backbone.tasks.detection.annotations import (
    category_names,
    image_path,
    read_annotations,
)
from navit_backbone.tasks.detection.masks import mask_area, mask_box, mask_fault, run_lengths

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
        ('images', dict(width=None), "each needs the field 'width'"),
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
        ('annotations', dict(id=None), "each needs the field 'id'"),
        ('annotations', dict(image_id=None), "each needs the field 'image_id'"),
        ('annotations', dict(image_id={}), 'image_id must be a number or a text'),
        ('annotations', dict(category_id=77), r'one of the 3 categories \(2, 5, 8\)'),
        ('annotations', dict(category_id='two'), r'one of the 3 categories \(2, 5, 8\)'),
        ('annotations', dict(image_id=True), 'image_id must be a number or a text'),
        ('annotations', dict(image_id=NAN), 'image_id must be a number or a text'),
        ('annotations', dict(bbox=[1, 2, 10**30, 4]), 'must lie within 1,048,576 pixels; 1 of 8'),
        ('annotations', dict(bbox=[-(2**21), 2, 3, 4]), r'.*the first: {"id": 2, .*-2097152'),
        ('annotations', dict(bbox=[1, 2, 3]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=['1', '2', '3', '4']), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, NAN, 4]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, 3, [4]]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, True, 4]), 'bbox must be four numbers'),
        ('annotations', dict(bbox=[1, 2, float('inf'), 4]), 'bbox must be four numbers'),
        ('annotations', dict(area=True), 'area must be a number'),
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
        (dict(bbox=[-30, 0, 30, 20]), 'outside the image'),
        (dict(bbox=[0, 97, 30, 20]), 'outside the image'),
        (dict(area=0), 'of area 0 or less'),
        (dict(image_id=99), 'of an image_id that is not listed'),
        (dict(image_id='one'), 'of an image_id that is not listed'),
        (dict(ignore=1), 'marked as ignored'),
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
        (dict(size=[5, 5], counts=[25]), "in run lengths must be its image's height and width"),
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


@pytest.mark.parametrize(
    'segmentation',
    [
        *(None, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]),
        dict(size=[61, 113], counts=[61 * 113]),  # without a pixel
        dict(size=[61, 113], counts=']g6'),
    ],
)
def test_annotations_without_a_mask_are_found(tmp_path, segmentation):
    path = write(tmp_path, 'annotations', segmentation=segmentation)
    found = read_annotations(str(path))
    assert found.without_mask() == {'have no mask': [found.annotations[1]]}
    assert found.mask_remark() == ''


@pytest.mark.parametrize(
    'segmentation',
    [[[1, 2, 3, 4]] * 2 + [[0, 0, 9, 0, 9, 9]], dict(size=[61, 113], counts=[61 * 113 - 1, 1])],
)
def test_masks_of_all_forms_are_masks(tmp_path, segmentation):
    path = write(tmp_path, 'annotations', segmentation=segmentation)
    assert read_annotations(str(path)).without_mask() == {}


@pytest.mark.parametrize(
    ('polygons', 'outside'),
    [
        ([[20, 70, 30, 70, 30, 90]], True),  # below
        ([[-9, 5, 0, 5, 0, 9], [113, 5, 120, 5, 120, 9]], False),  # around, and meets the box
        ([[113, 5, 120, 5, 120, 9]], True),
        ([[113, 5, 120, 5, 120, 9], [1, 1, 5, 1, 5, 5]], False),
        ([[-9, 5, 0, 5, 0, 9]], True),
        ([[-9, 5, 1, 5, 1, 9]], False),
    ],
)
def test_a_mask_outside_its_image_is_found(tmp_path, polygons, outside):
    found = read_annotations(str(write(tmp_path, 'annotations', 0, segmentation=polygons)))
    expected = {'have a mask outside their image': found.annotations[:1]} if outside else {}
    assert found.without_mask() == expected


def test_a_mask_and_a_box_outside_the_image_are_left_to_the_box(tmp_path):
    shape = dict(segmentation=[[200, 0, 220, 0, 220, 9]], bbox=[200, 0, 20, 9])
    found = read_annotations(str(write(tmp_path, 'annotations', 0, **shape)))
    assert found.without_mask() == {}
    assert list(found.unusable()) == ['outside the image']


def swap_corners(content):
    """Write each polygon of two squares, one on the diagonal, as [y, x, y, x, ...]."""
    content['images'][0].update(height=300, width=300)
    content['annotations'] = content['annotations'][:2]
    for item, (x, y) in zip(content['annotations'], [(10, 200), (50, 50)], strict=True):
        polygon = [x, y, x + 9, y, x + 9, y + 9, x, y + 9]
        item.update(image_id=0, bbox=[x, y, 9, 9], segmentation=[polygon])
        item['segmentation'] = [[polygon[i ^ 1] for i in range(8)]]


def test_swapped_corners_within_the_image_are_remarked(tmp_path):
    found = edited(tmp_path, swap_corners)
    assert found.without_mask() == {}
    assert found.mask_remark() == (
        '1 of 2 masks lie outside their boxes: id 1; with x and y swapped 1 would lie on their '
        'boxes. If so, write each polygon as [x, y, x, y, ...]'
    )
    found.annotations[0]['bbox'] = [100, 5, 9, 9]
    assert found.mask_remark().endswith(
        'id 1. Check that segmentation and bbox are of the same object and image'
    )


# --------------------------------------------------------------------------------------------------
# What is completed


def edited(tmp_path, edit):
    """What is read of a file after `edit(content)`."""
    path = write_coco(tmp_path, 'some.json', 'images')
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return read_annotations(str(path))


def without_area(content):
    h, w = SIZES[0]
    first, second, third = content['annotations'][:3]
    first['segmentation'] = dict(size=[h, w], counts=[10, 20, h * w - 37, 7])
    del second['segmentation']
    third['segmentation'] = 'none of ours'
    for item in content['annotations']:
        item['area'] = None
    del first['area']


def test_an_absent_area_is_that_of_the_mask_else_of_the_box(tmp_path):
    found = edited(tmp_path, without_area)
    areas = [item['area'] for item in found.annotations]
    boxes = [item['bbox'][2] * item['bbox'][3] for item in found.annotations]
    assert areas[0] == 27
    assert areas[1:] == pytest.approx(boxes[1:])
    assert found.remarks == (
        '8 of 8 annotations have no area, which is taken from their mask or box',
    )


@pytest.mark.parametrize('absent', ['removed', None, []])
def test_an_absent_box_is_that_of_the_mask(tmp_path, absent):
    """Of polygons around their corners, of run lengths around their pixels, as COCO's boxes are."""
    pixels = np.zeros(SIZES[0], np.uint8)
    pixels[3:7, 5:40] = pixels[30, 20] = 1
    runs = coco_mask.encode(np.asfortranarray(pixels))
    masks = [
        [[1.5, 2, 9, 2, 9, 8.25], [1, 2, 3, 4], [4, 1, 6, 1, 6, 12]],
        dict(size=list(SIZES[0]), counts=runs['counts'].decode()),
        None,
    ]

    def edit(content):
        for item, mask in zip(content['annotations'], masks, strict=False):
            if mask:
                item.update(segmentation=mask, bbox=absent)
                if absent == 'removed':
                    del item['bbox']

    found = edited(tmp_path, edit)
    boxes = [item['bbox'] for item in found.annotations]
    assert boxes[:2] == [[1.5, 1, 7.5, 11], coco_mask.toBbox(runs).tolist()]
    assert boxes[1] == [5, 3, 35, 28]
    (remark,) = found.remarks
    assert remark == ('2 of 8 annotations have no bbox, which is taken from their mask: id 1, 2')


@pytest.mark.parametrize('mask', [None, [], [[1, 2, 3, 4]], dict(size=[61, 113], counts=[5])])
def test_an_absent_box_without_a_sound_mask_is_named(tmp_path, mask):
    def edit(content):
        del content['annotations'][1]['bbox']
        content['annotations'][1]['segmentation'] = mask

    with pytest.raises(
        ValueError,
        match="each needs the field 'bbox', or a mask to take it from; 1 of 8 is .*: {.id.: 2",
    ):
        edited(tmp_path, edit)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_the_box_of_run_lengths_is_that_of_pycocotools(height, width, seed):
    random = np.random.default_rng(seed)
    pixels = (random.random((height, width)) < random.random() ** 2).astype(np.uint8)
    rows, columns = np.nonzero(pixels)
    runs = np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2)) if pixels.size else []
    counts = np.diff(runs, prepend=0).tolist()
    box = mask_box(dict(size=[height, width], counts=counts))
    assert box == (
        None
        if not len(rows)
        else [
            columns.min(),
            rows.min(),
            columns.max() - columns.min() + 1,
            rows.max() - rows.min() + 1,
        ]
    )
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    assert (box or [0, 0, 0, 0]) == coco_mask.toBbox(encoded).tolist()


@pytest.mark.parametrize(('value', 'expected'), [(None, 0), (False, 0), (True, 1), (1, 1)])
def test_iscrowd_is_a_number(tmp_path, value, expected):
    found = edited(tmp_path, lambda content: content['annotations'][1].update(iscrowd=value))
    assert [item['iscrowd'] for item in found.annotations] == [0, expected, *[0] * 6]
    assert all(type(item['iscrowd']) is int for item in found.annotations)


def without_sizes(content):
    for item, value in zip(content['images'], (1, 2, None, None), strict=True):
        if value:
            del item['height'], item['width']
        else:
            item.update(height=None, width=None)


def test_absent_sizes_are_read_from_the_images(tmp_path):
    found = edited(tmp_path, without_sizes)
    assert set(found.picture_sizes().values()) == {None}
    assert found.unusable() == found.unmatchable() == {}
    assert found.read_sizes(str(tmp_path / 'images')) == []
    assert found.picture_sizes() == dict(enumerate(SIZES))
    found.annotations[0]['bbox'][0] = SIZES[0][1] + 1
    assert list(found.unmatchable()) == ['outside the image']


def test_sizes_that_no_file_has_are_named(tmp_path):
    found = edited(tmp_path, without_sizes)
    broken = tmp_path / 'images/2.jpg'
    broken.write_bytes(b'no image')
    assert found.read_sizes(str(tmp_path / 'images')) == [str(broken)]
    assert found.picture_sizes() == {0: SIZES[0], 1: SIZES[1], 2: None, 3: SIZES[3]}


# --------------------------------------------------------------------------------------------------
# Ids and names


def test_entries_that_are_listed_twice_count_once(tmp_path):
    def edit(content):
        content['images'].append(dict(content['images'][2]))
        content['annotations'] += [dict(content['annotations'][n]) for n in (0, 5)]

    found = edited(tmp_path, edit)
    assert [item['id'] for item in found.images] == [0, 1, 2, 3]
    assert [item['id'] for item in found.annotations] == list(range(1, 9))
    assert found.remarks == (
        '1 images are listed twice and count once: id 2',
        '2 annotations are listed twice and count once: id 1, 6',
    )


def test_annotations_of_one_id_all_count(tmp_path):
    found = edited(tmp_path, lambda content: content['annotations'][4].update(id=2))
    assert len(found.annotations) == 8
    assert found.remarks == ('1 of 8 annotations have the id of another one (id 2): all are used',)


def test_ids_as_text_refer_to_numbers_and_the_reverse(tmp_path):
    def edit(content):
        content['annotations'][2]['image_id'] = '1'
        content['annotations'][3]['category_id'] = '8'
        for item in content['categories'][:2]:
            item['id'] = str(item['id'])

    found = edited(tmp_path, edit)
    assert [item['image_id'] for item in found.annotations] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {item['category_id'] for item in found.annotations} == {'2', '5', '8'}
    assert found.unusable() == {}
    assert found.remarks[0] == (
        'the ids of categories are text (2) and numbers (1): all are read as text'
    )
    assert found.remarks[1].startswith('1 of 8 annotations have a image_id that is text where')
    assert found.remarks[2].startswith('7 of 8 annotations have a category_id that is text where')


def test_ids_that_are_equal_as_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'images: each id must stand once; 1 of 4 is against it'):
        edited(tmp_path, lambda content: content['images'][3].update(id='1'))


def roboflow(content, name='b'):
    """A category 0 for the whole set, of the name of a class."""
    content['categories'].insert(0, dict(id=0, name=name, supercategory='none'))


def test_a_category_that_no_annotation_uses_gives_way_to_its_namesake(tmp_path):
    found = edited(tmp_path, roboflow)
    assert [item['id'] for item in found.categories] == [2, 5, 8]
    assert found.remarks == (
        "category 0 has no annotation and the name of category 5, 'b', and is left out",
    )
    assert category_names(found.file) == ('a', 'b', 'c')
    nothing = edited(tmp_path, lambda content: (roboflow(content), content.pop('annotations')))
    assert [item['id'] for item in nothing.categories] == [2, 5, 8]


def test_two_categories_of_one_name_in_use_are_refused(tmp_path):
    def edit(content):
        roboflow(content)
        content['annotations'][3]['category_id'] = 0

    with pytest.raises(ValueError, match=r"the ids 0, 5 have one name, 'b', and annotations use"):
        edited(tmp_path, edit)


@pytest.mark.parametrize(
    ('file_name', 'there', 'expected'),
    [
        ('a/b.jpg', [], 'a/b.jpg'),
        ('http://host/a/b%20c.jpg?width=9#x', [], 'b c.jpg'),
        ('a\\b.jpg', [], 'a/b.jpg'),
        ('a\\b.jpg', ['b.jpg'], 'b.jpg'),
        ('a\\b.jpg', ['a/b.jpg', 'b.jpg'], 'a/b.jpg'),
        ('a\\b.jpg', ['a\\b.jpg', 'a/b.jpg'], 'a\\b.jpg'),
        ('C:\\set\\a\\b.jpg', ['b.jpg'], 'b.jpg'),
    ],
)
def test_files_are_found_behind_urls_and_backslashes(tmp_path, file_name, there, expected):
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_path(str(tmp_path), file_name) == str(tmp_path / expected)


# --------------------------------------------------------------------------------------------------
# Nothing to learn from or to compare with


def of_all(**fields):
    def edit(content):
        for item in content['annotations']:
            item.update(fields)

    return edit


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (
            of_all(image_id=77),
            r'8 of an image_id that is not listed \(the first: {"id": 1, "image_id": 77.*'
            r'those of the 4 are 0, 1, 2, 3$',
        ),
        (of_all(iscrowd=1), r'8 a crowd \(iscrowd=1\).*set iscrowd to 0'),
        (of_all(bbox=[50, 50, -20, 20]), r'8 .*"bbox": \[50, 50, -20, 20\].*width and height posi'),
        (
            of_all(bbox=[9000, 9, 20, 20]),
            r'8 outside the image .*\[x, y, width, height\] in pixels',
        ),
        (lambda content: content.pop('annotations'), r'some.json has no annotations: there is no'),
    ],
)
def test_a_file_without_a_box_of_use_is_refused(tmp_path, training, edit, words):
    found = edited(tmp_path, edit)
    with pytest.raises(
        ValueError, match=f'some.json.*{"learn from" if training else "compare"}'
    ) as error:
        found.require_objects(['a', 'b', 'c'], training=training)
    assert re.search(words, str(error.value)), str(error.value)


def test_boxes_of_other_classes_are_of_no_use(tmp_path):
    found = edited(tmp_path, lambda content: content['categories'].append(dict(id=9, name='d')))
    for training in (True, False):
        found.require_objects(['a', 'd'], training=training)
        with pytest.raises(ValueError, match='no box of d to .*8 of another class.*check classes'):
            found.require_objects(['d'], training=training)


def test_an_area_of_0_everywhere_stops_training_alone(tmp_path):
    found = edited(tmp_path, of_all(area=0))
    found.require_objects(['a'], training=False)
    with pytest.raises(ValueError, match='8 of area 0 or less .*remove the field area'):
        found.require_objects(['a'], training=True)


def test_areas_below_0_are_left_out_of_the_evaluation_by_name(tmp_path):
    found = edited(tmp_path, lambda content: content['annotations'][5].update(area=-1))
    assert [item['id'] for item in found.unmatchable()['of an area below 0']] == [6]
    left = found.matchable()
    assert len(left.annotations) == 7
    assert '1 of 8 boxes are left out of the evaluation, of an area below 0: id 6' in left.remarks
    found = edited(tmp_path, of_all(area=-1))
    with pytest.raises(ValueError, match='8 of an area below 0 .*remove the field area'):
        found.require_objects(['a'], training=False)


def shares(content):
    for item in content['annotations']:
        h, w = SIZES[item['image_id']]
        item['bbox'] = [value / side for value, side in zip(item['bbox'], [w, h] * 2, strict=True)]


def test_boxes_in_shares_of_the_image_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r'all 8 boxes lie within 0 and 1.5, the first: {"id": 1.*They are shares of the ima.*'
        'multiply x and width by the width',
    ):
        edited(tmp_path, shares)


def test_small_boxes_in_whole_pixels_are_no_shares(tmp_path):
    assert edited(tmp_path, of_all(bbox=[1, 0, 1, 1])).unusable() == {}


def percent(content):
    """Images of 480 x 640 and 600 x 800 pixels with boxes of a percentage each, as 12.5."""
    for image, (h, w) in zip(content['images'], [(480, 640), (600, 800)] * 2, strict=True):
        image.update(height=h, width=w)
    for number, item in enumerate(content['annotations']):
        item.update(bbox=[10.0 * number, 12.5, 30 - 3 * number, 7.5 * number + 30], area=150)


def test_boxes_in_percent_are_remarked_on(tmp_path):
    found = edited(tmp_path, percent)
    (remark,) = found.unit_remarks()
    assert remark.startswith(
        'all 8 boxes lie within the first 100 pixels of images of 540 x 720 pixels (median height '
        'x width), the first: {"id": 1'
    )
    assert 'multiply x and width by the width of the image / 100' in remark
    assert found.matchable().remarks[-1] == remark  # in evaluations too


@pytest.mark.parametrize(
    'change',
    [
        lambda images, boxes: [image.update(height=100, width=640) for image in images],
        lambda images, boxes: [image.update(height=64, width=64) for image in images],
        lambda images, boxes: boxes[3].update(bbox=[80, 12.5, 40, 40]),  # one beyond 100
        lambda images, boxes: boxes[3].update(bbox=[-1, 12.5, 40, 40]),
        lambda images, boxes: [box.update(bbox=[1.5, 1, 30, 40]) for box in boxes],  # a corner
        lambda images, boxes: boxes.__delitem__(slice(4, None)),  # few
    ],
)
def test_boxes_in_pixels_are_not_taken_for_percent(tmp_path, change):
    def edit(content):
        percent(content)
        change(content['images'], content['annotations'])

    assert edited(tmp_path, edit).percent_remark() == ''


def test_polygons_that_are_shares_of_the_image_are_refused(tmp_path):
    shares = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.75]]
    found = edited(tmp_path, of_all(segmentation=shares))
    with pytest.raises(ValueError, match=r'all 8 polygons lie within 0 and 1.5, the first: 0.1, '):
        found.without_mask()

    def edit(content):
        of_all(segmentation=shares)(content)
        content['annotations'][3]['segmentation'] = [[0.1, 0.1, 20, 0.1, 20, 20]]

    assert edited(tmp_path, edit).without_mask() == {}  # small ones beside others
    tiny = edited(tmp_path, of_all(segmentation=[[0, 0, 1, 0, 1, 1]], bbox=[0, 0, 1, 1]))
    assert tiny.without_mask() == {}


def corners(content):
    """The second box of each image as corners, of which width and height would leave the image."""
    for item in content['annotations']:
        h, w = SIZES[item['image_id']]
        item['bbox'] = [0.1 * w, 0.1 * h, 0.6 * w, 0.5 * h]
        if item['id'] % 2 == 0:
            item['bbox'] = [0.5 * w, 0.5 * h, 0.9 * w, 0.9 * h]


def test_corners_in_place_of_sizes_are_remarked_on(tmp_path):
    assert edited(tmp_path, lambda content: None).corners_remark() == ''
    remark = edited(tmp_path, corners).corners_remark()
    assert remark.startswith('4 of 8 boxes reach beyond the right or lower border, and all would')
    assert '[x1, y1, x2 - x1, y2 - y1]' in remark
    assert edited(tmp_path, corners).matchable().remarks[-1] == remark  # in evaluations too


def test_boxes_beyond_the_border_that_are_no_corners_are_remarked_on(tmp_path):
    def edit(content):
        corners(content)
        content['annotations'][0]['bbox'][2] = 0

    assert edited(tmp_path, edit).corners_remark() == (
        '4 of 8 boxes reach beyond the right or lower border of their images: check that width, '
        'height and bbox are of the same images'
    )


def test_boxes_that_nothing_can_match_are_no_ground_truth(tmp_path):
    def edit(content):
        for item, change in zip(
            content['annotations'],
            (dict(bbox=[1, 1, 0, 9]), dict(image_id=9), dict(bbox=[-9, 0, 9, 9]), dict(area=0)),
            strict=False,
        ):
            item.update(change)

    truth = edited(tmp_path, edit).matchable()
    assert [item['id'] for item in truth.annotations] == [4, 5, 6, 7, 8]
    assert truth.remarks == (
        '1 of 8 boxes are left out of the evaluation, of an image_id that is not listed: id 2',
        '1 of 8 boxes are left out of the evaluation, 0 pixels wide or high, or less: id 1',
        '1 of 8 boxes are left out of the evaluation, outside the image: id 3',
    )


def test_objects_of_an_image_are_counted_without_crowds(tmp_path):
    def edit(content):
        for item in content['annotations'][:5]:
            item.update(image_id=1, category_id=2)
        content['annotations'][4]['iscrowd'] = 1

    found = edited(tmp_path, edit)
    assert (found.most_objects(), found.most_objects(of_one_class=True)) == (4, 4)
    found.annotations[0]['category_id'] = 5
    assert (found.most_objects(), found.most_objects(of_one_class=True)) == (4, 3)
    assert found.counted_detections() == 100


# --------------------------------------------------------------------------------------------------
# Masks


H, W = SIZES[0]


@pytest.mark.parametrize(
    ('counts', 'words'),
    [
        ([10, 20, 30], f'they have 60 pixels, its image {H} x {W} = {H * W:,}'),
        ([10, 20, H * W * 3], f'they have {30 + H * W * 3:,} pixels, its image'),
        ([10, -20, H * W + 10], r'whole numbers of 0 or more.*got \[-20\]'),
        ([10.5, 20.5, H * W - 31.0], r'whole numbers of 0 or more.*got \[10.5, 20.5'),
        (['10', 20, H * W - 30], r"whole numbers of 0 or more.*got \['10'\]"),
        ([True, H * W - 1], r'whole numbers of 0 or more.*got \[True\]'),
        ([2**63, H * W], r'whole numbers of 0 or more.*got \[9223372036854775808\]'),
        ('~~~zzz!!!{{{', r"whole numbers of 0 or more.*got '~~~zzz!!!{{{'"),
        ('é', "whole numbers of 0 or more.*got 'é'"),
        ('PPPPPPPPPP', "whole numbers of 0 or more.*got 'PPPPPPPPPP'"),  # never ends
        ('', 'they have 0 pixels'),
    ],
)
def test_run_lengths_that_pycocotools_would_choke_on_are_named(tmp_path, counts, words):
    mask = dict(size=[H, W], counts=counts)
    found = read_annotations(str(write(tmp_path, 'annotations', 0, segmentation=mask)))
    with pytest.raises(ValueError, match=f'{words}.*1 of 8 is against it, the first: {{"id": 1'):
        found.without_mask()


@pytest.mark.parametrize('far', [1e300, -200_000, 10**400, -(10**400)])
def test_a_polygon_that_would_take_for_ever_is_named(tmp_path, far):
    polygon = [[0, 0, 9.5, 0, 9, far]]
    found = read_annotations(str(write(tmp_path, 'annotations', segmentation=polygon)))
    with pytest.raises(ValueError, match='within 100,000 pixels of the origin; 1 of 8 is against'):
        found.without_mask()


def test_polygons_without_area_are_taken_out_of_masks_that_have_others(tmp_path):
    sound = [0, 0, 9, 0, 9, 9]
    given = [[1, 2, 3, 4], sound, [1, 2, 3, 4, 5, 6, 7], []]
    found = read_annotations(str(write(tmp_path, 'annotations', segmentation=given)))
    assert found.without_mask() == {}
    assert found.annotations[1]['segmentation'] == [sound]


@pytest.mark.parametrize('seed', range(20))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(seed):
    random = np.random.default_rng(seed)
    h, w = random.integers(1, 200, 2)
    mask = np.asfortranarray(random.random((h, w)) < random.choice([0.001, 0.1, 0.5, 0.99]))
    code = coco_mask.encode(mask.astype(np.uint8))
    text = code['counts'].decode()
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    expected = np.diff(np.concatenate([[0], edges, [h * w]]))
    np.testing.assert_array_equal(run_lengths(text), expected)
    stated = dict(size=[int(h), int(w)], counts=text)
    assert mask_fault(stated, (h, w)) == ''
    assert mask_area(stated) == mask.sum()
    assert mask_fault(dict(stated, size=[int(h) + 1, int(w)]), None) != ''


@pytest.mark.parametrize('seed', range(5))
def test_the_area_of_polygons_is_that_of_pycocotools_but_for_the_border(seed):
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    radii = random.uniform(40, 90, 9)
    polygon = np.stack([100 + radii * np.cos(angles), 100 + radii * np.sin(angles)], 1)
    (code,) = coco_mask.frPyObjects([polygon.ravel().tolist()], 200, 200)
    border = np.linalg.norm(polygon - np.roll(polygon, 1, 0), axis=1).sum()
    assert abs(mask_area([polygon.ravel().tolist()]) - coco_mask.area(code)) < border


@pytest.mark.parametrize('sides', [dict(height=0, width=0), dict(height=None), dict(width=-1)])
def test_sizes_that_are_none_have_a_fix(tmp_path, sides):
    def edit(content):
        content['images'][1].update(sides)

    with pytest.raises(ValueError, match='Fix: remove both height and width, which are then read'):
        edited(tmp_path, edit)
