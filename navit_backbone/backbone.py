"""The backbones for OpenMMLab: importing this registers them.

One takes pictures on a canvas, for unmodified detectors and segmentors; one takes clips in a pack.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from .attention import Policy
from .checkpoint import guard_loading, load_weights, register_safe_loader, told_by
from .families import Statistics
from .packing import PackedPatches, PatchShape, Size, pack_canvas, unpack_canvas
from .vit import Arch, NaViT, NaViTOutput, PositionSpec, TimeAttention

register_safe_loader(CheckpointLoader)

AUTO = 'auto'  # for what a file tells, where None means that there is none
# What a config may leave out: the file that init_cfg names tells it, and without a file it is this.
UNTOLD = {'arch': 'base', 'patch_size': 16, 'position': 'learned_1d', 'temporal_position': None}


def complete(
    given: Mapping[str, Any], *, told: Mapping[str, Any] | None = None, pictures: bool = False
) -> dict[str, Any]:
    """What the arguments of a backbone leave out of `UNTOLD`, from the file that they start from.

    Also the fields that an `arch` lacks which names no preset. What is stated stays as it is: where
    the file says otherwise, it is refused when it is loaded. `told` stands for what the file says
    (`checkpoint.told_by`). A model of `pictures` has the side of a patch as its `patch_size`.
    """
    start, arch = given.get('init_cfg') or {}, given.get('arch')
    file = start.get('checkpoint') if start.get('type') == 'Pretrained' else None
    left_out = {key for key in UNTOLD if given.get(key, AUTO) in (AUTO, None)}
    left_out -= {key for key in ('position', 'temporal_position') if given.get(key, AUTO) is None}
    left_out -= {'temporal_position'} if pictures else set()
    partial = isinstance(arch, Mapping) and 'preset' not in arch
    if told is None and file is not None and (left_out or partial):
        told = told_by(file)
        if told is None and 'arch' in left_out:
            refuse_missing(file)
            raise ValueError(
                f'{file} does not say which model it fits: convert it by tools/convert_weights.py, '
                'whose file does, or state arch, patch_size and position'
            )
    if told is None:
        return {key: UNTOLD[key] for key in left_out}
    found = {key: told[key] for key in left_out}
    if partial and isinstance(arch, Mapping):
        found['arch'] = {**told['arch'], **arch}
    if 'patch_size' in found:
        shapes = [_short(shape, pictures) for shape in found['patch_size']]
        found['patch_size'] = shapes[0] if len(shapes) == 1 else shapes
    return found


def _short(shape: Sequence[int], pictures: bool) -> int | tuple[int, ...]:
    """A patch of a picture as its side; a tubelet's is summed over time for `pictures`."""
    t, h, w = shape
    return h if h == w and (t == 1 or pictures) else (t, h, w)


def _stated(told: Mapping[str, Any], *, arch: Arch, **others: Any) -> dict[str, Any]:
    """What was told, as the model has it."""
    known = {'arch': arch.to_dict(), **others}
    return {key: value for key, value in known.items() if key in told}


