"""Positions against formulas written out here, and interpolation against `F.interpolate`."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pictures

from navit_backbone import pack, patchify
from navit_backbone.interpolation import interpolation_rows
from navit_backbone.position import RotaryPosition, build_position, rotate_halves

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
        with pytest.raises(ValueError, match='max_size=6.*max_tokens'):
            module(packed_sizes(sizes))


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
