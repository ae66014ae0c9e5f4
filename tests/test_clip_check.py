"""A data set without a clip that can be read is refused before the first step."""

from types import SimpleNamespace

import numpy as np
import pytest
from clip_files import write_video
from mmengine.registry import HOOKS
from PIL import Image

from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tasks.video.clip_check import require_clip


def clips(folder, lines, **options):
    (folder / 'list.txt').write_text(lines)
    steps = [dict(type='LoadClip')]
    return NaViTClipDataset(
        data_root=str(folder), ann_file='list.txt', pipeline=steps, lazy_init=False, **options
    )


def test_one_clip_that_can_be_read_is_enough(tmp_path):
    write_video(tmp_path / 'b.mp4', 2)
    (tmp_path / 'a.mp4').write_bytes(b'nothing')
    require_clip(clips(tmp_path, 'a.mp4 walk\nb.mp4 run\n'))


def test_paths_that_begin_elsewhere_are_refused_by_name(tmp_path):
    write_video(tmp_path / 'a.mp4', 2)
    (tmp_path / 'b.mp4').write_bytes(b'nothing')
    with pytest.raises(
        ValueError, match=r'list\.txt: not one clip can be read, of 2: .*videos/a\.mp4.*Fix'
    ):
        require_clip(clips(tmp_path, 'videos/a.mp4 walk\nb.mp4 run\n'))


def test_folders_of_another_number_of_frames_are_refused(tmp_path):
    (tmp_path / 'f').mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'f/0.png')
    require_clip(clips(tmp_path, 'f 1 walk\n', kind='frames'))
    with pytest.raises(ValueError, match='/f: holds 1 frames, the list says 30'):
        require_clip(clips(tmp_path, 'f 30 walk\n', kind='frames'))


def test_training_and_evaluation_are_refused_before_they_begin(tmp_path):
    write_video(tmp_path / 'a.mp4', 2)
    good, bad = clips(tmp_path, 'a.mp4 walk\n'), clips(tmp_path, 'c.mp4 walk\n')
    hook = HOOKS.build(dict(type='ClipCheckHook'))

    def runner(**datasets):
        loaders = {f'{k}_dataloader': SimpleNamespace(dataset=v) for k, v in datasets.items()}
        return SimpleNamespace(val_loop='val' in datasets or None, **loaders)

    hook.before_train(runner(train=good, val=good))
    hook.before_test(runner(test=good))
    for begin, datasets in (
        (hook.before_train, dict(train=bad)),
        (hook.before_train, dict(train=good, val=bad)),
        (hook.before_test, dict(test=bad)),
    ):
        with pytest.raises(ValueError, match=r'not one clip can be read, of 1: \S*c\.mp4'):
            begin(runner(**datasets))
