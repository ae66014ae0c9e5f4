"""Pictures of data as the model sees it: patch grids, token counts, and a packed batch.

Pictures are PIL images in RGB; sizes are (height, width), grids are sizes in patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw

from navit_backbone.packing import PackedPatches, pack, patchify

from .fonts import TextLine, draw_label
from .overlay import legend, overlay, shares
from .palette import Colour
from .resampling import resize_image

Size = tuple[int, int]

COLOURS = (
    (31, 119, 180),
    (230, 85, 13),
    (44, 140, 44),
    (200, 30, 60),
    (128, 90, 190),
    (140, 86, 75),
    (214, 90, 170),
    (100, 100, 100),
    (150, 150, 20),
    (20, 160, 175),
)
_INK, _FAINT, _PAPER = (30, 30, 34), (110, 110, 118), (250, 250, 248)
_MARGIN = 16


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample as it leaves the pipeline, with what is marked on it."""

    image: np.ndarray  # [h, w, 3] uint8, RGB
    name: str
    native_size: Size | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # x1, y1, x2, y2
    labels: Sequence[str] = ()  # one per box
    classes: Sequence[int] = ()  # one per box, for its colour
    masks: np.ndarray | None = None  # [number of boxes, h, w] bool
    regions: np.ndarray | None = None  # [h, w] class numbers; 255 is unlabelled
    names: Sequence[str] = ()  # of the classes of regions, with their colours
    palette: Sequence[Colour] = ()


