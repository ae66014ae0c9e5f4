"""Repeat-factor sampling (LVIS, arXiv 1908.03195) that keeps the seed of each sample."""

from __future__ import annotations

from mmengine.dataset import BaseDataset, ClassBalancedDataset
from mmengine.registry import DATASETS

from .sample import SampleIndex


@DATASETS.register_module()
class SeededClassBalancedDataset(ClassBalancedDataset):
    """mmengine's `ClassBalancedDataset`, whose repeats of one picture each draw anew.

    That one looks an index up in a list, which gives back a plain number without its seed.
    """

    def _get_repeat_factors(self, dataset: BaseDataset, repeat_thr: float) -> list[float]:
        try:
            factors: list[float] = super()._get_repeat_factors(dataset, repeat_thr)
        except NotImplementedError as error:
            raise ValueError(
                f'{type(self).__name__}: {type(dataset).__name__} does not say which classes a '
                'sample has: it needs a method get_cat_ids(index)'
            ) from error
        return factors

    def _get_ori_dataset_idx(self, index: int) -> int:
        found = super()._get_ori_dataset_idx(index)
        return SampleIndex(found, index.sample_seed) if isinstance(index, SampleIndex) else found
