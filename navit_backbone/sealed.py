"""Safetensors files that notice when they were changed: a digest of what they hold and say."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .file_writing import written_whole

DIGEST = 'sha256'  # the field of the header that holds it
Progress = Callable[[str, int, int], object]  # what is done, and how many bytes of how many

_DTYPES = {
    torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16',
    torch.int64: 'I64', torch.int32: 'I32', torch.int16: 'I16', torch.int8: 'I8',
    torch.uint8: 'U8', torch.bool: 'BOOL',
}  # fmt: skip


def unseen(*_: object) -> None:
    """The `Progress` that nobody looks at."""


def digest(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], progress: Progress = unseen
) -> str:
    """SHA-256 of all tensors and of the header without its digest, in hexadecimal digits."""
    sha = hashlib.sha256()
    said = {key: value for key, value in header.items() if key != DIGEST}
    sha.update(json.dumps(said, sort_keys=True).encode())
    for name, tensor in in_turn(tensors, sorted(tensors), 'checksum', progress):
        sha.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        if tensor.nbytes:
            sha.update(_memory(tensor))
    return sha.hexdigest()


def in_turn(
    tensors: Mapping[str, Tensor], names: Iterable[str], what: str, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, one after the other in plain memory, with word of how far it is."""
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for name in names:
        yield name, tensors[name].detach().cpu().contiguous()
        done += tensors[name].nbytes
        progress(what, done, total)


def _memory(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """A tensor's memory as it is, while the tensor lives: a library on torch alone has no numpy."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def write_sealed(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    *,
    named: bool = False,
    progress: Progress = unseen,
    check: Callable[[Path], object] = unseen,
) -> Path:
    """Write the file, or leave what is there: it is written aside and renamed at the end.

    With `named` the first 8 digits of the digest join its name, as OpenMMLab names weights.
    `check` gets the finished file before it is renamed; where it raises, no file is left.
    """
    header = {**header, DIGEST: digest(tensors, header, progress)}
    start = _start(tensors, header)
    if named:
        path = path.with_stem(f'{path.stem}-{header[DIGEST][:8]}')
    with written_whole(path) as aside:
        with aside.open('wb') as stream:
            stream.write(start)
            for _, tensor in in_turn(tensors, _order(tensors), 'writing', progress):
                if tensor.nbytes:
                    stream.write(_memory(tensor))
        check(aside)
    return path


def _start(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """What stands before the data in a safetensors file: where each tensor lies, and the header.

    Written here, since the package's own writer held all tensors a second time as bytes in the
    versions that we allow.
    """
    content: dict[str, object] = {'__metadata__': dict(header)}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f'{name} is of {tensor.dtype}: files hold {", ".join(_DTYPES.values())}'
            )
        begin, end = end, end + tensor.nbytes
        where = {'shape': list(tensor.shape), 'data_offsets': [begin, end]}
        content[name] = {'dtype': _DTYPES[tensor.dtype], **where}
    text = json.dumps(content, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # the data starts aligned
    return len(text).to_bytes(8, 'little') + text


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The widest numbers first, so that each tensor lies aligned to its own."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def check_seal(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Raise ValueError where a file that states its digest holds or says something else."""
    stated = header.get(DIGEST)
    if stated is None:
        return
    found = digest(tensors, header)
    if found != stated:
        raise ValueError(
            f'{path} was changed or damaged after it was written: its SHA-256 is {found[:8]}..., '
            f'its header says {stated[:8]}...; fetch it again from where it was published'
        )
