"""The frames asked for, by number, in every container and codec that can be written here."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from clip_files import copy_from, numbered, read_number, write_video

from navit_backbone.tasks.common.frame_sampling import FrameSampling
from navit_backbone.tasks.common.frame_table import read_frame_table, video_stream
from navit_backbone.tasks.common.video_reader import (
    VIDEO_SUFFIXES,
    UnreadableVideoError,
    open_video,
    video_measure,
)

FRAMES = 40
GROUP = {'g': '12'}  # a key frame every 12
X265 = 'keyint=12:log-level=0'
CODECS = {
    'h264': dict(codec='libx264', codec_options={**GROUP, 'bf': '2', 'preset': 'ultrafast'}),
    'h264 open': dict(
        codec='libx264', codec_options={**GROUP, 'bf': '3', 'x264-params': 'open-gop=1'}
    ),
    'h264 refresh': dict(
        codec='libx264', codec_options={**GROUP, 'x264-params': 'intra-refresh=1'}
    ),
    'hevc open': dict(codec='libx265', codec_options={'x265-params': X265}),
    'hevc': dict(codec='libx265', codec_options={'x265-params': f'{X265}:open-gop=0'}),
    'vp8': dict(codec='libvpx', codec_options={**GROUP, 'deadline': 'realtime'}),
    'vp9': dict(codec='libvpx-vp9', codec_options={**GROUP, 'deadline': 'realtime'}),
    'vp9 hidden': dict(
        codec='libvpx-vp9',
        codec_options={**GROUP, 'auto-alt-ref': '1', 'lag-in-frames': '10', 'cpu-used': '8'},
    ),
    'av1': dict(codec='libsvtav1', codec_options={**GROUP, 'preset': '12', 'crf': '10'}),
    'mpeg4': dict(codec='mpeg4', codec_options=GROUP),
    'mpeg4 B': dict(codec='mpeg4', codec_options={**GROUP, 'bf': '2'}),
    'mpeg2': dict(codec='mpeg2video', codec_options=GROUP),
    'mpeg2 B': dict(codec='mpeg2video', codec_options={**GROUP, 'bf': '2'}),
    'mpeg1 B': dict(codec='mpeg1video', codec_options={**GROUP, 'bf': '2'}),
    'wmv2': dict(codec='wmv2', codec_options=GROUP),
    'mjpeg': dict(codec='mjpeg', pixels='yuvj420p', codec_options={}),
    'flv1': dict(codec='flv', codec_options=GROUP),
    'h263': dict(codec='h263', codec_options=GROUP, pixel_aspect=Fraction(1)),
}  # fmt: skip
CONTAINERS = {
    '.mp4': ['h264', 'h264 open', 'h264 refresh', 'hevc open', 'hevc', 'vp9', 'av1', 'mpeg4 B'],
    '.mov': ['h264 open', 'hevc open', 'mpeg4', 'mjpeg'],
    '.m4v': ['h264 open', 'mpeg4 B'],
    '.3gp': ['h264 open', 'h263'],
    '.mkv': ['h264 open', 'h264 refresh', 'hevc open', 'vp8', 'vp9 hidden', 'av1', 'mpeg2 B'],
    '.webm': ['vp8', 'vp9', 'vp9 hidden', 'av1'],
    '.avi': ['h264', 'h264 open', 'mpeg4', 'mpeg4 B', 'mpeg2 B', 'mjpeg', 'h263'],
    '.wmv': ['wmv2', 'h264', 'mpeg1 B', 'mpeg4 B'],
    '.flv': ['h264', 'h264 open', 'flv1', 'hevc open'],
    '.ts': ['h264', 'h264 open', 'hevc open', 'mpeg2 B', 'mpeg4 B'],
    '.mts': ['h264 open'],
    '.m2ts': ['h264', 'hevc open'],
    '.mpg': ['mpeg1 B', 'mpeg2', 'mpeg2 B', 'h264', 'hevc open', 'mpeg4'],
    '.mpeg': ['mpeg1 B'],
    '.vob': ['mpeg2 B'],
    '.ogv': ['vp8'],
}
FORMATS = {'.m4v': 'mp4', '.ogv': 'ogg', '.wmv': 'asf', '.mts': 'mpegts', '.m2ts': 'mpegts'}
KINDS = [(suffix, name) for suffix, names in CONTAINERS.items() for name in names]
SAMPLINGS = {
    'uniform': FrameSampling(num_frames=8),
    'strided': FrameSampling(kind='strided', num_frames=5, interval=3),
    'dense': FrameSampling(kind='dense', num_frames=8, window=20),
    'fps': FrameSampling(kind='fps', num_frames=20, fps=8),
}


@pytest.fixture(scope='module')
def write(tmp_path_factory):
    """Write numbered frames once for each combination of arguments."""
    folder, written = tmp_path_factory.mktemp('numbered'), {}

    def write(name, **options):
        if name not in written:
            size = options.pop('size', (96, 128))
            content = [numbered(number, size) for number in range(options.pop('frames', FRAMES))]
            options = {**CODECS['h264'], 'fps': 25, **options}
            written[name] = write_video(folder / name, content=content, **options)
        return str(written[name])

    return write


@pytest.fixture(scope='module')
def numbered_file(write):
    def file(suffix, name):
        return write(f'{name}{suffix}', kind=FORMATS.get(suffix), **CODECS[name])

    return file


def numbers(frames):
    return [read_number(frame) for frame in frames]


def test_every_suffix_is_written_here():
    assert set(CONTAINERS) == set(VIDEO_SUFFIXES)


@pytest.mark.parametrize(('suffix', 'name'), KINDS)
def test_frames_are_those_asked_for(numbered_file, suffix, name):
    file = numbered_file(suffix, name)
    reader = open_video(file)
    shown = (96, 140) if (suffix, name) == ('.avi', 'h263') else (96, 128)  # pixels of 12 to 11
    assert (reader.num_frames, reader.size) == (FRAMES, shown)
    assert np.allclose(reader.times, np.arange(FRAMES) / 25, atol=2e-3)
    rng = np.random.default_rng(0)
    for count in (1, 1, 2, 5, 12):
        asked = rng.integers(FRAMES, size=count)
        assert numbers(reader.read(asked)) == asked.tolist()
    assert numbers(reader.frames()) == list(range(FRAMES))
    assert video_measure(file) == (*shown, FRAMES, pytest.approx(25, abs=0.1))


@pytest.mark.parametrize('kind', SAMPLINGS)
@pytest.mark.parametrize(('suffix', 'name'), [
    ('.mp4', 'h264 open'), ('.mkv', 'hevc open'), ('.avi', 'mpeg4 B'), ('.ts', 'h264 open'),
    ('.mpg', 'mpeg2 B'), ('.wmv', 'h264'), ('.webm', 'vp9 hidden'),
])  # fmt: skip
def test_every_sampling_reads_the_frames_that_it_chose(numbered_file, suffix, name, kind):
    reader, sampling = open_video(numbered_file(suffix, name)), SAMPLINGS[kind]
    count = sampling.count(reader.num_frames, reader.fps)
    for generator in (None, np.random.default_rng(1)):
        chosen = sampling.indices(
            count, reader.times, reader.fps, num_clips=3, generator=generator
        ).flatten()
        assert numbers(reader.read(chosen)) == chosen.tolist()


@pytest.mark.parametrize('suffix', ['.mp4', '.mov'])
@pytest.mark.parametrize('name', ['h264', 'h264 open', 'hevc open'])
def test_a_trimmed_clip_has_the_frames_that_are_shown(write, tmp_path, suffix, name):
    """Copied from 1.2 s on, frame 30; stored from 24 on, a key frame, and hidden to there."""
    source = write(f'{name} source{suffix}', frames=80, **CODECS[name])
    reader = open_video(str(copy_from(source, tmp_path / f'trimmed{suffix}', 1.2)))
    assert reader.num_frames == 50
    assert numbers(reader.frames()) == list(range(30, 80))
    asked = [49, 0, 5, 6, 7, 25, 31]
    assert numbers(reader.read(asked)) == [30 + number for number in asked]
    assert np.allclose(reader.times, np.arange(50) / 25, atol=1e-3)
    assert reader.fps == pytest.approx(25, rel=0.02)


def test_a_recording_begins_at_its_first_key_frame(write, tmp_path):
    """A broadcast that is recorded from the middle of a group of frames on."""
    content = Path(write('whole.ts')).read_bytes()
    (tmp_path / 'late.ts').write_bytes(content[188 * 20 :])
    reader = open_video(str(tmp_path / 'late.ts'))
    assert numbers(reader.read(range(reader.num_frames))) == list(range(12, FRAMES))
    assert numbers(reader.read([3, 27])) == [15, 39]


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.ts'])
def test_a_recording_without_a_whole_first_frame_begins_where_it_is_repaired(
    write, tmp_path, suffix
):
    """A camera that refreshes the picture column by column, recorded from the middle on."""
    source = write(f'refresh source{suffix}', frames=80, **CODECS['h264 refresh'])
    file = str(copy_from(source, tmp_path / f'late{suffix}', 1.2))
    with av.open(file) as container:
        decoded = numbers(f.to_ndarray(format='rgb24') for f in container.decode(video=0))
    reader = open_video(file)
    assert numbers(reader.frames()) == decoded
    assert 30 <= decoded[0] < 60
    assert decoded[-1] == 79
    assert numbers(reader.read([10, 2])) == [decoded[10], decoded[2]]


def test_a_key_frame_that_builds_on_others_is_not_read_from(write):
    """With a group of one frame this encoder marks frames as keys that are differences."""
    options = {'g': '1', 'bf': '0', 'x264-params': 'intra-refresh=1'}
    reader = open_video(write('keys.mp4', codec_options=options))
    assert numbers(reader.read([31, 5, 6])) == [31, 5, 6]


def test_a_sample_without_bytes_is_no_sign_of_a_file_cut_off(write):
    options = {'g': '1', 'bf': '2'}
    times = [0, 8, 108, 112, 212, 232, 240]
    file = write('empty.mp4', frames=7, codec='mpeg4', codec_options=options, times=times)
    with av.open(file) as container:
        stream = container.streams.video[0]
        stated, packets = stream.frames, sum(bool(p.size) for p in container.demux(stream))
    assert stated > packets
    assert open_video(file).num_frames == packets


def test_the_rate_of_frames_without_times_is_that_of_their_packets(write):
    """Half of the frames of 50 a second are not stored, and the last packet shows no frame."""
    file = write('half.avi', fps=50, times=range(0, 4 * FRAMES, 4), **CODECS['mpeg4 B'])
    with av.open(file) as container:
        table = read_frame_table(container)
    assert table.stamps is None
    stored = table._replace(stated_fps=50.0)
    for count in (FRAMES, FRAMES - 1):
        times, fps = stored.clock(count)
        assert fps == pytest.approx(25, rel=1e-6)
        assert np.allclose(times, np.arange(count) / 25)


def test_a_clock_that_begins_again_and_a_size_that_changes(write, tmp_path):
    first, other = write('whole.ts'), write('small.ts', size=(64, 96), frames=20)
    contents = [Path(file).read_bytes() for file in (first, other)]
    (tmp_path / 'joined.ts').write_bytes(b''.join(contents))
    reader = open_video(str(tmp_path / 'joined.ts'))
    assert (reader.num_frames, reader.size) == (FRAMES + 20, (96, 128))
    assert numbers(reader.read([41, 3, 59, 39])) == [1, 3, 19, 39]
    assert np.allclose(reader.times, np.arange(60) / 25)


@pytest.mark.parametrize(('name', 'kind', 'codec'), [
    ('raw.h264', 'h264', 'h264'), ('raw.hevc', 'hevc', 'hevc open'), ('raw.m4v', 'm4v', 'mpeg4'),
])  # fmt: skip
def test_a_stream_without_a_clock_goes_by_frame_numbers(write, name, kind, codec):
    reader = open_video(write(name, kind=kind, **CODECS[codec]))
    assert numbers(reader.read([31, 2, 17])) == [31, 2, 17]
    assert np.allclose(reader.times, np.arange(FRAMES) / reader.fps)


def test_files_without_an_index_are_read_too(write):
    live = write('live.mkv', options={'live': '1'})
    parts = write('parts.mp4', options={'movflags': 'frag_keyframe+empty_moov'})
    for file in (live, parts):
        assert numbers(open_video(file).read([30, 2, 38])) == [30, 2, 38]


def test_hidden_reference_frames_are_no_frames(write, tmp_path):
    """The encoder of VP8 writes them in two passes only, so three frames are hidden afterwards."""
    source = write('vp8.webm', **CODECS['vp8'])
    file = tmp_path / 'hidden.webm'
    with av.open(source) as container, av.open(str(file), 'w') as target:
        stream = container.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for number, packet in enumerate(container.demux(stream)):
            if packet.size:
                content = bytearray(bytes(packet))
                content[0] &= 0xFF - 0x10 * (number in (5, 17, 29))
                changed = av.Packet(bytes(content))
                changed.pts, changed.dts, changed.stream = packet.pts, packet.dts, copied
                changed.is_keyframe, changed.time_base = packet.is_keyframe, packet.time_base
                target.mux(changed)
    reader = open_video(str(file))
    shown = [number for number in range(FRAMES) if number not in (5, 17, 29)]
    assert numbers(reader.read(range(reader.num_frames))) == shown
    assert numbers(reader.read([30])) == [33]


def test_uneven_times_and_the_rate_that_follows(write):
    """Frames in bursts with gaps of up to a second; the header states 25 a second."""
    gaps = np.random.default_rng(0).choice([3, 3, 20, 100], size=FRAMES - 1)
    stamps = [0, *np.cumsum(gaps).tolist()]
    for name in ('uneven.webm', 'uneven.mp4', 'uneven.mkv'):
        codec = CODECS['vp9' if name.endswith('webm') else 'h264']
        file = write(name, times=stamps, **codec)
        reader = open_video(file)
        assert np.allclose(reader.times, np.array(stamps) / 100, atol=2e-3)
        assert reader.fps == pytest.approx((FRAMES - 1) / (stamps[-1] / 100), rel=1e-3)
        assert video_measure(file)[3] == reader.fps
        assert numbers(reader.read([39, 20, 21, 3])) == [39, 20, 21, 3]


@pytest.mark.parametrize(('pixel_aspect', 'turned', 'shown'), [
    (Fraction(64, 45), None, (96, 182)),
    (Fraction(8, 9), None, (96, 114)),
    (Fraction(2), 90, (256, 96)),
    (Fraction(1, 200), None, (96, 128)),  # absurd
])  # fmt: skip
def test_pixels_are_made_square(tmp_path, pixel_aspect, turned, shown):
    """PAL at 16:9, NTSC, and turned; the red half stays a half."""
    content = [np.zeros((96, 128, 3), dtype=np.uint8) for _ in range(3)]
    for frame in content:
        frame[:, :64] = (255, 0, 0)
    file = write_video(
        tmp_path / 'shape.mp4', content=content, pixel_aspect=pixel_aspect, turned=turned
    )
    reader = open_video(str(file))
    (frame,) = reader.read([1])
    assert frame.shape[:2] == reader.size == video_measure(str(file))[:2] == shown
    red = (frame[..., 0].astype(int) - frame[..., 2] > 100).mean()
    assert red == pytest.approx(0.5, abs=0.02)


def test_cover_art_is_no_video(tmp_path):
    file = str(tmp_path / 'song.m4a')
    with av.open(file, 'w', format='mp4') as container:
        cover = container.add_stream('mjpeg', rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, 'yuvj420p'
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(3, (64, 64)), 'rgb24')))
        container.mux(cover.encode())
    with pytest.raises(UnreadableVideoError, match=r'song\.m4a: no video stream in it, only cover'):
        open_video(file)
    art = SimpleNamespace(disposition=Disposition.attached_pic | Disposition.default)
    film = SimpleNamespace(disposition=Disposition(0), codec_context=object())
    container = SimpleNamespace(streams=SimpleNamespace(video=[art, film, film]))
    assert video_stream(container) is film
