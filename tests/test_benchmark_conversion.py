"""The file of the conversion benchmark is of its family, and its row runs. No figures."""

import pytest
import torch

from navit_backbone.checkpoint import build, load_weights, read_weights
from navit_backbone.tools import benchmark
from navit_backbone.tools import benchmark_conversion as conversion
from navit_backbone.vit import ARCHS


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_the_file_is_a_whole_dinov2(tmp_path, suffix):
    source = tmp_path / f'w{suffix}'
    values = conversion.write_source(source, 'tiny')
    weights = read_weights(source)
    assert (weights.family, weights.left_over) == ('hf-dinov2', ())
    assert abs(source.stat().st_size / (4 * values) - 1) < 0.01
    assert weights.arch['num_heads'] == ARCHS['tiny'].num_heads
    assert load_weights(build(weights), weights).share == 1


def test_the_large_one_has_300_million_values(monkeypatch):
    monkeypatch.setattr(torch, 'randn', lambda *shape, generator: torch.empty(shape, device='meta'))
    state = conversion.dinov2_state('large')
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(304e6, rel=0.01)


def test_the_row_runs():
    args = benchmark.parse_args(['--smoke', '--device', 'cpu', '--only', 'conversion'])
    lines = benchmark.results_of('conversion', benchmark.setting_of(args), ['tiny'])
    kinds = [line.what.split(':')[0].split(', ')[1] for line in lines]
    assert kinds == ['.safetensors', '.pth']
    assert all('no figure' in line.figure and line.target == 'at most 2.2' for line in lines)
