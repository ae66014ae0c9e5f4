"""Heads on the tokens of each picture alone: a batch of any sizes gives what its pictures give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from navit_backbone.backbone import check_stride
from navit_backbone.layers import Attention, Block, Mlp, Stream
from navit_backbone.packing import PackedPatches, Size, lay, make_room, pack_canvas


class TokenHead(BaseDecodeHead):
    """A head that computes logits for the tokens of the pictures, and lays them on the canvas.

    Takes maps [B, C, H, W] of one stride, `in_stride`, the patch size of the backbone, which carry
    the (height, width) in pixels of their pictures as `image_sizes`; without the attribute the
    whole map is picture. With a list of `in_index` their channels are joined. Cells outside a
    picture repeat its nearest logits, since mmseg resizes the whole canvas: within the picture the
    resized logits are then those of the picture alone (design: batch of N equals N singles).
    Arguments besides `in_stride` are those of mmseg's `BaseDecodeHead`; the loss, if not given, is
    `NaViTCrossEntropyLoss`.
    """

    def __init__(
        self, in_channels: int | Sequence[int], *, in_stride: int = 16, **kwargs: Any
    ) -> None:
        several = not isinstance(in_channels, int)
        if kwargs.get('align_corners'):
            raise ValueError(
                f'{type(self).__name__}: align_corners=True stretches a picture by the canvas that '
                'it lies on, and a batch would not give what its pictures give: leave it out'
            )
        kwargs.setdefault('loss_decode', dict(type='NaViTCrossEntropyLoss'))
        super().__init__(
            in_channels, input_transform='resize_concat' if several else None, **kwargs
        )
        self.in_stride = in_stride

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes, H, W]."""
        indexes = [self.in_index] if isinstance(self.in_index, int) else list(self.in_index)
        maps = [inputs[index] for index in indexes]
        grid = (int(maps[0].shape[2]), int(maps[0].shape[3]))
        cells = self._cells(maps)
        packs = [pack_canvas(item, cells, 1) for item in maps]
        tokens_TD = torch.cat([item.patches for item in packs], 1)
        return nearest(self.logits(tokens_TD, packs[0]), cells, grid)

    def logits(self, tokens_TD: Tensor, packed: PackedPatches) -> Tensor:
        """Logits [T, classes] of the tokens [T, in_channels] of all pictures."""
        raise NotImplementedError

    def _cells(self, maps: Sequence[Tensor]) -> list[Size]:
        """The (height, width) in cells of each picture."""
        first = maps[0]
        check_stride(first, self.in_stride, type(self).__name__)
        grid = (int(first.shape[2]), int(first.shape[3]))
        channels = sum(int(item.shape[1]) for item in maps)
        if channels != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} has in_channels={self.in_channels}, but is given '
                f'{channels}: set in_channels to the widths of the maps at in_index={self.in_index}'
            )
        if any(item.shape[2:] != first.shape[2:] for item in maps):
            shapes = [tuple(item.shape[2:]) for item in maps]
            raise ValueError(
                f'maps of one stride are needed, in_index={self.in_index} has {shapes}'
            )
        sizes = getattr(first, 'image_sizes', None)
        if sizes is None:
            return [grid] * len(first)
        cells = [(-(-h // self.in_stride), -(-w // self.in_stride)) for h, w in sizes]
        if any(h > grid[0] or w > grid[1] for h, w in cells):
            raise ValueError(
                f'a picture of {max(cells)} cells at in_stride={self.in_stride} does not fit the '
                f'map of {grid}: in_stride must be the patch size of the backbone'
            )
        return cells


@MODELS.register_module()
class NaViTLinearHead(TokenHead):
    """One linear layer per token: the linear decoder of Segmenter (arXiv 2105.05633, section 3.2).

    It is the `conv_seg` of mmseg's heads. `dropout_ratio` drops single channels of single tokens.
    """

    def __init__(
        self, in_channels: int | Sequence[int], *, dropout_ratio: float = 0.0, **kwargs: Any
    ) -> None:
        width = in_channels if isinstance(in_channels, int) else sum(in_channels)
        super().__init__(in_channels, channels=width, dropout_ratio=dropout_ratio, **kwargs)
        self.dropout = nn.Dropout(dropout_ratio)

    def logits(self, tokens_TD: Tensor, packed: PackedPatches) -> Tensor:
        weight = self.conv_seg.weight.flatten(1)
        return F.linear(self.dropout(tokens_TD), weight, self.conv_seg.bias)


@MODELS.register_module()
class NaViTSegmenterHead(TokenHead):
    """The mask transformer of Segmenter (arXiv 2105.05633, section 3.2), within each picture.

    A token per class joins the patches of every picture; blocks attend among them, never beyond the
    picture; the logits of a patch are its scalar products with the classes, both of length 1,
    through a LayerNorm over the classes. `num_layers` blocks of width `channels` and `num_heads`
    heads. mmseg's own head attends to padding too, so it takes batches of one size alone.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        channels: int,
        num_layers: int = 2,
        num_heads: int,
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.1,
        init_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels, channels=channels, dropout_ratio=0.0, init_cfg=init_cfg, **kwargs
        )
        del self.conv_seg  # unused weights stop DDP
        if channels % num_heads:
            raise ValueError(f'channels={channels} must divide by num_heads={num_heads}')
        self.dec_proj = nn.Linear(self.in_channels, channels)
        self.cls_emb = nn.Parameter(torch.empty(self.num_classes, channels))
        self.blocks = nn.ModuleList(
            Block(
                channels,
                attn=Attention(channels, num_heads=num_heads),
                mlp=Mlp(channels, hidden=mlp_ratio * channels),
                norm=nn.LayerNorm,
                drop_path=drop_path_rate * index / max(num_layers - 1, 1),
            )
            for index in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(channels)
        self.patch_proj = nn.Linear(channels, channels, bias=False)
        self.classes_proj = nn.Linear(channels, channels, bias=False)
        self.mask_norm = nn.LayerNorm(self.num_classes)
        self._reset()

    def _reset(self) -> None:
        """As Segmenter: truncated normal of 0.02, biases zero."""
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def logits(self, tokens_TD: Tensor, packed: PackedPatches) -> Tensor:
        segments, num = packed.segments(), self.num_classes
        rows_T, rows_NR, joined = make_room(packed.segment_ids, None, segments, num)
        classes = self.cls_emb.expand(packed.num_examples, -1, -1)
        # autocast narrows products; what blocks add to stays as wide as the weights
        tokens_TD = self.dec_proj(tokens_TD).to(classes.dtype)
        x_TD = lay(tokens_TD, classes, rows_T, rows_NR)
        numbers = torch.arange(packed.num_examples, device=x_TD.device)[:, None].expand(-1, num)
        ids = lay(packed.segment_ids, numbers, rows_T, rows_NR)
        stream = Stream(joined, None, ids, None, None)
        for block in self.blocks:
            x_TD = block(x_TD, stream)
        x_TD = self.decoder_norm(x_TD)
        patches_TD = F.normalize(self.patch_proj(x_TD[rows_T]), dim=-1)
        classes_NRD = F.normalize(self.classes_proj(x_TD[rows_NR]), dim=-1)
        # by picture, as no patch needs the classes of another: [n, D] x [D, classes]
        parts = patches_TD.split(packed.lengths.tolist())
        masks = [part @ own.T for part, own in zip(parts, classes_NRD, strict=True)]
        logits: Tensor = self.mask_norm(torch.cat(masks))
        return logits


def nearest(values: Tensor, sizes: Sequence[Size], grid: Size) -> Tensor:
    """Rows [T, K] of pictures as maps [B, K, *grid]; a cell outside repeats its nearest inside.

    `sizes` are the (height, width) in cells of the pictures, whose rows lie end to end. A map is
    resized as a whole by mmseg's heads: what lies beyond a picture's edge then has to be what
    resizing the picture alone puts there, its edge again.
    """
    height, width = grid
    if set(sizes) == {grid}:
        return values.unflatten(0, (len(sizes), height, width)).permute(0, 3, 1, 2)
    host = torch.tensor(sizes)
    starts = host.prod(1).cumsum(0) - host.prod(1)
    table = torch.cat([host, starts[:, None]], 1).to(values.device, non_blocking=True)
    h, w, first = (column[:, None, None] for column in table.unbind(1))
    y = torch.arange(height, device=values.device)[None, :, None].minimum(h - 1)
    x = torch.arange(width, device=values.device)[None, None, :].minimum(w - 1)
    rows = (first + y * w + x).flatten()  # [B * height * width]
    filled = values.index_select(0, rows)
    return filled.unflatten(0, (len(sizes), height, width)).permute(0, 3, 1, 2)
