"""What converted weights make of pictures of known classes, untrained: tools/convert_weights.py.

Each picture is shown in four ways at each budget of tokens: native, at the largest grid of its own
aspect within the budget; and in three ways to the largest square within it: squashed, padded (its
aspect kept, the rest of the square the mean colour, and computed) and its centre crop. All four are
resized once, from the upright original, by the filter that a pipeline uses by default; further
filters show the native way again.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from navit_backbone.checkpoint import build, load_weights, read_weights
from navit_backbone.packing import PackedPatches, Size, pack, patchify
from navit_backbone.tasks.common.file_formats import describe_format
from navit_backbone.tasks.common.folders import find_files
from navit_backbone.tasks.common.groups import GroupFile, group_numbers
from navit_backbone.tasks.common.picture_sizes import PICTURE_SUFFIXES, UNREADABLE
from navit_backbone.tasks.common.resampling import DEFAULT_FILTER, check_filter, resize_image
from navit_backbone.tasks.common.resize import token_budget_size
from navit_backbone.tasks.common.wording import few
from navit_backbone.vit import NaViT

WAYS = ('native', 'squashed', 'padded', 'centre crop')
TOKENS = '64,100,144,196,256,324,400,484,576'
CLASSES = 'ants=310,bees=309'  # hymenoptera's folders, in the order of ImageNet's 1000 classes
FIGURES = ('top-1', 'top-1 of those asked', 'log-likelihood')
_PACK_TOKENS = 4096  # at once: some tens of pictures of all sizes


@dataclass(frozen=True, kw_only=True)
class View:
    """A part of a picture, resampled into the middle of a canvas; sizes are (height, width)."""

    box: tuple[int, int, int, int]  # left, upper, right, lower: pixels of the original
    size: Size  # that the part is resampled to
    canvas: Size  # in whole patches; what the part does not fill is the mean colour

    @classmethod
    def of(cls, way: str, h: int, w: int, *, patch_size: int, max_tokens: int) -> View:
        """How a picture of `h` x `w` pixels is shown in one of WAYS."""
        whole = (0, 0, w, h)
        native, square = (
            token_budget_size(*aspect, patch_size=patch_size, max_tokens=max_tokens)
            for aspect in ((h, w), (1, 1))
        )
        if way == 'native':
            return cls(box=whole, size=native, canvas=native)
        if way == 'squashed':
            return cls(box=whole, size=square, canvas=square)
        side, long, short = square[0], max(h, w), min(h, w)
        if way == 'padded':
            rest = max(1, (2 * short * side + long) // (2 * long))  # rounded half up
            return cls(box=whole, size=(side, rest) if h >= w else (rest, side), canvas=square)
        assert way == 'centre crop', f'{way!r} is not one of {WAYS}'
        left, upper = (w - short) // 2, (h - short) // 2
        box = (left, upper, left + short, upper + short)
        return cls(box=box, size=square, canvas=square)

    def shown(
        self,
        image_HWC: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = DEFAULT_FILTER,
    ) -> Tensor:
        """Return the normalized canvas [3, height, width] of an RGB uint8 image."""
        (h, w), (height, width) = self.size, self.canvas
        left, upper, right, lower = self.box
        part_HWC = resize_image(image_HWC[upper:lower, left:right], (h, w), interpolation)
        part_HWC = (part_HWC.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
        canvas = torch.zeros(3, height, width)
        top, left = (height - h) // 2, (width - w) // 2
        canvas[:, top : top + h, left : left + w] = torch.from_numpy(part_HWC).permute(2, 0, 1)
        return canvas


@dataclass(frozen=True, kw_only=True)
class Records:
    """What was found for each picture that could be read, in each way, at each budget."""

    budgets: Sequence[int]
    found: np.ndarray  # [way, budget, picture, figure]
    tokens: np.ndarray  # [way, budget, picture]
    aspects: np.ndarray  # [picture] |log(width / height)|
    groups: np.ndarray  # [picture] number of its group; groups are resampled whole
    classes: Mapping[str, int]  # those asked, by the names of their folders
    content: Mapping[str, int]  # pictures of each of them
    faults: Sequence[str]  # those that cannot be read, with the reason
    ways: Sequence[str] = WAYS  # and 'native, FILTER' of each further filter
    interpolation: str = DEFAULT_FILTER


@dataclass(frozen=True, kw_only=True)
class Check:
    """Pictures of known classes, and the budgets to show them at."""

    folder: Path  # may hold groups.csv
    pictures: Sequence[tuple[Path, str]]  # with the folder that names the class
    classes: Mapping[str, int]
    budgets: Sequence[int]
    filters: Sequence[str] = (DEFAULT_FILTER,)  # the first for all ways, the others for native

    @classmethod
    def of(
        cls, folder: Path, *, tokens: str, classes: str, filters: Sequence[str] = (DEFAULT_FILTER,)
    ) -> Check:
        """As the command line says it; raise on what cannot be done."""
        budgets, numbers = budgets_of(tokens), classes_of(classes)
        for number, name in enumerate(filters):
            check_filter('--interpolation', name)
            if name in filters[:number]:
                raise ValueError(f'--interpolation {" ".join(filters)}: {name} is given twice')
        return cls(
            folder=folder,
            pictures=find_pictures(folder, numbers),
            classes=numbers,
            budgets=budgets,
            filters=filters,
        )

    @property
    def ways(self) -> dict[str, tuple[str, str]]:
        """Return the way and the filter behind each name in the report."""
        first, *others = self.filters
        shown_by_first = {way: (way, first) for way in WAYS}
        return shown_by_first | {f'native, {name}': ('native', name) for name in others}

    def run(self, weights_file: Path, report: Path | None) -> None:
        """Classify all pictures in all ways; write the table, the figures and the plot."""
        from navit_backbone.tools.check_images_report import write

        folder = report or weights_file.with_name(f'{weights_file.stem}_images')
        classifier = Classifier.of(weights_file)
        folder.mkdir(parents=True, exist_ok=True)  # a folder that refuses is told before the work
        print(write(self.records(classifier), folder, weights_file))
        print(f'the same, all figures and a plot in {folder}/table.md, figures.json and plot.png')

    def records(self, classifier: Classifier) -> Records:
        """All figures of all pictures; those that cannot be read are named and left out."""
        classifier.check_classes(self.classes)
        groups = GroupFile(self.folder)  # a wrong table is told before the work
        faults: list[str] = []
        read: list[tuple[Path, float]] = []  # file and aspect of each picture
        found, tokens = [], []
        for records_MF, tokens_M in classifier.answers(self._examples(classifier, read, faults)):
            found.append(records_MF)
            tokens.append(tokens_M)
        if not read:
            raise ValueError(f'none of {len(self.pictures)} pictures can be read: {few(faults)}')
        shape = (len(read), len(self.budgets), len(self.ways))
        return Records(
            budgets=self.budgets,
            found=np.concatenate(found).reshape(*shape, -1).transpose(2, 1, 0, 3),
            tokens=np.concatenate(tokens).reshape(shape).transpose(2, 1, 0),
            aspects=np.array([aspect for _, aspect in read]),
            groups=group_numbers([groups[file] for file, _ in read]),
            classes=self.classes,
            content=Counter(file.parent.name for file, _ in read),
            faults=faults,
            ways=list(self.ways),
            interpolation=self.filters[0],
        )

    def _examples(
        self, classifier: Classifier, read: list[tuple[Path, float]], faults: list[str]
    ) -> Iterator[tuple[PackedPatches, int]]:
        """Every picture at every budget in every way, with its class; fills `read` and `faults`."""
        for file, name in track(self.pictures, 'classifying'):
            try:
                picture = upright(file)
            except UNREADABLE as error:
                reason = describe_format(str(file)) or ' '.join(str(error).split())
                faults.append(f'{file}: {reason}')
                print(f'left out: {faults[-1]}')
                continue
            read.append((file, abs(float(np.log(picture.width / picture.height)))))
            image = np.asarray(picture)
            for budget in self.budgets:
                for way, interpolation in self.ways.values():
                    example = classifier.example(image, way, budget, interpolation)
                    yield example, self.classes[name]


class Classifier:
    """The model of a file of weights, with the statistics of its input."""

    def __init__(
        self, model: NaViT, *, mean: Sequence[float], std: Sequence[float], patch_size: int
    ) -> None:
        self.device = get_device()
        self.model = model.to(self.device).eval()
        self.mean, self.std, self.patch_size = mean, std, patch_size
        self.asked = [0]

    @classmethod
    def of(cls, file: Path) -> Classifier:
        """Built by the file's header alone; raise where it cannot classify pictures."""
        weights = read_weights(file)
        if 'classifier.weight' not in weights.tensors:
            raise ValueError(
                f'{file} has no classifier to ask: take weights with the head of their '
                'classification, or leave out --check-images'
            )
        (t, p, q), *others = weights.patch_shapes
        if others or t != 1 or p != q:
            raise ValueError(
                f'{file} has patches of (t, h, w) = {weights.patch_shapes}: --check-images takes '
                'weights of pictures in square patches'
            )
        if weights.input_mean is None or weights.input_std is None:
            raise ValueError(
                f'{file} does not say by which mean and std its input was normalised: convert it '
                'again with the --family that it is of'
            )
        model = build(weights)
        load_weights(model, weights)
        return cls(model, mean=weights.input_mean, std=weights.input_std, patch_size=p)

    def check_classes(self, classes: Mapping[str, int]) -> None:
        """Ask for these; raise where the model does not have them."""
        assert self.model.classifier is not None, 'a file with a classifier builds one'
        num_classes = self.model.classifier.out_features
        if wrong := {name: n for name, n in classes.items() if n >= num_classes}:
            raise ValueError(
                f'--classes {shown(wrong)}: these weights have {num_classes} classes, numbered '
                f'from 0 to {num_classes - 1}'
            )
        self.asked = sorted(set(classes.values()))

    def example(
        self, image_HWC: np.ndarray, way: str, budget: int, interpolation: str = DEFAULT_FILTER
    ) -> PackedPatches:
        """Return an RGB uint8 image as the model receives it."""
        p = self.patch_size
        view = View.of(way, *image_HWC.shape[:2], patch_size=p, max_tokens=budget)
        return patchify(view.shown(image_HWC, self.mean, self.std, interpolation), (1, p, p))

    @torch.no_grad()
    def answers(
        self, examples: Iterator[tuple[PackedPatches, int]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The records and tokens of example after example; sizes are mixed in a pack."""
        for batch in batches(examples, _PACK_TOKENS):
            packed = pack([example for example, _ in batch])
            on_device = packed.to(self.device)
            logits_NC = self.model.classify(self.model(on_device))
            logp_NC = logits_NC.double().log_softmax(1).cpu().numpy()
            labels_N = np.array([label for _, label in batch])
            yield records_of(logp_NC, labels_N, self.asked), packed.lengths.numpy()


def records_of(logp_NC: np.ndarray, labels_N: np.ndarray, asked: Sequence[int]) -> np.ndarray:
    """[N, F]: whether the class is the first of all, and of those asked, in %; its log-likelihood.

    `logp_NC` are the logs of the shares of all classes; what is asked for holds every label.
    """
    rows = np.arange(len(labels_N))
    first_N = logp_NC.argmax(1) == labels_N
    among_N = np.array(asked)[logp_NC[:, list(asked)].argmax(1)] == labels_N
    return np.stack([100.0 * first_N, 100.0 * among_N, logp_NC[rows, labels_N]], 1)


def batches(
    examples: Iterator[tuple[PackedPatches, int]], max_tokens: int
) -> Iterator[list[tuple[PackedPatches, int]]]:
    """Examples in order, as many at once as `max_tokens` hold, and one at least."""
    batch: list[tuple[PackedPatches, int]] = []
    tokens = 0
    for example in examples:
        length = len(example[0].patches)
        if batch and tokens + length > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(example)
        tokens += length
    if batch:
        yield batch


def upright(file: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF says; an EXIF that is damaged says nothing."""
    with Image.open(file) as picture:
        picture.load()
        with suppress(SyntaxError, ValueError, struct.error):
            ImageOps.exif_transpose(picture, in_place=True)
        return picture.convert('RGB')


def budgets_of(text: str) -> list[int]:
    """'64,196' as numbers of tokens, each once, in order."""
    parts = [part.strip() for part in text.split(',')]
    if wrong := [part for part in parts if not (part.isdecimal() and int(part))]:
        raise ValueError(
            f'--tokens {text}: {wrong[0]!r} is no number of tokens from 1 on; give them as {TOKENS}'
        )
    return sorted({int(part) for part in parts})


def classes_of(text: str) -> dict[str, int]:
    """'ants=310,bees=309' as {folder: number of the class}."""
    pairs = [part.strip().rpartition('=') for part in text.split(',')]
    classes = {name: int(number) for name, _, number in pairs if number.isdecimal()}
    wrong = len(classes) < len(pairs) or '' in classes or len(set(classes.values())) < 2
    if wrong:
        raise ValueError(
            f'--classes {text}: give two classes or more, each as FOLDER=NUMBER, the number that '
            f'it has in the weights, counted from 0; as {CLASSES}'
        )
    return classes


def find_pictures(folder: Path, classes: Mapping[str, int]) -> list[tuple[Path, str]]:
    """All pictures in folders that have the name of a class, at any depth."""
    if not folder.is_dir():
        raise ValueError(f'--check-images {folder}: no folder there')
    files = find_files(folder, PICTURE_SUFFIXES)
    if not files:
        raise ValueError(
            f'--check-images {folder}: no pictures in it, as {folder}/CLASS/*.jpg; looked for '
            f'{" ".join(PICTURE_SUFFIXES)}'
        )
    there = Counter(file.parent.name for file in files)
    if absent := [name for name in classes if name not in there]:
        raise ValueError(
            f'--classes {shown(classes)}: no pictures of {", ".join(absent)} in {folder}, which '
            f'has pictures in folders named {few(sorted(there))}; name these as FOLDER=NUMBER'
        )
    if others := [f'{name} ({there[name]})' for name in sorted(there) if name not in classes]:
        print(f'note: --classes does not name {few(others)}: their pictures are left out')
    return [(file, file.parent.name) for file in files if file.parent.name in classes]


def shown(classes: Mapping[str, int]) -> str:
    """As `classes_of` reads it."""
    return ','.join(f'{name}={number}' for name, number in classes.items())
