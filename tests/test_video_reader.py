"""Reading clips: the frames asked for, upright, at their times; broken files told by name."""

import numpy as np
import pytest
from clip_files import RED, frame_of, number_of, write_sound, write_video
from PIL import Image

from navit_backbone.tasks.common.container_size import stated_num_bytes
from navit_backbone.tasks.common.video_reader import (
    FrameFolder,
    Picture,
    UnreadableVideoError,
    folder_measure,
    open_video,
    picture_measure,
    video_measure,
)

KINDS = {
    'plain.mp4': {},
    'odd.mp4': dict(size=(51, 63), pixels='yuv444p'),
    'ten_bits.mp4': dict(pixels='yuv420p10le'),
    'full_colour.mp4': dict(pixels='yuv444p'),
    'vp9.webm': dict(codec='libvpx-vp9'),
    'old.avi': dict(codec='mpeg4'),
    'turned.mp4': dict(turned=90),
    'narrow.mp4': dict(size=(64, 96)),
}
ORDER = [19, 0, 7, 7, 3]


@pytest.mark.parametrize('name', KINDS)
def test_frames_are_those_asked_for(tmp_path, name):
    file = write_video(tmp_path / name, **KINDS[name])
    reader = open_video(str(file))
    h, w = KINDS[name].get('size', (48, 64))
    assert reader.size == ((w, h) if 'turned' in name else (h, w))
    assert (reader.num_frames, reader.fps) == (20, 10)
    frames = reader.read(ORDER)
    assert frames.shape == (5, *reader.size, 3)
    assert [number_of(frame) for frame in frames] == ORDER
    assert np.allclose(reader.times, np.arange(20) / 10, atol=1e-3)
    assert video_measure(str(file)) == (*reader.size, 20, 10)


@pytest.mark.parametrize('size', [(64, 96), (240, 320)])
@pytest.mark.parametrize(('turned', 'corner'), [(90, (-3, 2)), (180, (-3, -3)), (270, (2, -3))])
def test_what_is_stored_turned_is_shown_upright(tmp_path, size, turned, corner):
    """The display matrix turns anticlockwise: the red corner goes down, over, and up again."""
    file = write_video(tmp_path / 'turned.mp4', size=size, turned=turned)
    (frame,) = open_video(str(file)).read([3])
    assert frame.shape == (*(size if turned == 180 else size[::-1]), 3)
    assert np.abs(frame[corner].astype(int) - RED).max() < 20


def test_frames_at_uneven_times(tmp_path):
    times = [0, 10, 20, 30, 100, 110, 120, 200, 210, 220, 300, 310, 320, 400, 410, 420, 430, 440,
             450, 900]  # fmt: skip
    file = write_video(tmp_path / 'uneven.mp4', times=times)
    assert np.allclose(open_video(str(file)).times, np.array(times) / 100, atol=2e-3)


def test_one_frame(tmp_path):
    reader = open_video(str(write_video(tmp_path / 'one.mp4', frames=1)))
    assert reader.read([0, 0]).shape == (2, 48, 64, 3)
    assert reader.times.tolist() == [0]


def cut(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def noise(frames=60):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(frames)]


def damaged(file):
    """Noise, with zeros amid its stream: it opens, and its last frames do not decode."""
    write_video(file, content=noise())
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    file.write_bytes(bytes(content))
    return file


BROKEN = {
    'empty': lambda f: (f.write_bytes(b''), f)[1],
    'text': lambda f: (f.write_text('no video ' * 100), f)[1],
    'sound alone': write_sound,
    'cut off': lambda f: cut(write_video(f)),
}  # fmt: skip


def test_the_name_does_not_decide_what_a_file_is(tmp_path):
    file = write_video(tmp_path / 'vp9.webm', codec='libvpx-vp9').rename(tmp_path / 'clip.mp4')
    assert number_of(open_video(str(file)).read([7])[0]) == 7
    Image.fromarray(frame_of(3)).save(tmp_path / 'picture.mp4', format='TIFF')
    reader = open_video(str(tmp_path / 'picture.mp4'))
    assert (reader.num_frames, number_of(reader.read([0])[0])) == (1, 3)


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_files_are_named_with_the_reason(tmp_path, kind):
    file = BROKEN[kind](tmp_path / 'clip.mp4')
    with pytest.raises(UnreadableVideoError, match=r'clip\.mp4: .+'):
        open_video(str(file))
    with pytest.raises(UnreadableVideoError):
        video_measure(str(file))


def test_a_stream_that_breaks_off_is_found_when_its_frames_are_read(tmp_path):
    file = damaged(tmp_path / 'damaged.mp4')
    reader = open_video(str(file))
    assert reader.read([0]).shape == (1, 120, 160, 3)
    with pytest.raises(UnreadableVideoError, match=r'damaged\.mp4: damaged, .* after \d+ frames'):
        reader.read([reader.num_frames - 1])


def test_a_file_cut_off_behind_its_index_is_found_by_its_header(tmp_path):
    file = write_video(tmp_path / 'cut.mp4', content=noise(), options={'movflags': 'faststart'})
    cut(file, 0.6)
    with pytest.raises(UnreadableVideoError, match=r'cut off, it has \d+ of the 60 frames'):
        video_measure(str(file))


