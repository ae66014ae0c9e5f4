"""What tools/predict.py writes of a picture or clip: objects, regions, or classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from navit_backbone.file_writing import written_whole
from navit_backbone.tasks.common.fonts import drawn_names
from navit_backbone.tasks.common.overlay import label_picture, labelled, shares

if TYPE_CHECKING:
    from navit_backbone.tasks.common.inference import Predictor


Entry = dict[str, Any]  # plain values, as JSON has them


def label_map_of(target: Path) -> Path:
    """Return where the label map of the drawing `target` is; a.jpg and a.png have one each."""
    return Path('labels', f'{target}.png')


def _save(image: Image.Image, out: Path) -> None:
    with written_whole(out) as aside:
        image.save(aside, quality=92)


class Objects:
    """Boxes, scores and masks: drawn on the image, listed in COCO's form."""

    lists: tuple[str, ...] = ('annotations',)

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir, self.colours, self.score_thr = out_dir, predictor.palette, score_thr
        self.names = drawn_names(predictor.classes)
        self.num_drawn, self.best = 0, -1.0

    def entry(self, objects: list[dict[str, Any]], target: Path) -> tuple[Entry, list[Entry]]:
        """Return what predictions.json lists: nothing more of the image, and all objects."""
        self.best = max([self.best, *(item['score'] for item in objects)])
        return {}, objects

    def draw(
        self, image: np.ndarray, objects: list[dict[str, Any]], entry: Entry, target: Path
    ) -> None:
        """Draw the objects from `score_thr` on upon the image [h, w, 3] (RGB)."""
        from navit_backbone.tasks.detection.inference import annotated

        shown = [item for item in objects if item['score'] >= self.score_thr]
        _save(annotated(image, shown, self.colours, self.names), self.out_dir / target)
        self.num_drawn += len(shown)

    def summary(self) -> str:
        """Return how many objects were drawn; where there are none, why."""
        if self.num_drawn or self.best < 0:
            return f'{self.num_drawn} objects drawn, those of score {self.score_thr:g} or more'
        return (
            f'no object drawn: none has a score of {self.score_thr:g} or more, the best has '
            f'{self.best:.2g}. Draw it with a lower --score-thr; a model of such scores was '
            'trained for too few steps, or on other pictures'
        )


class Regions:
    """A class for each pixel: the picture under its label map, and the map itself."""

    lists: tuple[str, ...] = ()

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir = out_dir
        self.classes, self.colours = predictor.classes, predictor.palette
        self.pixels = np.zeros(len(self.classes), dtype=np.int64)

    def entry(self, labels: np.ndarray, target: Path) -> tuple[Entry, list[Entry]]:
        """Write the label map [h, w]; return its path and the share of each class."""
        kept = label_map_of(target)
        _save(label_picture(labels, self.colours), self.out_dir / kept)
        self.pixels += np.bincount(labels.ravel(), minlength=len(self.classes))
        found = {self.classes[label]: round(share, 6) for label, share in shares(labels).items()}
        return {'labels': str(kept), 'shares': found}, []

    def draw(self, image: np.ndarray, labels: np.ndarray, entry: Entry, target: Path) -> None:
        """Draw the image [h, w, 3] (RGB) under its label map, with a legend."""
        drawing = labelled(image, [labels], self.classes, self.colours)
        _save(drawing, self.out_dir / target)

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

    lists: tuple[str, ...] = ()

    def __init__(self, out_dir: Path, predictor: Predictor, score_thr: float) -> None:
        self.out_dir = out_dir
        self.classes, self.colours = predictor.classes, predictor.palette
        self.best: Counter[str] = Counter()

    def entry(self, scores: np.ndarray, target: Path) -> tuple[Entry, list[Entry]]:
        """Return the best class, and the score of every class."""
        best = self.classes[int(scores.argmax())]
        self.best[best] += 1
        listed = zip(self.classes, scores.tolist(), strict=True)
        return {'class': best, 'scores': {name: round(score, 6) for name, score in listed}}, []

    def draw(self, image: None, scores: np.ndarray, entry: Entry, target: Path) -> None:
        """Draw the best classes under the frames of the clip that the `entry` names."""
        from navit_backbone.tasks.common.video_reader import read_picture
        from navit_backbone.tasks.video.inference import panel, under, write_labelled

        file, out = Path(entry['file_name']), self.out_dir / target
        labels = panel(max(entry['width'], 240), self.classes, scores, self.colours)
        if out.suffix.lower() == '.mp4':
            out.parent.mkdir(parents=True, exist_ok=True)
            write_labelled(file, out, labels)
        else:
            _save(Image.fromarray(under(read_picture(str(file)), labels)), out)

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
