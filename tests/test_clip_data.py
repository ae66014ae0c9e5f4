"""Clips from lists, CSV and folders; broken ones replaced in training and wrong in testing."""

import shutil

import numpy as np
import pytest
from clip_files import frame_of, write_video
from PIL import Image

import navit_backbone.tasks.video  # noqa: F401  registers
from navit_backbone.tasks.common import clip_data, picture_sizes
from navit_backbone.tasks.common.clip_data import NaViTClipDataset
from navit_backbone.tasks.common.sample import (
    BadSampleError,
    SampleIndex,
    SampleSeed,
    UnreadableVideoError,
    with_file,
)
from navit_backbone.tasks.common.video_reader import video_measure

BUDGET = dict(
    type='ClipToTokenBudget', max_tokens=96, patch_size=(2, 16, 16), sampling=dict(num_frames=8)
)
PIPELINE = [
    dict(type='LoadClip'), BUDGET, dict(type='LoadFrames'), dict(type='PackClipInputs'),
]  # fmt: skip
SIZES = {
    'run/a b.mp4': (48, 64),
    'run/b.mp4': (64, 48),
    'walk/c.avi': (32, 96),
    'walk/d.mp4': (40, 40),
}


@pytest.fixture
def videos(tmp_path):
    for name, size in SIZES.items():
        (tmp_path / 'clips' / name).parent.mkdir(parents=True, exist_ok=True)
        codec = 'mpeg4' if name.endswith('avi') else 'libx264'
        write_video(tmp_path / 'clips' / name, size=size, codec=codec, frames=9)
    return tmp_path


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def dataset(root, ann_file='', **options):
    options = {'pipeline': PIPELINE, 'data_prefix': dict(clips='clips'), **options}
    return NaViTClipDataset(ann_file, data_root=str(root), **options)


def write(root, name, text):
    (root / name).write_text(text)
    return name


def seen(data):
    """(path within clips, labels) of each."""
    return [
        (info['video_path'].split('/clips/')[1], info['gt_label'])
        for info in (data.get_data_info(i) for i in range(len(data)))
    ]


EXPECTED = [('run/a b.mp4', [0]), ('run/b.mp4', [0]), ('walk/c.avi', [1]), ('walk/d.mp4', [1])]


def test_a_folder_for_each_class(videos):
    data = dataset(videos)
    assert data.metainfo['classes'] == ('run', 'walk')
    assert seen(data) == EXPECTED


def test_a_list_of_mmaction2(videos):
    lines = ''.join(f'{name} {labels[0]}\n' for name, labels in EXPECTED)
    data = dataset(videos, write(videos, 'list.txt', lines + '\n'))
    assert seen(data) == EXPECTED
    assert data.metainfo['classes'] == ('0', '1')
    write(videos, 'classes.txt', 'run\nwalk\n')
    assert dataset(videos, 'list.txt').metainfo['classes'] == ('run', 'walk')


def test_several_classes_a_clip(videos):
    name = write(videos, 'list.txt', 'run/b.mp4 0 2\nwalk/c.avi 1\n')
    data = dataset(videos, name, multi_class=True)
    assert seen(data) == [('run/b.mp4', [0, 2]), ('walk/c.avi', [1])]
    assert data[SampleIndex(0, (0, 0, 0))]['data_samples'].gt_score.tolist() == [1, 0, 1]


def test_a_csv_with_names_sizes_and_a_choice_of_rows(videos):
    rows = 'split,label,file,width,height,frames,fps\n'
    for name, (h, w) in SIZES.items():
        split = 'train' if 'run' in name else 'val'
        rows += f'{split},{name.split("/")[0]},{name},{w},{h},9,10.0\n'
    name = write(videos, 'manifest.csv', rows)
    assert seen(dataset(videos, name)) == EXPECTED
    chosen = dataset(videos, name, where=dict(split='val'), metainfo=dict(classes=['run', 'walk']))
    assert seen(chosen) == EXPECTED[2:]
    info = chosen.get_data_info(0)
    assert (info['height'], info['width'], info['num_frames'], info['fps']) == (32, 96, 9, 10.0)


