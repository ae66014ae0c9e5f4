"""Small COCO sets on disk, in the layout that a config asks for."""

import json

import cv2
import numpy as np

# prime sides, both aspects, smaller than a patch, one beyond the budgets in use
SIZES = [(61, 113), (97, 64), (11, 53), (700, 300)]


def write_coco(
    root, ann_file, images='', *, classes=('a', 'b', 'c'), sizes=SIZES, seed=0, **changes
):
    """Pictures of noise with two boxes each; `changes` replace parts of the annotation file."""
    random = np.random.default_rng(seed)
    (root / images).mkdir(parents=True, exist_ok=True)
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=3 * i + 2, name=name) for i, name in enumerate(classes)]
    for number, (h, w) in enumerate(sizes):
        name = f'{number}.jpg'
        cv2.imwrite(str(root / images / name), random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        content['images'].append(dict(id=number, file_name=name, height=h, width=w))
        for part in range(2):
            box = [w * 0.1 * (1 + part), h * 0.1, w * 0.5, h * 0.6]
            category = content['categories'][(number + part) % len(classes)]['id']
            identity = dict(id=2 * number + part + 1, image_id=number, category_id=category)
            area = dict(bbox=box, area=box[2] * box[3], iscrowd=0)
            content['annotations'].append(identity | area)
    path = root / ann_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def write_data_of(cfg, root, **options):
    """What the data sets of a config need, under `root`."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        data = loader.dataset
        write_coco(root, data.ann_file, data.data_prefix.img, **options)
