"""Positions against formulas written out here, and interpolation against `F.interpolate`."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pictures

from navit_backbone import NaViT, pack, patchify
from navit_backbone.interpolation import interpolation_rows
from navit_backbone.position import (
    NormalisedRotaryPosition,
    RotaryPosition,
    Scale,
    TemporalPosition,
    build_position,
    rotate_halves,
)

SIZES = [(33, 70), (16, 16), (200, 16), (16, 113), (61, 53)]
KINDS = [
    'learned_1d',
    dict(kind='learned_1d', grid=(5, 3), interpolation='bilinear', antialias=False),
    dict(kind='learned_1d', antialias=False),
    'learned_2d',
    'factorised',
    dict(kind='factorised', combine='stack'),
    dict(kind='factorised', combine='product'),
    dict(kind='factorised', fractional=True),
    'fourier',
    dict(kind='fourier', fractional=True),
    'sinusoidal',
    dict(kind='sinusoidal', fractional=True),
]


def packed_sizes(sizes=SIZES):
    return pack([patchify(image, (1, 16, 16)) for image in pictures(sizes)])


def build(kind, dim=24):
    torch.manual_seed(0)
    return build_position(kind, dim).double()


def cells(packed):
    """(token, y, x, height, width) in plain numbers."""
    for token, (_, y, x) in enumerate(packed.coords.tolist()):
        _, h, w = packed.grids[packed.segment_ids[token]].tolist()
        yield token, y, x, h, w


def linear(table, fraction):
    place = min(fraction * len(table), len(table) - 1)
    low = int(place)
    high = min(low + 1, len(table) - 1)
    return table[low] * (1 - place + low) + table[high] * (place - low)


def wave(place, dim):
    angles = [place / 10000 ** (i / dim) for i in range(dim)]
    values = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def waves(*places):
    """Sine and cosine of the learned frequencies at (y, x)."""

    def of(module):
        angles = module.frequencies.weight @ torch.tensor(places, dtype=torch.float64)
        return torch.cat([angles.sin(), angles.cos()])

    return of


WAVES = torch.stack([wave(place, 6) for place in range(9)])
# what each kind gives a token at (y, x) of a picture of h x w patches
FORMULAS = [
    ('factorised', lambda m, y, x, h, w: m.y[y] + m.x[x]),
    (
        dict(kind='factorised', combine='stack'),
        lambda m, y, x, h, w: torch.cat([m.y[y], m.x[x]]),
    ),
    (dict(kind='factorised', combine='product'), lambda m, y, x, h, w: m.y[y] * m.x[x]),
    (
        dict(kind='factorised', fractional=True, max_size=10),
        lambda m, y, x, h, w: linear(m.y, y / h) + linear(m.x, x / w),
    ),
    ('learned_2d', lambda m, y, x, h, w: m.table[y, x]),
    ('fourier', lambda m, y, x, h, w: waves(y, x)(m)),
    (dict(kind='fourier', fractional=True), lambda m, y, x, h, w: waves(y / h, x / w)(m)),
    ('sinusoidal', lambda m, y, x, h, w: torch.cat([wave(y, 6), wave(x, 6)])),
    (
        dict(kind='sinusoidal', fractional=True, max_size=9),
        lambda m, y, x, h, w: torch.cat([linear(WAVES, y / h), linear(WAVES, x / w)]),
    ),
]


@pytest.mark.parametrize(('kind', 'formula'), FORMULAS, ids=[str(kind) for kind, _ in FORMULAS])
def test_each_kind_against_its_formula(kind, formula):
    packed, module = packed_sizes(), build(kind)
    expected = torch.stack([formula(module, *where) for _, *where in cells(packed)])
    assert torch.allclose(module(packed), expected, rtol=0, atol=1e-12)


def test_fractional_positions_at_the_table_size_are_the_absolute_ones():
    packed = packed_sizes([(10 * 16, 10 * 16)])
    absolute = build(dict(kind='factorised', max_size=10))
    fractional = build(dict(kind='factorised', max_size=10, fractional=True))
    assert torch.allclose(absolute(packed), fractional(packed), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    'rule', [('bicubic', True), ('bicubic', False), ('bilinear', True), ('bilinear', False)]
)
@given(size_in=st.integers(2, 40), size_out=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_interpolation_rows_equal_torch(rule, size_in, size_out):
    mode, antialias = rule
    # an identity of full width: torch 2.13 on CPU is wrong for outputs one column wide
    eye = torch.eye(size_in, dtype=torch.float64)[None, None]
    expected = F.interpolate(
        eye, size=(size_out, size_in), mode=mode, antialias=antialias, align_corners=False
    )[0, 0]
    got = interpolation_rows(size_in, size_out, *rule)
    assert got.shape == (size_out, size_in)
    assert (got - expected).abs().max() < 1e-6  # torch keeps scales in single precision
    assert torch.allclose(got.sum(1), torch.ones(size_out, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize('mode', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('antialias', [True, False])
def test_the_table_of_every_picture_equals_torch_interpolation(mode, antialias):
    packed = packed_sizes()
    module = build(dict(kind='learned_1d', grid=(7, 5), interpolation=mode, antialias=antialias))
    got = module(packed)
    for index, (_, h, w) in enumerate(packed.grids.tolist()):
        rows = torch_rows(module.table.detach(), h, mode, antialias)  # [h, 5, D]
        expected = torch_rows(rows.transpose(0, 1), w, mode, antialias).transpose(0, 1)
        own = got[packed.segment_ids == index]
        assert (own - expected.flatten(0, 1)).abs().max() < 1e-6


def torch_rows(table_YXD, size, mode, antialias):
    """`F.interpolate` along the first axis alone, with every column doubled: torch 2.13 on CPU
    repeats the first row where an antialiased output is one column wide."""
    x = table_YXD.repeat_interleave(2, 1).permute(2, 0, 1)[None]
    size = (size, x.shape[3])
    out = F.interpolate(x, size=size, mode=mode, antialias=antialias, align_corners=False)
    return out[0, :, :, ::2].permute(1, 2, 0)


def test_a_table_of_one_row_and_column():
    assert torch.equal(interpolation_rows(1, 4, 'bicubic', True), torch.ones(4, 1).double())
    assert torch.equal(interpolation_rows(1, 4, 'bicubic', False), torch.ones(4, 1).double())


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_pictures_of_one_size_get_what_they_get_alone(kind):
    module = build(kind)
    alone = module(packed_sizes([(61, 53)]))
    together = module(packed_sizes([(61, 53)] * 3))
    assert torch.allclose(together, alone.repeat(3, 1), rtol=0, atol=1e-12)
    mixed = packed_sizes([(61, 53), (16, 200)])
    assert torch.allclose(module(mixed)[mixed.segment_ids == 0], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_positions_follow_the_coordinates(kind):
    module, packed = build(kind), packed_sizes()
    order = torch.argsort(packed.segment_ids + torch.rand(len(packed.segment_ids)) * 0.9)[::2]
    lengths = torch.bincount(packed.segment_ids[order])
    assert torch.allclose(
        module(packed.take(order, lengths)), module(packed)[order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('kind', ['factorised', 'learned_2d'])
def test_a_picture_beyond_the_table_is_refused_with_the_way_out(kind):
    module = build(dict(kind=kind, max_size=6))
    for sizes in ([(16, 7 * 16)], [(16, 16), (7 * 16, 16)]):
        with pytest.raises(ValueError, match='needs 7 .*max_size=6: lower max_tokens'):
            module(packed_sizes(sizes))


# --------------------------------------------------------------------------------------------------
# Patches of several shapes in one unit

SHAPES = [(1, 16, 16), (2, 32, 48), (4, 24, 16)]  # in units of 8 x 16 pixels
CORNERS = [  # the kinds that take the first pixel of a patch
    'learned_2d',
    'factorised',
    dict(kind='factorised', combine='stack'),
    dict(kind='factorised', combine='product'),
    dict(kind='factorised', fractional=True),
    'fourier',
    dict(kind='fourier', fractional=True),
    'sinusoidal',
    dict(kind='sinusoidal', fractional=True),
]
TABLES = [  # and those of the centre
    dict(kind='learned_1d', grid=(7, 9), antialias=False),
    dict(kind='learned_1d', grid=(7, 9), interpolation='bilinear', antialias=False),
    dict(kind='learned_axes', grid=(7, 9)),
]


def clips_of(sizes, shapes):
    """A pack of the same clips for each shape."""
    clips = [torch.zeros(1, *size) for size in sizes]
    return [pack([patchify(clip, shape) for clip in clips]) for shape in shapes]


def by_place(module, packs, scale, place):
    """{(example, place): [its vectors]}; `place` makes a key of first pixels and shape."""
    found = {}
    for packed in packs:
        firsts = (packed.coords * torch.tensor(packed.patch_shape)).tolist()
        ids = packed.segment_ids.tolist()
        for example, first, vector in zip(ids, firsts, module(packed, scale), strict=True):
            key = (example, *place(first, packed.patch_shape))
            found.setdefault(key, []).append(vector)
    return found


def assert_equal_places(found, *, at_least):
    shared = [vectors for vectors in found.values() if len(vectors) > 1]
    assert len(shared) >= at_least
    for first, *others in shared:
        assert all((first - other).abs().max() < 1e-12 for other in others)
    alone = torch.stack([vectors[0] for vectors in found.values()])
    assert len(torch.unique(alone.round(decimals=9), dim=0)) == len(found)  # others differ


def first_pixel(first, shape):
    return first[1:]


@pytest.mark.parametrize('kind', CORNERS, ids=str)
def test_equal_pixels_get_equal_positions(kind):
    """Whole patches of all shapes, and images that end within a patch of each."""
    shapes = [(1, h, w) for _, h, w in SHAPES]
    for size in ((1, 96, 144), (1, 97, 50)):
        packs = clips_of([size], shapes)
        found = by_place(build(kind), packs, Scale.of(shapes, packs), first_pixel)
        assert_equal_places(found, at_least=5)


@pytest.mark.parametrize('time', [True, False])
def test_equal_pixels_are_turned_equally(time):
    shapes = SHAPES if time else [(1, h, w) for _, h, w in SHAPES]
    packs = clips_of([(8 if time else 1, 97, 50)], shapes)
    place = (lambda first, shape: first) if time else first_pixel
    found = by_place(RotaryPosition(24, time=time), packs, Scale.of(shapes, packs), place)
    assert_equal_places(found, at_least=4)


def centre(first, shape):
    return [2 * p + side for p, side in zip(first[1:], shape[1:], strict=True)]


@pytest.mark.parametrize('kind', [*TABLES, 'normalised'], ids=str)
def test_patches_around_equal_centres_get_equal_positions(kind):
    """Thirds: the middle one of three small patches lies where the large one does."""
    shapes = [(1, 16, 8), (1, 48, 24)]
    normalised = kind == 'normalised'
    module = NormalisedRotaryPosition(24) if normalised else build(kind)
    packs = clips_of([(1, 3 * 48, 5 * 24)], shapes)
    assert_equal_places(by_place(module, packs, Scale.of(shapes, packs), centre), at_least=15)
    if normalised:  # the share of a side that ends within a patch
        packs = clips_of([(1, 100, 50)], shapes)
        assert_equal_places(by_place(module, packs, Scale.of(shapes, packs), centre), at_least=4)


@pytest.mark.parametrize('fractional', [True, False])
def test_equal_frames_get_equal_positions_in_time(fractional):
    torch.manual_seed(0)
    module = TemporalPosition(6, max_size=16, fractional=fractional)
    torch.nn.init.normal_(module.double().t)
    shapes = [(1, 16, 16), (2, 16, 16), (4, 16, 16)]
    packs = clips_of([(6, 16, 16), (8, 16, 16), (1, 16, 16), (13, 16, 16)], shapes)
    found = by_place(module, packs, Scale.of(shapes, packs), lambda first, shape: first[:1])
    for example, frames in enumerate((6, 8, 1, 13)):
        own = {key: vectors for key, vectors in found.items() if key[0] == example}
        assert_equal_places(own, at_least=-(-frames // 2))


def test_units_against_numbers():
    assert Scale.of(SHAPES).unit == (1, 8, 16)
    assert Scale.of([(2, 14, 14)]).unit == (1, 14, 14)
    (_, large, _) = packs = clips_of([(5, 70, 100)], SHAPES)
    scale = Scale.of(SHAPES, packs)
    assert scale.steps((2, 32, 48)) == (2, 4, 3)
    assert scale.extents.tolist() == [[5, 72, 112]]  # 8, 96 and 96; 112, 144 and 112
    angles = RotaryPosition(4, theta=1.0)(large, scale)  # one row and one column, in units
    assert angles.tolist() == [[4 * y, 3 * x] for _, y, x in large.coords.tolist()]


def test_the_model_gives_its_unit_to_positions():
    """The example of the fault: patches of 16 and of 32 pixels of one image of 128 x 128."""
    arch = dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=8, rope={})
    model = NaViT(
        arch, patch_size=[(1, 16, 16), (1, 32, 32)], position='factorised', temporal_position={}
    )
    torch.nn.init.normal_(model.temporal_position.t)
    seen = {}
    for module in (model.position, model.rope, model.temporal_position):
        module.register_forward_hook(lambda m, _, out: seen.setdefault(type(m), []).append(out))
    packs = [patchify(torch.zeros(3, 128, 128), (1, side, side)) for side in (16, 32)]
    model(packs)
    model(packs[1])  # the unit is the model's, whichever packs are given
    for small, large, alone in seen.values():
        grid = small.unflatten(0, (8, 8))
        assert torch.equal(large, grid[::2, ::2].flatten(0, 1))
        assert torch.equal(alone, large)


@pytest.mark.parametrize('kind', [*KINDS, 'learned_axes'], ids=str)
def test_one_shape_counts_its_own_patches(kind):
    module, packed = build(kind), packed_sizes()
    assert torch.equal(module(packed, Scale.of([(1, 16, 16)], [packed])), module(packed))


@pytest.mark.parametrize('kind', ['factorised', 'learned_2d'])
def test_a_table_is_as_long_as_its_units(kind):
    shapes = [(1, 16, 16), (1, 24, 24)]
    scale = Scale.of(shapes)
    (small, large) = clips_of([(1, 96, 48)], shapes)
    needed = 11  # rows 0, 2 ... 10 of 8 pixels; of 24 pixels 0, 3, 6, 9
    build(dict(kind=kind, max_size=needed))(small, scale)
    message = (
        'an image of 6 x 3 patches of 16 x 16 pixels .* needs 11 .* one for every 8 x 8 pixels, '
        'and the table has max_size=10: .*set max_size=11'
    )
    with pytest.raises(ValueError, match=message):
        build(dict(kind=kind, max_size=10))(small, scale)
    build(dict(kind=kind, max_size=10))(large, scale)
    with pytest.raises(ValueError, match='of 4 x 2 patches of 24 x 24 .* needs 10 .*max_size=9'):
        build(dict(kind=kind, max_size=9))(large, scale)


@pytest.mark.parametrize('fractional', [True, False])
def test_fourier_starts_with_a_turn_over_the_trained_side(fractional):
    size = 40
    torch.manual_seed(0)
    spec = dict(kind='fourier', fractional=fractional)
    module = build_position(spec if fractional else spec | dict(trained_size=size), 8192)
    side = 1 if fractional else size
    spread = module.frequencies.weight.std() * side
    assert abs(spread / (2 * math.pi) - 1) < 0.03
    default = build_position('fourier', 8192).frequencies.weight.std()
    assert abs(default * 16 / (2 * math.pi) - 1) < 0.03
    with pytest.raises(ValueError, match='trained_size=0 must be at least 1'):
        build_position(dict(kind='fourier', trained_size=0), 24)


def test_rotation_against_complex_numbers():
    packed = packed_sizes()
    rope = RotaryPosition(8, theta=100.0)
    angles = rope(packed)[:, None]
    x = torch.randn(len(angles), 3, 8, dtype=torch.float64)
    got = rotate_halves(x, angles.cos(), angles.sin())
    frequencies = torch.tensor([100.0**0, 100.0**-0.5], dtype=torch.float64)
    for token, y, x_, _, _ in cells(packed):
        turn = torch.exp(1j * torch.cat([y * frequencies, x_ * frequencies]))
        expected = torch.complex(x[token, :, :4], x[token, :, 4:]) * turn
        assert torch.allclose(got[token], torch.cat([expected.real, expected.imag], -1))


def test_rotation_makes_scores_depend_on_differences_only():
    rope = RotaryPosition(8)
    packed = packed_sizes([(80, 80)])
    angles = rope(packed)[:, None]
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    q, k = (rotate_halves(x.expand(25, 1, 8), angles.cos(), angles.sin())[:, 0] for x in (q, k))
    scores = (q @ k.T).view(5, 5, 5, 5)
    assert torch.allclose(scores[1:, 2:, 1:, 2:], scores[:-1, :-2, :-1, :-2])


@pytest.mark.parametrize(
    'spec, message',
    [
        ('absolute', "kind 'absolute' is not one of"),
        (dict(max_size=3), 'kind None is not one of'),
        (dict(kind='factorised', size=3), "position 'factorised'.*size"),
        (dict(kind='factorised', combine='mean'), "combine='mean'"),
        (dict(kind='learned_1d', interpolation='nearest'), "interpolation='nearest'"),
    ],
)
def test_a_wrong_position_is_refused_by_name(spec, message):
    with pytest.raises(ValueError, match=message):
        build_position(spec, 24)
