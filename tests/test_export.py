"""Backbone and pyramid leave as one graph of a fixed size."""

import numpy as np
import pytest
import torch
from oracles import perturb

from navit_backbone.backbone import NaViTBackbone
from navit_backbone.tasks.common.pyramid import SimpleFeaturePyramid

ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)
OPTIONS = {
    'plain': {},
    'class token, rope': dict(arch=dict(ARCH, prefix_tokens=1, rope={})),
    'factorised': dict(position='factorised'),
    'fourier': dict(position='fourier'),
    'sinusoidal': dict(position='sinusoidal'),
}


def build(name):
    torch.manual_seed(0)
    backbone = NaViTBackbone(**{'arch': ARCH, **OPTIONS[name]})
    pyramid = SimpleFeaturePyramid(24, out_channels=8, strides=(8, 16, 32, 64))
    return perturb(torch.nn.Sequential(backbone, pyramid)).eval()


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('batch', [1, 2])
def test_torch_export(name, batch):
    model, x = build(name), torch.randn(batch, 3, 64, 192)
    program = torch.export.export(model, (x,))
    other = torch.randn(batch, 3, 64, 192)
    for got, expected in zip(program.module()(other), model(other), strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize('name', OPTIONS)
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, x = build(name), torch.randn(1, 3, 64, 192)
    path = tmp_path / 'model.onnx'
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    other = torch.randn(1, 3, 64, 192)
    results = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    for got, expected in zip(results, model(other), strict=True):
        assert np.abs(got - expected.detach().numpy()).max() < 1e-4