def test_folders_of_frames_and_of_pictures(tmp_path):
    for label in ('one', 'two'):
        for clip in ('x', 'y'):
            folder = tmp_path / 'clips' / label / clip
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(frame_of(i)).save(folder / f'img_{i:05d}.jpg')
    frames = dataset(tmp_path, kind='frames')
    assert (len(frames), frames.metainfo['classes']) == (4, ('one', 'two'))
    assert frames[SampleIndex(3, (0, 0, 3))]['inputs'].shape[2] == 3
    listed = dataset(tmp_path, write(tmp_path, 'list.txt', 'one/x 3 0\ntwo/y 3 1\n'), kind='frames')
    assert [listed.get_data_info(i)['num_frames'] for i in range(2)] == [3, 3]
    pictures = dataset(tmp_path, kind='pictures')
    assert len(pictures) == 12
    assert pictures[SampleIndex(3, (0, 0, 3))]['inputs'].shape[:3] == (1, 3, 1)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('run/b.mp4\n', r"list\.txt, line 1: 'run/b\.mp4' is not PATH LABEL"),
        ('run/b.mp4 0\n\n3\n', r"line 3: '3' is not PATH LABEL"),
        ('run/b.mp4 7\n', r"line 1: the label '7' is neither the number of a class, 0 to 1, nor"),
        ('run/b.mp4 -1\n', "the label '-1' is neither"),
        ('run/b.mp4 --1\n', "line 1: the label '--1' is neither"),
        ('file label\nrun/b.mp4 0\n', "line 1: 'file label' is a header, and no such file"),
        ('run/b.mp4 0\n# by hand\n', "line 2: '# by hand' is a comment, not a clip"),
        ('', r'list\.txt lists no clips'),
    ],
)
def test_lines_that_do_not_parse_are_named(videos, text, message):
    with pytest.raises(ValueError, match=message):
        dataset(videos, write(videos, 'list.txt', text), metainfo=dict(classes=['run', 'walk']))


def test_lists_may_name_classes_and_paths_may_have_spaces(videos):
    (videos / 'clips/run/b.mp4').rename(videos / 'clips/run/my 2 b.mp4')
    listed = write(videos, 'list.txt', 'run/my 2 b.mp4 run\nwalk/c.mp4 walk\n')
    data = dataset(videos, listed)
    assert data.metainfo['classes'] == ('run', 'walk')
    assert data.get_data_info(0)['video_path'].endswith('run/my 2 b.mp4')
    several = write(videos, 'more.txt', 'run/my 2 b.mp4 1 0\nwalk/c.mp4 1\n')
    data = dataset(videos, several, multi_class=True)
    assert [data.get_data_info(i)['gt_label'] for i in range(2)] == [[1, 0], [1]]
    assert data.get_data_info(0)['video_path'].endswith('run/my 2 b.mp4')


def test_classes_that_no_clip_has_are_said_with_the_line_of_the_largest(videos, monkeypatch):
    said = []
    monkeypatch.setattr(clip_data, 'print_log', lambda text, *_: said.append(text))
    dataset(videos, write(videos, 'list.txt', 'run/b.mp4 0\nwalk/c.mp4 3\n'))
    assert 'no clip has the label 1, 2 of 0 to 3, the largest, which' in said[0]
    assert 'list.txt, line 2 gives' in said[0]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('name,label\na,b\n', r"manifest\.csv: its columns are \['name', 'label'\], it needs"),
        ('file,class\na,b\n', r"\['label'\] missing"),
        ('file,label\nrun/b.mp4\n', r'line 2: has 1 fields, the header has 2'),
        (
            'file,label,frames\nrun/b.mp4,run,many\n',
            r"line 2: frames is 'many', not a whole",
        ),
        ('file,label,fps\nrun/b.mp4,run,"29,97"\n', r"line 2: fps is '29,97', not a number with"),
        ('file,label,fps\nrun/b.mp4,run,nan\n', r"line 2: fps is 'nan', not a number with"),
        ('file,label,width\nrun/b.mp4,run,-4\n', r"width is '-4', not a whole number above 0"),
        ('file,label,height\nrun/b.mp4,run,4.5\n', r"height is '4\.5', not a whole number"),
        ('file,label\nrun/b.mp4,\n', r'line 2: the label is missing'),
    ],
)
def test_rows_that_do_not_parse_are_named(videos, text, message):
    with pytest.raises(ValueError, match=message):
        dataset(videos, write(videos, 'manifest.csv', text))


