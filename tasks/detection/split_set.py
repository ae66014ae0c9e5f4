"""One annotation file in COCO's format as two: to train on, and held out."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..common.duplicates import first_copies
from ..common.folds import hold_out
from ..common.groups import listed_groups
from ..common.text_files import read_json
from .annotations import Annotations, image_path, read_annotations

SPLITS = ('train', 'val')


def split_annotations(
    ann_file: Path, out: Path, *, share: float, seed: int, images: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Write `out`/instances_train.json and instances_val.json; what each holds.

    Images are held out by `hold_out`, and everything else of the file is in both. Images that are
    the same (by file name and, in the folder `images`, by equal bytes or to the eye), and those of
    one group, stay together: a group is the field `group` of an image, or that of `groups.csv`
    beside the annotations, the images or one folder above. `images` is by default the folder of
    that name beside the folder of the annotations.

    Raises ValueError, before anything is written, where the file is against the format or too
    small, and where other files stand in `out`.
    """
    if not 0 < share < 1:
        raise ValueError(f'the share held out must lie between 0 and 1, got {share}')
    read = read_annotations(str(ann_file))
    if len(read.images) < 2:
        raise ValueError(f'{ann_file} lists {len(read.images)} image: two or more can be split')
    first = _first_of_each(read, ann_file, images or default_images(ann_file))
    if len({*first}) < 2:
        raise ValueError(
            f'{ann_file}: its {len(first)} images are all the same, or of one group: they cannot '
            'be split'
        )
    classes: defaultdict[Any, set[Any]] = defaultdict(set)
    for item in read.annotations:
        classes[item['image_id']].add(item['category_id'])
    ids = [item['id'] for item in read.images]
    held = hold_out(first, [classes[identity] for identity in ids], share=share, seed=seed)
    held_out = {identity for identity, chosen in zip(ids, held, strict=True) if chosen}
    content = read_json(ann_file)
    parts = {}
    for split in SPLITS:
        parts[split] = content | {
            'categories': read.categories,
            'images': [i for i in read.images if (i['id'] in held_out) == (split == 'val')],
            'annotations': [
                a for a in read.annotations if (a['image_id'] in held_out) == (split == 'val')
            ],
        }
    texts = {out / f'instances_{split}.json': json.dumps(part) for split, part in parts.items()}
    for file, text in texts.items():
        if file.exists() and file.read_text() != text:
            raise ValueError(f'{file} is there already, and of another split: move it or set --out')
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        file.write_text(text)
    return parts


def default_images(ann_file: Path) -> Path:
    """Return where the images of an annotation file are looked for: `images` beside its folder."""
    return ann_file.absolute().parent.parent / 'images'


def _first_of_each(read: Annotations, ann_file: Path, images: Path) -> list[int]:
    """Return for each image the number of the first one that is the same, or of its group."""
    paths = [image_path(str(images), item['file_name']) for item in read.images]
    here = ann_file.absolute().parent
    listed = listed_groups(paths, [here, here.parent, images, images.absolute().parent])
    own = [item.get('group') for item in read.images]
    groups = [str(one or other or '') for one, other in zip(own, listed, strict=True)]
    return first_copies(paths, looks=images.is_dir(), groups=groups)
