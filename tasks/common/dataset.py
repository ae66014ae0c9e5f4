"""A mixin for mmengine data sets: draws seeded per sample, bad samples named and replaced."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .resize import find_resize
from .sample import BadSampleError, SampleIndex, SampleSeed, seeded

# What the loaders of mmcv, mmdet and mmseg raise on a file that is missing, empty or broken. They
# assert where OpenCV decodes nothing (None), or take an attribute of that None; Pillow raises
# SyntaxError on a broken PNG. Only a transform named Load* is read this way: the same exceptions
# from any other transform are faults of the program, and pass.
_UNREADABLE = (OSError, cv2.error, AssertionError, AttributeError, ValueError, SyntaxError)
_MAX_REPLACEMENTS = 20


class SeededSamples:
    """Mix in before a `BaseDataset`: `class MyDataset(SeededSamples, CocoDataset)`.

    Every draw of a sample depends on the (seed, epoch, index) that `SeededSampler` puts into the
    index, and on nothing else: numpy, random and torch are seeded from it around the pipeline, and
    `results['sample_seed']` holds it. A plain index counts as seed 0, epoch 0.

    A bad sample (a file that cannot be read, an annotation that contradicts it, a pipeline that
    returns None) is logged with its file and replaced by another one, chosen by the same seed
    and capped to the tokens of the one it replaces. In test mode it is an error instead: an
    evaluation must not leave out pictures, nor count some twice.
    """

    _bad: torch.Tensor | None = None  # [len] bool, in shared memory: workers write, all read

    def full_init(self) -> None:
        super().full_init()  # type: ignore[misc]
        if self._bad is None:
            self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.full_init()
        seed = self._seed_of(index)
        cap: int | None = None
        last: BadSampleError | None = None
        for candidate in self._candidates(int(index), seed):
            try:
                with seeded(seed):
                    return self._run_pipeline(candidate, seed, cap)
            except BadSampleError as fault:
                if self.test_mode:  # type: ignore[attr-defined]
                    raise
                self._report(candidate, fault)
                cap, last = self._num_tokens(int(index), seed), fault
        raise RuntimeError(
            f'{type(self).__name__}: sample {int(index)} and the {_MAX_REPLACEMENTS} drawn to '
            f'replace it are all bad, so the fault is likely in data_root, data_prefix or the '
            f'loading transforms. The last: {last}'
        ) from last

    @property
    def bad_samples(self) -> list[tuple[int, str]]:
        """(index, file) of the samples found bad so far, by this process and its workers."""
        bad = [] if self._bad is None else self._bad.nonzero().flatten().tolist()
        return [(i, _file_of(self.get_data_info(i))) for i in bad]  # type: ignore[attr-defined]

    def _seed_of(self, index: int) -> SampleSeed:
        if isinstance(index, SampleIndex):
            return index.sample_seed
        if not self.test_mode:  # type: ignore[attr-defined]
            warnings.warn(
                'a plain index draws as seed 0, epoch 0, so every epoch would be alike: set '
                "sampler=dict(type='SeededSampler') in train_dataloader",
                stacklevel=3,
            )
        return SampleSeed(0, 0, int(index) % len(self))  # type: ignore[arg-type]

    def _candidates(self, index: int, seed: SampleSeed) -> Iterator[int]:
        yield index
        draws = seed.generator('replacement').integers(len(self), size=_MAX_REPLACEMENTS)  # type: ignore[arg-type]
        yield from draws.tolist()

    def _run_pipeline(self, index: int, seed: SampleSeed, cap: int | None) -> dict[str, Any]:
        results = self.get_data_info(index)  # type: ignore[attr-defined]
        file = _file_of(results)
        results['sample_seed'] = seed
        if cap is not None:
            results['token_cap'] = cap
        for transform in self.pipeline.transforms:  # type: ignore[attr-defined]
            name = type(transform).__name__
            try:
                results = transform(results)
            except BadSampleError:
                raise
            except _UNREADABLE as error:
                if not name.startswith('Load'):
                    raise
                reason = ' '.join(str(error).split())
                raise BadSampleError(
                    f'{file}: cannot be read, replace or remove it '
                    f'({name}: {type(error).__name__}: {reason})'
                ) from error
            if results is None:
                raise BadSampleError(f'{file}: {name} left nothing of it (returned None)')
        return results

    def _num_tokens(self, index: int, seed: SampleSeed) -> int | None:
        """Tokens planned for a sample, by its annotated size; None where no budget is in use."""
        resize = find_resize(self.pipeline.transforms)  # type: ignore[attr-defined]
        if resize is None:
            return None
        info = self.get_data_info(index)  # type: ignore[attr-defined]
        if 'height' in info and 'width' in info:
            return resize.num_tokens(info['height'], info['width'], sample_seed=seed)
        return None  # the budget itself is the limit

    def _report(self, index: int, fault: BadSampleError) -> None:
        """Log a bad sample the first time it is met."""
        assert self._bad is not None, 'full_init makes the record'
        if not self._bad[index]:
            self._bad[index] = True
            print_log(f'bad sample replaced: {fault}', logger='current', level=logging.WARNING)


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Lists the bad samples of all ranks and workers when training ends."""

    def after_train(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        own = [sample for part in _seeded_parts(dataset) for sample in part.bad_samples]
        bad = sorted({sample for rank in all_gather_object(own) for sample in rank})
        if bad:
            names = '\n'.join(f'  {file} (sample {index})' for index, file in bad)
            runner.logger.warning(
                f'{len(bad)} of {len(dataset)} samples were bad and were replaced; correct or '
                f'remove them:\n{names}'
            )


def _seeded_parts(dataset: Any) -> Iterator[SeededSamples]:
    """The data sets with this mixin that `dataset` is, wraps or joins."""
    if isinstance(dataset, SeededSamples):
        yield dataset
    inner = [getattr(dataset, name, None) for name in ('dataset', '_dataset')]
    for part in [*inner, *getattr(dataset, 'datasets', ())]:
        if part is not None:
            yield from _seeded_parts(part)


def _file_of(info: dict[str, Any]) -> str:
    keys = ('img_path', 'video_path', 'filename')
    return next((str(info[key]) for key in keys if key in info), f'sample {info["sample_idx"]}')
