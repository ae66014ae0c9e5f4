"""What two tasks or more use, free of mmdet and mmseg. Importing it registers all of it."""

from . import amp, dataset, layer_decay, loaded_weights, norm, pyramid, resize, sample, sampling

__all__ = [
    'amp',
    'dataset',
    'layer_decay',
    'loaded_weights',
    'norm',
    'pyramid',
    'resize',
    'sample',
    'sampling',
]
