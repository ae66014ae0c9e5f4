"""NaViT: a Vision Transformer on packed patches (arXiv 2307.06304); plain ViT is a preset of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Policy
from .layers import (
    ACTIVATIONS,
    QK_NORMS,
    Attention,
    Block,
    Mlp,
    PatchEmbed,
    QKNorm,
    Stream,
    SwiGLU,
)
from .packing import (
    PackedPatches,
    PatchShape,
    Segments,
    frames_of,
    lay,
    make_room,
    window_partition,
)
from .pooling import Pooling, build_pooling, mean_by
from .position import (
    ROTATIONS,
    Scale,
    build_position,
    build_rotary,
    build_temporal,
    complete_rotary,
    describe_position,
)

PositionSpec = str | Mapping[str, Any] | None
TimeAttention = Literal['joint', 'per_frame']


@dataclass(frozen=True, kw_only=True)
class Arch:
    """What a model is made of. The defaults are the plain ViT block that public weights fit."""

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int
    norm: str = 'layer_norm'  # or 'rms_norm'
    norm_eps: float = 1e-6
    norm_bias: bool = True
    pre_norm: bool = False  # a norm before the first block (CLIP)
    final_norm: bool = True  # a norm after the last block (UniViTAR has none)
    mlp: str = 'gelu'  # or 'gelu_tanh', 'quick_gelu', 'swiglu', 'swiglu_norm' (an RMSNorm inside)
    qkv_bias: bool = True
    qk_norm: Mapping[str, Any] | bool | None = None  # fields of layers.QKNorm; True: its defaults
    layer_scale: float | None = None  # its value at the start
    prefix_tokens: int = 0  # class tokens, then registers
    registers: int = 0  # how many of the prefix tokens are registers
    rope: Mapping[str, Any] | None = None  # position.ROTARY's kind and its arguments
    pooling: Pooling | None = None  # 'token', 'mean' or 'map'
    num_classes: int = 0  # a linear classifier on the pooled vector

    def __post_init__(self) -> None:
        for name, allowed in (('norm', list(NORMS)), ('mlp', MLPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'arch.{name}={getattr(self, name)!r} is not one of {allowed}')
        if self.embed_dims % self.num_heads:
            raise ValueError(
                f'arch.embed_dims={self.embed_dims} does not divide into {self.num_heads} heads'
            )
        if self.num_classes and not self.pooling:
            raise ValueError(f'arch.num_classes={self.num_classes} needs arch.pooling')
        if self.pooling == 'token' and not self.prefix_tokens:
            raise ValueError("arch.pooling='token' needs arch.prefix_tokens of at least 1")
        if not 0 <= self.registers <= self.prefix_tokens:
            raise ValueError(
                f'arch.registers={self.registers} must lie in 0 .. arch.prefix_tokens='
                f'{self.prefix_tokens}, which counts them too'
            )
        # stated in full, so that two ways to write one architecture are equal
        object.__setattr__(self, 'qk_norm', complete_qk_norm(self.qk_norm))
        object.__setattr__(self, 'rope', complete_rotary(self.rope))

    @classmethod
    def of(cls, spec: str | Mapping[str, Any] | Arch) -> Arch:
        """The arch of a preset's name, of a dict, or of a dict with `preset` and what differs."""
        if isinstance(spec, Arch):
            return spec
        options = {'preset': spec} if isinstance(spec, str) else dict(spec)
        preset = options.pop('preset', None)
        if preset is not None and preset not in ARCHS:
            raise ValueError(f'arch {preset!r} is not one of {list(ARCHS)}, nor a dict')
        allowed = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(allowed)):
            raise ValueError(
                f'arch has no field {unknown}: allowed are preset, {", ".join(allowed)}'
            )
        if preset is not None:
            return replace(ARCHS[preset], **options)
        if missing := [name for name in allowed[:4] if name not in options]:
            raise ValueError(f'arch needs {missing}, or preset=... to take them from')
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, as a file's header keeps them."""
        return asdict(self)


def _layer_norm(dim: int, arch: Arch) -> nn.Module:
    return nn.LayerNorm(dim, eps=arch.norm_eps, bias=arch.norm_bias)


