"""The benchmark's arithmetic: statistics, FLOPs, and that the arms compute the same. No timing."""

from __future__ import annotations

import json
import mmap
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import perturb
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from navit_backbone.packing import unpack_canvas
from navit_backbone.tools import benchmark
from navit_backbone.tools.benchmark_arms import (
    PATCH_SIZE,
    Batch,
    by_orientation,
    draw_batches,
    forward_flops,
    masked_tokens,
    num_tokens,
    pack_stream,
    photo_sizes,
    random_lengths,
    siglip2_inputs,
    siglip2_model,
    size_of_equal_flops,
)
from navit_backbone.tools.measure import (
    MIN_ROUNDS,
    Arm,
    Comparison,
    figure_of,
    interleaved,
    lower_quartile,
    resident_bytes,
    spread,
)
from navit_backbone.vit import ARCHS, Arch, NaViT

CPU = torch.device('cpu')
SMALL = Arch(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=60)
SIZES = [(33, 70), (64, 64), (5, 7), (100, 16), (16, 113)]

times = st.lists(st.floats(0.01, 100), min_size=2, max_size=40)


@given(times)
def test_a_quarter_of_the_times_lie_below_the_lower_quartile(values):
    quartile = lower_quartile(values)
    assert sum(value < quartile for value in values) <= 0.25 * len(values) + 1
    assert sum(value > quartile for value in values) <= 0.75 * len(values) + 1
    assert min(values) <= quartile <= max(values)


def test_the_spread_is_the_interquartile_range_over_the_median():
    assert lower_quartile([4.0, 1.0, 3.0, 2.0, 5.0]) == 2
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([7.0] * 9) == 0


