"""Names whose letters are composed in a list and decomposed on disk, or the other way around."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from clip_files import write_video
from PIL import Image

from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tasks.common.dataset import file_of
from navit_backbone.tasks.common.groups import GroupFile
from navit_backbone.tasks.common.name_forms import composed, path_in

NAME = 'caf\u00e9 \ud55c'  # é, and a Hangul syllable
FORMS = [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')]  # of the list, and on disk


def forms_of(listed: str, stored: str) -> tuple[str, str]:
    return normalize(listed, NAME), normalize(stored, NAME)


def test_the_form_that_exists_is_taken_and_the_listed_one_first(tmp_path: Path) -> None:
    one, other = forms_of('NFC', 'NFD')
    assert len(one) < len(other)
    assert path_in(tmp_path, one) == str(tmp_path / one)  # neither exists
    (tmp_path / other).write_text('')
    assert path_in(tmp_path, one) == str(tmp_path / other)
    (tmp_path / one).write_text('')
    assert path_in(tmp_path, one) == str(tmp_path / one)
    compatibility = '\uf900'  # a letter that composing changes: the file keeps it
    (tmp_path / compatibility).write_text('')
    assert path_in(tmp_path, compatibility) == str(tmp_path / compatibility)
    assert composed(compatibility) != compatibility


@pytest.mark.parametrize(('listed', 'stored'), FORMS)
def test_clips_and_their_classes(tmp_path: Path, listed: str, stored: str) -> None:
    name, there = forms_of(listed, stored)
    write_video(tmp_path / f'{there}.mp4', frames=2)
    (tmp_path / 'list.txt').write_text(f'{name}.mp4\t{name}\n', encoding='utf-8')
    (tmp_path / 'classes.txt').write_text(f'other\n{there}\n', encoding='utf-8')
    (tmp_path / 'groups.csv').write_text(f'file,group\n{name}.mp4,a\n', encoding='utf-8')
    data = NaViTClipDataset('list.txt', data_root=str(tmp_path), pipeline=[])
    info = data.get_data_info(0)
    assert file_of(info) == str(tmp_path / f'{there}.mp4')
    assert (info['gt_label'], info['group']) == ([1], 'a')
    assert data.metainfo['classes'] == ('other', normalize('NFC', NAME))
    stated = dict(classes=['other', name])
    data = NaViTClipDataset('list.txt', data_root=str(tmp_path), metainfo=stated, pipeline=[])
    assert data.get_data_info(0)['gt_label'] == [1]


@pytest.mark.parametrize(('listed', 'stored'), FORMS)
def test_images_and_categories_of_coco(tmp_path: Path, listed: str, stored: str) -> None:
    data = pytest.importorskip('navit_backbone.tasks.detection.data')
    name, there = forms_of(listed, stored)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f'{there}.png')
    content = dict(
        images=[dict(id=1, file_name=f'{name}.png', height=8, width=8)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0)],
        categories=[dict(id=1, name=there)],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    found = data.NaViTCocoDataset(
        ann_file=str(tmp_path / 'a.json'),
        data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=[name]),
        pipeline=[],
    )
    assert found.metainfo['classes'] == (there,)  # as the evaluation reads them from the file
    assert found.get_data_info(0)['img_path'] == str(tmp_path / f'{there}.png')


@pytest.mark.parametrize(('listed', 'stored'), FORMS)
def test_images_and_label_maps(tmp_path: Path, listed: str, stored: str) -> None:
    data = pytest.importorskip('navit_backbone.tasks.segmentation.data')
    name, there = forms_of(listed, stored)
    for folder, file in (('images', there), ('labels', name)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / f'{file}.png')
    (tmp_path / 'classes.txt').write_text(f'ground\n{name}\n', encoding='utf-8')
    (tmp_path / 'train.txt').write_text(f'{name}\n', encoding='utf-8')
    for ann_file in ('', 'train.txt'):
        found = data.NaViTSegDataset(
            data_root=str(tmp_path),
            ann_file=ann_file,
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            pipeline=[],
        )
        info = found.get_data_info(0)
        assert info['img_path'] == str(tmp_path / 'images' / f'{there}.png')
        assert info['seg_map_path'] == str(tmp_path / 'labels' / f'{name}.png')


def test_groups_of_files(tmp_path: Path) -> None:
    one, other = forms_of('NFC', 'NFD')
    (tmp_path / 'groups.csv').write_text(f'file,group\n{one}.png,a\n', encoding='utf-8')
    assert GroupFile(tmp_path)[tmp_path / f'{other}.png'] == 'a'
