"""Augmentations of clips: the same for all frames, drawn from the sample's seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageEnhance, ImageOps

from .sample import SampleSeed

Frame = Image.Image


@TRANSFORMS.register_module()
class ClipFlip(BaseTransform):
    """Mirror a clip left to right with probability `prob`.

    Clips of the classes `fixed`, which say a direction, stay as they are. `swap` pairs classes that
    become each other, ``{'left': 'right'}``; both are given by name or number.
    """

    def __init__(
        self,
        prob: float = 0.5,
        *,
        fixed: Sequence[str | int] = (),
        swap: dict[str | int, str | int] | None = None,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'ClipFlip: prob={prob} must lie in [0, 1]')
        self.prob, self.fixed, self.swap = prob, tuple(fixed), dict(swap or {})

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        flip = bool(_draws(results, 'flip').random() < self.prob)
        labels = list(results.get('gt_label', ()))
        if set(self._numbers(self.fixed, results)) & set(labels):
            flip = False
        results['flip'] = flip
        if flip:
            results['imgs'] = results['imgs'][:, :, :, ::-1]
            there = self._numbers(tuple(self.swap), results)
            here = self._numbers(tuple(self.swap.values()), results)
            pairs = dict(zip(there, here, strict=True)) | dict(zip(here, there, strict=True))
            results['gt_label'] = [pairs.get(label, label) for label in labels]
        return results

    def _numbers(self, classes: Sequence[str | int], results: dict[str, Any]) -> tuple[int, ...]:
        names = results.get('classes', ())
        unknown = [c for c in classes if isinstance(c, str) and c not in names]
        if unknown:
            raise ValueError(f'ClipFlip: {unknown[0]!r} is none of the classes {list(names)}')
        return tuple(names.index(c) if isinstance(c, str) else c for c in classes)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob}, fixed={self.fixed}, swap={self.swap})'


@TRANSFORMS.register_module()
class ClipShuffle(BaseTransform):
    """Put the frames into a random order: a control arm, which sees all of a clip but its time."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        frames = results['imgs']
        results['imgs'] = frames[:, _draws(results, 'shuffle').permutation(frames.shape[1])]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class ClipColorJitter(BaseTransform):
    """Brightness, contrast and saturation, each times a factor from [1 - x, 1 + x]."""

    def __init__(
        self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4
    ) -> None:
        self.spread = dict(brightness=brightness, contrast=contrast, saturation=saturation)
        if wrong := {k: v for k, v in self.spread.items() if not 0 <= v < 1}:
            raise ValueError(f'ClipColorJitter: {wrong} must lie in [0, 1)')

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        draws = _draws(results, 'jitter')
        factors = {name: draws.uniform(1 - x, 1 + x) for name, x in self.spread.items() if x}
        order = draws.permutation(list(factors)).tolist()

        def change(frame: Frame) -> Frame:
            for name in order:
                frame = _ENHANCE[name](frame).enhance(factors[name])
            return frame

        return _each_frame(results, change)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.spread})'