class PackedBackbone(BaseModule):
    """A NaViT as a module of OpenMMLab: its weights, what of it is frozen, its layers.

    `out_indices`: the blocks whose tokens are given out; the final norm follows the last only.
    Where the last block is not among them, DDP needs ``find_unused_parameters=True``.
    `frozen_stages`: -1 nothing; 0 the embedding; k the first k blocks too, and the final norm with
    the last of them. `init_cfg`: ``dict(type='Pretrained', checkpoint=...)``, read by
    `checkpoint.load_weights`.
    """

    def __init__(
        self,
        vit: NaViT,
        *,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.is_init: bool
        self.completed: dict[str, Any] = {}  # arguments that were left out, as they came to be
        self.statistics: Statistics | None = None  # of the input that the loaded weights know
        self.vit = vit
        guard_loading(self.vit)
        depth = len(self.vit.blocks)
        self.out_indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        self.frozen_stages = frozen_stages
        if wrong := [index for index in self.out_indices if not -depth <= index < depth]:
            raise ValueError(f'out_indices {wrong} are beyond the {depth} blocks')
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f'frozen_stages={frozen_stages} must lie in -1 .. {depth}')
        self._freeze()

    def init_weights(self) -> None:
        """Load `init_cfg`'s checkpoint and print what was loaded; without one, start anew."""
        if self.is_init:  # set by BaseModule
            return
        config = dict(self.init_cfg or {})
        if config.pop('type', None) == 'Pretrained':
            refuse_missing(config.get('checkpoint'))
            report = load_weights(self.vit, **config)
            self.statistics = report.statistics
            print_log(str(report), logger='current')
        elif self.init_cfg:
            raise ValueError(
                f"init_cfg type must be 'Pretrained' or init_cfg None, got {self.init_cfg}"
            )
        else:
            self.vit.init_weights()
        self.is_init = True

    def train(self, mode: bool = True) -> PackedBackbone:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        vit = self.vit
        frozen = [vit.patch_embed, *vit.blocks[: self.frozen_stages]]
        frozen += [part for part in (vit.position, vit.temporal_position) if part is not None]
        if self.frozen_stages == len(vit.blocks):
            frozen.append(vit.norm)
        if vit.prefix is not None:
            vit.prefix.requires_grad_(False)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, number of layers) of a parameter, for layer-wise learning-rate decay.

        Layer 0 is the embedding, layer i + 1 the block i, and the last what follows the blocks. To
        the last belongs the temporal position too: it begins at zero beside weights of pictures,
        and would stay near zero at an embedding's learning rate.
        """
        num_layers = len(self.vit.blocks) + 2
        if not name.startswith(prefix):
            return num_layers - 1, num_layers
        parts = name[len(prefix) :].removeprefix('vit.').split('.')
        if parts[0] in ('patch_embed', 'position', 'prefix'):
            return 0, num_layers
        if parts[0] == 'blocks':
            return int(parts[1]) + 1, num_layers
        return num_layers - 1, num_layers


@MODELS.register_module()
class NaViTBackbone(PackedBackbone):
    """A padded batch in, maps out; only the pictures' own patches are computed.

    The batch [B, C, H, W] carries the (height, width) in pixels of its pictures as the plain
    attribute `image_sizes`, which this project's data preprocessors set. `forward` gathers the
    real patches, packs them, and lays the tokens back on zero-filled maps
    ``[B, embed_dims, ceil(H / p), ceil(W / p)]`` that carry the same attribute, and `patch_size`,
    by which our pyramid and heads know whether they are built for them (`check_stride`).

    Pooling and classifier of `arch` are left out: maps need neither, and unused weights would stop
    DDP. `strict`: raise, rather than warn once, when a batch of several images comes without their
    sizes, in training or evaluation. `arch`: 'tiny', 'small', 'base' or 'large' (plain ViT blocks),
    another of `vit.ARCHS`, or a dict of `vit.Arch`; all else as in `PackedBackbone` and
    `vit.NaViT`. `arch`, `patch_size` and `position` may be left out where `init_cfg` names a file
    of ours (`complete`).
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | None = None,
        *,
        patch_size: int | None = None,
        position: PositionSpec = AUTO,
        out_indices: int | Sequence[int] = -1,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        window_size: int | None = None,
        global_attn_indexes: Sequence[int] | None = None,
        attention: Policy = 'auto',
        strict: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(arch=arch, patch_size=patch_size, position=position, init_cfg=init_cfg)
        told = complete(given, pictures=True)
        arch, patch_size = told.get('arch', arch), told.get('patch_size', patch_size)
        if not isinstance(patch_size, int):
            raise ValueError(f'patch_size={patch_size!r} must be a side in pixels, as 16')
        assert arch is not None, 'an arch that is left out is told, or refused'
        fields = replace(Arch.of(arch), pooling=None, num_classes=0)
        vit = NaViT(
            fields,
            patch_size=patch_size,
            position=told.get('position', position),
            drop_path_rate=drop_path_rate,
            window_size=window_size,
            global_attn_indexes=global_attn_indexes,
            attention=attention,
            with_cp=with_cp,
        )
        super().__init__(
            vit, out_indices=out_indices, frozen_stages=frozen_stages, init_cfg=init_cfg
        )
        self.patch_size, self.strict = patch_size, strict
        self.completed = told | _stated(told, arch=fields, patch_size=patch_size)
        self._warned = False
        # in evaluation, of images of one size: windows of them carry no sizes, and need none
        self.takes_windows = False

    def forward(self, x: Tensor, image_sizes: Sequence[Size] | None = None) -> tuple[Tensor, ...]:
        """Maps of the `out_indices`, in that order; outside a picture they are zero."""
        sizes = self._sizes(x, image_sizes)
        packed = pack_canvas(x, sizes, self.patch_size)
        output = self.vit(packed, self.out_indices)
        grid = (-(-x.shape[2] // self.patch_size), -(-x.shape[3] // self.patch_size))
        # contiguous: behind a stock neck mmcv's RoIAlign reads memory in the order of [B, C, H, W],
        # whatever the strides say, and convolutions keep the order that they are given
        maps = tuple(unpack_canvas(tokens, packed, grid).contiguous() for tokens in output.features)
        for item in maps:
            item.image_sizes = sizes  # type: ignore[attr-defined]
            item.patch_size = self.patch_size  # type: ignore[attr-defined]
        return maps

    def _sizes(self, x: Tensor, image_sizes: Sequence[Size] | None) -> list[Size]:
        """The argument, else the attribute of the batch, else the whole canvas; checked."""
        batch, _, height, width = x.shape
        if not batch:
            raise ValueError(f'the batch {tuple(x.shape)} holds no picture')
        given = getattr(x, 'image_sizes', None) if image_sizes is None else image_sizes
        if given is None:
            if batch > 1 and (self.training or not self.takes_windows):
                self._complain(x)
            return [(height, width)] * batch
        if len(given) != batch:
            raise ValueError(f'image_sizes names {len(given)} pictures, the batch holds {batch}')
        for index, (h, w) in enumerate(given):
            if not (0 < h <= height and 0 < w <= width):
                raise ValueError(
                    f'image_sizes[{index}] = ({h}, {w}) does not fit the canvas of {height} x '
                    f'{width} pixels: give (height, width) in pixels, from 1 up to the canvas'
                )
        return [(int(h), int(w)) for h, w in given]

    def _complain(self, x: Tensor) -> None:
        message = (
            f'NaViTBackbone got a batch of {len(x)} images on a canvas of {x.shape[2]} x '
            f'{x.shape[3]} pixels without their sizes, so padding is computed as if it were image: '
            "use this project's data preprocessor, pass image_sizes, or set "
            'inputs.image_sizes = [(h, w), ...] last'
        )
        if self.strict:
            raise ValueError(message)
        if not self._warned:
            print_log(message, logger='current', level=logging.WARNING)
            self._warned = True


@MODELS.register_module()
class NaViTClipBackbone(PackedBackbone):
    """Packed clips in, tokens out; a picture is a clip of one frame.

    `forward` takes one `PackedPatches` for each of the model's patch shapes, of the same clips, and
    gives `NaViTOutput`; `pooled` makes one vector per clip of that, by ``arch.pooling``.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | None = None,
        *,
        patch_size: int | PatchShape | Sequence[int | PatchShape] | None = None,
        position: PositionSpec = AUTO,
        temporal_position: Mapping[str, Any] | str | None = AUTO,
        time_attention: TimeAttention = 'joint',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        attention: Policy = 'auto',
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(arch=arch, patch_size=patch_size, position=position, init_cfg=init_cfg)
        given['temporal_position'] = temporal_position
        told = complete(given)
        whole = given | told
        fields = replace(Arch.of(whole['arch']), num_classes=0)
        if fields.pooling is None:
            raise ValueError("a backbone of clips needs arch.pooling: 'token', 'mean' or 'map'")
        vit = NaViT(
            fields,
            patch_size=whole['patch_size'],
            position=whole['position'],
            temporal_position=whole['temporal_position'],
            time_attention=time_attention,
            drop_path_rate=drop_path_rate,
            attention=attention,
            with_cp=with_cp,
        )
        super().__init__(vit, frozen_stages=frozen_stages, init_cfg=init_cfg)
        self.completed = told | _stated(told, arch=fields)

    def forward(self, packs: PackedPatches | Sequence[PackedPatches]) -> NaViTOutput:
        """The tokens of all clips; its `features` are those of the `out_indices`."""
        output: NaViTOutput = self.vit(packs, self.out_indices)
        return output

    def pooled(self, output: NaViTOutput) -> Tensor:
        """One vector per clip: [N, D]."""
        return self.vit.pooled(output)


def check_stride(x: Tensor, in_stride: float, owner: str) -> None:
    """Raise where a map of ours has another stride than the layer `owner` is built for."""
    patch_size = getattr(x, 'patch_size', in_stride)
    if patch_size != in_stride:
        raise ValueError(
            f'{owner} has in_stride={in_stride}, but the backbone gives maps of stride '
            f'{patch_size}, its patch_size: set in_stride={patch_size}, and the strides behind it '
            f'(tools/doctor.py CONFIG names them), or resample the patches: patch_size={in_stride} '
            "and patch_resize='flexivit' in init_cfg"
        )


def refuse_missing(checkpoint: str | None) -> None:
    """Raise where the file that an `init_cfg` names is not there."""
    if checkpoint is not None and not Path(checkpoint).expanduser().exists():
        raise ValueError(
            f'no weights at {checkpoint}: set model.backbone.init_cfg.checkpoint=FILE (or, where '
            'the config reads it, the environment variable NAVIT_DATA=DIR), or start from random '
            'weights by model.backbone.init_cfg=None'
        )