def test_rows_that_no_choice_leaves_are_told_with_what_there_is(videos):
    listed = write(videos, 'manifest.csv', 'file,label,split\nrun/b.mp4,run,train\n')
    with pytest.raises(ValueError, match=r"lists no clips with where=.*'trian'.*; split: train"):
        dataset(videos, listed, where=dict(split='trian'))


def test_clips_in_no_folder_of_a_class_are_named_with_the_way_out(tmp_path):
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'clips' / '1.mp4').touch()
    with pytest.raises(
        ValueError, match=r'clips: no folder of a class in it, but 1\.mp4. Fix: .*S'
    ):
        dataset(tmp_path)


def test_missing_folders_and_lists_are_named_with_the_way_out(videos):
    with pytest.raises(ValueError, match=r'no folder of clips at .*/none: set data_root'):
        dataset(videos, data_prefix=dict(clips='none'))
    with pytest.raises(ValueError, match=r'no list of clips at .*none\.txt: set ann_file'):
        dataset(videos, 'none.txt')
    (videos / 'clips' / 'sit').mkdir()
    with pytest.raises(ValueError, match=r'sit: a class without videos in it; .* set kind'):
        dataset(videos)
    (videos / 'clips' / 'sit' / '1.jpg').touch()
    with pytest.raises(ValueError, match=r'sit: a class without videos in it, but 1\.jpg; remove'):
        dataset(videos)
    with pytest.raises(ValueError, match="kind='clips', choose from"):
        dataset(videos, kind='clips')


@pytest.mark.parametrize('columns', ['fps', 'fps,frames', 'width,height,frames,fps'])
@pytest.mark.parametrize('scanned', [False, True])
def test_the_rate_that_a_csv_states_reaches_folders_of_frames(tmp_path, columns, scanned):
    """30 frames at 5 a second, of which 2 a second are asked for: every 2.5th, the middle ones."""
    folder = tmp_path / 'clips' / 'x'
    folder.mkdir(parents=True)
    for i in range(30):
        Image.fromarray(frame_of(i, (16, 16))).save(folder / f'{i}.png')
    values = dict(fps='5', frames='30', width='16', height='16')
    row = ','.join(values[name] for name in columns.split(','))
    listed = write(tmp_path, 'list.csv', f'file,label,{columns}\nx,0,{row}\n')
    budget = {**BUDGET, 'sampling': dict(kind='fps', fps=2, num_frames=8), 'test_mode': True}
    pipeline = [PIPELINE[0], budget, *PIPELINE[2:]]
    data = dataset(tmp_path, listed, kind='frames', pipeline=pipeline, test_mode=True)
    if scanned:
        data.complete_sizes()
    sample = data[0]['data_samples']
    assert sample.measured == (16, 16, 30, 5.0)
    moments = (29 / 5 - 7 / 2) / 2 + np.arange(8) / 2
    assert sample.frame_inds.tolist() == [np.floor(moments * 5 + 1e-6).astype(int).tolist()]


def test_a_cache_of_another_version_is_not_read(videos, monkeypatch):
    """What is measured can change with the program: trimmed clips, pixels that are not square."""
    file, size = str(videos / 'clips/run/b.mp4'), (64, 48, 9, 10.0)
    for version, expected in ((1, (1, 1, 1, 1.0)), (2, size), (1, (1, 1, 1, 1.0))):
        monkeypatch.setattr(picture_sizes, '_VERSION', version)
        measure = video_measure
        if version == 1:

            def measure(file):
                return (1, 1, 1, 1.0)

            measure.__name__ = 'video_measure'
        assert picture_sizes.scan([file], measure=measure) == [expected]


