"""bfloat16 training where there is no GPU."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import OPTIM_WRAPPERS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from navit_backbone.tasks.common.amp import BFloat16OptimWrapper