@TRANSFORMS.register_module()
class ClipRandAugment(BaseTransform):
    """RandAugment (Cubuk et al. 2020): `num_ops` operations of a strength around `magnitude`.

    `magnitude` is out of 10, with a normal spread of `magnitude_std`; each operation happens with
    probability `prob`. What a change leaves empty is filled with grey.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 7.0,
        *,
        magnitude_std: float = 0.5,
        prob: float = 0.5,
    ) -> None:
        if num_ops < 1 or not 0 <= magnitude <= 10 or magnitude_std < 0 or not 0 <= prob <= 1:
            raise ValueError(
                f'ClipRandAugment: num_ops={num_ops} at least 1, magnitude={magnitude} in [0, 10], '
                f'magnitude_std={magnitude_std} at least 0, prob={prob} in [0, 1]'
            )
        self.num_ops, self.magnitude = num_ops, magnitude
        self.magnitude_std, self.prob = magnitude_std, prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        draws = _draws(results, 'rand augment')
        steps: list[tuple[Callable[[Frame, float], Frame], float]] = []
        for name in draws.choice(list(_OPERATIONS), self.num_ops).tolist():
            strength = float(np.clip(draws.normal(self.magnitude, self.magnitude_std), 0, 10)) / 10
            sign = 1.0 if draws.random() < 0.5 else -1.0
            if draws.random() < self.prob:
                operation, signed = _OPERATIONS[name]
                steps.append((operation, strength * sign if signed else strength))
        if not steps:
            return results

        def change(frame: Frame) -> Frame:
            for operation, strength in steps:
                frame = operation(frame, strength)
            return frame

        return _each_frame(results, change)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_ops={self.num_ops}, magnitude={self.magnitude}, '
            f'magnitude_std={self.magnitude_std}, prob={self.prob})'
        )


@TRANSFORMS.register_module()
class ClipErasing(BaseTransform):
    """Fill a box with noise, the same place in all frames, with probability `prob`.

    Random erasing (Zhong et al. 2020): the box has a share of the frame between `area` and an
    aspect between `aspect` and its inverse.
    """

    def __init__(
        self,
        prob: float = 0.25,
        *,
        area: tuple[float, float] = (0.02, 1 / 3),
        aspect: float = 0.3,
    ) -> None:
        if not 0 <= prob <= 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < aspect <= 1:
            raise ValueError(
                f'ClipErasing: prob={prob} in [0, 1], area={area} ascending in (0, 1], '
                f'aspect={aspect} in (0, 1]'
            )
        self.prob, self.area, self.aspect = prob, area, aspect

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        draws = _draws(results, 'erasing')
        if draws.random() >= self.prob:
            return results
        h, w = results['imgs'].shape[2:4]
        pixels = draws.uniform(*self.area) * h * w
        widest = abs(np.log(self.aspect))
        ratio = np.exp(draws.uniform(-widest, widest))
        height = int(np.clip(round((pixels * ratio) ** 0.5), 1, h))
        width = int(np.clip(round((pixels / ratio) ** 0.5), 1, w))
        top, left = int(draws.integers(h - height + 1)), int(draws.integers(w - width + 1))
        frames = results['imgs'] = results['imgs'].copy()
        box = frames[:, :, top : top + height, left : left + width]
        box[:] = draws.integers(0, 256, box.shape, dtype=np.uint8)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob}, area={self.area}, aspect={self.aspect})'


def _draws(results: dict[str, Any], purpose: str) -> np.random.Generator:
    return SampleSeed(*results['sample_seed']).generator(purpose)


def _each_frame(results: dict[str, Any], change: Callable[[Frame], Frame]) -> dict[str, Any]:
    frames = results['imgs']
    flat = frames.reshape(-1, *frames.shape[2:])
    changed = [np.asarray(change(Image.fromarray(np.ascontiguousarray(item)))) for item in flat]
    results['imgs'] = np.stack(changed).reshape(frames.shape)
    return results


_GREY = (128, 128, 128)
_ENHANCE: dict[str, Any] = {
    'brightness': ImageEnhance.Brightness,
    'contrast': ImageEnhance.Contrast,
    'saturation': ImageEnhance.Color,
}


def _moved(frame: Frame, matrix: tuple[float, ...]) -> Frame:
    return frame.transform(
        frame.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY
    )


def _enhanced(kind: str) -> Callable[[Frame, float], Frame]:
    return lambda frame, strength: _ENHANCE[kind](frame).enhance(1 + 0.9 * strength)


def _sharper(frame: Frame, strength: float) -> Frame:
    return ImageEnhance.Sharpness(frame).enhance(1 + 0.9 * strength)


# Each takes a strength in [0, 1], or in [-1, 1] where it is signed.
_OPERATIONS: dict[str, tuple[Callable[[Frame, float], Frame], bool]] = {
    'auto contrast': (lambda frame, _: ImageOps.autocontrast(frame), False),
    'equalize': (lambda frame, _: ImageOps.equalize(frame), False),
    'invert': (lambda frame, _: ImageOps.invert(frame), False),
    'posterize': (lambda frame, s: ImageOps.posterize(frame, 8 - round(4 * s)), False),
    'solarize': (lambda frame, s: ImageOps.solarize(frame, 256 - round(256 * s)), False),
    'brightness': (_enhanced('brightness'), True),
    'contrast': (_enhanced('contrast'), True),
    'color': (_enhanced('saturation'), True),
    'sharpness': (_sharper, True),
    'rotate': (
        lambda frame, s: frame.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=_GREY),
        True,
    ),
    'shear x': (lambda frame, s: _moved(frame, (1, 0.3 * s, 0, 0, 1, 0)), True),
    'shear y': (lambda frame, s: _moved(frame, (1, 0, 0, 0.3 * s, 1, 0)), True),
    'translate x': (lambda frame, s: _moved(frame, (1, 0, 0.45 * s * frame.width, 0, 1, 0)), True),
    'translate y': (lambda frame, s: _moved(frame, (1, 0, 0, 0, 1, 0.45 * s * frame.height)), True),
}
