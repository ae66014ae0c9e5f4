"""What compares classifiers of clips: paired tests against scipy, folds, the sizes alone."""

import numpy as np
import pytest
from clip_files import write_video
from commands import NO_WORKERS, call
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from scipy.stats import binomtest

from navit_backbone.tasks.video.evidence import (
    Evidence,
    paired_test,
    pooled,
    refuse_other_folds,
)
from navit_backbone.tasks.video.motions import MOTIONS
from navit_backbone.tools import arms


@given(st.integers(1, 200), st.integers(0, 10**6))
def test_without_groups_the_paired_test_is_the_binomial_test_of_the_clips_that_differ(number, seed):
    one, other = np.random.default_rng(seed).random((2, number)) < [[0.7], [0.6]]
    won, lost = int((one & ~other).sum()), int((~one & other).sum())
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    text = paired_test(one, other, np.arange(number))
    assert f'other is wrong {won}, wrong where it is right {lost}: p = {expected:.3f} (McN' in text
    assert f'that {number} such examples can show' in text


def test_clips_of_a_scene_are_tested_as_one():
    """8 clips of one scene won, against nothing: one swap in two is as extreme, so p = 1."""
    one, other = np.ones(8, dtype=bool), np.zeros(8, dtype=bool)
    assert 'p = 0.008 (McNemar, exact)' in paired_test(one, other, np.arange(8))
    text = paired_test(one, other, np.zeros(8, dtype=int))
    assert 'p = 1.000 (exact permutation test, 1 groups swapped whole)' in text
    assert '8 such examples in 1 groups' in text