def _rms_norm(dim: int, arch: Arch) -> nn.Module:
    return nn.RMSNorm(dim, eps=arch.norm_eps)


def complete_qk_norm(spec: Mapping[str, Any] | bool | None) -> dict[str, Any] | None:
    """`arch.qk_norm` with all its fields; True is ViT-22B's, None and False are none."""
    if not spec and not isinstance(spec, Mapping):
        return None
    options = {} if spec is True else dict(spec)
    if unknown := sorted(set(options) - set(QKNorm._fields)):
        raise ValueError(f'arch.qk_norm has no field {unknown}: allowed are {QKNorm._fields}')
    full = QKNorm(**options)
    if full.kind not in QK_NORMS:
        raise ValueError(f'arch.qk_norm kind {full.kind!r} is not one of {list(QK_NORMS)}')
    return full._asdict()


def _build_mlp(arch: Arch) -> nn.Module:
    dim, hidden = arch.embed_dims, arch.feedforward_channels
    if arch.mlp in ACTIVATIONS:
        return Mlp(dim, hidden=hidden, act=ACTIVATIONS[arch.mlp]())
    inner = nn.RMSNorm(hidden, eps=arch.norm_eps) if arch.mlp == 'swiglu_norm' else None
    return SwiGLU(dim, hidden=hidden, norm=inner)


NORMS = {'layer_norm': _layer_norm, 'rms_norm': _rms_norm}
MLPS = [*ACTIVATIONS, 'swiglu', 'swiglu_norm']
ARCHS = {
    name: Arch(embed_dims=d, num_layers=n, num_heads=h, feedforward_channels=4 * d)
    for name, d, n, h in (
        ('tiny', 192, 12, 3),
        ('small', 384, 12, 6),
        ('base', 768, 12, 12),
        ('large', 1024, 24, 16),
    )
} | {
    # arXiv 2504.01792, with the fields of the released models; their patches are 2 x 14 x 14
    name: Arch(
        embed_dims=d,
        num_layers=n,
        num_heads=h,
        feedforward_channels=hidden,
        norm='rms_norm',
        final_norm=False,
        mlp='swiglu_norm',
        qkv_bias=False,
        qk_norm=dict(kind='wide_rms_norm', after_rope=True),
        layer_scale=0.1,
        rope=dict(kind='integer', theta=10000.0),
    )
    for name, d, n, h, hidden in (
        ('univitar_0.3b', 1024, 24, 16, 2816),
        ('univitar_0.6b', 1280, 32, 16, 3456),
        ('univitar_1b', 1920, 32, 24, 5120),
    )
}


# Of Arch: how weights were started, and what a model may have beyond them.
UNCHECKED = ('layer_scale', 'pooling', 'num_classes')
_ROUNDING = 0.1  # of a byte that arithmetic on floats may be off
EXTRA = '_extra_state'  # torch's name for what get_extra_state gives


class NaViTOutput(NamedTuple):
    """Tokens in the order of the pack, prefix tokens apart."""

    tokens: Tensor  # [T, D], after the final norm
    prefix: Tensor  # [N, R, D], likewise
    features: tuple[Tensor, ...]  # [T, D] after each block asked for; the last block's are `tokens`
    segment_ids: Tensor  # [T]: the example of each token


class Blocks(nn.ModuleList):
    """The stack of blocks: what is compiled, once for all mixes of sizes."""

    def __init__(self, blocks: Iterable[Block], *, with_cp: bool = False) -> None:
        super().__init__(blocks)
        self.with_cp = with_cp

    def forward(self, x_TD: Tensor, stream: Stream, keep: tuple[int, ...]) -> list[Tensor]:
        """The tokens after the blocks numbered in `keep`, ascending, and after the last block."""
        kept = []
        for index, block in enumerate(self):
            if self.with_cp and torch.is_grad_enabled():
                x_TD = checkpoint(block, x_TD, stream, use_reentrant=False)
            else:
                x_TD = block(x_TD, stream)
            if index in keep:
                kept.append(x_TD)
        return [*kept, x_TD]


