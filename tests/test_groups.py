"""Groups of dependent examples: read in every task, and never in two splits."""

import json

import numpy as np
import pytest
from clip_files import write_video
from PIL import Image

from navit_backbone.tasks.common.class_check import check_groups
from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tasks.common.groups import (
    GroupFile,
    group_numbers,
    groups_of,
    shared_groups,
    split_groups,
)
from navit_backbone.tasks.detection.data import NaViTCocoDataset
from navit_backbone.tasks.segmentation.data import NaViTSegDataset


def test_records_without_a_group_are_groups_of_their_own():
    numbers = group_numbers(['a', None, 'b', 'a', '', None, 'b'])
    assert numbers.tolist() == [0, 1, 2, 0, 3, 4, 2]
    assert group_numbers([]).tolist() == []


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clips')
    for number in range(4):
        write_video(folder / f'{number}.mp4', 2)
    (folder / 'all.csv').write_text(
        'file,label,scene,fold\n0.mp4,a,x,0\n1.mp4,b,x,1\n2.mp4,a,y,1\n3.mp4,b,,1\n'
    )
    (folder / 'list.txt').write_text(''.join(f'{i}.mp4 {"ab"[i % 2]}\n' for i in range(4)))
    return folder


def dataset(folder, ann_file='all.csv', **fields):
    return NaViTClipDataset(ann_file, data_root=str(folder), pipeline=[], **fields)


def groups(data):
    return [data.get_data_info(i).get('group') for i in range(len(data))]


def test_a_column_names_the_groups(clips):
    assert groups(dataset(clips, group='scene')) == ['x', 'x', 'y', None]
    assert groups(dataset(clips)) == [None] * 4  # the default column is `group`
    with pytest.raises(ValueError, match=r"it needs .*'camera'.* \(\['camera'\] missing\)"):
        dataset(clips, group='camera')


def test_lists_take_groups_from_a_table(clips):
    (clips / 'groups.csv').write_text('file;group\n./1.mp4;photo 7\n3.mp4;photo 7\n')
    assert groups(dataset(clips, 'list.txt')) == [None, 'photo 7', None, 'photo 7']
    (clips / 'groups.csv').unlink()


def test_a_table_against_itself_is_refused(tmp_path):
    (tmp_path / 'groups.csv').write_text('file,group\na.png,1\nsub/../a.png,2\n')
    with pytest.raises(ValueError, match=r"groups.csv, line 3: .* group '2', above it has '1'"):
        GroupFile(tmp_path)
    (tmp_path / 'groups.csv').write_text('name,group\na.png,1\n')
    with pytest.raises(ValueError, match=r"the columns \['file'\] are missing"):
        GroupFile(tmp_path)


def test_a_group_in_two_splits_is_refused(clips):
    train = dataset(clips, group='scene', where=dict(fold='1'))
    val = dataset(clips, group='scene', where=dict(fold='0'))
    with pytest.raises(ValueError, match=r'all.csv: 1 of 1 group has examples both .*: x. Fix'):
        check_groups(train, val)
    assert list(shared_groups(dataset(clips), dataset(clips))) == []  # without groups
    others = dataset(clips, group='scene', where=dict(file='2.mp4'))
    assert groups_of(others) == {'y'} and not list(shared_groups(others, val))


def test_folds_that_split_a_group_are_named():
    assert split_groups([0, 1, 1, 2, 2], ['a', 'b', 'a', 'b', None]) == ['a', 'b']
    assert split_groups([0, 0, 1, 2], ['a', 'a', None, None]) == []


def test_images_of_detection_have_groups(tmp_path):
    images = [dict(id=i, file_name=f'{i}.png', width=8, height=8) for i in range(3)]
    images[1]['group'] = 12
    box = dict(id=1, image_id=0, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
    content = dict(images=images, annotations=[box], categories=[dict(id=1, name='cat')])
    (tmp_path / 'a.json').write_text(json.dumps(content))
    (tmp_path / 'groups.csv').write_text('file,group\n1.png,other\n2.png,12\n')
    data = NaViTCocoDataset(ann_file='a.json', data_root=str(tmp_path), data_prefix=dict(img=''))
    assert groups(data) == [None, '12', '12']


def test_images_of_segmentation_have_groups(tmp_path):
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
        for name in 'ab':
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / f'{name}.png')
    (tmp_path / 'classes.txt').write_text('sky\ncow\n')
    (tmp_path / 'groups.csv').write_text('file,group\nimages/b.png,scan 1\n')
    data = NaViTSegDataset(
        data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='labels')
    )
    assert groups(data) == [None, 'scan 1']
