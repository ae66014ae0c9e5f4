"""LVIS v1: its layout, and its evaluation against the definition written out in loops."""

import json

import numpy as np
import pytest
import torch
from coco_files import SIZES, write_lvis
from mmengine.registry import DATASETS, METRICS, init_default_scope
from pycocotools import mask as coco_mask

import navit_backbone.tasks.detection  # noqa: F401  registers
from navit_backbone.tasks.detection.federated_ap import RIGHT, match
from navit_backbone.tasks.detection.lvis import read_lvis

VAL = 'annotations/lvis_v1_val.json'
FIGURES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')
CANVAS = (90, 130)
THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
RANGES = dict(all=(0, 1e10), s=(0, 32**2), m=(32**2, 96**2), l=(96**2, 1e10))


def lvis_metric(path, classes, **options):
    init_default_scope('mmdet')
    metric = METRICS.build(dict(type='NaViTLVISMetric', ann_file=str(path), **options))
    metric.dataset_meta = dict(classes=classes)
    return metric


# --------------------------------------------------------------------------------------------------
# The definition in loops. A shape is a box (x, y, width, height) or a mask [h, w].


def area(shape):
    return shape[2] * shape[3] if len(shape) == 4 else shape.sum()


def overlap(one, two):
    if len(one) != 4:
        return (one & two).sum() / max((one | two).sum(), 1)
    sides = [min(one[i] + one[i + 2], two[i] + two[i + 2]) - max(one[i], two[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (area(one) + area(two) - both)


def verdicts(found, boxes, threshold, limits):
    """(score, whether right) of the detections of one class in one picture that count."""
    used = [False] * len(boxes)
    out_of_range = lambda size: not limits[0] <= size <= limits[1]  # noqa: E731
    ignored = [box['ignore'] or out_of_range(box['area']) for box in boxes]
    for item in sorted(found, key=lambda item: -item['score']):
        near = [
            (not ignored[i], overlap(item['shape'], box['shape']), i)
            for i, box in enumerate(boxes)
            if not used[i] and overlap(item['shape'], box['shape']) >= threshold
        ]
        if near:
            counts, _, i = max(near)  # a box that counts before one that does not
            used[i] = True
            if counts:
                yield item['score'], True
        elif not item['not_exhaustive'] and not out_of_range(area(item['shape'])):
            yield item['score'], False


def class_ap(judged, num_boxes):
    """The mean, over 101 recalls, of the best precision at that recall or more."""
    judged = sorted(judged, key=lambda pair: -pair[0])
    right = np.cumsum([is_right for _, is_right in judged])
    points = [(hits / num_boxes, hits / rank) for rank, hits in enumerate(right, start=1)]
    recalls = np.linspace(0, 1, 101)
    return np.mean([max((p for r, p in points if r >= recall), default=0) for recall in recalls])


def plain_figures(content, detections, max_dets):
    aps = []
    for category in content['categories']:
        boxes = [box for box in content['annotations'] if box['category_id'] == category['id']]
        for name, limits in RANGES.items():
            counting = [box for box in boxes if limits[0] <= box['area'] <= limits[1]]
            num_boxes = sum(not box['ignore'] for box in counting)
            for number, threshold in enumerate(THRESHOLDS if num_boxes else ()):
                judged = []
                for image in sorted(content['images'], key=lambda image: image['id']):
                    there = [box for box in boxes if box['image_id'] == image['id']]
                    if there or category['id'] in image['neg_category_ids']:
                        own = of_class(detections[image['id']], category['id'], image, max_dets)
                        judged += verdicts(own, there, threshold, limits)
                aps.append((category['frequency'], name, number, class_ap(judged, num_boxes)))

    def mean(*, of='all', rarity='rcf', numbers=range(10)):
        chosen = [x for r, name, i, x in aps if name == of and r in rarity and i in numbers]
        return np.mean(chosen) if chosen else -1

    figures = [mean(), mean(numbers=[0]), mean(numbers=[5])]
    figures += [mean(of=name) for name in 'sml'] + [mean(rarity=rarity) for rarity in 'rcf']
    return dict(zip(FIGURES, figures, strict=True))


def of_class(detections, category, image, max_dets):
    """Those of one class among the best of a picture."""
    best = sorted(detections, key=lambda item: -item['score'])[:max_dets]
    gaps = category in image['not_exhaustive_category_ids']
    return [dict(item, not_exhaustive=gaps) for item in best if item['category_id'] == category]


# --------------------------------------------------------------------------------------------------
# Random sets


def corners_of(random):
    (h, w), side = CANVAS, random.choice([20, 60, 120])
    x, y = random.uniform(0, w * 0.7), random.uniform(0, h * 0.6)
    if random.random() < 0.2:  # the very border of small and medium
        return [float(side) for side in (x // 1, y // 1, x // 1 + 32, y // 1 + 32)]
    return [x, y, x + random.uniform(3, min(side, w - x)), y + random.uniform(3, min(side, h - y))]


def near(random, corners, offset):
    corners = np.array(corners) + random.normal(0, offset, 4)
    corners[2:] = np.maximum(corners[2:], corners[:2] + 1)
    return np.float32(corners.clip(0, [*CANVAS[::-1]] * 2)).tolist()


def shape_of(corners, kind):
    x1, y1, x2, y2 = corners
    if kind == 'bbox':
        return [x1, y1, x2 - x1, y2 - y1]
    mask = np.zeros(CANVAS, dtype=bool)
    mask[round(y1) : round(y2), round(x1) : round(x2)] = True
    return mask


def random_set(seed, kind):
    """An annotation file's content, and detections: near boxes, astray, of equal scores, many."""
    random = np.random.default_rng(seed)
    classes = list(range(1, 2 + random.integers(1, 6)))
    categories = [dict(id=i, name=f'c{i}', frequency='rcf'[random.integers(3)]) for i in classes]
    content, detections = dict(images=[], annotations=[], categories=categories), {}
    for identity in random.permutation(50)[: random.integers(1, 9)].tolist():
        order = random.permutation(classes).tolist()
        shown, absent = order[: random.integers(0, 4)], order[3:5]
        gaps = [i for i in order if random.random() < 0.3]
        lists = dict(neg_category_ids=absent, not_exhaustive_category_ids=gaps)
        image = dict(id=identity, height=CANVAS[0], width=CANVAS[1], coco_url='a/b/c.jpg')
        content['images'].append(image | lists)
        places = [(i, corners_of(random)) for i in shown for _ in range(random.integers(1, 4))]
        places += [(i, near(random, at, 2)) for i, at in places if random.random() < 0.3]
        for category, corners in places:
            shape = shape_of(corners, kind)
            box = dict(id=len(content['annotations']), image_id=identity, category_id=category)
            box |= dict(shape=shape, area=float(area(shape)), ignore=int(random.random() < 0.1))
            content['annotations'].append(box | dict(bbox=shape_of(corners, 'bbox')))
        detections[identity] = [
            detection(random, places, classes, kind) for _ in range(random.integers(0, 30))
        ]
    return content, detections


def detection(random, places, classes, kind):
    category, corners = int(random.choice(classes)), corners_of(random)
    if places and random.random() < 0.8:
        category, corners = places[random.integers(len(places))]
        corners = near(random, corners, random.choice([0, 2, 6]))
    corners = np.float32(corners).tolist()
    score = float(np.float32(random.integers(10) / 10))
    return dict(category_id=category, score=score, corners=corners, shape=shape_of(corners, kind))


def evaluate(metric, detections, kind):
    for identity, found in detections.items():
        pred = dict(
            bboxes=torch.tensor([item['corners'] for item in found]).reshape(-1, 4),
            scores=torch.tensor([item['score'] for item in found]),
            labels=torch.tensor([item['category_id'] - 1 for item in found], dtype=torch.long),
        )
        if kind == 'segm':
            masks = [torch.from_numpy(item['shape']) for item in found]
            pred['masks'] = torch.stack(masks) if found else torch.zeros(0, *CANVAS)
        metric.process(None, [dict(img_id=identity, pred_instances=pred)])
    found = metric.evaluate(len(detections))
    return {name: found[f'lvis/{kind}_{name}'] for name in FIGURES}


def write(path, content, kind):
    """The content as a file, masks in run lengths."""
    boxes = []
    for box in content['annotations']:
        shape = box['shape']
        box = {key: value for key, value in box.items() if key != 'shape'}
        if kind == 'segm':
            lengths = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
            box['segmentation'] = dict(size=[*CANVAS], counts=lengths['counts'].decode())
        boxes.append(box)
    path.write_text(json.dumps(content | dict(annotations=boxes)))
    return path


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(12))
def test_figures_are_those_of_the_definition(seed, kind, tmp_path):
    content, detections = random_set(seed, kind)
    path = write(tmp_path / 'lvis.json', content, kind)
    classes = [item['name'] for item in content['categories']]
    max_dets = 300 if seed % 2 else 7
    expected = plain_figures(content, detections, max_dets)
    metric = lvis_metric(path, classes, metric=kind, max_dets=max_dets)
    found = evaluate(metric, detections, kind)
    assert found == pytest.approx(expected, abs=1e-12)
    backwards = dict(reversed(detections.items()))  # as ranks give them: in any order
    assert evaluate(metric, backwards, kind) == found


# --------------------------------------------------------------------------------------------------
# Each rule alone: picture 5 has one box, of the rare class 1; picture 6 has none

BOX = [10.0, 10.0, 50.0, 50.0]
ELSEWHERE = [70.0, 20.0, 120.0, 80.0]


def one_box(tmp_path, *, gaps=(), absent_in_6=()):
    """The metric. Beside class 1 there is 2, which is in neither picture's lists."""
    categories = [dict(id=i, name=f'c{i}', frequency='rc'[i - 1]) for i in (1, 2)]
    images = [
        dict(id=i, height=90, width=130, coco_url='a/b/c.jpg', neg_category_ids=absent)
        for i, absent in ((5, []), (6, list(absent_in_6)))
    ]
    for image in images:
        image['not_exhaustive_category_ids'] = list(gaps)
    box = dict(id=0, image_id=5, category_id=1, bbox=[10, 10, 40, 40], area=1600)
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(dict(images=images, annotations=[box], categories=categories)))
    return lvis_metric(path, ['c1', 'c2'])


def ap_of(metric, *found):
    """The figures of (picture, class, corners) in falling order of score."""
    detections = {5: [], 6: []}
    for i, (image, category, corners) in enumerate(found):
        item = dict(category_id=category, corners=corners, score=1 - i / 10)
        detections[image].append(item)
    return evaluate(metric, detections, 'bbox')


@pytest.mark.parametrize(
    ('lists', 'first', 'expected'),
    [
        ({}, (5, 1, ELSEWHERE), 1 / 2),  # wrong, so the box that is found next has precision 1/2
        (dict(gaps=[1]), (5, 1, ELSEWHERE), 1),  # may be an object that was not marked
        (dict(absent_in_6=[1]), (6, 1, BOX), 1 / 2),
        ({}, (6, 1, BOX), 1),  # nobody looked for the class in 6
        (dict(gaps=[1], absent_in_6=[1]), (5, 2, BOX), 1),  # nor for 2 in 5
    ],
)
def test_what_a_detection_before_the_right_one_costs(lists, first, expected, tmp_path):
    found = ap_of(one_box(tmp_path, **lists), first, (5, 1, BOX))
    assert found['AP'] == found['APr'] == found['APm'] == pytest.approx(expected)
    assert found['APc'] == found['APf'] == found['APs'] == found['APl'] == -1  # no such boxes


def test_a_box_is_found_once_and_its_id_may_be_0(tmp_path):
    metric = one_box(tmp_path)
    assert ap_of(metric, (5, 1, BOX), (5, 1, BOX))['AP'] == 1
    assert ap_of(metric, (5, 1, ELSEWHERE))['AP'] == 0


def test_of_equal_overlaps_the_last_box_is_taken():
    """As the LVIS API does it; the second detection then finds none."""
    has_box, has_ignored = match(np.array([[0.7, 0.7], [0.2, 0.7]]), np.zeros((1, 2), dtype=bool))
    assert has_box[:, 0, 0].tolist() == [True, False]
    assert not has_ignored.any()


# --------------------------------------------------------------------------------------------------
# The layout

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]


def lvis_data(root, ann_file, **options):
    init_default_scope('mmdet')
    data = dict(type='NaViTLVISDataset', data_root=str(root), ann_file=ann_file, **options)
    return DATASETS.build(dict(data_prefix=dict(img=''), pipeline=PIPELINE, **data))


def test_photos_lie_where_their_urls_end(tmp_path):
    write_lvis(tmp_path, 'annotations/lvis_v1_train.json', classes=('cup', 'ant'))
    data = lvis_data(tmp_path, 'annotations/lvis_v1_train.json', test_mode=True)
    assert data.metainfo['classes'] == ('cup', 'ant')
    assert len(data) == len(SIZES)
    assert data.get_data_info(1)['img_path'] == str(tmp_path / 'train2017/000000000002.jpg')
    sample = data[1]
    assert sample['inputs'].shape[1:] == SIZES[1]
    assert sample['data_samples'].gt_instances.labels.tolist() == [0, 1]
    assert sample['data_samples'].gt_instances.masks.masks.any((1, 2)).all()


def test_the_truth_has_ap_1_and_nothing_has_0(tmp_path):
    path = write_lvis(tmp_path, VAL, classes=tuple('abcde'))
    data = lvis_data(tmp_path, VAL, test_mode=True)
    metric = lvis_metric(path, data.metainfo['classes'], metric=['bbox', 'segm'])
    for expected in (1, 0):
        for number in range(len(data)):
            sample = data[number]['data_samples']
            truth = sample.gt_instances[: 2 * expected]
            truth.masks = truth.masks.to_tensor(torch.bool, 'cpu')
            truth.scores = torch.ones(len(truth))
            truth.bboxes = truth.bboxes.tensor
            sample.pred_instances = truth
            metric.process(None, [sample.to_dict()])
        figures = metric.evaluate(len(data))
        assert len(figures) == 18
        assert {round(value, 12) for value in figures.values()} == {expected}


def test_as_many_masks_in_a_picture_as_lvis_allows(tmp_path):
    """Alone, pycocotools takes no more than 255 at once on numpy 2."""
    path = write_lvis(tmp_path, VAL)
    sample = lvis_data(tmp_path, VAL, test_mode=True)[0]['data_samples']
    pred = sample.gt_instances[:1]
    pred.masks, pred.bboxes = pred.masks.to_tensor(torch.bool, 'cpu'), pred.bboxes.tensor
    pred = sample.pred_instances = type(pred).cat([pred] * 300)
    pred.scores = torch.linspace(1, 0.1, 300)
    metric = lvis_metric(path, 'abc', metric='segm')
    metric.process(None, [sample.to_dict()])
    ((_, judged),) = metric.results
    assert (judged['segm'].verdicts[:, 0, 0] == RIGHT).tolist() == [True] + [False] * 299


@pytest.mark.parametrize('field', ['neg_category_ids', 'frequency', 'coco_url'])
def test_a_field_that_lvis_needs_is_named(tmp_path, field):
    path = write_lvis(tmp_path, VAL)
    content = json.loads(path.read_text())
    for item in (*content['images'], *content['categories']):
        item.pop(field, None)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"each needs the field '{field}'"):
        lvis_metric(path, ['a'])


def test_ids_in_lists_of_classes_may_be_text(tmp_path):
    path = write_lvis(tmp_path, 'lvis_v1_val.json')
    content = json.loads(path.read_text())
    lists = [item['neg_category_ids'] for item in content['images']]
    assert any(lists)
    for item in content['images']:
        item['neg_category_ids'] = [str(number) for number in item['neg_category_ids']]
    path.write_text(json.dumps(content))
    assert [item['neg_category_ids'] for item in read_lvis(str(path)).images] == lists


def test_another_file_than_that_of_the_data_is_refused(tmp_path):
    path = write_lvis(tmp_path, VAL)
    with pytest.raises(ValueError, match=r"has no category 'x', but the evaluated data set has"):
        evaluate(lvis_metric(path, ['a', 'x']), {1: []}, 'bbox')
    with pytest.raises(ValueError, match=r'has no image 77, but the evaluated data set has'):
        evaluate(lvis_metric(path, ['a', 'b', 'c']), {77: []}, 'bbox')


def test_a_file_whose_boxes_are_all_ignored_is_refused(tmp_path):
    """LVIS's evaluation leaves boxes marked `ignore` out; COCO's counts them."""
    path = write_lvis(tmp_path, VAL)
    content = json.loads(path.read_text())
    for item in content['annotations']:
        item['ignore'] = 1
    path.write_text(json.dumps(content))
    found = lvis_metric(path, ['a']).stated
    for training in (True, False):
        with pytest.raises(ValueError, match='8 marked as ignored .*remove the field ignore'):
            found.require_objects(['a', 'b', 'c'], training=training)
    content['annotations'][0]['ignore'] = 0
    path.write_text(json.dumps(content))
    read_lvis(str(path)).require_objects(['a', 'b', 'c'], training=False)


@pytest.mark.parametrize('metric', ['proposal', [], ['bbox', 'mask']])
def test_an_unknown_metric_is_refused(tmp_path, metric):
    with pytest.raises(ValueError, match="must be 'bbox', 'segm' or a list of both"):
        lvis_metric(write_lvis(tmp_path, VAL), ['a'], metric=metric)


def test_masks_in_every_form_are_one(tmp_path):
    path = write_lvis(tmp_path, VAL)
    content = json.loads(path.read_text())
    expected = lvis_metric(path, 'abc', metric='segm').truth.picture(2).shapes('segm')
    for box in content['annotations']:
        size = next(
            [i['height'], i['width']] for i in content['images'] if i['id'] == box['image_id']
        )
        lengths = coco_mask.merge(coco_mask.frPyObjects(box['segmentation'], *size))
        if box['id'] % 2:
            counts = lengths['counts'].decode()
        else:  # not compressed
            pixels = coco_mask.decode(lengths).ravel(order='F')
            counts = np.diff(np.flatnonzero(np.diff(pixels, prepend=2, append=2))).tolist()
        box['segmentation'] = dict(size=size, counts=counts)
    path.write_text(json.dumps(content))
    found = lvis_metric(path, 'abc', metric='segm').truth.picture(2).shapes('segm')
    assert coco_mask.decode(expected).any()
    assert (coco_mask.decode(found) == coco_mask.decode(expected)).all()
