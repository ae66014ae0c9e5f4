"""Through the wrappers of mmengine and mmdet to the data sets inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .sample import SampleIndex


def inner_datasets(dataset: Any) -> list[Any]:
    """What a wrapper wraps or joins; nothing for a data set itself."""
    inner = [getattr(dataset, name, None) for name in ('dataset', '_dataset')]
    return [part for part in [*inner, *getattr(dataset, 'datasets', ())] if part is not None]


def planned_parts(dataset: Any) -> Iterator[Any]:
    """The data sets in `dataset` that plan the sizes of samples, which may be `dataset` itself."""
    if hasattr(dataset, 'num_tokens'):
        yield dataset
        return
    parts = inner_datasets(dataset)
    if not parts:
        raise ValueError(
            f'{type(dataset).__name__} cannot say how many tokens a sample will have: use a data '
            'set with SeededSamples (NaViTCocoDataset, for one)'
        )
    for part in parts:
        yield from planned_parts(part)


def locate(dataset: Any, index: SampleIndex) -> tuple[Any, SampleIndex]:
    """The one of `planned_parts` that holds sample `index`, and its index there."""
    while not hasattr(dataset, 'num_tokens'):
        place: Any = index
        if hasattr(dataset, '_get_ori_dataset_idx'):
            place = dataset._get_ori_dataset_idx(index)
        elif len(dataset) != len(inner_datasets(dataset)[0]):
            raise ValueError(
                f'{type(dataset).__name__} does not say which sample inside is its number {index}: '
                "use indices=... of the data set, or mmengine's wrappers"
            )
        number, index = place if isinstance(place, tuple) else (0, place)
        if not isinstance(index, SampleIndex):
            name = type(dataset).__name__
            raise ValueError(
                f'{name} loses the seed of a sample, so its repeats would all be alike: use '
                f'Seeded{name} where there is one, RepeatDataset or ConcatDataset otherwise'
            )
        dataset = inner_datasets(dataset)[number]
    return dataset, index