def test_sizes_are_scanned_once_and_plan_what_is_loaded(videos):
    data = dataset(videos)
    data.complete_sizes()
    for i in range(4):
        index = SampleIndex(i, (0, 0, i))
        clip = data[index]['inputs']
        steps, (h, w) = -(-clip.shape[2] // 2), clip.shape[3:]
        assert data.num_tokens(index) == steps * h * w // 256


def broken(root, name='run/b.mp4'):
    (root / 'clips' / name).write_bytes(b'no video')
    return root


def test_a_broken_clip_is_replaced_in_training_and_listed(videos):
    data = dataset(broken(videos))
    data.complete_sizes()
    index = SampleIndex(1, (0, 0, 1))
    samples = [data[index] for _ in range(2)]
    paths = {sample['data_samples'].video_path for sample in samples}
    assert len(paths) == 1
    assert not paths.pop().endswith('run/b.mp4')
    assert [file for _, file in data.bad_samples] == [str(videos / 'clips/run/b.mp4')]


def test_a_broken_clip_is_wrong_in_testing(videos):
    data = dataset(broken(videos), test_mode=True)
    sample = data[1]
    assert sample['data_samples'].bad is True
    assert sample['inputs'].shape == (1, 3, 1, 16, 16)
    assert sample['data_samples'].gt_label.tolist() == [0]
    assert not data[0]['data_samples'].get('bad', False)
    assert [i for i, _ in data.bad_samples] == [1]


def test_a_clip_cut_off_is_known_by_its_header(videos):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(60)]
    file = videos / 'clips/run/b.mp4'
    write_video(file, content=noise, options={'movflags': 'faststart'})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 6 // 10])
    data = dataset(videos)
    data.complete_sizes()
    assert 'run/b.mp4' not in data[SampleIndex(1, (0, 0, 1))]['data_samples'].video_path
    assert len(data.bad_samples) == 1


def test_a_size_that_the_list_tells_wrong_is_bad(videos):
    rows = 'label,file,width,height,frames,fps\nrun,run/b.mp4,64,48,9,10\n'
    data = dataset(videos, write(videos, 'manifest.csv', rows))
    with pytest.raises(BadSampleError, match='64 x 48 pixels .* the list says 48 x 64'):
        data._run_pipeline(0, data._seed_of(SampleIndex(0, (0, 0, 0))), None)


def test_other_files_beside_the_clips_are_left_out_and_said(videos, monkeypatch):
    shutil.copy(videos / 'clips/run/b.mp4', videos / 'clips/run/notes.txt')
    said = []
    monkeypatch.setattr(clip_data, 'print_log', lambda text, *_: said.append(text))
    assert len(dataset(videos)) == 4
    assert len(said) == 1
    assert said[0].endswith('clips: left out files of other suffixes: 1 .txt (notes.txt)')


def test_files_of_macos_are_left_out_of_folders_and_lists_and_counted(videos, monkeypatch):
    said = []
    monkeypatch.setattr(clip_data, 'print_log', lambda text, *_: said.append(text))
    for name in ('run/._b.mp4', 'walk/.DS_Store', '__MACOSX/run/._a.mp4'):
        (videos / 'clips' / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / 'clips' / name).write_bytes(b'\0\5\x16\7')
    data = dataset(videos)
    assert seen(data) == EXPECTED
    assert data.metainfo['classes'] == ('run', 'walk')
    assert [text for text in said if 'left out 3 hidden or system files' in text] == said
    said.clear()
    lines = 'run/._b.mp4 0\nrun/b.mp4 0\n__MACOSX/run/a.mp4 0\nwalk/c.avi 1\n'
    assert seen(dataset(videos, write(videos, 'list.txt', lines))) == [EXPECTED[1], EXPECTED[2]]
    assert ['left out 2 files of operating systems' in text for text in said] == [True]


def test_linked_folders_of_classes_are_read_and_loops_end(videos):
    (videos / 'other').mkdir()
    (videos / 'clips/walk').rename(videos / 'other/walking')
    (videos / 'clips/walk').symlink_to(videos / 'other/walking')
    (videos / 'other/walking/back').symlink_to(videos / 'clips')
    assert seen(dataset(videos)) == EXPECTED


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('list.txt', 'run/b.mp4 arrêt\nwalk/c.avi faire du vélo\n'),
        ('list.csv', 'file;label\nrun/b.mp4; arrêt\nwalk/c.avi ;faire du vélo \n'),
    ],
)
def test_lists_of_any_encoding(videos, encoding, name, text):
    (videos / name).write_bytes(text.replace('\n', '\r\n').encode(encoding))
    (videos / 'classes.txt').write_bytes('arrêt\r\nfaire du vélo\r\n'.encode(encoding))
    data = dataset(videos, name)
    assert data.metainfo['classes'] == ('arrêt', 'faire du vélo')
    assert seen(data) == [('run/b.mp4', [0]), ('walk/c.avi', [1])]


