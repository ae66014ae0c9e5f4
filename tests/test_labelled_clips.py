"""Clips drawn with their classes: the frames shown, at their times, whatever the source's clock."""

import av
import numpy as np
import pytest
from clip_files import copy_from, numbered, read_number, write_video
from PIL import Image

from navit_backbone.tasks.common.video_reader import UnreadableVideoError, open_video
from navit_backbone.tasks.video import inference
from navit_backbone.tasks.video.inference import write_labelled

LABELS = Image.new('RGB', (240, 26), (250, 250, 248))
BURSTS = [150 * burst + 2 * i for burst in range(4) for i in range(6)]  # hundredths of a second
SOURCES = {
    'screen recording.mp4': dict(times=BURSTS),
    'screen recording.webm': dict(times=BURSTS, codec='libvpx-vp9'),
    'a night without a frame.mp4': dict(times=[0, 10, 20, *(9 * 360000 * i for i in (1, 2, 3, 4))]),
    'slow motion.mp4': dict(fps=960),
    'no clock.mp4': dict(kind='h264', codec_options={'bf': '2'}),
    'old.avi': dict(codec='mpeg4', codec_options={'bf': '2', 'g': '12'}),
    'wide pixels.mp4': dict(pixel_aspect=2),
    'turned.mp4': dict(turned=90),
    'one frame.mp4': dict(frames=1),
}


@pytest.mark.parametrize('name', SOURCES)
def test_every_frame_is_drawn_at_its_time(tmp_path, name):
    options = dict(SOURCES[name])
    count = options.pop('frames', len(options.get('times', range(20))))
    content = [numbered(number) for number in range(count)]
    file = write_video(tmp_path / name, content=content, **options)
    out = tmp_path / 'out.mp4'
    write_labelled(file, out, LABELS)
    before, after = open_video(str(file)), open_video(str(out))
    h, w = before.size
    assert after.size == (h + 26, max(w, 240))
    shown = [frame[:h, :w] for frame in after.frames()]
    if name == 'turned.mp4':
        shown = [np.rot90(frame, -1) for frame in shown]
    assert [read_number(frame) for frame in shown] == list(range(count))
    gaps = np.minimum(np.diff(before.times), 3600)  # .mp4 does not hold a night
    assert np.allclose(np.diff(after.times), gaps, atol=1e-4)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith('.')] == []


def test_a_trimmed_clip_is_drawn_without_its_hidden_frames(tmp_path):
    content = [numbered(number) for number in range(40)]
    source = write_video(tmp_path / 'a.mp4', content=content, codec_options={'g': '40'})
    file = copy_from(source, tmp_path / 'b.mp4', 3.0)
    write_labelled(file, tmp_path / 'out.mp4', LABELS)
    drawn = open_video(str(tmp_path / 'out.mp4'))
    assert [read_number(frame[:96, :128]) for frame in drawn.frames()] == list(range(30, 40))


def test_a_folder_of_frames_is_drawn(tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    for number in range(5):
        Image.fromarray(numbered(number)).save(folder / f'{number}.png')
    write_labelled(folder, tmp_path / 'out.mp4', LABELS)
    drawn = open_video(str(tmp_path / 'out.mp4'))
    assert [read_number(frame[:96, :128]) for frame in drawn.frames()] == list(range(5))
    assert np.allclose(drawn.times, np.arange(5) / 25, atol=1e-4)


def test_what_cannot_be_encoded_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    file = write_video(tmp_path / 'a.mp4')

    def refuse(reader, target, labels):
        raise av.error.ArgumentError(22, 'Invalid argument')

    monkeypatch.setattr(inference, '_encode', refuse)
    with pytest.raises(UnreadableVideoError, match=r'a\.mp4: cannot be drawn to .*out\.mp4'):
        write_labelled(file, tmp_path / 'out.mp4', LABELS)
    assert [item.name for item in tmp_path.iterdir()] == ['a.mp4']
