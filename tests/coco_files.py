"""Small COCO and LVIS sets on disk, in the layout that a config asks for."""

import json

import cv2
import numpy as np

# prime sides, both aspects, smaller than a patch, one beyond the budgets in use
SIZES = [(61, 113), (97, 64), (11, 53), (700, 300)]


def write_coco(
    root, ann_file, images='', *, classes=('a', 'b', 'c'), sizes=SIZES, seed=0, **changes
):
    """Pictures of noise with two boxes each; `changes` replace parts of the annotation file."""
    categories = [dict(id=3 * i + 2, name=name) for i, name in enumerate(classes)]
    content = dict(images=[], annotations=[], categories=categories)
    write_pictures(root / images, [f'{number}.jpg' for number in range(len(sizes))], sizes, seed)
    for number, size in enumerate(sizes):
        image = dict(id=number, file_name=f'{number}.jpg', height=size[0], width=size[1])
        content['images'].append(image)
        for part in range(2):
            category = categories[(number + part) % len(classes)]['id']
            identity = dict(id=2 * number + part + 1, image_id=number, category_id=category)
            content['annotations'].append(identity | shape(size, part) | dict(iscrowd=0))
    return write_json(root / ann_file, content | changes)


def write_lvis(
    root, ann_file, images='', *, classes=('a', 'b', 'c'), sizes=SIZES, seed=0, **changes
):
    """The same as LVIS v1 has it, the pictures in `train2017/` or `val2017/`.

    An image has no `file_name` but a `coco_url`, an annotation no `iscrowd`. A class that an image
    neither has nor lists in `neg_category_ids` may or may not be in it.
    """
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]
    for category in categories:
        category['frequency'] = 'rcf'[category['id'] % 3]
    content = dict(images=[], annotations=[], categories=categories)
    split = 'train2017' if 'train' in ann_file else 'val2017'
    names = [f'{split}/{number:012}.jpg' for number in range(1, len(sizes) + 1)]
    write_pictures(root / images, names, sizes, seed)
    for number, (size, name) in enumerate(zip(sizes, names, strict=True), start=1):
        shown = [categories[(number + part) % len(classes)]['id'] for part in range(2)]
        absent = [item['id'] for item in categories if item['id'] not in shown]
        lists = dict(neg_category_ids=absent[:1], not_exhaustive_category_ids=shown[: number % 2])
        image = dict(id=number, coco_url=f'http://images.cocodataset.org/{name}')
        content['images'].append(image | lists | dict(height=size[0], width=size[1]))
        for part in range(2):
            identity = dict(id=2 * number + part, image_id=number, category_id=shown[part])
            content['annotations'].append(identity | shape(size, part))
    return write_json(root / ann_file, content | changes)


def write_pictures(folder, names, sizes, seed):
    random = np.random.default_rng(seed)
    for name, (h, w) in zip(names, sizes, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), random.integers(0, 256, (h, w, 3), dtype=np.uint8))


def shape(size, part):
    """The first or the second box of a picture, with its mask."""
    h, w = size
    left, top, width, height = w * 0.1 * (1 + part), h * 0.1, w * 0.5, h * 0.6
    right, bottom = left + width, top + height
    corners = [left, top, right, top, right, bottom, left, bottom]
    box = [left, top, width, height]
    return dict(bbox=box, area=width * height, segmentation=[corners])


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_data_of(cfg, root, **options):
    """What the data sets of a config need, under `root`: COCO or LVIS, wrapped or not."""
    for seed, loader in enumerate((cfg.train_dataloader, cfg.val_dataloader)):
        data = loader.dataset
        while 'dataset' in data:
            data = data.dataset
        write = write_lvis if data.type == 'NaViTLVISDataset' else write_coco
        write(root, data.ann_file, data.data_prefix.img, **{'seed': seed, **options})
