"""Mixed precision in bfloat16, on any device that torch.autocast knows, CPU included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from .example_mean import ExampleMeanOptimWrapper

# mmcv's compiled operations (focal loss, NMS, RoIAlign, deformable attention) take no bfloat16, and
# a loss deserves its digits
_WIDE = ('Loss', 'RPNHead', 'RoIExtractor', 'MultiScaleDeformableAttention')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(ExampleMeanOptimWrapper):
    """Forward and loss under bfloat16 autocast; weights, gradients and optimizer stay float32.

    bfloat16 has the range of float32, so losses are not scaled. Unlike mmengine's AmpOptimWrapper,
    which asserts a GPU, it runs wherever the model is. Modules with one of the words `float32` in
    the name of their class compute in float32 all the same.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, float32: Sequence[str] = _WIDE, **kwargs: Any
    ) -> None:
        super().__init__(optimizer, **kwargs)
        self.float32 = tuple(float32)
        self._prepared: nn.Module | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        if self._prepared is not model:
            self._prepared = model
            for module in model.modules():
                if any(word in type(module).__name__ for word in self.float32):
                    _keep_float32(module, device)
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def _keep_float32(module: nn.Module, device: str) -> None:
    """Cast what comes into `module` to float32, and turn autocast off until it returns."""
    entered: list[torch.autocast] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        entered.append(torch.autocast(device, enabled=False))
        entered[-1].__enter__()
        return _float32((args, kwargs))

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, always_call=True)


def _float32(value: Any) -> Any:
    """All bfloat16 tensors in nested tuples, lists and dicts as float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if type(value) in (tuple, list):
        return type(value)(_float32(item) for item in value)
    if type(value) is dict:
        return {key: _float32(item) for key, item in value.items()}
    return value
