"""What a stock segmentor cannot tell by itself about batches of several sizes."""

from __future__ import annotations

import logging

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

_EXPECTED = 'Image shapes are different in the batch'


@HOOKS.register_module()
class MixedSizesHook(Hook):
    """Lets evaluation batches be of several sizes in whole mode, and refuses them in slide mode.

    mmseg warns of such a batch each time: here it is what is meant, so the line stays out of the
    log. In slide mode windows are cut out of the whole canvas, where nothing tells a picture from
    its padding: `NaViTSegDataPreprocessor` is told to refuse batches of several sizes.
    """

    def before_val(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # of test-time augmentation
        slides = (getattr(model, 'test_cfg', None) or {}).get('mode') == 'slide'
        if hasattr(model.data_preprocessor, 'one_size'):
            model.data_preprocessor.one_size = slides
        logger = MMLogger.get_current_instance()
        if not any(isinstance(item, _WithoutExpected) for item in logger.filters):
            logger.addFilter(_WithoutExpected())

    before_test = before_val


class _WithoutExpected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _EXPECTED not in record.getMessage()
