"""Segmentation: stock mmseg segmentors on the packed backbone. Importing it registers all of it."""

from navit_backbone import backbone

from .. import common
from . import (
    data,
    head,
    label_check,
    losses,
    metric,
    mixed_sizes,
    model,
    overlay_hook,
    preprocessor,
)

__all__ = [
    'backbone',
    'common',
    'data',
    'head',
    'label_check',
    'losses',
    'metric',
    'mixed_sizes',
    'model',
    'overlay_hook',
    'preprocessor',
]
