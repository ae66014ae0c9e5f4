"""COCO's AP from matches made once: equal to COCOeval's, on the set as it is and on resamples."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from navit_backbone.tasks.detection.average_precision import ALL, SIZES, Truth
from navit_backbone.tasks.detection.evidence import Evidence

RANGES = [ALL, *SIZES.values()]
CLASSES = ['a', 'b', 'c']


def random_set(random, num_images=9):
    """A COCO file's content, and detections: crowds, empty photos, misses, repeats, all sizes."""
    images, boxes, found = [], [], []
    categories = [dict(id=7 - 2 * i, name=name) for i, name in enumerate(CLASSES)]
    for number in range(num_images):
        h, w = (int(side) for side in random.integers(40, 400, 2))
        images.append(dict(id=11 * (num_images - number), height=h, width=w, file_name='x.jpg'))
        for _ in range(random.integers(0, 5)):
            side = random.uniform(0.05, 0.7, 2) * [w, h]
            corner = random.uniform(0, 1, 2) * ([w, h] - side)
            box = dict(image_id=images[-1]['id'], category_id=int(random.choice([7, 5, 3])))
            area, crowd = float(side.prod()), int(random.random() < 0.15)
            identity = dict(id=len(boxes) + 1, area=area, iscrowd=crowd)
            boxes.append(dict(box, bbox=[*corner, *side], **identity))
            for _ in range(random.integers(0, 4)):
                moved = np.array(boxes[-1]['bbox']) + random.normal(0, 0.12, 4) * [*side, *side]
                moved[2:] = np.abs(moved[2:]) + 1
                if random.random() < 0.2:
                    box = dict(box, category_id=int(random.choice([7, 5, 3])))
                found.append(dict(box, bbox=moved.tolist(), score=float(random.random())))
    return dict(images=images, annotations=boxes, categories=categories), found


def coco_eval(content, found):
    """[range, T] as pycocotools has it; NaN where it says -1."""
    with redirect_stdout(StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(item) for item in found]), 'bbox')
        evaluation.params.areaRng = [list(limits) for limits in RANGES]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., -1].transpose(3, 0, 1, 2)  # range, T, R, class
    rows = [[values[values > -1] for values in of_range] for of_range in precision]
    return np.array([[v.mean() if v.size else np.nan for v in row] for row in rows])


def truth_of(content, folder, classes=CLASSES):
    file = folder / 'truth.json'
    file.write_text(json.dumps(content))
    return Truth(file, classes)


def repeated(content, found, counts_I):
    """The set in which each photo, in the order of ids, stands as often as it counts."""
    images, boxes, detections = [], [], []
    for image, count in zip(
        sorted(content['images'], key=lambda i: i['id']), counts_I, strict=True
    ):
        for _ in range(count):
            new = dict(image, id=len(images) + 1)
            images.append(new)
            for items, copies in ((content['annotations'], boxes), (found, detections)):
                own = [dict(i, image_id=new['id']) for i in items if i['image_id'] == image['id']]
                copies += own
    boxes = [dict(box, id=number) for number, box in enumerate(boxes, 1)]
    return dict(content, images=images, annotations=boxes), detections


@pytest.mark.parametrize('seed', range(6))
def test_the_set_as_it_is_gives_the_figures_of_cocoeval(seed, tmp_path):
    content, found = random_set(np.random.default_rng(seed))
    statistics = truth_of(content, tmp_path).match(found, ranges=RANGES)
    ours = [statistic(np.ones((1, 9), dtype=int))[0] for statistic in statistics]
    np.testing.assert_allclose(ours, coco_eval(content, found), rtol=0, atol=1e-12)


def test_rounded_scores_are_ranked_as_cocoeval_ranks_them(tmp_path):
    content, found = random_set(np.random.default_rng(7))
    found = [dict(item, score=round(item['score'], 1)) for item in found]
    ours = [
        s(np.ones((1, 9), dtype=int))[0]
        for s in truth_of(content, tmp_path).match(found, ranges=RANGES)
    ]
    np.testing.assert_allclose(ours, coco_eval(content, found), rtol=0, atol=1e-12)


