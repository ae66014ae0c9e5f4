"""What each training step saw and gave, a line each, for kill_and_resume.py to compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from navit_backbone.packing import PackedPatches
from navit_backbone.tasks.common.dataset import file_of

FILE = 'steps.jsonl'  # in the work dir
WEIGHTS = 'weights'  # in place of the step's number, in the last line


@HOOKS.register_module()
class StepLogHook(Hook):
    """Notes the samples, the sums of their pixels, all losses and rates, to the last bit."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        samples = [
            [Path(file_of(sample.metainfo)).name, list(sample.img_shape), int(pixels.sum())]
            for sample, pixels in zip(data_batch['data_samples'], _pixels(data_batch), strict=True)
        ]
        numbers = {name: float(value).hex() for name, value in outputs.items()}
        numbers |= {name: values[0].hex() for name, values in runner.optim_wrapper.get_lr().items()}
        place = dict(epoch=runner.epoch, batch=batch_idx, samples=samples)
        _append(runner, [runner.iter + 1, place | numbers])

    def after_train(self, runner):
        models = [runner.model, *(h.ema_model for h in runner.hooks if isinstance(h, EMAHook))]
        digests = [_digest(model.state_dict().values()) for model in models]
        best = float(runner.message_hub.get_info('best_score', 0)).hex()
        _append(runner, [WEIGHTS, dict(digests=digests, best=best)])


def _pixels(data_batch):
    """Those of each sample; of packed clips the patches."""
    inputs = data_batch['inputs']
    if isinstance(inputs[0], PackedPatches):
        return inputs[0].patches.split(inputs[0].lengths.tolist())
    return inputs


def _append(runner, line):
    with Path(runner.work_dir, FILE).open('a') as stream:  # one write: a kill leaves whole lines
        stream.write(json.dumps(line) + '\n')


def _digest(tensors):
    return hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
