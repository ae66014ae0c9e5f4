"""Checkpoints are whole and found again, whatever was interrupted, damaged, moved or full."""

import builtins
import errno
import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import find_latest_checkpoint, save_checkpoint
from torch.utils.data import DataLoader

from navit_backbone.tasks.common import checkpoints
from navit_backbone.tasks.common.checkpoints import (
    WholeFileBackend,
    fault_of,
    find_checkpoint,
    note_last,
    remove_leftovers,
    write_whole,
)
from navit_backbone.tasks.common.resume import ExactCheckpointHook
from navit_backbone.tools.train import checkpoint_of, resume


class Crash(BaseException):
    """The end of a process: no `except` of ours sees it."""


class Disk:
    """What is done to the disk, in order; event number `fatal` raises `fault`."""

    def __init__(self, monkeypatch, *, fatal=0, fault=None):
        self.events, self.fatal, self.fault = [], fatal, fault
        monkeypatch.setattr(checkpoints, 'open', self.open, raising=False)
        for owner, name in ((os, 'fsync'), (os, 'replace'), (Path, 'unlink')):
            monkeypatch.setattr(owner, name, self.watched(name, getattr(owner, name)))

    def happens(self, name):
        self.events.append(name)
        if len(self.events) == self.fatal:
            raise self.fault

    def watched(self, name, function):
        def call(*args, **options):
            self.happens(name)
            result = function(*args, **options)
            self.happens(f'{name} done')
            return result

        return call

    def open(self, file, mode):
        self.happens('open')
        return HalfWritten(builtins.open(file, mode), self)