@given(times, st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_constant_factor_is_found_exactly_and_has_no_spread(ours, factor, work):
    flops = [1e9] * len(ours)
    pair = Comparison(
        ours=Arm(seconds=ours, flops=flops),
        theirs=Arm(seconds=[factor * t for t in ours], flops=[work * f for f in flops]),
    )
    assert pair.speedup == pytest.approx(factor)
    assert pair.flops == pytest.approx(work)
    assert pair.per_flop == pytest.approx(factor / work)
    assert pair.spread == pytest.approx(0, abs=1e-9)


work = st.lists(st.tuples(st.floats(1, 50), st.floats(1, 50)), min_size=2, max_size=40)


@given(work)
def test_rounds_of_different_work_have_no_spread_and_give_the_ratio_of_all_time(flops):
    ours, theirs = (list(side) for side in zip(*flops, strict=True))
    pair = Comparison(
        ours=Arm(seconds=[2 * f for f in ours], flops=ours),
        theirs=Arm(seconds=[3 * f for f in theirs], flops=theirs),
    )
    assert pair.speedup == pytest.approx(3 * sum(theirs) / (2 * sum(ours)))
    assert pair.per_flop == pytest.approx(1.5)
    assert pair.spread == pytest.approx(0, abs=1e-9)


def test_noise_that_hits_a_whole_round_is_no_spread_and_that_within_rounds_is():
    noise, flops = [1.0, 3.0] * MIN_ROUNDS, [1.0] * 2 * MIN_ROUNDS
    noisy = Arm(seconds=noise, flops=flops)
    twice = Arm(seconds=[2 * t for t in noise], flops=flops)
    assert Comparison(ours=noisy, theirs=twice).spread == 0
    assert Comparison(ours=noisy, theirs=twice).speedup == 2
    assert Comparison(ours=Arm(seconds=flops, flops=flops), theirs=noisy).spread > 0.5


@pytest.mark.parametrize(
    ('share', 'rounds', 'is_figure'),
    [(0.20, MIN_ROUNDS, True), (0.21, MIN_ROUNDS, False), (0.0, MIN_ROUNDS - 1, False)],
)
def test_a_figure_needs_enough_rounds_and_little_spread(share, rounds, is_figure):
    text = figure_of('1.62', spread=share, rounds=rounds)
    assert ('no figure' not in text) == is_figure
    assert ('1.62' in text) == (is_figure or 'smoke' in text)


def test_arms_run_in_every_round_with_its_number_and_in_turning_order(capsys):
    calls: list[tuple[str, int]] = []
    arms = {name: lambda i, name=name: calls.append((name, i)) for name in 'abc'}
    measured = interleaved(arms, rounds=6, label='demo')
    assert [len(measured[name]) for name in 'abc'] == [6, 6, 6]
    rounds = [calls[i : i + 3] for i in range(6, len(calls), 3)]  # two rounds warm up
    assert [{number for _, number in one} for one in rounds] == [{i} for i in range(6)]
    assert [''.join(name for name, _ in one) for one in rounds] == ['abc', 'bca', 'cab'] * 2
    assert 'demo: 8/8' in capsys.readouterr().err


def test_flops_are_those_that_torch_counts():
    batch = Batch.of([(48, 80)] * 3, seed=0, device=CPU)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        masked_tokens(NaViT(SMALL, position='sinusoidal'), batch)
    assert forward_flops(batch.padded_lengths, SMALL) == counter.get_total_flops()
    plain = ARCHS['small']
    extra = forward_flops([50], plain) - forward_flops([20, 30], plain)
    assert extra == 12 * 4 * 384 * (50**2 - 20**2 - 30**2)


def test_the_masked_and_the_packed_arm_compute_the_same():
    vit = perturb(NaViT(SMALL)).double()
    batch = Batch.of(SIZES, seed=0, device=CPU)
    batch = Batch(
        canvas=batch.canvas.double(), sizes=batch.sizes, packed=batch.packed.to('cpu', torch.double)
    )
    packed = unpack_canvas(vit(batch.pack()).tokens, batch.packed, batch.grid)
    masked = masked_tokens(vit, batch).transpose(1, 2).unflatten(2, batch.grid)
    present = unpack_canvas(torch.ones(sum(batch.lengths), 1), batch.packed, batch.grid)
    assert torch.allclose(masked * present, packed, atol=1e-10)
    assert num_tokens((33, 70)) == 15
    assert batch.lengths == batch.packed.lengths.tolist()
    assert batch.padded_lengths == [batch.pack_whole().lengths[0]] * len(SIZES)


@given(st.sampled_from(sorted(ARCHS)), st.lists(st.integers(1, 1600), min_size=1, max_size=20))
def test_equal_sizes_of_equal_flops_are_close_to_it(name, lengths):
    arch = ARCHS[name]
    height, width = size_of_equal_flops(lengths, arch)
    assert height % PATCH_SIZE == width % PATCH_SIZE == 0
    tokens, rows = num_tokens((height, width)), height // PATCH_SIZE
    target = forward_flops(lengths, arch) / len(lengths)
    assert forward_flops([max(tokens - rows, 0)], arch) <= target * 1.001
    assert forward_flops([tokens + rows], arch) >= target * 0.999


def test_siglip2_has_the_same_shape_and_ignores_its_padding():
    pytest.importorskip('transformers', reason='transformers is not installed')
    batch = Batch.of(SIZES, seed=0, device=CPU)
    model = siglip2_model(SMALL).eval()
    ours = dict(NaViT(SMALL, position=None).named_parameters())
    theirs = {k: v for k, v in model.named_parameters() if 'position' not in k}
    assert sum(p.numel() for p in ours.values()) == sum(p.numel() for p in theirs.values())
    tight, wide = (
        model(**siglip2_inputs(batch, n)).last_hidden_state for n in (max(batch.lengths), 40)
    )
    for one, other, length in zip(tight, wide, batch.lengths, strict=True):
        assert torch.allclose(one[:length], other[:length], atol=1e-5)


def test_groups_keep_all_pictures_and_mix_no_orientations():
    groups = by_orientation(SIZES)
    assert sorted(size for group in groups for size in group) == sorted(SIZES)
    assert all(len({h > w for h, w in group}) == 1 for group in groups)
    assert by_orientation([(3, 2)]) == [[(3, 2)]]


def test_sizes_come_from_the_annotations_and_batches_are_the_same_every_time(tmp_path):
    images = [{'height': 480 + 2 * i, 'width': 640} for i in range(9)]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'images': images}))
    sizes = photo_sizes(path, 0.5)
    assert sizes[0] == (240, 320)
    batches = draw_batches(sizes, 4, 5)
    assert batches == draw_batches(sizes, 4, 5)
    assert all(len(set(batch)) == 5 for batch in batches), 'a photo comes twice'
    assert len({tuple(batch) for batch in batches}) > 1


