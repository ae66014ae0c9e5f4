"""Mixed precision in bfloat16, on any device that torch.autocast knows, CPU included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward and loss under bfloat16 autocast; weights, gradients and optimizer stay float32.

    bfloat16 has the range of float32, so losses are not scaled. Unlike mmengine's AmpOptimWrapper,
    which asserts a GPU, it runs wherever the model is.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
