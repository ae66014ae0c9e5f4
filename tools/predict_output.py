"""What tools/predict.py writes of a picture or clip: objects, regions, or classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from navit_backbone.tasks.common.overlay import label_picture, labelled, shares

if TYPE_CHECKING:
    from navit_backbone.tasks.common.inference import Predictor


class Objects:
    """Boxes, scores and masks: drawn on the picture, listed in COCO's form."""

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir, self.colours, self.score_thr = out_dir, predictor.palette, score_thr
        self.content: dict[str, Any] = {'annotations': []}
        self.num_drawn = 0

    def write(
        self, image: np.ndarray, objects: list[dict[str, Any]], entry: dict[str, Any], target: Path
    ) -> None:
        """Draw the objects of the picture [h, w, 3] (RGB), and note all under its `entry`."""
        from navit_backbone.tasks.detection.inference import annotated

        listed = self.content['annotations']
        start = len(listed) + 1
        listed += [{'id': start + i, 'image_id': entry['id'], **o} for i, o in enumerate(objects)]
        shown = [item for item in objects if item['score'] >= self.score_thr]
        self.num_drawn += len(shown)
        out = self.out_dir / target
        out.parent.mkdir(parents=True, exist_ok=True)
        annotated(image, shown, self.colours).save(out, quality=92)

    def summary(self) -> str:
        """How many objects are in the pictures; where there are none, why."""
        scores = [item['score'] for item in self.content['annotations']]
        if self.num_drawn or not scores:
            return f'{self.num_drawn} objects drawn, those of score {self.score_thr:g} or more'
        return (
            f'no object drawn: none has a score of {self.score_thr:g} or more, the best has '
            f'{max(scores):.2g}. Draw it with a lower --score-thr; a model of such scores was '
            'trained for too few steps, or on other pictures'
        )


class Regions:
    """A class for each pixel: the picture under its label map, and the map itself."""

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir = out_dir
        self.classes, self.colours = predictor.classes, predictor.palette
        self.content: dict[str, Any] = {}
        self.pixels = np.zeros(len(self.classes), dtype=np.int64)

    def write(
        self, image: np.ndarray, labels: np.ndarray, entry: dict[str, Any], target: Path
    ) -> None:
        """Draw the picture [h, w, 3] (RGB) with its legend; keep its label map [h, w]."""
        self.pixels += np.bincount(labels.ravel(), minlength=len(self.classes))
        kept = Path('labels') / f'{target}.png'  # a.jpg and a.png are two pictures
        for out in (self.out_dir / target, self.out_dir / kept):
            out.parent.mkdir(parents=True, exist_ok=True)
        labelled(image, [labels], self.classes, self.colours).save(
            self.out_dir / target, quality=92
        )
        label_picture(labels, self.colours).save(self.out_dir / kept)
        entry['labels'] = str(kept)
        entry['shares'] = {
            self.classes[label]: round(share, 6) for label, share in shares(labels).items()
        }

    def summary(self) -> str:
        """The classes that were found, the largest first."""
        total = max(1, int(self.pixels.sum()))
        order = [i for i in np.argsort(-self.pixels, kind='stable') if self.pixels[i]]
        named = [f'{self.classes[i]} {100 * self.pixels[i] / total:.1f} %' for i in order[:8]]
        return (
            f'label maps in {self.out_dir / "labels"}; {len(order)} of {len(self.classes)} classes '
            f'found: {", ".join(named)}' + (', ...' if len(order) > 8 else '')
        )


class Classes:
    """A score for each class: the best ones under every frame, all of them listed."""

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir = out_dir
        self.classes, self.colours = predictor.classes, predictor.palette
        self.content: dict[str, Any] = {}
        self.best: Counter[str] = Counter()

    def write(self, image: None, scores: np.ndarray, entry: dict[str, Any], target: Path) -> None:
        """Draw the clip that the `entry` names, and note all scores there."""
        from navit_backbone.tasks.common.video_reader import read_picture
        from navit_backbone.tasks.video.inference import panel, under, write_labelled

        best = self.classes[int(scores.argmax())]
        self.best[best] += 1
        entry['class'] = best
        listed = zip(self.classes, scores.tolist(), strict=True)
        entry['scores'] = {name: round(score, 6) for name, score in listed}
        file, out = Path(entry['file_name']), self.out_dir / target
        out.parent.mkdir(parents=True, exist_ok=True)
        labels = panel(max(entry['width'], 240), self.classes, scores, self.colours)
        if out.suffix.lower() == '.mp4':
            write_labelled(file, out, labels)
        else:
            Image.fromarray(under(read_picture(str(file)), labels)).save(out, quality=92)

    def summary(self) -> str:
        """How many clips are of each class, the most frequent first."""
        return ', '.join(f'{count} of {name}' for name, count in self.best.most_common(8))


Output = type[Objects] | type[Regions] | type[Classes]  # all are called and used alike


def tools_for(task: str) -> tuple[type[Predictor], Output]:
    """The model's side and the output's side of a task."""
    if task == 'detection':
        from navit_backbone.tasks.detection.inference import Detector

        return Detector, Objects
    if task == 'video':
        from navit_backbone.tasks.video.inference import Classifier

        return Classifier, Classes
    from navit_backbone.tasks.segmentation.inference import Segmentor

    return Segmentor, Regions
