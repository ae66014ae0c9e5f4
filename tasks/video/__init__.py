"""Video classification on tubelets, and of pictures. Importing it registers all of it."""

from navit_backbone import backbone

from .. import common
from ..common import clip_budget, clip_data, clip_packing, clip_transforms
from . import clip_check, head, label_check, metric, model, preprocessor

__all__ = [
    'backbone',
    'clip_budget',
    'clip_check',
    'clip_data',
    'clip_packing',
    'clip_transforms',
    'common',
    'head',
    'label_check',
    'metric',
    'model',
    'preprocessor',
]
