"""What two tasks or more use, free of mmdet and mmseg. Importing it registers all of it."""

from . import (
    amp,
    batch_sampler,
    class_balanced,
    dataset,
    jitter,
    layer_decay,
    loaded_weights,
    memory_errors,
    norm,
    picture_check,
    pyramid,
    resize,
    resume,
    sample,
    sampling,
    throughput,
)

__all__ = [
    'amp',
    'batch_sampler',
    'class_balanced',
    'dataset',
    'jitter',
    'layer_decay',
    'loaded_weights',
    'memory_errors',
    'norm',
    'picture_check',
    'pyramid',
    'resize',
    'resume',
    'sample',
    'sampling',
    'throughput',
]