class HalfWritten:
    """A file whose `write` can be interrupted in its middle."""

    def __init__(self, stream, disk):
        self.stream, self.disk = stream, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        self.disk.happens('write')
        self.stream.write(content[len(content) // 2 :])


def saver(folder):
    """The hook in a run of which only the saving is real, and what saves step `n`."""
    hook = ExactCheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=1)
    hook.out_dir, hook.keep_ckpt_ids = str(folder), deque(maxlen=1)
    loader = DataLoader(range(4), batch_size=2)

    def write(out_dir, name, *, meta, backend_args, **_):
        content = dict(meta=meta, step=torch.tensor(meta['iter']), bulk=torch.zeros(1000))
        save_checkpoint(content, str(Path(out_dir, name)), backend_args=backend_args)

    runner = SimpleNamespace(
        work_dir=str(folder),
        save_checkpoint=write,
        message_hub=MessageHub('one', runtime_info={}),
        optim_wrapper=SimpleNamespace(should_update=lambda: True),
        train_dataloader=loader,
        train_loop=SimpleNamespace(epoch=0, dataloader=loader),
        _randomness_cfg={},
    )
    return lambda n: hook._save_checkpoint_with_step(runner, n, dict(epoch=0, iter=n))


def step_of(file):
    return int(torch.load(file, weights_only=True)['step'])


def events_of_two_saves(folder, monkeypatch, **options):
    """Save steps 1 and 2, the second on a disk with a fault; the events of the second."""
    save = saver(folder)
    save(1)
    with monkeypatch.context() as patch:
        disk = Disk(patch, **options)
        save(2)
    return disk.events


def test_content_reaches_the_disk_before_its_name_and_a_checkpoint_before_the_note(
    tmp_path, monkeypatch
):
    events = events_of_two_saves(tmp_path, monkeypatch)
    begun = [name for name in events if not name.endswith('done')]
    written = ['open', 'write', 'fsync', 'replace', 'fsync']
    assert begun[:10] == [*written, *written]
    assert set(begun[10:]) == {'unlink'}
    assert {file.name for file in tmp_path.iterdir()} == {'iter_2.pth', 'last_checkpoint'}


def test_after_a_crash_at_any_point_a_whole_checkpoint_is_found(tmp_path, monkeypatch):
    (tmp_path / 'whole').mkdir()
    events = events_of_two_saves(tmp_path / 'whole', monkeypatch)
    assert len(events) > 15
    for fatal in range(1, len(events) + 1):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        with pytest.raises(Crash):
            events_of_two_saves(folder, monkeypatch, fatal=fatal, fault=Crash())
        found = find_checkpoint(folder)
        # mmengine's own search goes by the note alone
        assert str(found) == find_latest_checkpoint(str(folder)), fatal
        noted = events[:fatal].count('replace done') == 2  # of the checkpoint, and of the note
        assert step_of(found) == (2 if noted else 1), fatal
        remove_leftovers(folder)
        assert not list(folder.glob('*.part'))
        saver(folder)(3)
        assert step_of(find_checkpoint(folder)) == 3


@pytest.mark.parametrize('place', ['write', 'fsync', 'replace'])
def test_full_disk_is_told_and_leaves_the_checkpoint_before(place, tmp_path, monkeypatch):
    (tmp_path / 'whole').mkdir()
    fatal = events_of_two_saves(tmp_path / 'whole', monkeypatch).index(place) + 1
    fault = OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(OSError, match=r'iter_2.pth could not be written \(No space.*MiB.*--resume'):
        events_of_two_saves(tmp_path, monkeypatch, fatal=fatal, fault=fault)
    assert step_of(find_checkpoint(tmp_path)) == 1
    assert not list(tmp_path.glob('*.part'))


def test_outdated_files_go_when_told_but_not_what_was_written_anew(tmp_path):
    backend, (old, again) = WholeFileBackend(), (tmp_path / 'old', tmp_path / 'again')
    for file in (old, again):
        backend.put(b'1', file)
        backend.remove(file)
    assert old.exists()
    WholeFileBackend().put(b'2', again)
    backend.remove_outdated()
    assert not old.exists()
    assert again.read_bytes() == b'2'


# --------------------------------------------------------------------------------------------------
# Found again


@pytest.fixture
def work_dir(tmp_path):
    """Three checkpoints, the third noted as the latest."""
    folder = tmp_path / 'work'
    folder.mkdir()
    for number in (9, 10, 11):
        torch.save({'step': torch.tensor(number)}, folder / f'iter_{number}.pth')
        os.utime(folder / f'iter_{number}.pth', (number, number))
    torch.save({}, folder / 'best_mAP_iter_10.pth')
    note_last(folder, folder / 'iter_11.pth')
    return folder


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == 'cut':
        del content[len(content) // 2 :]
    elif how == 'empty':
        content.clear()
    elif how == 'name':  # of a part, in the list of the archive: no longer UTF-8
        content[content.rindex(b'version')] ^= 0x80
    elif how == 'flag':  # the part is said to be encrypted
        content[content.index(b'PK\1\2') + 8] |= 1
        content[content.index(b'PK\3\4') + 6] |= 1
    else:
        place = content.index(torch.tensor(int(file.stem[5:])).numpy().tobytes())
        content[place] ^= 1  # a bit of the tensor
    file.write_bytes(content)


@pytest.mark.parametrize('how', ['cut', 'empty', 'one bit', 'name', 'flag'])
def test_damaged_checkpoint_is_passed_over_out_loud(how, work_dir, capsys):
    damage(work_dir / 'iter_11.pth', how)
    assert find_checkpoint(work_dir) == work_dir / 'iter_10.pth'
    assert f'{work_dir}/iter_11.pth is truncated, corrupt' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'iter_11.pth is trunc.*go on from .*iter_10.pth'):
        checkpoint_of(str(work_dir / 'iter_11.pth'), Path('elsewhere'))
    for number in (9, 10):
        damage(work_dir / f'iter_{number}.pth', how)
    with pytest.raises(ValueError, match=r'iter_11.*iter_10.*iter_9.*start anew'):
        find_checkpoint(work_dir)


def test_work_dir_may_be_moved_and_the_note_lost(work_dir):
    moved = work_dir.rename(work_dir.with_name('moved'))
    assert find_checkpoint(moved) == moved / 'iter_11.pth'
    note_last(moved, moved / 'iter_9.pth')
    assert find_checkpoint(moved) == moved / 'iter_9.pth'
    for lost in ('gone.pth', ''):
        (moved / 'last_checkpoint').write_text(lost)
        assert find_checkpoint(moved) == moved / 'iter_11.pth'
    (moved / 'last_checkpoint').unlink()
    assert find_checkpoint(moved) == moved / 'iter_11.pth'


def test_checkpoints_may_lie_in_another_folder_than_the_note(work_dir, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    note_last(other, work_dir / 'iter_11.pth')
    assert find_checkpoint(other) == work_dir / 'iter_11.pth'
    damage(work_dir / 'iter_11.pth', 'cut')
    assert find_checkpoint(other) == work_dir / 'iter_10.pth'


def test_resume_takes_a_file_a_folder_or_the_latest(work_dir, tmp_path):
    latest, earlier = work_dir / 'iter_11.pth', work_dir / 'iter_9.pth'
    assert checkpoint_of('auto', work_dir) == latest
    assert checkpoint_of(str(work_dir), tmp_path) == latest
    assert checkpoint_of(str(earlier), tmp_path) == earlier
    with pytest.raises(ValueError, match='holds no checkpoint .epoch_N.pth'):
        checkpoint_of(str(tmp_path), work_dir)
    with pytest.raises(ValueError, match=r'gone.pth does not exist: give the path'):
        checkpoint_of(str(tmp_path / 'gone.pth'), work_dir)


def test_nothing_to_resume_starts_from_the_beginning_and_says_so(tmp_path, capsys):
    for work in (tmp_path, tmp_path / 'new'):
        cfg = SimpleNamespace(work_dir=str(work), load_from='weights.pth', resume=False)
        resume(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (False, 'weights.pth')
        assert f'nothing to resume in {work} yet' in capsys.readouterr().out


def test_file_that_is_no_archive_has_a_fault(tmp_path):
    write_whole(tmp_path / 'a.pth', b'weights')
    assert 'no file of weights' in fault_of(tmp_path / 'a.pth')
    torch.save({}, tmp_path / 'b.pth')
    assert fault_of(tmp_path / 'b.pth') is None


def test_hook_refuses_to_write_elsewhere_than_to_folders():
    for options in (dict(out_dir='s3://bucket'), dict(backend_args=dict(backend='petrel'))):
        with pytest.raises(ValueError, match=r'folders of this machine.*use CheckpointHook'):
            ExactCheckpointHook(**options)
