"""Kernels resampled for patches of another size: against FlexiViT's formula, in plain numpy."""

import numpy as np
import pytest
import torch
from oracles import perturb

from navit_backbone import NaViT, pack, patchify
from navit_backbone.checkpoint import load_weights, weights_of
from navit_backbone.inflation import resampled

ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32)
GRID = dict(kind='learned_1d', grid=(3, 5))


def bilinear(old, new):
    """The matrix [new, old] of one side: triangles about the centres, wider where it shrinks."""
    rows = np.zeros((new, old))
    for i in range(new):
        centre, reach = (i + 0.5) * old / new, max(old / new, 1)
        for j in range(old):
            rows[i, j] = max(0, 1 - abs(j + 0.5 - centre) / reach)
    return rows / rows.sum(1, keepdims=True)


def whole_matrix(old, new):
    """B [new h * new w, old h * old w], resizing the basis patches one by one."""
    columns = []
    for number in range(old[0] * old[1]):
        patch = np.zeros(old[0] * old[1])
        patch[number] = 1
        resized = bilinear(old[0], new[0]) @ patch.reshape(old) @ bilinear(old[1], new[1]).T
        columns.append(resized.flatten())
    return np.stack(columns, 1)


def model_of(patch_size, seed=0, **options):
    torch.manual_seed(seed)
    return perturb(NaViT(ARCH, patch_size=patch_size, **{'position': GRID, **options}).double())


def resized_patchwise(image, old, new):
    """A picture [..., h, w] whose patches of side `old` are resized one by one to `new`."""
    h, w = (side // old for side in image.shape[-2:])
    cells = image.reshape(*image.shape[:-2], h, old, w, old)
    matrix = torch.from_numpy(bilinear(old, new))
    return torch.einsum('...hawb,ya,xb->...hywx', cells, matrix, matrix).reshape(
        *image.shape[:-2], h * new, w * new
    )


@pytest.mark.parametrize(
    ('old', 'new'), [((14, 14), (16, 16)), ((16, 16), (14, 14)), ((4, 7), (6, 5))]
)
@pytest.mark.parametrize('t', [1, 2])
def test_a_kernel_is_the_pseudo_inverse_of_resizing_times_it(old, new, t):
    kernel = np.random.default_rng(0).normal(size=(5, 3 * t, old[0] * old[1]))
    expected = kernel @ np.linalg.pinv(whole_matrix(old, new).T).T
    found = resampled(torch.from_numpy(kernel).flatten(1), (t, *old), new)
    np.testing.assert_allclose(found.numpy(), expected.reshape(5, -1), atol=1e-10)


def test_smaller_kernels_are_the_least_squares_choice():
    """No other kernel answers white noise more like the old one: B (B^T w - v) is zero."""
    kernel = np.random.default_rng(0).normal(size=(5, 3 * 256))
    found = resampled(torch.from_numpy(kernel), (1, 16, 16), (14, 14)).numpy().reshape(-1, 196)
    matrix = whole_matrix((16, 16), (14, 14))
    missed = found @ matrix - kernel.reshape(-1, 256)
    assert np.abs(missed @ matrix.T).max() < 1e-10
    assert 0.01 < np.square(missed).mean() < 1


@pytest.mark.parametrize('old', [14, 12])
@pytest.mark.parametrize('size', [(3, 5), (2, 7), (1, 1)], ids=str)
def test_an_enlarged_picture_keeps_its_tokens(old, size):
    source, model = model_of(old), model_of(16, seed=1)
    report = load_weights(model, weights_of(source), patch_resize='flexivit')
    assert report.share == 1
    assert any('resampled to 16x16' in note for note in report.notes)
    image = torch.randn(3, old * size[0], old * size[1]).double()
    tokens = source(patchify(image, (1, old, old))).tokens
    enlarged = resized_patchwise(image, old, 16)
    found = model(patchify(enlarged[:, None], (1, 16, 16))).tokens
    assert torch.allclose(found, tokens, rtol=0, atol=1e-9)
    assert torch.equal(model.position.table, source.position.table)


def test_a_smaller_kernel_answers_smooth_pictures_nearly_alike():
    source, model = model_of(16), model_of(14, seed=1)
    load_weights(model, weights_of(source), patch_resize='flexivit')
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing='ij')
    image = torch.stack([y / 20, x / 30, (x + y) / 40]).double()
    tokens = source(patchify(image, (1, 16, 16))).tokens
    found = model(patchify(resized_patchwise(image, 16, 14)[:, None], (1, 14, 14))).tokens
    others = model(patchify(resized_patchwise(image.flip(2), 16, 14)[:, None], (1, 14, 14))).tokens
    assert (found - tokens).abs().max() < 0.1 * (others - tokens).abs().max()


@pytest.mark.parametrize('there, here', [((2, 14, 14), 16), (14, (2, 16, 16))], ids=str)
def test_in_time_and_in_space_at_once(there, here):
    source, model = model_of(there), model_of(here, seed=1)
    report = load_weights(model, weights_of(source), patch_resize='flexivit')
    assert len(report.notes) == 2
    image = torch.randn(3, 1, 28, 70).double()  # a clip that repeats its only frame
    tokens = source(pack([patchify(image, source.patch_shapes[0])])).tokens
    enlarged = resized_patchwise(image, 14, 16)
    found = model(pack([patchify(enlarged, model.patch_shapes[0])])).tokens
    assert torch.allclose(found, tokens, rtol=0, atol=1e-9)


def test_it_is_asked_for_and_never_guessed():
    weights = weights_of(model_of(14))
    with pytest.raises(ValueError, match=r"patch_size.*patch_resize='flexivit' in init_cfg"):
        load_weights(model_of(16), weights)
    with pytest.raises(ValueError, match=r"patch_resize='bicubic' is not one of \('flexivit',\)"):
        load_weights(model_of(16), weights, patch_resize='bicubic')
    report = load_weights(model_of(14, seed=1), weights, patch_resize='flexivit')
    assert not report.notes
    with pytest.raises(ValueError, match='patch_size'):  # two sizes, and which is which?
        load_weights(model_of([16, 8]), weights, patch_resize='flexivit')