def test_ids_of_boxes_may_start_at_0_and_iscrowd_be_absent(tmp_path):
    content, _ = random_set(np.random.default_rng(3))
    plain = [dict(box, id=i) for i, box in enumerate(content['annotations'])]
    plain = [{key: box[key] for key in box if key != 'iscrowd'} for box in plain]
    truth = truth_of(dict(content, annotations=plain), tmp_path)
    (statistic,) = truth.match([dict(box, score=0.5) for box in plain])
    np.testing.assert_allclose(statistic(np.ones((1, 9), dtype=int)), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize('seed', range(4))
def test_counts_are_photos_that_stand_in_the_set_so_often(seed, tmp_path):
    random = np.random.default_rng(seed)
    content, found = random_set(random)
    counts_BI = random.multinomial(9, np.full(9, 1 / 9), size=5)
    counts_BI[0] = np.eye(9, dtype=int)[0] * 3
    statistics = truth_of(content, tmp_path).match(found, ranges=RANGES)
    ours = np.stack([statistic(counts_BI) for statistic in statistics], 1)  # [B, range, T]
    for counts_I, figures in zip(counts_BI, ours, strict=True):
        expected = coco_eval(*repeated(content, found, counts_I))
        np.testing.assert_allclose(figures, expected, rtol=0, atol=1e-12)


def test_areas_relative_to_the_photo_are_those_of_photos_of_one_size(tmp_path):
    content, found = random_set(np.random.default_rng(3))
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}

    def in_a_unit(item):
        w, h = sizes[item['image_id']]
        return dict(item, bbox=(np.array(item['bbox']) / [w, h, w, h] * 1000).tolist())

    small = [(0.0, 0.05), (0.05, 1.0)]
    ours = truth_of(content, tmp_path).match(found, ranges=small, relative=True)
    images = [dict(image, width=1000, height=1000) for image in content['images']]
    boxes = [in_a_unit(box) for box in content['annotations']]
    boxes = [dict(box, area=box['bbox'][2] * box['bbox'][3]) for box in boxes]
    squares = truth_of(dict(content, images=images, annotations=boxes), tmp_path)
    detections = [in_a_unit(item) for item in found]
    theirs = squares.match(detections, ranges=[(low * 1e6, high * 1e6) for low, high in small])
    one = np.ones((1, 9), dtype=int)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.num_boxes == other.num_boxes > 0
        np.testing.assert_allclose(mine(one), other(one), rtol=0, atol=1e-12)


def test_a_part_of_the_classes_and_no_detections(tmp_path):
    content, found = random_set(np.random.default_rng(5))
    truth = truth_of(content, tmp_path, classes=['b'])
    (of_b,) = truth.match(found)
    only_b = dict(content, categories=content['categories'][1:2])
    only_b['annotations'] = [a for a in content['annotations'] if a['category_id'] == 5]
    expected = coco_eval(only_b, [item for item in found if item['category_id'] == 5])[0]
    np.testing.assert_allclose(of_b(np.ones((1, 9), dtype=int))[0], expected, rtol=0, atol=1e-12)
    (nothing,) = truth.match([])
    assert (nothing(np.ones((2, 9), dtype=int)) == 0).all()
    assert np.isnan(nothing(np.zeros((1, 9), dtype=int))).all()


# --------------------------------------------------------------------------------------------------
# What compares arms


def run_on(content, found, folder, **changes):
    truth_of(content, folder)
    run = dict(annotations=str(folder / 'truth.json'), images=str(folder), classes=CLASSES)
    return run | dict(predictions=found) | changes


def test_parts_hold_every_photo_and_every_box_once(tmp_path):
    content, found = random_set(np.random.default_rng(8), num_images=40)
    run = run_on(content, found, tmp_path)
    evidence = Evidence([run])
    contents = [part.content for part in evidence.slices([[run]])]
    whole, *parts = [[int(n) for n in re.findall(r'\d+', text)] for text in contents]
    boxes = [box for box in content['annotations'] if not box['iscrowd']]
    assert whole == [len({box['image_id'] for box in boxes}), len(boxes)]
    aspects, sizes, shares = parts[:3], parts[3:-3], parts[-3:]
    assert np.sum(aspects, 0).tolist() == whole
    for group in (sizes, shares):
        assert sum(count for _, count in group) == whole[1]
    assert max(n for _, n in shares) - min(n for _, n in shares) <= 1
    (figures,) = evidence.statistic(run)(np.ones((1, 40), dtype=int))
    expected = coco_eval(content, found)[0]
    np.testing.assert_allclose(figures, [expected.mean(), expected[0], expected[5]], atol=1e-12)


@pytest.mark.parametrize('other', [dict(annotations='other.json'), dict(classes=['a'])])
def test_runs_on_other_truths_are_refused(other, tmp_path):
    content, found = random_set(np.random.default_rng(9))
    runs = [run_on(content, found, tmp_path), run_on(content, found, tmp_path, **other)]
    with pytest.raises(ValueError, match=rf'one test set, but their {next(iter(other))} differ'):
        Evidence(runs)
