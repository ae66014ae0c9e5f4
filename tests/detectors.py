"""Stock mmdet detectors on a tiny packed backbone, and batches of random pictures for them."""

from pathlib import Path

import mmdet
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

import navit_backbone.tasks.detection  # noqa: F401  registers

STOCK = Path(mmdet.__file__).parent / '.mim/configs'
RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'
FASTER_RCNN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32, prefix_tokens=1)


def stock_detector(config, *, strides, channels=16, **backbone):
    """The model of a stock config on our preprocessor, backbone and pyramid; all of it narrow."""
    init_default_scope('mmdet')
    model = Config.fromfile(STOCK / config).model
    model.data_preprocessor.type = 'NaViTDetDataPreprocessor'
    model.data_preprocessor.pad_size_divisor = strides[-1]
    model.backbone = dict(type='NaViTBackbone', arch=ARCH, **backbone)
    model.neck = dict(
        type='SimpleFeaturePyramid', in_channels=24, out_channels=channels, strides=strides
    )
    narrow(model, channels)
    return MODELS.build(model)


def narrow(node, channels):
    """Set every width of a head's config, and the number of regions that it trains on."""
    for key, value in node.items():
        if key in (
            'bbox_head',
            'rpn_head',
            'bbox_roi_extractor',
            'mask_head',
            'mask_roi_extractor',
        ):
            value.update({k: channels for k in value if k.endswith('_channels')})
        if key == 'sampler' and 'num' in value:
            value.num = 32
        if isinstance(value, dict):
            narrow(value, channels)


def sample(size, *, num_classes=80, seed=0):
    """What a pipeline gives of one picture: random pixels, two boxes."""
    h, w = size
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 4, generator=generator) * 0.4
    boxes = (corners + torch.tensor([0, 0, 0.6, 0.6])) * torch.tensor([w, h, w, h])
    labels = torch.randint(num_classes, (2,), generator=generator)
    data_sample = DetDataSample(
        metainfo=dict(img_shape=(h, w), ori_shape=(h, w), scale_factor=(1.0, 1.0), img_id=seed),
        gt_instances=InstanceData(bboxes=boxes, labels=labels),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
    )
    image = torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8)
    return image, data_sample


def batch(sizes, **options):
    """The same for several pictures, as a loader collates it."""
    pairs = [sample(size, seed=seed, **options) for seed, size in enumerate(sizes)]
    images, samples = zip(*pairs, strict=True)
    return dict(inputs=list(images), data_samples=list(samples))
