"""Whether the pictures of a data set are there and whole, asked before the first step.

Training replaces bad pictures as they are drawn, so for it some are enough. An evaluation must not
leave out any: one that cannot be read would end the run, hours later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.progress import track

from .dataset import SeededSamples, file_of, seeded_parts
from .picture_sizes import UNREADABLE, picture_size
from .sample import BadSampleError

_NUM_THREADS = 16  # they wait for the disk most of the time
_NUM_NAMED = 10
_ENDS = {
    b'\xff\xd8': b'\xff\xd9',
    b'\x89PNG': b'IEND\xaeB`\x82',
}  # how a whole file begins and ends
_MANY = 1000  # files to look at take long enough to show progress


@HOOKS.register_module()
class PictureCheckHook(Hook):
    """Refuses a training set without a file, and an evaluation that could not read one of its own.

    Only where files lie on this machine; a server's are met as they are drawn.
    """

    def __init__(self) -> None:
        self._checked: set[int] = set()

    def before_train(self, runner: Runner) -> None:
        for part in seeded_parts(runner.train_dataloader.dataset):
            self.check_some(part)
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        self._check_all(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._check_all(runner.test_dataloader.dataset)

    def _check_all(self, dataset: Any) -> None:
        if id(dataset) not in self._checked:  # once, not at every validation
            for part in seeded_parts(dataset):
                self.check_all(part)
            self._checked.add(id(dataset))

    def check_some(self, dataset: SeededSamples) -> None:
        """Raise where nothing of a training set can be used."""
        require_some(dataset)

    def check_all(self, dataset: SeededSamples) -> None:
        """Raise where something of an evaluation cannot be used."""
        require_all(dataset)


def require_some(dataset: SeededSamples) -> None:
    """Raise where not one file of the data set is there. Stops at the first that is."""
    if not _is_local(dataset):
        return
    files = (file_of(dataset.get_data_info(i)) for i in range(len(dataset)))
    if not any(os.path.isfile(file) for file in files):
        first = file_of(dataset.get_data_info(0))
        raise ValueError(
            f'none of the {len(dataset)} pictures of {_name(dataset)} is there, the first would be '
            f'{first}: set data_root, or data_prefix to the folder of the pictures within it'
        )


def require_all(dataset: SeededSamples) -> None:
    """Raise where a file is missing, broken or not as annotated, and name all such files.

    A file is doubted by its header and its end, which takes a moment, and only those in doubt are
    loaded. On several ranks the first one looks, and tells the others: all have to call this.
    """
    if not _is_local(dataset):
        return
    found: list[Any] = [None]
    if is_main_process():
        found = [list(_faults(dataset))]
    broadcast_object_list(found)
    faults: list[str] = found[0]
    if faults and len(faults) == len(dataset):
        require_some(dataset)
    refuse(faults, f'of the {len(dataset)} pictures of {_name(dataset)}')


def refuse(faults: Sequence[str], what: str) -> None:
    """Raise where there are faults in an evaluation, and name them."""
    if not faults:
        return
    more = f'\n  and {len(faults) - _NUM_NAMED} more' if len(faults) > _NUM_NAMED else ''
    raise ValueError(
        f'{len(faults)} {what} cannot be evaluated, and an evaluation must not leave any out:\n  '
        + '\n  '.join(faults[:_NUM_NAMED])
        + more
    )


def _faults(dataset: SeededSamples) -> Iterator[str]:
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        doubts = pool.map(lambda info: _is_doubtful(dataset, info), infos)
        few = len(dataset) < _MANY
        doubts = list(track(doubts, 'looking at pictures', len(dataset), disable=few))
    for i in (i for i, doubt in enumerate(doubts) if doubt):
        try:
            dataset[i]
        except BadSampleError as fault:
            yield str(fault)


def _is_doubtful(dataset: SeededSamples, info: Mapping[str, Any]) -> bool:
    """Whether a header is unreadable or of another size, or an end is not that of a picture."""
    file = file_of(info)
    try:
        size = dataset.measure(file)
        if dataset.measure is not picture_size:
            return False
        stated = (info.get('height', size[0]), info.get('width', size[1]))
        if size != stated or not _has_end(file):
            return True
        labels = info.get('seg_map_path')
        return labels is not None and not (picture_size(labels) == size and _has_end(labels))
    except UNREADABLE:
        return True


def _has_end(file: str) -> bool:
    """Whether a JPEG or PNG ends as it should; False for what is neither."""
    with open(file, 'rb') as content:
        head = content.read(4)
        content.seek(-min(64, os.path.getsize(file)), os.SEEK_END)
        tail = content.read().rstrip(b'\0\r\n')
    return any(head.startswith(begin) and tail.endswith(end) for begin, end in _ENDS.items())


def _is_local(dataset: SeededSamples) -> bool:
    """Whether files are read by their names, and not from a server or an archive."""
    readers = [dataset, *dataset.pipeline.transforms]
    remote = any(getattr(reader, 'backend_args', None) for reader in readers)
    return not remote and '://' not in file_of(dataset.get_data_info(0))


def _name(dataset: SeededSamples) -> str:
    return str(getattr(dataset, 'ann_file', type(dataset).__name__))
