"""Native-resolution Vision Transformers: pictures and clips of any size in one packed sequence."""

from .packing import (
    PackedPatches,
    Segments,
    drop_tokens,
    pack,
    pack_canvas,
    patchify,
    unpack,
    unpack_canvas,
    unpatchify,
)
from .vit import Arch, NaViT, NaViTOutput

__all__ = [
    'Arch',
    'NaViT',
    'NaViTOutput',
    'PackedPatches',
    'Segments',
    'drop_tokens',
    'pack',
    'pack_canvas',
    'patchify',
    'unpack',
    'unpack_canvas',
    'unpatchify',
]