@pytest.mark.parametrize(
    ('folders', 'classes'),
    [
        (('001', '002'), ('001', '002')),
        (('1', '2', '4'), ('1', '2', '4')),
        (('0', '1', '10', '2'), ('0', '1', '2', '10')),
        (('0', '1'), ('0', '1')),
    ],
)
def test_folders_that_are_numbers_are_names_in_their_order(videos, monkeypatch, folders, classes):
    said = []
    monkeypatch.setattr(clip_data, 'print_log', lambda text, *_: said.append(text))
    for folder in folders:
        (videos / 'set' / folder).mkdir(parents=True)
        shutil.copy(videos / 'clips/run/b.mp4', videos / 'set' / folder / 'a.mp4')
    data = dataset(videos, data_prefix=dict(clips='set'))
    assert data.metainfo['classes'] == classes
    labels = {data.get_data_info(i)['video_path'].split('/')[-2]: i for i in range(len(data))}
    for folder, index in labels.items():
        assert data.get_data_info(index)['gt_label'] == [classes.index(folder)]
    assert len(said) == (classes != ('0', '1'))  # said once, where it is not plain


def test_numbers_with_zeros_in_lists_are_names_and_gaps_are_classes_without_clips(videos):
    data = dataset(videos, write(videos, 'a.txt', 'run/b.mp4 02\nwalk/c.avi 01\n'))
    assert data.metainfo['classes'] == ('01', '02')
    assert [label for _, label in seen(data)] == [[1], [0]]
    data = dataset(videos, write(videos, 'b.txt', 'run/b.mp4 1\nwalk/c.avi 2\nwalk/d.mp4 4\n'))
    assert data.metainfo['classes'] == ('0', '1', '2', '3', '4')
    assert [label for _, label in seen(data)] == [[1], [2], [4]]
    with pytest.raises(
        ValueError, match=r"c\.txt, line 2: the class '1' is the same number as '01'"
    ):
        dataset(videos, write(videos, 'c.txt', 'run/b.mp4 01\nwalk/c.avi 1\n'))


def test_labels_counted_from_1_are_said_where_classes_are_named(videos, monkeypatch):
    said = []
    monkeypatch.setattr(clip_data, 'print_log', lambda text, *_: said.append(text))
    classes = dict(metainfo=dict(classes=['run', 'walk']))
    with pytest.raises(ValueError, match=r"line 2: the label '2' .* subtract 1"):
        dataset(videos, write(videos, 'a.txt', 'run/b.mp4 1\nwalk/c.avi 2\n'), **classes)
    said.clear()
    dataset(videos, write(videos, 'b.txt', 'run/b.mp4 1\nwalk/c.avi 1\n'), **classes)
    assert ["b.txt: no clip has the label 0, 'run'" in text for text in said] == [True]
    said.clear()
    dataset(videos, write(videos, 'c.txt', 'run/b.mp4 0\nwalk/c.avi 1\n'), **classes)
    assert not said


def test_numbers_of_spreadsheets_and_empty_cells(videos):
    """pandas writes a column of whole numbers with gaps as 30.0 and empty cells."""
    rows = 'file,label,width,height,frames,fps\nrun/b.mp4,run,8.0,6.0,3.0,25\nwalk/c.avi,walk,,,,\n'
    data = dataset(videos, write(videos, 'manifest.csv', rows))
    first, second = (data.get_data_info(i) for i in range(2))
    assert {k: first[k] for k in ('width', 'height', 'num_frames', 'fps')} == dict(
        width=8, height=6, num_frames=3, fps=25.0
    )
    assert not {'width', 'height', 'num_frames', 'fps'} & second.keys()


@pytest.mark.parametrize('name', ['list.txt', 'list.tsv'])
def test_backslashes_in_paths_lead_to_the_files(videos, name):
    header = 'file\tlabel\n' if name.endswith('.tsv') else ''
    text = header + 'run\\b.mp4\trun\nwalk\\c.avi\twalk\n'
    data = dataset(videos, write(videos, name, text))
    assert seen(data) == [('run/b.mp4', [0]), ('walk/c.avi', [1])]
    assert data.metainfo['classes'] == ('run', 'walk')


def test_a_number_far_beyond_the_classes_makes_no_classes(videos):
    listed = write(videos, 'list.txt', 'run/b.mp4 1\nwalk/c.avi 987654321\n')
    with pytest.raises(ValueError, match=r'line 2: the label 987654321 would make 987,654,322'):
        dataset(videos, listed)


