"""One annotation file in COCO's format as two: to train on, and held out."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..common.duplicates import first_copies
from ..common.text_files import read_json
from .annotations import Annotations, image_path, read_annotations

SPLITS = ('train', 'val')


def split_annotations(
    ann_file: Path, out: Path, *, share: float, seed: int, images: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Write `out`/instances_train.json and instances_val.json; what each holds.

    About `share` of the pictures is held out, and of the pictures of each class too, as far as they
    let themselves be told apart: the rarest class comes first, with one picture at least in each
    file where it has two. The same seed splits alike. Everything else of the file is in both.
    Images that are one (of one file name and, in the folder `images`, of equal bytes or alike to
    the eye) are in one of the two.
    Raises ValueError, before anything is written, where the file is against the format or too
    small, and where other files stand in `out`.
    """
    if not 0 < share < 1:
        raise ValueError(f'the share held out must lie between 0 and 1, got {share}')
    read = read_annotations(str(ann_file))
    if len(read.images) < 2:
        raise ValueError(f'{ann_file} lists {len(read.images)} image: two or more can be split')
    first = _first_of_each(read, images)
    if len({*first.values()}) < 2:
        raise ValueError(f'{ann_file}: all of its {len(first)} images are one: nothing to split')
    chosen = _held_out(
        list(dict.fromkeys(first.values())),
        [
            (first[item['image_id']], item['category_id'])
            for item in read.annotations
            if item['image_id'] in first
        ],
        share=share,
        seed=seed,
    )
    held_out = {identity for identity, one in first.items() if one in chosen}
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


def _first_of_each(read: Annotations, images: Path | None) -> dict[Any, Any]:
    """Return for each image id the id of the first image that is the same."""
    ids = [item['id'] for item in read.images]
    paths = [image_path(str(images or ''), item['file_name']) for item in read.images]
    first = first_copies(paths, looks=images is not None)
    return {identity: ids[number] for identity, number in zip(ids, first, strict=True)}


def _held_out(
    pictures: list[Any], boxes: list[tuple[Any, Any]], *, share: float, seed: int
) -> set[Any]:
    """The pictures to hold out, by (picture, class) of each box."""
    order = [pictures[i] for i in np.random.default_rng(seed).permutation(len(pictures))]
    classes_of = defaultdict(set)
    for picture, name in boxes:
        classes_of[picture].add(name)
    with_class = defaultdict(list)
    for picture in order:
        for name in classes_of[picture]:
            with_class[name].append(picture)
    held_out: set[Any] = set()
    assigned: set[Any] = set()
    groups = sorted(with_class.items(), key=lambda item: (len(item[1]), str(item[0])))
    # all pictures come last: those without boxes, and what the total still lacks
    for members in [*(members for _, members in groups), order]:
        least = 1 if len(members) > 1 else 0
        wanted = min(max(round(share * len(members)), least), len(members) - 1)
        free = [picture for picture in members if picture not in assigned]
        lacking = wanted - sum(picture in held_out for picture in members)
        held_out.update(free[: max(lacking, 0)])
        assigned.update(free)
    return held_out
