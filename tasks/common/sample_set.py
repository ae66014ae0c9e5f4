"""Writes drawings as a COCO set with index masks, complete or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from .drawings import CLASSES, Drawing, draw
from .text_files import read_json


def write_sample_set(out: Path, *, seed: int, num_pictures: dict[str, int]) -> bool:
    """Draw `num_pictures` of each split into `out`; False where the same set stands there already.

    OUT/{split}/*.jpg, OUT/annotations/instances_{split}.json (masks as run lengths) and
    OUT/masks/{split}/*.png (0 = background, then the classes in order). Drawn beside `out` and
    moved there at the end, so an interrupted run leaves nothing half made.
    """
    info = dict(description='navit-backbone drawings, version 1', seed=seed, **num_pictures)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _refuse_unless_same(out, info)
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    (partial / 'annotations').mkdir(parents=True)
    for split, count in num_pictures.items():
        annotations = _write_split(partial, split, seed, count)
        text = json.dumps(dict(info=info, **annotations))
        _annotation_file(partial, split).write_text(text)
    if out.exists():
        out.rmdir()  # empty, or it would have been refused
    partial.rename(out)
    return True


def _annotation_file(out: Path, split: str) -> Path:
    return out / 'annotations' / f'instances_{split}.json'


def _refuse_unless_same(out: Path, info: dict[str, Any]) -> bool:
    file = _annotation_file(out, 'train')
    found = read_json(file).get('info') if file.is_file() else None
    if found != info:
        what = 'another set or other files' if found is None else f'a set made with {found}'
        raise ValueError(
            f'--out {out} holds {what}, and nothing is overwritten: remove it or choose another '
            f'folder'
        )
    return False


def _write_split(out: Path, split: str, seed: int, count: int) -> dict[str, list[dict[str, Any]]]:
    for folder in (out / split, out / 'masks' / split):
        folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in track(range(count), description=split):
        drawing, stem = draw(seed, split, number), f'{number:05d}'
        h, w = drawing.image.shape[:2]
        cv2.imwrite(str(out / split / f'{stem}.jpg'), drawing.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(out / 'masks' / split / f'{stem}.png'), _index_mask(drawing))
        images.append(dict(id=number, file_name=f'{stem}.jpg', height=h, width=w))
        for label, mask in zip(drawing.labels, drawing.masks, strict=True):
            identity = dict(id=len(annotations) + 1, image_id=number, category_id=label + 1)
            annotations.append(identity | _annotation(mask))
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _index_mask(drawing: Drawing) -> np.ndarray:
    """[h, w] uint8: 0 = background, else 1 + the class."""
    index = np.zeros(drawing.image.shape[:2], dtype=np.uint8)
    for label, mask in zip(drawing.labels, drawing.masks, strict=True):
        index[mask] = label + 1
    return index


def _annotation(mask: np.ndarray) -> dict[str, Any]:
    """COCO's fields of one object from its mask [h, w]: box, area, uncompressed run lengths."""
    columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    flat = mask.T.flatten()  # column by column, and the first run counts zeros
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    segmentation = dict(size=list(mask.shape), counts=runs)
    return dict(bbox=box, area=int(mask.sum()), iscrowd=0, segmentation=segmentation)
