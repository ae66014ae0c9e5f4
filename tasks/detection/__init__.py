"""Detection: stock mmdet detectors on the packed backbone. Importing it registers all of it."""

from navit_backbone import backbone

from .. import common
from . import agreement, box_hook, data, lvis, metric, mixed_images, preprocessor, test_time

__all__ = [
    'agreement',
    'backbone',
    'box_hook',
    'common',
    'data',
    'lvis',
    'metric',
    'mixed_images',
    'preprocessor',
    'test_time',
]