def test_class_names_that_stand_twice_are_refused(videos):
    with pytest.raises(ValueError, match=r'the class names run stand there twice'):
        dataset(videos, metainfo=dict(classes=['run', 'walk', 'run']))
    write(videos, 'classes.txt', 'walk\nrun\nwalk\n')
    with pytest.raises(ValueError, match=r'the class names walk stand there twice'):
        dataset(videos)


LISTS_TWICE = [
    ('list.txt', 'run/b.mp4 run\nwalk/c.avi walk\nrun/b.mp4 walk\n', 3, 1),
    ('list.txt', 'run/b.mp4 0\n\nwalk/../run/b.mp4 1\n', 3, 1),
    ('list.csv', 'file,label\nwalk/c.avi,walk\nrun/b.mp4,run\nrun/b.mp4,walk\n', 4, 3),
]


@pytest.mark.parametrize(('name', 'text', 'line', 'first'), LISTS_TWICE)
def test_a_clip_listed_with_two_labels_is_refused(videos, name, text, line, first):
    classes = dict(classes=['run', 'walk'])
    with pytest.raises(ValueError, match=r'run/b\.mp4 has the label .*Fix: keep one') as caught:
        dataset(videos, write(videos, name, text), metainfo=classes)
    told = str(caught.value)
    assert told.startswith(f'{videos / name}, line {line}: ')
    labels = "'1', and '0'" if ' 0' in text else "'walk', and 'run'"
    assert f'has the label {labels} in line {first}.' in told


def test_a_clip_listed_twice_with_one_label_stays_twice(videos):
    text = 'run/b.mp4 run\nwalk/c.avi walk\nrun/b.mp4 0\n'
    data = dataset(videos, write(videos, 'list.txt', text), metainfo=dict(classes=['run', 'walk']))
    assert seen(data) == [('run/b.mp4', [0]), ('walk/c.avi', [1]), ('run/b.mp4', [0])]


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('list.csv', 'file,label\nrun/b.mp4,walk;walk\nwalk/c.avi,walk; run;1\n'),
        ('list.txt', 'run/b.mp4\twalk\twalk\nwalk/c.avi\twalk\trun\t1\n'),
        ('list.txt', 'run/b.mp4 1 1\nwalk/c.avi 1 0 1\n'),
    ],
)
def test_a_label_twice_of_one_clip_counts_once(videos, name, text):
    classes = dict(classes=['run', 'walk'])
    data = dataset(videos, write(videos, name, text), multi_class=True, metainfo=classes)
    assert seen(data) == [('run/b.mp4', [1]), ('walk/c.avi', [1, 0])]


@pytest.mark.parametrize('cell', ['walk;', ';walk', 'walk;;run'])
def test_an_empty_label_between_semicolons_is_named(videos, cell):
    listed = write(videos, 'list.csv', f'file,label\nrun/b.mp4,{cell}\n')
    with pytest.raises(ValueError, match=f"line 2: '{cell}' has an empty label .*Fix: write"):
        dataset(videos, listed, multi_class=True)


def test_a_bad_clip_is_named_once(videos, caplog):
    (videos / 'clips/run/b.mp4').write_bytes((videos / 'clips/run/b.mp4').read_bytes()[:700])
    data = dataset(videos, write(videos, 'list.txt', 'run/b.mp4 0\nwalk/c.avi 1\n'), test_mode=True)
    file = str(videos / 'clips/run/b.mp4')
    with pytest.raises(BadSampleError) as caught:
        data._run_pipeline(0, SampleSeed(0, 0, 0), None)
    assert str(caught.value).startswith(f'{file}: cannot be read, replace or remove it (LoadClip: ')
    assert str(caught.value).count(file) == 1


@pytest.mark.parametrize(
    ('error', 'once'),
    [
        (UnreadableVideoError('a  b.mp4: no frames in it'), 'a  b.mp4: no frames in it'),
        (FileNotFoundError(2, 'No such file', 'a  b.mp4'), 'a  b.mp4: No such file'),
        (OSError('broken\ndata'), 'a  b.mp4: broken data'),
        (ValueError(), 'a  b.mp4: ValueError'),
    ],
)
def test_an_error_names_its_file_once(error, once):
    assert with_file('a  b.mp4', error) == once
