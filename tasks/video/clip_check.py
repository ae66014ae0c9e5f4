"""Check that a data set has a clip that can be read, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..common.dataset import file_of, seeded_parts
from ..common.picture_sizes import UNREADABLE
from ..common.sample import with_file


@HOOKS.register_module()
class ClipCheckHook(Hook):
    """Refuse a training or an evaluation of which not one clip can be read.

    Single clips that cannot be read are replaced in training, and count as wrong in evaluation.
    """

    def before_train(self, runner: Runner) -> None:
        require_clip(runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            require_clip(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        require_clip(runner.test_dataloader.dataset)


def require_clip(dataset: Any) -> None:
    """Raise ValueError where a data set, or one that it joins, has no clip that can be read."""
    for part in seeded_parts(dataset):
        if hasattr(part, 'kind') and (problem := clip_problem(part)):
            raise ValueError(f'{part.ann_file or part.data_prefix["clips"]}: {problem}')


def clip_problem(dataset: Any) -> str:
    """Describe why no clip can be read; empty where one can. Stops at the first that can."""
    first = ''
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        file = file_of(info)
        try:
            refuse_other_length(info, dataset.measure(file))
        except UNREADABLE as error:
            first = first or with_file(file, error)
        else:
            return ''
    return (
        f'not one clip can be read, of {len(dataset):,}: {first}. Fix: set data_root, or '
        'data_prefix.clips to the folder that the listed paths begin in; tools/check_videos.py '
        'names all clips that cannot be read'
    )


def refuse_other_length(info: Mapping[str, Any], size: Sequence[float]) -> None:
    """Raise where a folder holds more or fewer frames than the list says."""
    if 'frame_dir' in info and info.get('num_frames', size[2]) != size[2]:
        raise ValueError(f'holds {size[2]} frames, the list says {info["num_frames"]}')