def content(scores, labels, **more):
    clips = [
        dict(
            file=f'{i}.mp4',
            labels=[label],
            scores=score,
            measured=[],
            **{key: values[i] for key, values in more.items()},
        )
        for i, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    return dict(classes=['a', 'b'], kind='videos', clips=clips)


def test_figures_count_what_could_not_be_read_as_wrong():
    run = content([[0.9, 0.1], None, [0.2, 0.8], [0.8, 0.2]], [0, 0, 1, 1])
    figures = Evidence([run]).statistic(run)
    assert figures(np.ones((1, 4))).tolist() == [[50.0, 50.0]]
    assert figures(np.array([[3, 0, 1, 0], [0, 1, 0, 1]])).tolist() == [[100, 100], [0, 0]]


def test_runs_on_other_clips_are_refused():
    with pytest.raises(ValueError, match='compared on one test set'):
        Evidence([content([[1, 0]], [0]), content([[1, 0]], [1])])


def test_folds_are_pooled_by_file():
    one, other = content([[1, 0]], [0]), content([[0, 1]], [1])
    one['clips'][0]['file'] = 'z.mp4'
    both = pooled([one, other])
    assert [(clip['file'], clip['fold']) for clip in both['clips']] == [('0.mp4', 1), ('z.mp4', 0)]


def test_a_scene_in_two_folds_is_refused():
    folds = [content([[1, 0]], [0], group=['street']), content([[0, 1]], [1], group=['street'])]
    folds[1]['clips'][0]['file'] = 'z.mp4'
    with pytest.raises(ValueError, match=r'1 groups have clips in more than one fold: street'):
        pooled(folds)
    folds[1]['clips'][0]['group'] = None
    assert len(pooled(folds)['clips']) == 2


def test_groups_of_clips_make_the_resamples():
    run = content([[0.9, 0.1]] * 24, [0, 1] * 12, group=[None, '', *'aabbbccccdddddeeeeeeff'])
    evidence = Evidence([run])
    assert len(np.unique(evidence.groups)) == 8
    (whole,) = evidence.slices([[run]])
    assert (whole.content, whole.num_groups) == ('clips: 24', 8)


def test_sizes_alone_see_sizes_and_no_clip_of_the_same_fold():
    labels = [0, 1] * 20
    told = [[100.0 + 50 * label, 200.0, 30.0, 25.0] for label in labels]
    run = content([[1, 0]] * 40, labels, fold=[i // 8 for i in range(40)])
    for clip, measured in zip(run['clips'], told, strict=True):
        clip['measured'] = measured
    assert Evidence([run]).sizes_alone().all()
    for clip in run['clips']:  # each fold has one class now: sizes are told by the other folds
        clip['fold'] = clip['labels'][0]
    assert not Evidence([run]).sizes_alone().any()
    told = Evidence([run]).remarks({'ours': [run], 'theirs': [run]})
    assert 'p = 1.000' in told
    assert 'height, width, frames and rate' in told


def test_of_motions_the_direction_within_the_pair_is_told():
    scores = np.full((16, 8), 0.01)
    labels = [number % 8 for number in range(16)]
    scores[range(8), labels[:8]] = 0.9  # right
    scores[range(8, 16), [label ^ 1 for label in labels[8:]]] = 0.9  # the other of the pair
    run = content(scores.tolist(), labels)
    run['classes'] = list(MOTIONS)
    run['clips'][0]['scores'] = None
    told = Evidence([run]).remarks({'ordered': [run]})
    assert 'ordered, seed 0: pair 93.8 %' in told
    assert 'direction within the true pair 43.8 % (chance 50,' in told


@pytest.fixture
def clips(tmp_path):
    rows = 'file,label,scene,fold\n'
    for number in range(12):
        level = 200 if number % 2 else 30
        frames = [np.full((32 + 16 * (number % 3), 64, 3), level, np.uint8)] * (3 + number)
        write_video(tmp_path / f'{number}.mp4', content=frames)
        rows += f'{number}.mp4,{"ab"[number % 2]},{number // 2},{number // 4}\n'
    (tmp_path / 'folds.csv').write_text(rows)
    return tmp_path


def test_folds_that_are_not_those_of_the_list_are_refused(tmp_path):
    file = tmp_path / 'list.csv'
    cfg = Config(
        dict(test_dataloader=dict(dataset=dict(data_root=str(tmp_path), ann_file='list.csv')))
    )
    for numbers, count in (('012', 3), (['0', '', '1'], 2)):
        file.write_text('file,label,fold\n' + ''.join(f'{n}.mp4,a,{n}\n' for n in numbers))
        refuse_other_folds(cfg, count)
        for other in (count - 1, count + 1):
            with pytest.raises(ValueError, match=rf'--folds {other}: .*list\.csv has 0, 1.*Fix'):
                refuse_other_folds(cfg, other)


def test_arms_in_folds(clips, monkeypatch, tmp_path):
    """Every clip is a test once, and a training of another fold never saw it."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    root = arms.__file__.rsplit('/tools/', 1)[0] + '/configs/video'
    configs = [f'{root}/cls_navit-ti_10e_fight{suffix}.py' for suffix in ('', '_squashed')]
    splits = ('train', 'val', 'test')
    options = [
        f'data_root={clips}', 'model.backbone.init_cfg=None', 'model.backbone.arch.num_layers=1',
        'train_dataloader.batch_sampler.max_tokens=192', 'train_cfg.max_epochs=1',
        'train_dataloader.batch_sampler.steps_per_epoch=2', 'train_cfg.val_interval=9',
        'train_dataloader.dataset.pipeline.1.random.low_tokens=16',
        'default_hooks.checkpoint.save_best=None',
        *[f'{split}_dataloader.dataset.pipeline.1.max_tokens=48' for split in splits],
        *[f'{split}_dataloader.dataset.ann_file=folds.csv' for split in splits], *NO_WORKERS,
    ]  # fmt: skip
    command = [*configs, '--names', 'native', 'squashed', '--seeds', 3, '--folds', 3, '--out',
               tmp_path / 'out', '--eval-batches', 2, '--resamples', 20, '--show-worst', 2,
               '--cfg-options', *options]  # fmt: skip
    assert call(monkeypatch, arms, *command) is None
    report = (tmp_path / 'out/cls_navit-ti_10e_fight.md').read_text()
    assert '12 clips in 6 groups; seeds 3' in report
    assert 'exact permutation test, 6 groups swapped whole' in report
    assert 'nothing but height, width, frames and rate' in report
    folders = {folder.name for folder in (tmp_path / 'out').glob('cls*_fold*')}
    assert len(folders) == 6
    made = sorted((tmp_path / 'out').rglob('*.pth')) + sorted(
        (tmp_path / 'out').rglob('batch_2.json')
    )
    times = [file.stat().st_mtime_ns for file in made]
    assert len(made) >= 12
    assert call(monkeypatch, arms, *command) is None
    assert [file.stat().st_mtime_ns for file in made] == times  # nothing is done twice
