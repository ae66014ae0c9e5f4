"""The video benchmark: the padded arm computes the same, and its rows run. No timing."""

import numpy as np
import pytest
import torch

from navit_backbone import NaViT
from navit_backbone.tasks.common.video_reader import open_video
from navit_backbone.tools import benchmark
from navit_backbone.tools import benchmark_video as video

SIZES = [(3, 40, 33), (8, 16, 64), (1, 50, 20), (5, 64, 64)]


def test_the_padded_arm_gives_the_tokens_of_the_packed_one():
    clips = video.clips_of(SIZES, seed=0, device=torch.device('cpu'))
    torch.manual_seed(0)
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=32)
    model = NaViT(arch, patch_size=video.TUBELET, position='sinusoidal').eval()
    packed = model(clips.packed).tokens
    padded = video.masked_clip_tokens(model, clips)
    inside = clips.mask.flatten(1)
    assert inside.sum(1).tolist() == clips.packed.lengths.tolist()
    assert torch.allclose(padded[inside], packed, atol=1e-5)


def test_sizes_are_those_of_the_fight_clips():
    sizes = video.clip_sizes(0.25)
    assert len(sizes) == 120
    assert {(90, 160), (270, 480), (90, 120)} <= {size[1:] for size in sizes}
    assert min(size[0] for size in sizes) >= 2


def test_reading_whole_files_gives_the_same_frames(tmp_path):
    file = str(tmp_path / 'clip.mp4')
    video.write_clip(file, (64, 128), 20)
    chosen = [0, 3, 17]
    assert np.array_equal(video.read_whole(file, chosen), open_video(file).read(chosen))


@pytest.mark.parametrize('row', benchmark.VIDEO)
def test_rows_run(row):
    args = benchmark.parse_args(['--smoke', '--device', 'cpu', '--pairs', '2', '--only', row])
    setting = benchmark.setting_of(args)
    lines = benchmark.results_of(row, setting, ['tiny'])
    if not (setting.data / 'fight').is_dir() and row == 'waiting':
        pytest.skip('no fight/ in NAVIT_DATA')
    assert all('no figure' in line.figure or 'smoke' in line.figure for line in lines)
    assert len(lines) == (2 if row == 'reading' else 1)