def grid_of(size: Size, patch_size: int) -> Size:
    """The patches that a picture takes; a partial patch at the border is one."""
    return -(-size[0] // patch_size), -(-size[1] // patch_size)


def sample_picture(shown: Shown, patch_size: int, *, long_side: int = 1000) -> Image.Image:
    """One sample with its patch grid, boxes, regions and classes, and its token count above."""
    h, w = shown.image.shape[:2]
    rows, columns = grid_of((h, w), patch_size)
    zoom = max(1, long_side // max(rows * patch_size, columns * patch_size))
    canvas = np.full((rows * patch_size, columns * patch_size, 3), 225, dtype=np.uint8)
    canvas[:h, :w] = _tinted(shown)
    picture = Image.fromarray(
        resize_image(canvas, (canvas.shape[0] * zoom, canvas.shape[1] * zoom))
    )
    picture = _with_grid(picture, patch_size * zoom)
    draw = ImageDraw.Draw(picture)
    for box, label, colour in zip(shown.boxes, shown.labels, shown.classes, strict=True):
        _draw_box(draw, [float(c) * zoom for c in box], label, _colour(colour))
    native = '' if shown.native_size is None else ' from {} x {}'.format(*shown.native_size)
    heading = f'{rows} x {columns} patches of {patch_size} px = {rows * columns:,} tokens'
    content = f'{len(shown.boxes)} object(s)'
    if shown.regions is not None:
        found = shares(shown.regions)
        content = f'{len(found)} class(es)'
        panel = legend(found, shown.names, shown.palette, picture.height)
        picture = _side_by_side(picture, panel)
    details = f'{h} x {w} px (height x width){native}, {content}'
    return _under_heading(picture, heading, f'{shown.name}: {details}')


def batch_picture(images: Sequence[np.ndarray], patch_size: int) -> Image.Image:
    """The batch as one packed sequence, and beside it what padding the same pictures would take.

    `images` are [h, w, 3] uint8 in RGB. On the left the very patches that the backbone receives,
    in their order, like lines of text; each example has its colour.
    """
    packed = pack(
        [patchify(torch.from_numpy(_channels_first(i)), (1, *[patch_size] * 2)) for i in images]
    )
    grids = [(h, w) for _, h, w in packed.grids.tolist()]
    height, width = (max(side) for side in zip(*grids, strict=True))
    tokens, canvas = len(packed.patches), len(grids) * height * width
    # cost of attention: pairs of tokens that look at each other
    pairs = sum((h * w) ** 2 for h, w in grids)
    padded_pairs = len(grids) * (height * width) ** 2
    columns = max(24, math.ceil(math.sqrt(tokens * 1.2)))
    left = _under_heading(
        _sequence(packed, columns),
        f'Packed: {tokens:,} tokens, no padding',
        f'{len(grids)} examples end to end, one colour each; {pairs:,} pairs in attention',
    )
    right = _under_heading(
        _padded(images, grids, (height, width), patch_size, left.height),
        f'Padded: {canvas:,} tokens, {1 - tokens / canvas:.0%} of them padding',
        f'{len(grids)} x {height} x {width} patches; {padded_pairs:,} pairs '
        f'({padded_pairs / pairs:.1f} times as many)',
    )
    return _side_by_side(left, right)


def _sequence(packed: PackedPatches, columns: int) -> Image.Image:
    """The patches in order, `columns` a line, each tinted with the colour of its example."""
    _, side, _ = packed.patch_shape
    patches = packed.patches.unflatten(1, (3, side, side)).permute(0, 2, 3, 1).numpy()
    lines = math.ceil(len(patches) / columns)
    tile, bar = min(max(900 // columns, 8), 18), 4  # pixels
    picture = Image.new('RGB', (columns * tile, lines * (tile + bar + 3)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (patch, example) in enumerate(zip(patches, packed.segment_ids.tolist(), strict=True)):
        x, y = i % columns * tile, i // columns * (tile + bar + 3)
        picture.paste(Image.fromarray(resize_image(patch, (tile, tile - 1))), (x, y))
        draw.rectangle((x, y + tile, x + tile - 1, y + tile + bar - 1), fill=_colour(example))
    return picture


def _padded(
    images: Sequence[np.ndarray], grids: Sequence[Size], grid: Size, patch_size: int, height: int
) -> Image.Image:
    """The pictures on canvases of one size; what is padding is hatched."""
    columns = math.ceil(math.sqrt(len(images) * grid[0] / grid[1]))
    rows = math.ceil(len(images) / columns)
    zoom = min(
        1.0,
        max(height, 500) / (rows * grid[0] * patch_size),
        900 / (columns * grid[1] * patch_size),
    )
    cell = [round(side * patch_size * zoom) for side in grid]
    gap = 8
    picture = Image.new('RGB', (columns * (cell[1] + gap), rows * (cell[0] + gap)), _PAPER)
    for i, (image, (h, w)) in enumerate(zip(images, grids, strict=True)):
        x, y = i % columns * (cell[1] + gap), i // columns * (cell[0] + gap)
        picture.paste(_hatched(cell[1], cell[0]), (x, y))
        shown = (max(1, round(h * patch_size * zoom)), max(1, round(w * patch_size * zoom)))
        picture.paste(Image.fromarray(resize_image(image, shown)), (x, y))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((x, y, x + shown[1] - 1, y + shown[0] - 1), outline=_colour(i), width=4)
    return picture


def _hatched(width: int, height: int, step: int = 9) -> Image.Image:
    picture = Image.new('RGB', (width, height), (232, 232, 232))
    draw = ImageDraw.Draw(picture)
    for x in range(-height, width, step):
        draw.line((x, height, x + height, 0), fill=(190, 190, 190), width=1)
    return picture


def _tinted(shown: Shown) -> np.ndarray:
    """The image with its masks and regions laid over it: [h, w, 3] uint8."""
    image = shown.image
    if shown.regions is not None:
        image = np.asarray(overlay(image, shown.regions, shown.palette))
    image = image.astype(np.float32)
    masks = [] if shown.masks is None else zip(shown.masks, shown.classes, strict=True)
    for mask, colour in masks:
        image[mask] = 0.6 * image[mask] + 0.4 * np.array(_colour(colour), dtype=np.float32)
    return image.astype(np.uint8)


def _with_grid(picture: Image.Image, step: int) -> Image.Image:
    lines = Image.new('RGBA', picture.size)
    draw = ImageDraw.Draw(lines)
    for offset, shade in ((1, (0, 0, 0, 70)), (0, (255, 255, 255, 130))):
        for x in range(0, picture.width + 1, step):
            draw.line((x + offset, 0, x + offset, picture.height), fill=shade)
        for y in range(0, picture.height + 1, step):
            draw.line((0, y + offset, picture.width, y + offset), fill=shade)
    return Image.alpha_composite(picture.convert('RGBA'), lines).convert('RGB')


def _draw_box(
    draw: ImageDraw.ImageDraw, box: list[float], label: str, colour: tuple[int, ...]
) -> None:
    draw.rectangle(box, outline=colour, width=3)
    draw_label(draw, (box[0], box[1]), TextLine(label, 17, max_width=draw.im.size[0] - 6), colour)


def _under_heading(picture: Image.Image, heading: str, details: str) -> Image.Image:
    lines = TextLine(heading, 24), TextLine(details, 17)
    width = max(picture.width, *(line.width for line in lines)) + 2 * _MARGIN
    sheet = Image.new('RGB', (width, picture.height + 84 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lines[0].draw(draw, (_MARGIN, 12), _INK)
    lines[1].draw(draw, (_MARGIN, 48), _FAINT)
    sheet.paste(picture, (_MARGIN, 84))
    return sheet


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    size = left.width + right.width + _MARGIN, max(left.height, right.height)
    sheet = Image.new('RGB', size, _PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + _MARGIN, 0))
    return sheet


def _colour(number: int) -> tuple[int, ...]:
    return COLOURS[number % len(COLOURS)]


def _channels_first(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))