class NaViT(nn.Module):
    """PackedPatches in, tokens out.

    `patch_size` is a side in pixels, a (t, h, w) tubelet, or a list of these: then `forward` takes
    one pack per shape, of the same examples, and merges them by example after embedding. Positions
    of all shapes count in one unit, the largest side that divides those of all (`position.Scale`).
    With `window_size` (in patches) all blocks but `global_attn_indexes` attend within windows;
    without these, four blocks evenly spread stay global (ViTDet).

    Clips: `temporal_position`, the arguments of `TemporalPosition`, is added to the one in space.
    `time_attention` 'joint' attends over all of a clip; 'per_frame' within each frame (a time step
    of its tubelets), which then counts as an example of its own with a copy of the prefix tokens;
    the copies' mean is given out. Of a picture both are the same.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch,
        *,
        patch_size: int | PatchShape | Sequence[int | PatchShape] = 16,
        in_channels: int = 3,
        position: PositionSpec = 'learned_1d',
        temporal_position: Mapping[str, Any] | None = None,
        time_attention: TimeAttention = 'joint',
        drop_path_rate: float = 0.0,
        window_size: int | None = None,
        global_attn_indexes: Sequence[int] | None = None,
        attention: Policy = 'auto',
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.arch = arch = Arch.of(arch)
        dim, depth = arch.embed_dims, arch.num_layers
        self.patch_shapes = patch_shapes(patch_size)
        self.patch_embed = nn.ModuleDict(
            {
                shape_name(shape): PatchEmbed(dim, patch_shape=shape, in_channels=in_channels)
                for shape in self.patch_shapes
            }
        )
        self.position = build_position(_with_grid(position, self.patch_shapes[0]), dim)
        self.temporal_position = build_temporal(temporal_position, dim)
        self.rope = build_rotary(arch.rope, dim // arch.num_heads)
        self.time_attention = _check_time(time_attention, window_size, self.patch_shapes)
        num_prefix = arch.prefix_tokens
        self.prefix = nn.Parameter(torch.empty(num_prefix, dim)) if num_prefix else None
        self.window_size = window_size
        is_global = _global_blocks(depth, window_size, global_attn_indexes)
        norm = partial(NORMS[arch.norm], arch=arch)
        qk_norm = complete_qk_norm(arch.qk_norm)
        self.blocks = Blocks(
            (
                Block(
                    dim,
                    attn=Attention(
                        dim,
                        num_heads=arch.num_heads,
                        qkv_bias=arch.qkv_bias,
                        qk_norm=QKNorm(**qk_norm) if qk_norm else None,
                        rotation=ROTATIONS[self.rope.layout if self.rope else 'half'],
                        policy=attention,
                    ),
                    mlp=_build_mlp(arch),
                    norm=norm,
                    layer_scale=arch.layer_scale,
                    drop_path=drop_path_rate * index / max(depth - 1, 1),
                    windowed=not is_global[index],
                )
                for index in range(depth)
            ),
            with_cp=with_cp,
        )
        self.norm_pre = norm(dim) if arch.pre_norm else nn.Identity()
        self.norm = norm(dim) if arch.final_norm else nn.Identity()
        self.pool = arch.pooling and build_pooling(
            arch.pooling,
            dim,
            num_heads=arch.num_heads,
            hidden=arch.feedforward_channels,
            act=ACTIVATIONS.get(arch.mlp, nn.GELU)(),
            eps=arch.norm_eps,
        )
        self.classifier = nn.Linear(dim, arch.num_classes) if arch.num_classes else None
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal linear layers and prefix tokens (ViT); positions have their own."""
        for module in (self.patch_embed, self.blocks, self.pool, self.classifier):
            if module is not None:
                module.apply(_init_linear)
        if self.prefix is not None:
            nn.init.trunc_normal_(self.prefix, std=0.02)

    def compile_blocks(self) -> None:
        """Compile the block stack: once for all mixes of sizes, and once for a single picture."""
        self.blocks.compile()

    def forward(
        self, packed: PackedPatches | Sequence[PackedPatches], out_indices: Sequence[int] = ()
    ) -> NaViTOutput:
        """Return the tokens of all examples, and those after the blocks `out_indices`; -1 is last.

        Raise TypeError for anything but packs, and ValueError where packs do not fit the model or
        one another.
        """
        packs = _checked_packs(packed)
        scale = Scale.of(self.patch_shapes, packs)
        tokens_TD = torch.cat([self._embed(item, scale) for item in packs])
        angles = (
            None if self.rope is None else torch.cat([self.rope(item, scale) for item in packs])
        )
        if len(packs) == 1:
            ids_T, segments = packs[0].segment_ids, packs[0].segments()
        else:
            tokens_TD, angles, ids_T, segments = _merge(packs, tokens_TD, angles)

        runs_T, ranks_T, windows, example_F = ids_T, None, None, None
        if self.time_attention == 'per_frame':
            runs_T, ranks_T, segments, example_F = frames_of(packs[0])
        elif self.window_size is not None:
            ranks_T, windows = window_partition(packs[0], self.window_size, self.arch.prefix_tokens)
        rows_T, rows_NR, joined = make_room(runs_T, ranks_T, segments, self.arch.prefix_tokens)
        prefix_NRD = self._prefix_tokens(tokens_TD, len(segments.lengths))
        x_TD = self.norm_pre(lay(tokens_TD, prefix_NRD, rows_T, rows_NR))
        stream = Stream(joined, windows, *_lay_stream(runs_T, angles, rows_T, rows_NR, x_TD.dtype))

        depth = len(self.blocks)
        wanted = [index % depth for index in out_indices]
        keep = tuple(sorted({index for index in wanted if index != depth - 1}))
        *kept, x_TD = self.blocks(x_TD, stream, keep)
        x_TD = self.norm(x_TD)
        after = dict(zip(keep, kept, strict=True)) | {depth - 1: x_TD}
        if rows_T is None:
            return NaViTOutput(x_TD, prefix_NRD, tuple(after[i] for i in wanted), ids_T)
        features = tuple(after[index][rows_T] for index in wanted)
        prefix_NRD = x_TD[rows_NR]
        if example_F is not None:
            prefix_NRD = mean_by(prefix_NRD, example_F, packs[0].num_examples)
        return NaViTOutput(x_TD[rows_T], prefix_NRD, features, ids_T)

    def pooled(self, output: NaViTOutput) -> Tensor:
        """One vector per example: [N, D]."""
        if self.pool is None:
            raise ValueError(
                "this model has no pooling: set arch.pooling to 'token', 'mean' or 'map'"
            )
        vector: Tensor = self.pool(output.tokens, output.prefix, output.segment_ids)
        return vector

    def classify(self, output: NaViTOutput) -> Tensor:
        """Logits per example: [N, num_classes]."""
        if self.classifier is None:
            raise ValueError('this model has no classifier: set arch.num_classes')
        logits: Tensor = self.classifier(self.pooled(output))
        return logits

    def architecture(self) -> dict[str, Any]:
        """All that its tensors do not tell of it, as plain values: what builds it again."""
        time = self.temporal_position
        return {
            'arch': self.arch.to_dict(),
            'patch_size': self.patch_shapes,
            'position': describe_position(self.position),
            'temporal_position': time
            and {'max_size': time.max_size, 'fractional': time.fractional},
        }

    def get_extra_state(self) -> Tensor:
        """The architecture in bytes: part of every checkpoint, and held against it on loading."""
        text = json.dumps(self.architecture(), sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise where a checkpoint's architecture is not this model's."""
        self.check_architecture(state)

    def check_architecture(self, state: Tensor, name: str = 'the checkpoint') -> None:
        """Raise where `state`, which `get_extra_state` made, tells of another model."""
        there, here = read_architecture(state, name), self.architecture()
        arch_there, arch_here = there.pop('arch'), here.pop('arch')
        for field in UNCHECKED:
            arch_there.pop(field, None)
            arch_here.pop(field)
        wrong = differing(arch_there, arch_here, 'arch.') + differing(there, here, '')
        if wrong:
            raise ValueError(
                f'{name} is of another architecture than this model:\n  '
                + '\n  '.join(wrong)
                + '\nUse the config that it was trained with (it lies in its work dir)'
            )

    def _embed(self, packed: PackedPatches, scale: Scale) -> Tensor:
        name = shape_name(packed.patch_shape)
        if name not in self.patch_embed:
            raise ValueError(
                f'the pack holds patches of (t, h, w) = {packed.patch_shape}, but this model '
                f'embeds {self.patch_shapes}: pack with one of these, or build it with patch_size'
            )
        embed = self.patch_embed[name]
        weight: Tensor = embed.weight  # type: ignore[assignment]
        tokens_TD: Tensor = embed(packed.patches)
        # autocast narrows products; what blocks add to stays as wide as the weights
        tokens_TD = tokens_TD.to(torch.promote_types(tokens_TD.dtype, weight.dtype))
        if self.position is not None:
            tokens_TD = tokens_TD + self.position(packed, scale).to(tokens_TD.dtype)
        if self.temporal_position is not None:
            tokens_TD = tokens_TD + self.temporal_position(packed, scale).to(tokens_TD.dtype)
        return tokens_TD

    def _prefix_tokens(self, tokens_TD: Tensor, count: int) -> Tensor:
        if self.prefix is None:
            return tokens_TD.new_zeros(count, 0, tokens_TD.shape[1])
        return self.prefix.to(tokens_TD.dtype).expand(count, -1, -1)


def read_architecture(state: Tensor, name: str = 'the checkpoint') -> dict[str, Any]:
    """Return the plain values that `NaViT.get_extra_state` wrote.

    A checkpoint that was averaged, halved or cast holds these bytes as floats: float16 and bfloat16
    keep numbers up to 255 exactly, and an average of equal numbers is off by rounding alone. Raise
    ValueError where they are bytes no more, as in an average of models that differ.
    """
    values = state.detach().to('cpu', torch.float64).flatten()
    whole = values.round()
    near = values.isfinite() & ((values - whole).abs() <= _ROUNDING) & (whole >= 0) & (whole < 256)
    try:
        if not near.all():
            raise ValueError('its bytes are no whole numbers of 0 to 255')
        found = json.loads(bytes(whole.to(torch.uint8).tolist()))
        return dict(found)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{name}: the architecture stored in it ({EXTRA}, {state.dtype}) cannot be read '
            f'({error}): weights of models that differ may have been averaged, or the key was '
            'changed. Average checkpoints of one training, or copy this key from one of them'
        ) from error


def differing(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str) -> list[str]:
    """A line for each field that two descriptions of a model do not share."""
    return [
        f'{prefix}{key}: {value!r} in the checkpoint, {here.get(key)!r} in the model'
        for key, value in there.items()
        if json.dumps(value, sort_keys=True) != json.dumps(here.get(key), sort_keys=True)
    ]


def shape_name(shape: Sequence[int]) -> str:
    """(1, 16, 16) -> '1x16x16'."""
    return 'x'.join(map(str, shape))


def patch_shapes(patch_size: int | PatchShape | Sequence[int | PatchShape]) -> list[PatchShape]:
    """The (t, h, w) of each patch that `patch_size` means; a side alone is of pictures.

    Three whole numbers are one tubelet, in a tuple or a list; else a list holds several of both.
    """
    if isinstance(patch_size, int):
        return [_positive((1, patch_size, patch_size))]
    items = list(patch_size) if isinstance(patch_size, Sequence) else []
    sides = [item for item in items if isinstance(item, int)]
    if len(sides) == len(items) == 3:
        return [_positive(sides)]
    if len(sides) == len(items) or isinstance(patch_size, str):
        raise ValueError(
            f'patch_size={patch_size!r}: give a side in pixels, as 16; a tubelet of frames, height '
            'and width, as (2, 16, 16); or a list of these, as [16, (4, 32, 32)]'
        )
    return [shape for item in items for shape in patch_shapes(item)]


def _positive(shape: Sequence[int]) -> PatchShape:
    t, h, w = shape
    if min(shape) < 1:
        raise ValueError(f'a patch of {shape_name(shape)} is empty: patch_size must be at least 1')
    return t, h, w


def _check_time(
    kind: TimeAttention, window_size: int | None, shapes: Sequence[PatchShape]
) -> TimeAttention:
    """The kind of attention over time; raise on what has no meaning beside it."""
    if kind not in get_args(TimeAttention):
        raise ValueError(f'time_attention={kind!r} is not one of {get_args(TimeAttention)}')
    several = len(shapes) > 1
    if window_size is not None and (several or kind == 'per_frame'):
        beside = 'several patch shapes' if several else "time_attention='per_frame'"
        raise ValueError(f'window_size with {beside} has no meaning: set it to None')
    if several and kind == 'per_frame':
        raise ValueError(
            "time_attention='per_frame' takes one patch shape: tubelets of several "
            "have no frame in common; set it to 'joint'"
        )
    return kind


def _with_grid(position: PositionSpec, patch_shape: PatchShape) -> PositionSpec:
    """A learned sequence without a `grid` is as large as that of a 224 x 224 picture."""
    spec = {'kind': position} if isinstance(position, str) else position
    if spec is None or spec.get('kind') not in ('learned_1d', 'learned_axes') or 'grid' in spec:
        return spec
    return {**spec, 'grid': (224 // patch_shape[1], 224 // patch_shape[2])}


def _global_blocks(
    depth: int, window_size: int | None, indexes: Sequence[int] | None
) -> list[bool]:
    if window_size is None:
        if indexes is not None:
            raise ValueError('global_attn_indexes without window_size has no effect: give both')
        return [True] * depth
    if window_size < 1:
        raise ValueError(f'window_size={window_size} must be at least 1 patch')
    if indexes is None:
        indexes = [(depth * (i + 1)) // 4 - 1 for i in range(4)]
    if wrong := [index for index in indexes if not -depth <= index < depth]:
        raise ValueError(f'global_attn_indexes {wrong} are beyond the {depth} blocks')
    chosen = {index % depth for index in indexes}
    return [index in chosen for index in range(depth)]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _checked_packs(packed: PackedPatches | Sequence[PackedPatches]) -> list[PackedPatches]:
    """Return the packs as a list; raise TypeError with the call that makes them."""
    if isinstance(packed, PackedPatches):
        return [packed]
    several = isinstance(packed, Sequence) and not isinstance(packed, str)
    items: list[object] = list(packed) if several else [packed]
    packs = [item for item in items if isinstance(item, PackedPatches)]
    if packs and len(packs) == len(items):
        return packs
    wrong = next((item for item in items if not isinstance(item, PackedPatches)), None)
    what = f'{type(wrong).__name__} {wrong!r}'
    if isinstance(wrong, Tensor):
        what = f'a tensor of shape {tuple(wrong.shape)}'
    if several:
        what = f'a {type(packed).__name__} of {len(items)} with {what}' if items else 'nothing'
    raise TypeError(
        f'NaViT takes PackedPatches, or one for each patch shape, got {what}: pack images '
        '[C, height, width] and clips [C, frames, height, width] by '
        'pack([patchify(image, patch_shape) for image in images]), and a padded batch '
        '[B, C, H, W] by pack_canvas(batch, sizes, patch_size), sizes being the (height, width) of '
        'each image; NaViTBackbone takes the batch itself'
    )


def _merge(
    packs: Sequence[PackedPatches], tokens_TD: Tensor, angles: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Segments]:
    """Bring the tokens of several packs of the same examples together by example."""
    if len({item.num_examples for item in packs}) > 1:
        counts = [item.num_examples for item in packs]
        raise ValueError(f'packs given together must hold the same examples, got {counts} of them')
    ids_T, order = torch.cat([item.segment_ids for item in packs]).sort(stable=True)
    lengths = torch.stack([item.lengths for item in packs]).sum(0)
    segments = Segments.of(lengths, tokens_TD.device)
    return tokens_TD[order], angles if angles is None else angles[order], ids_T, segments


def _lay_stream(
    ids_T: Tensor,
    angles: Tensor | None,
    rows_T: Tensor | None,
    rows_NR: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Example numbers and rotations (cos, sin) of the stream; prefix tokens do not turn."""
    numbers = torch.arange(len(rows_NR), device=ids_T.device)[:, None].expand_as(rows_NR)
    ids = lay(ids_T, numbers, rows_T, rows_NR)
    if angles is None:
        return ids, None, None
    still = angles.new_zeros(*rows_NR.shape, angles.shape[1])
    angles = lay(angles, still, rows_T, rows_NR)[:, None]
    return ids, angles.cos().to(dtype), angles.sin().to(dtype)
