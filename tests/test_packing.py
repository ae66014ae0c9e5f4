"""Packing: nothing lost, nothing leaked, nothing read from the padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ODD_SIZES, on_canvas, pictures

from navit_backbone import (
    drop_tokens,
    pack,
    pack_canvas,
    patchify,
    unpack,
    unpack_canvas,
    unpatchify,
)
from navit_backbone.packing import Segments, arrange, grid_coordinates

SIDES = st.integers(1, 40)


@given(t=st.integers(1, 5), h=SIDES, w=SIDES, p=st.integers(1, 3), q=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_patchify_then_unpatchify_gives_the_clip_back(t, h, w, p, q):
    clip = torch.randn(2, t, h, w)
    packed = patchify(clip, (p, q, q + 1))
    (back,) = unpatchify(packed, num_channels=2)
    assert torch.equal(back[:, :t, :h, :w], clip)
    assert back[:, :t, h:].abs().sum() == 0 and back[:, :t, :, w:].abs().sum() == 0
    for extra in back[:, t:].unbind(1):  # a clip that does not fill its tubelet repeats its end
        assert torch.equal(extra, back[:, t - 1])


def test_patches_have_the_order_of_a_convolution_kernel():
    image = torch.randn(3, 32, 48, dtype=torch.float64)
    conv = torch.nn.Conv2d(3, 7, 16, stride=16, dtype=torch.float64)
    tokens = patchify(image, (1, 16, 16)).patches @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(tokens, conv(image[None])[0].flatten(1).T, rtol=0, atol=1e-12)


def test_tubelets_have_the_order_of_a_3d_kernel():
    clip = torch.randn(3, 4, 28, 14, dtype=torch.float64)
    conv = torch.nn.Conv3d(3, 5, (2, 14, 14), stride=(2, 14, 14), dtype=torch.float64)
    tokens = patchify(clip, (2, 14, 14)).patches @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(tokens, conv(clip[None])[0].flatten(1).T, rtol=0, atol=1e-12)


@given(grids=st.lists(st.tuples(st.integers(1, 3), SIDES, SIDES), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_coordinates_enumerate_every_grid_in_row_major_order(grids):
    coords, ids = grid_coordinates(torch.tensor(grids), torch.device('cpu'))
    expected = [
        (i, a, b, c)
        for i, (t, h, w) in enumerate(grids)
        for a in range(t)
        for b in range(h)
        for c in range(w)
    ]
    assert torch.cat([ids[:, None], coords], 1).tolist() == [list(row) for row in expected]


@pytest.mark.parametrize('patch_size', [4, 16, 14])
@pytest.mark.parametrize('fill', [0.0, 7.0, float('nan'), float('inf')])
def test_a_canvas_packs_as_its_pictures_do(patch_size, fill):
    images = pictures(ODD_SIZES)
    canvas = on_canvas(images, height=128, width=160, fill=fill)
    packed = pack_canvas(canvas, canvas.image_sizes, patch_size)
    expected = pack([patchify(image, (1, patch_size, patch_size)) for image in images])
    for name in ('patches', 'coords', 'segment_ids', 'grids', 'lengths'):
        assert torch.equal(getattr(packed, name), getattr(expected, name)), name


@pytest.mark.parametrize('size', [(64, 48), (61, 53), (5, 128)])
def test_equal_pictures_take_the_static_path_with_the_same_result(size):
    images = pictures([size] * 3)
    canvas = on_canvas(images, height=64, width=128, fill=float('nan'))
    packed = pack_canvas(canvas, canvas.image_sizes, 16)
    assert packed.shared_grid is not None
    expected = pack([patchify(image, (1, 16, 16)) for image in images])
    for name in ('patches', 'coords', 'segment_ids', 'grids', 'lengths'):
        assert torch.equal(getattr(packed, name), getattr(expected, name)), name
    plain, alike = Segments.of(packed.lengths, torch.device('cpu')), packed.segments()
    assert plain.cu_seqlens.tolist() == alike.cu_seqlens.tolist()
    assert plain.lengths.tolist() == alike.lengths.tolist()
    assert (plain.max_len, plain.equal) == (alike.max_len, alike.equal)


def test_a_canvas_that_is_no_multiple_of_the_patch_keeps_its_last_patches():
    images = pictures([(33, 70), (40, 21)])
    canvas = on_canvas(images, height=40, width=70)
    packed = pack_canvas(canvas, canvas.image_sizes, 16)
    assert packed.grids.tolist() == [[1, 3, 5], [1, 3, 2]]


def test_maps_hold_each_token_in_its_cell_and_zero_outside():
    images = pictures(ODD_SIZES)
    packed = pack([patchify(image, (1, 16, 16)) for image in images])
    tokens = torch.randn(len(packed.patches), 5)
    maps = unpack_canvas(tokens, packed, (8, 10))
    for index, (item, (_, h, w)) in enumerate(zip(maps, packed.grids.tolist(), strict=True)):
        own = tokens[packed.segment_ids == index]
        assert torch.equal(item[:, :h, :w].flatten(1).T, own)
        assert item[:, h:].abs().sum() == 0 and item[:, :, w:].abs().sum() == 0
    for item, listed in zip(maps, unpack(tokens, packed), strict=True):
        assert torch.equal(
            item[:, : listed.shape[1], : listed.shape[2]].permute(1, 2, 0), listed[0]
        )


def test_permuted_tokens_land_in_their_cells():
    packed = pack([patchify(image, (1, 16, 16)) for image in pictures(ODD_SIZES)])
    tokens = torch.randn(len(packed.patches), 5)
    order = torch.argsort(packed.segment_ids + torch.rand(len(tokens)) * 0.9)
    shuffled = packed.take(order, packed.lengths)
    assert not torch.equal(order, torch.arange(len(order)))
    expected = unpack_canvas(tokens, packed, (8, 10))
    assert torch.equal(unpack_canvas(tokens[order], shuffled, (8, 10)), expected)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_dropping_keeps_the_stated_number_of_real_tokens_in_order(sizes, seed):
    packed = pack([patchify(image, (1, 8, 8)) for image in pictures(sizes)])
    generator = torch.Generator().manual_seed(seed)
    wanted = (packed.lengths * torch.rand(len(sizes), generator=generator)).long() + 1
    kept = drop_tokens(packed, wanted, generator=generator)
    assert torch.equal(kept.lengths, wanted)
    assert torch.equal(torch.bincount(kept.segment_ids, minlength=len(sizes)), kept.lengths)
    assert torch.equal(kept.grids, packed.grids)
    for index in range(len(sizes)):
        before = {
            tuple(c): row
            for c, row in zip(
                packed.coords[packed.segment_ids == index].tolist(),
                packed.patches[packed.segment_ids == index],
                strict=True,
            )
        }
        chosen = kept.coords[kept.segment_ids == index].tolist()
        assert chosen == sorted(chosen)
        for place, row in zip(chosen, kept.patches[kept.segment_ids == index], strict=True):
            assert torch.equal(before[tuple(place)], row)


def test_dropping_is_uniform_over_the_tokens():
    packed = pack([patchify(torch.zeros(3, 8, 8 * n), (1, 8, 8)) for n in (4, 12)])
    counts = torch.zeros(16)
    for seed in range(2000):
        kept = drop_tokens(
            packed, torch.tensor([2, 9]), generator=torch.Generator().manual_seed(seed)
        )
        counts[kept.coords[:, 2] + 4 * kept.segment_ids] += 1
    assert (counts[:4] / 2000 - 0.5).abs().max() < 0.05
    assert (counts[4:] / 2000 - 0.75).abs().max() < 0.05


def test_tokens_of_the_lowest_scores_stay():
    packed = pack([patchify(torch.zeros(3, 8, 8 * n), (1, 8, 8)) for n in (4, 3)])
    scores = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.5, 0.99, 0.0], dtype=torch.float64)
    kept = drop_tokens(packed, torch.tensor([3, 1]), scores=scores)
    assert kept.coords[:, 2].tolist() == [1, 2, 3, 2]
    assert kept.segment_ids.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize('kept', [[1], [1, 0], [1, -1], [2, 5], [0.5, 0.5]])
def test_wrong_counts_are_refused(kept):
    packed = pack([patchify(torch.zeros(3, 8, 8 * n), (1, 8, 8)) for n in (2, 4)])
    with pytest.raises(
        ValueError, match=r'kept must hold 2 whole numbers .* \[2, 4\]: got'
    ) as error:
        drop_tokens(packed, torch.tensor(kept))
    assert str(error.value).endswith(str(torch.tensor(kept).tolist()))


def test_packs_of_two_patch_shapes_are_refused():
    packs = [patchify(torch.zeros(3, 8, 8), (1, p, p)) for p in (4, 8)]
    with pytest.raises(ValueError, match='one patch shape'):
        pack(packs)


@pytest.mark.parametrize('shape', [(3, 0, 8), (8, 8), (3, 8, 0)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match='height, width'):
        patchify(torch.zeros(shape), (1, 4, 4))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    num_prefix=st.integers(0, 3),
    by_length=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_every_example_has_rows_of_its_own_which_are_a_segment(lengths, num_prefix, by_length):
    segments = Segments.of(torch.tensor(lengths), torch.device('cpu'))
    firsts, joined = arrange(segments, num_prefix, by_length=by_length)
    spans = sorted(
        (first, n + num_prefix) for first, n in zip(firsts.tolist(), lengths, strict=True)
    )
    starts = joined.cu_seqlens.tolist()
    assert spans == list(zip(starts[:-1], joined.lengths.tolist(), strict=True))
    assert starts == [0, *joined.lengths.cumsum(0).tolist()]
    assert joined.max_len == max(lengths) + num_prefix
    assert joined.equal == (len(set(lengths)) == 1)
    if by_length:
        assert joined.lengths.tolist() == sorted(joined.lengths.tolist(), reverse=True)
