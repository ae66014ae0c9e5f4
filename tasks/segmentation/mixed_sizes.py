"""Prepare a stock segmentor for batches of several sizes and for sliding windows."""

from __future__ import annotations

import logging

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

_EXPECTED = 'Image shapes are different in the batch'


@HOOKS.register_module()
class MixedSizesHook(Hook):
    """Lets evaluation batches be of several sizes in whole mode, and refuses them in slide mode.

    mmseg warns of such a batch each time: here it is what is meant, so the line stays out of the
    log. In slide mode `prepare_windows` checks and sets the model.
    """

    def before_val(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # of test-time augmentation
        prepare_windows(model)
        logger = MMLogger.get_current_instance()
        if not any(isinstance(item, _WithoutExpected) for item in logger.filters):
            logger.addFilter(_WithoutExpected())

    before_test = before_val


def prepare_windows(model: nn.Module) -> None:
    """Set a segmentor with our preprocessor to the windows of its `test_cfg`, if it slides them.

    Windows are cut out of the whole canvas and do not carry the size of the image. So a batch then
    holds images of one size, the canvas is padded with zeros to whole cells (`window_cell`), which
    puts the logits of every window on the right pixels, and the backbone does not ask for sizes.
    Raise ValueError where `crop_size` is not whole cells.
    """
    pads = model.data_preprocessor
    if not hasattr(pads, 'one_size'):
        return
    if problem := window_problem(model):
        raise ValueError(f'model.test_cfg.crop_size={problem}')
    pads.one_size = _slides(model)
    pads.window_cell = window_cell(model)
    if hasattr(model.backbone, 'takes_windows'):
        model.backbone.takes_windows = pads.one_size


def window_problem(model: nn.Module) -> str:
    """Return why sliding windows would put logits beside their pixels; empty where they do not."""
    if not _slides(model):
        return ''
    height, width = model.test_cfg['crop_size']
    cell = window_cell(model)
    if height % cell == 0 and width % cell == 0:
        return ''
    whole = tuple(max(cell, round(side / cell) * cell) for side in (height, width))
    return (
        f'({height}, {width}) is no multiple of {cell} pixels, the coarsest stride of the model, '
        f'so logits would be stretched: set crop_size={whole}'
    )


def window_cell(model: nn.Module) -> int:
    """Return the pixels of which the sides of windows must be multiples.

    The patch, or behind a neck, which may make coarser maps, the preprocessor's `size_divisor`.
    """
    patch = int(getattr(model.backbone, 'patch_size', 1))
    divisor = getattr(model.data_preprocessor, 'size_divisor', None) or patch
    return divisor if model.with_neck and divisor % patch == 0 else patch


def _slides(model: nn.Module) -> bool:
    return (getattr(model, 'test_cfg', None) or {}).get('mode') == 'slide'


class _WithoutExpected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _EXPECTED not in record.getMessage()