@pytest.mark.parametrize(
    ('name', 'codec'),
    [
        ('a.avi', 'mpeg4'), ('b.avi', 'libx264'), ('a.mkv', 'libx264'), ('a.webm', 'libvpx-vp9'),
        ('a.wmv', 'wmv2'),
    ],
)  # fmt: skip
def test_a_file_shorter_than_its_header_states_is_refused(tmp_path, name, codec):
    file = write_video(tmp_path / name, content=noise(30), codec=codec)
    size = file.stat().st_size
    assert stated_num_bytes(file) is not None
    assert open_video(str(file)).num_frames == 30
    cut(file, 0.6)
    message = rf'{name}: cut off, it has \d+ frames in {int(0.6 * size):,} bytes, .* states [\d,]+'
    with pytest.raises(UnreadableVideoError, match=message):
        video_measure(str(file))


@pytest.mark.parametrize(('name', 'codec'), [('a.avi', 'mpeg4'), ('a.mkv', 'libx264')])
def test_a_file_without_its_index_alone_is_whole(tmp_path, name, codec):
    file = write_video(tmp_path / name, codec=codec)
    content = file.read_bytes()
    index = content.rindex({'a.avi': b'idx1', 'a.mkv': b'\x1c\x53\xbb\x6b'}[name])
    file.write_bytes(content[:index])
    assert stated_num_bytes(file) > index
    assert [number_of(frame) for frame in open_video(str(file)).read(ORDER)] == ORDER


@pytest.mark.parametrize('size', [0, 2**32 - 1, 100])
def test_wrong_sizes_and_counts_of_avi_are_no_cut(tmp_path, size):
    """Recorders leave the size open, or state too few bytes; others state too many frames."""
    file = write_video(tmp_path / 'a.avi', codec='mpeg4')
    content = bytearray(file.read_bytes())
    content[4:8] = size.to_bytes(4, 'little')
    place = content.index(b'strh') + 8 + 32
    assert int.from_bytes(content[place : place + 4], 'little') == 20
    content[place : place + 4] = (5000).to_bytes(4, 'little')
    file.write_bytes(bytes(content))
    assert [number_of(frame) for frame in open_video(str(file)).read(ORDER)] == ORDER


def test_formats_without_a_size_state_none(tmp_path):
    assert stated_num_bytes(write_video(tmp_path / 'a.mp4')) is None
    assert stated_num_bytes(write_video(tmp_path / 'a.ts')) is None
    (tmp_path / 'b.mkv').write_bytes(b'\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff')  # a stream
    assert stated_num_bytes(tmp_path / 'b.mkv') is None
    (tmp_path / 'c.mkv').write_bytes(b'\x1a\x45\xdf\xa3')
    assert stated_num_bytes(tmp_path / 'c.mkv') is None


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r'none\.mp4: there is no such file'):
        open_video('none.mp4')


def write_frames(folder, numbers, size=(48, 64)):
    folder.mkdir()
    for number in numbers:
        Image.fromarray(frame_of(number, size)).save(folder / f'img_{number}.png')
    return folder


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
    folder = str(write_frames(tmp_path / 'clip', [1, 2, 10, 9, 11]))
    reader = FrameFolder(folder)
    assert [number_of(frame) for frame in reader.read(range(5))] == [1, 2, 9, 10, 11]
    assert folder_measure(folder) == (48, 64, 5, 25.0)
    with pytest.raises(UnreadableVideoError, match='holds 5 frames, the list says 6'):
        FrameFolder(folder, num_frames=6)


def test_a_frame_of_another_size_and_an_empty_folder(tmp_path):
    folder = write_frames(tmp_path / 'clip', [1, 2])
    Image.fromarray(frame_of(3, (20, 20))).save(folder / 'img_3.png')
    with pytest.raises(UnreadableVideoError, match=r'img_3\.png: is 20 x 20 .* 48 x 64'):
        FrameFolder(str(folder)).read([0, 2])
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(UnreadableVideoError, match='no images in it'):
        FrameFolder(str(tmp_path / 'nothing'))


def test_frames_that_a_folder_holds_twice_are_refused(tmp_path):
    folder = write_frames(tmp_path / 'clip', [1, 2, 3])
    for number in (2, 3):
        Image.fromarray(frame_of(number)).save(folder / f'img_{number}.jpg')
    with pytest.raises(
        UnreadableVideoError, match=r'clip: 2 frames .* img_2\.jpg and img_2\.png.*one suffix'
    ):
        FrameFolder(str(folder))
    for number in (2, 3):
        (folder / f'img_{number}.png').unlink()
    assert FrameFolder(str(folder)).num_frames == 3  # one .png and two .jpg of other names


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    file = tmp_path / 'picture.png'
    Image.fromarray(frame_of(7, (33, 21))).save(file)
    reader = Picture(str(file))
    assert np.array_equal(reader.read([0, 0]), np.stack([frame_of(7, (33, 21))] * 2))
    assert picture_measure(str(file)) == (33, 21, 1, 1.0)
    file.write_bytes(file.read_bytes()[:50])
    message = r'picture\.png: the file is a PNG image that is damaged'
    with pytest.raises(UnreadableVideoError, match=message):
        Picture(str(file))


def test_a_video_cut_off_within_its_index_says_so(tmp_path):
    content = write_video(tmp_path / 'a.mp4').read_bytes()
    index = content.index(b'moov')
    (tmp_path / 'b.mp4').write_bytes(content[: (index + len(content)) // 2])
    with pytest.raises(UnreadableVideoError, match='cut off before its index'):
        open_video(str(tmp_path / 'b.mp4'))
