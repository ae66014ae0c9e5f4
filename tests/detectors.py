"""Stock mmdet detectors on a tiny packed backbone, and batches of random pictures for them."""

from pathlib import Path

import mmdet
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

import navit_backbone.tasks.detection  # noqa: F401  registers

STOCK = Path(mmdet.__file__).parent / '.mim/configs'
RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
FASTER_RCNN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
MASK_RCNN = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
DINO = 'dino/dino-4scale_r50_8xb2-12e_coco.py'
STRIDES = {  # of the maps that each head is made for
    RETINANET: (8, 16, 32, 64, 128),
    FCOS: (8, 16, 32, 64, 128),
    FASTER_RCNN: (4, 8, 16, 32, 64),
    MASK_RCNN: (4, 8, 16, 32, 64),
    DINO: (8, 16, 32, 64),
}
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32, prefix_tokens=1)


def stock_detector(config, *, strides=None, channels=32, **backbone):
    """The model of a stock config on our preprocessor, backbone and pyramid; all of it narrow."""
    init_default_scope('mmdet')
    patch = backbone.get('patch_size', 16)
    strides = [stride * patch / 16 for stride in strides or STRIDES[config]]
    model = Config.fromfile(STOCK / config).model
    narrow(model, channels)
    if patch != 16:
        scale_strides(model, patch / 16)
    model.data_preprocessor.type = 'NaViTDetDataPreprocessor'
    model.data_preprocessor.pad_size_divisor = int(strides[-1])
    model.backbone = dict(type='NaViTBackbone', arch=ARCH, **backbone)
    model.neck = dict(
        type='SimpleFeaturePyramid',
        in_channels=24,
        out_channels=channels,
        in_stride=patch,
        strides=strides,
    )
    detector = MODELS.build(model)
    detector.init_weights()  # before it, DINO's level embedding is whatever the memory held
    return detector


def narrow(model, channels):
    """Set the widths in a detector's config, its depth, and its numbers of regions and queries."""
    sizes = dict(num_layers=2, num_queries=20, num_dn_queries=10, num=32, max_per_img=20)
    sizes |= dict(embed_dims=channels, num_feats=channels // 2)
    if 'encoder' in model:  # a DETR head's width has a default
        model.bbox_head.embed_dims = channels

    def visit(node):
        for key, value in node.items():
            if key.endswith('_channels'):
                node[key] = channels
            elif key in sizes:
                node[key] = sizes[key]
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(item, dict):
                    visit(item)

    visit(model)


def scale_strides(node, factor):
    """Multiply the strides that heads state."""
    for key, value in node.items():
        if key in ('strides', 'featmap_strides'):
            node[key] = [stride * factor for stride in value]
        elif isinstance(value, dict):
            scale_strides(value, factor)


def sample(size, *, num_classes=80, seed=0):
    """What a pipeline gives of one picture: random pixels, two boxes with their masks."""
    h, w = size
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 4, generator=generator) * 0.4
    boxes = (corners + torch.tensor([0, 0, 0.6, 0.6])) * torch.tensor([w, h, w, h])
    labels = torch.randint(num_classes, (2,), generator=generator)
    masks = np.zeros((2, h, w), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    data_sample = DetDataSample(
        metainfo=dict(img_shape=(h, w), ori_shape=(h, w), scale_factor=(1.0, 1.0), img_id=seed),
        gt_instances=InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, h, w)),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
    )
    image = torch.randint(256, (3, h, w), generator=generator, dtype=torch.uint8)
    return image, data_sample


def batch(sizes, **options):
    """The same for several pictures, as a loader collates it."""
    pairs = [sample(size, seed=seed, **options) for seed, size in enumerate(sizes)]
    images, samples = zip(*pairs, strict=True)
    return dict(inputs=list(images), data_samples=list(samples))