def test_the_stream_of_the_packer_is_measured_without_its_end():
    seconds, empty = pack_stream([6, 4, 10, 3], 10)
    assert seconds >= 0
    assert empty == 0
    rng = random.Random(0)
    assert pack_stream([rng.choice([7, 8]) for _ in range(200)], 10)[1] > 0.2


@given(st.integers(1, 200), st.integers(0, 200))
def test_random_lengths_are_those_of_pictures_in_the_range(low, more):
    lengths = random_lengths(20, low=low, high=low + more)
    least, most = num_tokens((low, low)), num_tokens((low + more, low + more))
    assert all(least <= n <= most for n in lengths)


def test_resident_memory_grows_with_what_is_held():
    if not Path('/proc/self/status').exists():
        pytest.skip('needs /proc')
    before = resident_bytes(peak=False)
    with mmap.mmap(-1, 64 * 2**20) as held:  # not from an allocator, which may have it already
        held.write(b'1' * len(held))
        assert resident_bytes(peak=False) - before > 0.8 * len(held)
    assert resident_bytes(peak=True) >= resident_bytes(peak=False) - 2**20


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--pairs', '14'], '--pairs 14.*15.*--smoke'),
        (['--pairs', '20', '--smoke'], '--pairs 20'),
        (['--out', 'table.txt'], 'table.txt.*md or .json'),
        (['--pairs', '0', '--smoke'], '--pairs 0'),
        (['--scale', '0'], '--scale 0.0'),
        (['--batch-size', '0'], '--batch-size 0'),
        (['--threads', '0'], '--threads 0'),
        (['--scale', '-1'], '--scale -1.0'),
        (['--batch-size', '-4'], '--batch-size -4'),
        (['--only', 'speed'], "invalid choice: 'speed'"),
    ],
)
def test_a_wrong_command_line_is_refused(argv, words, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(argv)
    assert re.search(words, capsys.readouterr().err)


def test_without_photos_their_rows_are_skipped_with_a_reason(tmp_path):
    args = benchmark.parse_args(['--smoke', '--data', str(tmp_path)])
    setting = benchmark.setting_of(args)
    (row,) = benchmark.results_of('padded', setting, args.arch)
    assert row.figure.startswith('skipped')
    assert 'NAVIT_DATA' in row.figure
    few = replace(setting, sizes=SIZES, batch_size=len(SIZES) + 1)
    (row,) = benchmark.results_of('uniform', few, args.arch)
    assert f'{len(SIZES)} photos' in row.figure


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        benchmark.parse_args(['--device', 'cuda'])
    assert 'no CUDA device' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['.md', '.json'])
def test_both_forms_of_the_table_hold_every_line(tmp_path, suffix):
    rows = [benchmark.Result(what=f'row {i}', figure=f'{i}.5', detail='seen') for i in range(3)]
    path = tmp_path / f'table{suffix}'
    benchmark.write(path, {'machine': 'a loom'}, rows)
    text = path.read_text()
    assert 'a loom' in text
    assert all(f'row {i}' in text and f'{i}.5' in text for i in range(3))
    if suffix == '.json':
        assert len(json.loads(text)['rows']) == 3
