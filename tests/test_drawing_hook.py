"""tools/test.py --show-dir: each image gets a drawing of its own, and none stops an evaluation."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from navit_backbone.tasks.common.palette import palette
from navit_backbone.tasks.detection.box_hook import BoxHook
from navit_backbone.tasks.segmentation.overlay_hook import OverlayHook

H, W = 60, 90
CLASSES = ('собака', '猫')


def detected(path):
    boxes = torch.tensor([[10.0, 15.0, 40.0, 50.0], [50.0, 15.0, 80.0, 50.0]])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.1]))
    truth = InstanceData(bboxes=HorizontalBoxes(boxes[:1]), labels=torch.tensor([1]))
    sample = DetDataSample(metainfo=dict(img_path=str(path), ori_shape=(H, W)))
    sample.pred_instances, sample.gt_instances = found, truth
    return sample


def segmented(path):
    labels = torch.zeros(1, H, W, dtype=torch.long)
    labels[:, :, W // 2 :] = 1
    sample = SegDataSample(metainfo=dict(img_path=str(path)))
    sample.pred_sem_seg, sample.gt_sem_seg = PixelData(data=labels), PixelData(data=1 - labels)
    return sample


def runner(work_dir, *folders):
    meta = dict(classes=CLASSES, palette=palette(2))
    sets = [SimpleNamespace(data_prefix=dict(img=f'{folder}/')) for folder in folders]
    dataset = SimpleNamespace(metainfo=meta, datasets=sets)
    return SimpleNamespace(
        work_dir=str(work_dir),
        cfg=ConfigDict(),
        test_dataloader=SimpleNamespace(dataset=dataset),
        logger=logging.getLogger('drawing'),
    )


@pytest.fixture(params=[(BoxHook, detected), (OverlayHook, segmented)], ids=['boxes', 'overlays'])
def case(request):
    return request.param


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (W, H), 'white').save(folder / name)
    return [folder / name for name in names]


def show(hook, run, samples):
    hook.before_test_epoch(run)
    for number, sample in enumerate(samples):
        hook.after_test_iter(run, number, outputs=[sample])
    hook.after_test_epoch(run, {})


def test_images_of_one_name_keep_their_folders_and_suffixes(case, tmp_path):
    hook_type, sample_of = case
    first = write(tmp_path / 'one', 'a.jpg', 'a.png', 'x/a.jpg', 'x/a.bmp')
    other = write(tmp_path / 'two', 'a.jpg')  # of a data set that is joined with the first
    stray = write(tmp_path / 'elsewhere', 'a.jpg')
    run = runner(tmp_path, tmp_path / 'one', tmp_path / 'two')
    show(hook_type(draw=True, test_out_dir='out'), run, map(sample_of, [*first, *other, *stray]))
    out = tmp_path / 'out'
    drawn = {str(file.relative_to(out)) for file in out.rglob('*') if file.is_file()}
    assert drawn == {'a.jpg', 'a.png', 'x/a.jpg', 'x/a.bmp.png', 'a_2.jpg', 'a_3.jpg'}


def test_an_image_that_cannot_be_drawn_is_listed(case, tmp_path, caplog):
    hook_type, sample_of = case
    good, gone = write(tmp_path / 'one', 'a.jpg', 'gone.jpg')
    gone.unlink()
    run = runner(tmp_path, tmp_path / 'one')
    with caplog.at_level(logging.WARNING, logger='drawing'):
        show(hook_type(draw=True), run, [sample_of(gone), sample_of(good)])
    assert [file.name for file in (tmp_path / 'overlays').iterdir()] == ['a.jpg']
    assert f'1 images were evaluated, but not drawn: {gone}' in caplog.text


def test_nothing_is_drawn_where_nobody_asks(case, tmp_path):
    hook_type, sample_of = case
    show(hook_type(), runner(tmp_path), [sample_of(Path('gone.jpg'))])
    assert not list(tmp_path.iterdir())


def test_boxes_of_the_truth_stand_beside_the_found_ones():
    hook, image = BoxHook(score_thr=0.5), np.full((H, W, 3), 255, dtype=np.uint8)
    meta = dict(classes=CLASSES, palette=palette(2))
    sheet = np.asarray(hook.drawing(image, detected('a.jpg'), meta))
    line = sheet.shape[0] - H
    truth, found = sheet[line:, :W], sheet[line:, -W:]
    colours = np.array(palette(2))
    row, right_edge, second_box = 45, 40, 50
    assert np.array_equal(truth[row, right_edge], colours[1])
    assert np.array_equal(found[row, right_edge], colours[0])
    assert (found[row, second_box:] == 255).all(), 'its score of 0.1 is below the threshold'
    sample = detected('a.jpg')
    del sample.gt_instances
    assert hook.drawing(image, sample, meta).width == W
