"""Safetensors files that notice when they were changed: a digest of what they hold and say."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

DIGEST = 'sha256'  # the field of the header that holds it


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of all tensors and of the header without its digest, in hexadecimal digits."""
    sha = hashlib.sha256()
    said = {key: value for key, value in header.items() if key != DIGEST}
    sha.update(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        if tensor.nbytes:  # its memory as it is: a library on torch alone has no numpy
            sha.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return sha.hexdigest()


def write_sealed(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], *, named: bool = False
) -> Path:
    """Write the file, or leave what is there: it is written aside and renamed at the end.

    With `named` the first 8 digits of the digest join its name, as OpenMMLab names weights.
    """
    header = {**header, DIGEST: digest(tensors, header)}
    if named:
        path = path.with_stem(f'{path.stem}-{header[DIGEST][:8]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        aside.touch()
        mode = aside.stat().st_mode  # as any new file has it: safetensors lets its owner alone read
        save_file({k: t.contiguous() for k, t in tensors.items()}, aside, metadata=header)
        aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


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
