"""A mixin for mmengine data sets: draws seeded per sample, bad samples named and replaced."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .file_formats import describe_format
from .name_forms import composed
from .picture_sizes import UNREADABLE, Measured, picture_size, scan, stated_sizes
from .resize import Size, find_planner
from .sample import BadSampleError, SampleIndex, SampleSeed, reason_of, seeded
from .small_reads import read_small
from .text_files import read_class_names
from .wrappers import inner_datasets

# Errors of the loaders of mmcv, mmdet and mmseg on a file that is missing, empty, broken or too
# large. They assert where OpenCV decodes nothing (None), or take an attribute of that None. Any
# other error of a loader costs its sample too, but may be a fault of the code: the first one is
# logged with its traceback.
DECODER_ERRORS = (cv2.error, AssertionError)  # of a file that OpenCV cannot decode
LOADER_ERRORS = (*UNREADABLE, cv2.error, AssertionError, AttributeError, MemoryError)
_MAX_REPLACEMENTS = 20
_GOOD, _EMPTIED, _BAD = range(3)


class EmptiedSampleError(BadSampleError):
    """A sample of which the pipeline leaves nothing, with the draws that it had."""


class SeededSamples:
    """Mix in before a `BaseDataset`: `class MyDataset(SeededSamples, CocoDataset)`.

    Every draw of a sample depends on the (seed, epoch, index) that `SeededSampler` puts into the
    index, and on nothing else: numpy, random and torch are seeded from it around the pipeline, and
    `results['sample_seed']` holds it. A plain index counts as seed 0, epoch 0.

    A bad sample (a file on which a transform named Load* raises anything, an annotation that
    contradicts it) is logged with its file and replaced by another one, chosen by the same seed and
    capped to the tokens of the one it replaces. So is one of which the pipeline leaves nothing
    (None), as a crop beside all objects does; this is no fault of the file, and only counted.
    In test mode both are errors instead: an evaluation must not leave out pictures, nor count some
    twice.
    """

    measure = staticmethod(picture_size)  # reads the planner's size_fields from a file's header

    _unusual_logged = False
    _faults: torch.Tensor | None = None  # [len] of _GOOD and so on, shared: workers write, all read
    _sizes: np.ndarray | None = None  # [len, size_fields of the planner], NaN where unknown

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read the class names, where `metainfo` gives the path of a file that has one a line."""
        names = (metainfo or {}).get('classes')
        if isinstance(names, str):
            if not Path(names).is_file():
                raise ValueError(
                    f"metainfo.classes={names!r} must be a list of names, as ['{names}'], or the "
                    'path of a file with a name a line: there is no such file'
                )
            metainfo = {**(metainfo or {}), 'classes': read_class_names(names)}
        elif names is not None:
            forms = (composed(name) if isinstance(name, str) else name for name in names)
            metainfo = {**(metainfo or {}), 'classes': type(names)(forms)}
        found: dict[str, Any] = super()._load_metainfo(metainfo)  # type: ignore[misc]
        return found

    def full_init(self) -> None:
        super().full_init()  # type: ignore[misc]
        read_small(self.pipeline.transforms)  # type: ignore[attr-defined]
        if self._faults is None:
            self._faults = torch.full((len(self),), _GOOD, dtype=torch.uint8).share_memory_()  # type: ignore[arg-type]

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        super().get_subset_(indices)  # type: ignore[misc]
        self._number_anew()

    def get_subset(self, indices: Sequence[int] | int) -> SeededSamples:
        subset: SeededSamples = super().get_subset(indices)  # type: ignore[misc]
        subset._number_anew()
        return subset

    def _number_anew(self) -> None:
        """Forget what stands under the numbers that samples had before."""
        self._faults = self._sizes = None
        self.full_init()

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Notes the sizes too: to unpickle a record for them later takes 100 us each."""
        planner = find_planner(self.pipeline.transforms)  # type: ignore[attr-defined]
        if planner is not None:
            self._sizes = stated_sizes(self.data_list, planner.size_fields)  # type: ignore[attr-defined]
        return super()._serialize_data()  # type: ignore[misc]

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
                cap, last = self.num_tokens(index), fault
        raise ValueError(
            f'{last}; so are sample {int(index)} and the {_MAX_REPLACEMENTS} drawn to replace it '
            f'of this {type(self).__name__}: where all have this fault, see to the list, '
            'data_root, data_prefix and the loading transforms'
        ) from last

    @property
    def bad_samples(self) -> list[tuple[int, str]]:
        """(index, file) of the samples found bad so far, by this process and its workers."""
        return self._with_fault(_BAD)

    @property
    def emptied_samples(self) -> list[tuple[int, str]]:
        """(index, file) of the good ones of which the pipeline left nothing at least once."""
        return self._with_fault(_EMPTIED)

    def _with_fault(self, fault: int) -> list[tuple[int, str]]:
        found = [] if self._faults is None else (self._faults == fault).nonzero().flatten().tolist()
        return [(i, file_of(self.get_data_info(i))) for i in found]  # type: ignore[attr-defined]

    @property
    def max_tokens(self) -> int | None:
        """The most that a sample can have; None where no transform plans its size."""
        planner = find_planner(self.pipeline.transforms)  # type: ignore[attr-defined]
        return None if planner is None else planner.max_tokens

    def num_tokens(self, index: int) -> int | None:
        """The tokens planned for a sample, without loading it; `max_tokens` if its size is unknown.

        A replacement for a bad sample has no more, so this is never less than what is loaded.
        """
        planner = find_planner(self.pipeline.transforms)  # type: ignore[attr-defined]
        size = None if planner is None else self._size_of(int(index), planner.size_fields)
        if planner is None or size is None:
            return self.max_tokens
        return planner.num_tokens(*size, sample_seed=self._seed_of(index))

    def target_size(self, index: int) -> Size | None:
        """The (height, width) planned for a picture, without loading it; None if unknown."""
        planner = find_planner(self.pipeline.transforms)  # type: ignore[attr-defined]
        size = None if planner is None else self._size_of(int(index), planner.size_fields)
        if planner is None or size is None:
            return None
        planned: Size = planner.target_size(*size, sample_seed=self._seed_of(index))
        return planned

    def planned_views(self, index: int) -> list[tuple[int, ...]] | None:
        """The sizes of all that the model will see of a sample: of a picture its `target_size`."""
        size = self.target_size(index)
        return None if size is None else [size]

    def complete_sizes(self) -> None:
        """Scan the files whose records lack a size, which keep the fields that they state.

        On several ranks all have to call this.
        """
        planner = find_planner(self.pipeline.transforms)  # type: ignore[attr-defined]
        if planner is None:
            return
        if self._sizes is None or len(self._sizes) != len(self):  # type: ignore[arg-type]
            records = (self.get_data_info(i) for i in range(len(self)))  # type: ignore[attr-defined, arg-type]
            self._sizes = stated_sizes(records, planner.size_fields)
        lacking = np.flatnonzero(np.isnan(self._sizes).any(axis=1)).tolist()
        files = [file_of(self.get_data_info(i)) for i in lacking]  # type: ignore[attr-defined]
        for i, size in zip(lacking, scan(files, measure=self.measure), strict=True):
            row = self._sizes[i]
            self._sizes[i] = np.nan if size is None else np.where(np.isnan(row), size, row)

    def _size_of(self, index: int, fields: Sequence[str]) -> Measured | None:
        if self._sizes is not None and len(self._sizes) == len(self):  # type: ignore[arg-type]
            row = self._sizes[index].tolist()
        else:  # a subset, or a data set that keeps its records as they are
            row = stated_sizes([self.get_data_info(index)], fields)[0].tolist()  # type: ignore[attr-defined]
        if not all(value > 0 for value in row):  # NaN is not
            return None
        return tuple(int(value) if value.is_integer() else value for value in row)

    def _seed_of(self, index: int) -> SampleSeed:
        if isinstance(index, SampleIndex):
            return index.sample_seed
        if not self.test_mode:  # type: ignore[attr-defined]
            warnings.warn(
                'a plain index draws as seed 0, epoch 0, so every epoch would be alike: set '
                "sampler=dict(type='SeededSampler') in train_dataloader, and for "
                'ClassBalancedDataset SeededClassBalancedDataset',
                stacklevel=3,
            )
        return SampleSeed(0, 0, int(index) % len(self))  # type: ignore[arg-type]

    def _candidates(self, index: int, seed: SampleSeed) -> Iterator[int]:
        yield index
        draws = seed.generator('replacement').integers(len(self), size=_MAX_REPLACEMENTS)  # type: ignore[arg-type]
        yield from draws.tolist()

    def sample_start(self, index: int) -> dict[str, Any]:
        """What the pipeline of a sample begins with: its record."""
        record: dict[str, Any] = self.get_data_info(index)  # type: ignore[attr-defined]
        return record

    def _run_pipeline(self, index: int, seed: SampleSeed, cap: int | None) -> dict[str, Any]:
        results = self.sample_start(index)
        file = file_of(results)
        results['sample_seed'] = seed
        if cap is not None:
            results['token_cap'] = cap
        for transform in self.pipeline.transforms:  # type: ignore[attr-defined]
            name = type(transform).__name__
            try:
                results = transform(results)
            except BadSampleError:
                raise
            except Exception as error:
                if not name.startswith('Load'):
                    raise  # a fault of the code, never of the file
                if known := describe_format(file):
                    raise BadSampleError(f'{file}: cannot be read, {known}') from error
                self._log_traceback(error, file, name)
                raise BadSampleError(
                    f'{file}: cannot be read, replace or remove it '
                    f'({name}: {type(error).__name__}: {reason_of(file, error)})'
                ) from error
            if results is None:
                raise EmptiedSampleError(f'{file}: {name} left nothing of it (returned None)')
        return results

    def _log_traceback(self, error: Exception, file: str, name: str) -> None:
        """Log the first error of a loader that is not one of `LOADER_ERRORS` in full."""
        if isinstance(error, LOADER_ERRORS) or self._unusual_logged:
            return
        self._unusual_logged = True
        lines = ''.join(traceback.format_exception(error)).rstrip()
        print_log(
            f'{name} failed on {file} with an error that is not of broken files. Where it is one '
            f'of the code, correct {name}; this traceback is logged once:\n{lines}',
            logger='current',
            level=logging.ERROR,
        )

    def _report(self, index: int, fault: BadSampleError) -> None:
        """Note the fault; log a bad sample the first time it is met."""
        assert self._faults is not None, 'full_init makes the record'
        if isinstance(fault, EmptiedSampleError):
            self._faults[index].clamp_(min=_EMPTIED)
        elif self._faults[index] != _BAD:
            self._faults[index] = _BAD
            what = 'counts as wrong' if self.test_mode else 'replaced'  # type: ignore[attr-defined]
            print_log(f'bad sample, {what}: {fault}', logger='current', level=logging.WARNING)


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Lists the bad samples of all ranks and workers when training ends; counts emptied ones."""

    def after_train(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        parts = list(seeded_parts(dataset))
        bad, emptied = (
            sorted({sample for rank in all_gather_object(own) for sample in rank})
            for own in (
                [sample for part in parts for sample in part.bad_samples],
                [sample for part in parts for sample in part.emptied_samples],
            )
        )
        if bad:
            names = '\n'.join(f'  {file} (sample {index})' for index, file in bad)
            runner.logger.warning(
                f'{len(bad)} of {len(dataset)} samples were bad and were replaced; correct or '
                f'remove them:\n{names}'
            )
        if emptied:
            runner.logger.info(
                f'of {len(emptied)} of {len(dataset)} samples the pipeline left nothing at least '
                f'once, as a crop beside all objects does, and another took their place: '
                f'{emptied[0][1]} for one'
            )


def seeded_parts(dataset: Any) -> Iterator[SeededSamples]:
    """The data sets with this mixin that `dataset` is, wraps or joins."""
    if isinstance(dataset, SeededSamples):
        yield dataset
    for part in inner_datasets(dataset):
        yield from seeded_parts(part)


def file_of(info: Mapping[str, Any]) -> str:
    """The file that a record names."""
    keys = ('img_path', 'video_path', 'frame_dir', 'filename')
    return next((str(info[key]) for key in keys if key in info), f'sample {info.get("sample_idx")}')
