"""Opens files of weights and runs nothing that is in them.

A `.pth` file is a pickle: a program that builds objects. torch's restricted reader (`weights_only`)
builds tensors and plain containers alone. mmengine's own checkpoints also hold numpy arrays and
`HistoryBuffer` objects, which mmengine admits by allowing numpy's constructors and `getattr`: with
these a file can reach far into the process, and a numpy dtype can be rebuilt so that bytes count as
pointers. Here those names lead to stand-ins, which only hold what the file says; arrays and
buffers are made afterwards, from checked numbers. Nothing ever falls back to plain unpickling.
"""

import ast
import json
import os
import struct
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .sealed import check_seal

MapLocation = str | torch.device | Callable[[Any, str], Any] | dict[str, str] | None

# What torch's readers raise on bytes that are not what they should be.
_BROKEN = (
    UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    OverflowError, AssertionError, EOFError, MemoryError, struct.error, OSError,
)  # fmt: skip
_LINK = 'fetch the file behind the link itself'
_UNPACK = 'unpack it, and give the file in it'
_STARTS = {  # the first bytes of things that people save under a weight file's name
    b'<!doctype': ('a web page', _LINK),
    b'<html': ('a web page', _LINK),
    b'<?xml': ('a web page or XML', _LINK),
    b'version https://git-lfs': ('a Git LFS pointer', _LINK),
    b'{"': ('a JSON file', _LINK),
    b'\x1f\x8b': ('a gzip archive', _UNPACK),
    b'bzh': ('a bzip2 archive', _UNPACK),
    b'\x93numpy': ('one NumPy array (.npy)', 'give the .npz of the whole model'),
    b'\x89hdf': ('an HDF5 file, as Keras writes', 'take the weights in PyTorch or safetensors'),
    b'gguf': ('a GGUF file of quantised weights', 'take the weights in PyTorch or safetensors'),
}
_LONGEST_HEADER = 100_000_000  # of a safetensors file, in bytes
_DTYPES = {
    **{f'i{n}': getattr(torch, f'int{8 * n}') for n in (1, 2, 4, 8)},
    **{f'u{n}': getattr(torch, f'uint{8 * n}') for n in (1, 2, 4, 8)},
    **{f'f{n}': getattr(torch, f'float{8 * n}') for n in (2, 4, 8)},
    'b1': torch.bool,
}
_LEGACY_MAGIC = b'l\xfc\x9cF\xf9 j\xa8P\x19'  # near the start of torch's files before 1.6
_NEWEST_PROTOCOL = 3  # of pickles that torch's restricted reader takes
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ONE_AT_A_TIME = threading.Lock()


COMPILED = '_orig_mod.'  # what torch.compile puts into the names of a module's tensors


class UnsafeWeightsError(ValueError):
    """A file that asks to run code, or to build objects that are no weights."""


class _Refused(ValueError):
    """What a stand-in refuses; the file's name is added outside."""


def read_checkpoint(
    path: str | os.PathLike[str], map_location: MapLocation = 'cpu'
) -> dict[str, Any]:
    """Return what a file of weights holds: plain containers and tensors.

    Safetensors, torch's files and NumPy's .npz are told apart by their content, whatever the name.
    The keys of an .npz have dots in place of slashes.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        kind = 'is a folder, not a file of weights' if file.is_dir() else 'does not exist'
        raise FileNotFoundError(
            f'{file} {kind}: give the path of a .safetensors, .pth, .pt, .bin or .npz file'
        )
    _refuse_other_files(file)
    kind = kind_of(file)
    if kind == 'safetensors':
        return dict(read_safetensors(file, map_location)[0])
    if kind == 'npz':
        return dict(_read_npz(file))
    content = _read_torch(file, map_location)
    if not isinstance(content, dict):
        raise ValueError(
            f'{file} holds a {type(content).__name__}, not a dict of tensors: '
            'save the state dict (torch.save(model.state_dict(), path)) or use .safetensors'
        )
    return content


def kind_of(file: Path) -> str:
    """Detect 'safetensors', 'npz' or 'torch' from the first bytes of a file, not from its name."""
    with file.open('rb') as stream:
        start = stream.read(9)
    if start.startswith(b'PK'):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (*_BROKEN, zipfile.BadZipFile):
            names = []
        arrays = any(name.endswith('.npy') for name in names)
        return 'npz' if arrays and not any(name.endswith('.pkl') for name in names) else 'torch'
    length = int.from_bytes(start[:8], 'little')
    if start[8:] == b'{' and length < _LONGEST_HEADER:
        return 'safetensors'
    other = file.suffix == '.safetensors' and not start.startswith(b'\x80')  # else a pickle
    return 'safetensors' if other else 'torch'


def is_safetensors(file: Path) -> bool:
    """Return whether a file exists and is a safetensors file by its content."""
    return file.is_file() and kind_of(file) == 'safetensors'


def refuse_unusual(tensors: Mapping[str, Any], name: str) -> None:
    """Raise ValueError on tensors that hold no plain numbers: sparse, quantised or empty ones.

    Floats of 8 or 4 bits are quantised: what they are multiplied by stands elsewhere.
    """
    for key, item in tensors.items():
        if not isinstance(item, Tensor):
            continue
        if item.layout != torch.strided:
            kind, fix = 'sparse', 'save tensor.to_dense() of each'
        elif item.is_quantized or (item.is_floating_point() and item.dtype not in _FLOATS):
            kind, fix = 'quantised', 'take the weights from before quantisation'
        elif item.is_meta:
            kind, fix = 'without values (on the meta device)', 'load the model before saving it'
        else:
            continue
        raise ValueError(f'{name} holds {key}, a tensor that is {kind}: {fix}')


def _read_npz(file: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file as tensors; nothing in it is unpickled."""
    try:
        import numpy as np
    except ImportError as error:
        raise ValueError(
            f'{file} is an .npz file, and NumPy reads those: pip install numpy'
        ) from error
    tensors: dict[str, Tensor] = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                array = np.ascontiguousarray(arrays[key]).reshape(arrays[key].shape)
                if array.dtype.str == '|V2':  # bfloat16, for which NumPy has no name
                    tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
                else:
                    tensor = torch.from_numpy(array)
                tensors[key.replace('/', '.')] = tensor
    except (*_BROKEN, zipfile.BadZipFile) as error:
        if 'allow_pickle' in str(error):
            raise UnsafeWeightsError(
                f'{file} holds arrays of Python objects, which are programs; nothing was run. '
                'Save arrays of numbers alone'
            ) from error
        raise _broken(file, error) from error
    return tensors


def read_safetensors(
    path: Path, map_location: MapLocation = 'cpu'
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a `.safetensors` file, which must agree with its digest, if any."""
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    check_seal(path, tensors, metadata)
    if isinstance(map_location, (str, torch.device)):
        tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    return tensors, metadata


def read_header(path: Path) -> dict[str, str]:
    """The header's metadata of a `.safetensors` file, without its tensors."""
    with _open(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    _refuse_other_files(path)
    try:
        with safe_open(path, framework='pt') as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f'{path} is truncated or no safetensors file ({error}): fetch it again'
        ) from error


def register_safe_loader(checkpoint_loader: Any) -> None:
    """Puts our reader into mmengine's `CheckpointLoader`, for files, URLs and the model zoos.

    The class is an argument so that this file needs no mmengine. `init_cfg`, `load_from`,
    `--resume` and the Inferencers all load through it.
    """
    zoo: Any = sys.modules[checkpoint_loader.__module__]
    history_buffer = sys.modules['mmengine.logging'].HistoryBuffer

    def load_from_file(filename: str, map_location: MapLocation = None) -> dict[str, Any]:
        return _read_for_mmengine(Path(filename).expanduser(), map_location, history_buffer)

    def load_from_url(url: str, map_location: MapLocation = None) -> dict[str, Any]:
        return load_from_file(str(_download(url)), map_location)

    def load_from_torchvision(name: str, map_location: MapLocation = None) -> dict[str, Any]:
        return load_from_url(_look_up(name, zoo.get_torchvision_models()), map_location)

    def load_from_openmmlab(name: str, map_location: MapLocation = None) -> dict[str, Any]:
        return load_from_url(_look_up(name, zoo.get_external_models()), map_location)

    def load_from_nowhere(name: str, map_location: MapLocation = None) -> dict[str, Any]:
        scheme = name.split('://')[0]
        raise ValueError(f'{name}: {scheme}:// is not read here; copy the file and give its path')

    register = checkpoint_loader.register_scheme
    register('', load_from_file, force=True)
    register(('http://', 'https://'), load_from_url, force=True)
    register(('modelzoo://', 'torchvision://'), load_from_torchvision, force=True)
    register(('open-mmlab://', 'openmmlab://'), load_from_openmmlab, force=True)
    unread = ['pavi://', 'mmcls://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']
    register(unread, load_from_nowhere, force=True)


def _read_for_mmengine(file: Path, to: MapLocation, buffer: Callable[..., Any]) -> dict[str, Any]:
    """A checkpoint in mmengine's shape, with its arrays and buffers restored."""
    content = read_checkpoint(file, to)
    if is_safetensors(file):
        header = read_header(file)  # a published model says what its classes are
        said = {k: json.loads(header[k]) for k in ('dataset_meta',) if k in header}
        return _signed({'state_dict': content, 'meta': said}, file)
    meta, hub = content.get('meta'), content.get('message_hub')
    runtime = hub.get('runtime_info') if isinstance(hub, dict) else None
    _drop_programs(file, *(part for part in (meta, runtime) if isinstance(part, dict)))
    try:
        restored = _restore(content, buffer, {})
    except _BROKEN as error:
        raise _broken(file, error) from error
    return _signed(restored, file)


class _Origin(OrderedDict[str, Any]):
    """A state dict's `_metadata`, which tells the file's name to every module that loads."""

    file = ''

    def get(self, key: str, default: Any = None) -> dict[str, Any]:
        return {**(super().get(key) or {}), 'file': self.file}

    def __deepcopy__(self, memo: object) -> '_Origin':
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # a file that is saved anew names no class of ours
        return OrderedDict, (list(self.items()),)


def _signed(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The checkpoint, with a state dict that knows its file."""
    state = content.get('state_dict', content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f'{file} holds no dict of named tensors: it is no checkpoint of a model')
    refuse_unusual(state, str(file))
    signed: Any = OrderedDict((key.replace(COMPILED, ''), item) for key, item in state.items())
    signed._metadata = _Origin(getattr(state, '_metadata', {}))
    signed._metadata.file = str(file)
    return {**content, 'state_dict': signed} if 'state_dict' in content else signed


def _drop_programs(file: Path, *parts: dict[str, Any]) -> None:
    """Take out config texts that are more than values: mmengine runs such text as Python.

    It does so with `config` when it resumes, though it never writes that key, and with `cfg` in an
    Inferencer that is given a checkpoint alone.
    """
    for part in parts:
        part.pop('config', None)
        try:
            config_values(part.get('cfg', ''))
        except ValueError:
            del part['cfg']
            warnings.warn(
                f'{file}: the config stored in it does more than state values and was left out; '
                'give the config file beside the checkpoint',
                stacklevel=2,
            )


def config_values(text: object) -> dict[str, Any]:
    """What the text of a config assigns, read without running it; ValueError where it does more."""
    # mmengine replaces {{ }} before it parses: what it runs would not be what stands here
    if not isinstance(text, str) or '{{' in text:
        raise ValueError('no text of a config, or one with {{ }} in it')
    try:
        body: list[Any] = ast.parse(text).body
        return {name: _value(item.value) for item in body for name in _names(item)}
    except (SyntaxError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'a config that does more than state values: {error}') from error


def _names(statement: Any) -> list[str]:
    """The names that a statement assigns to; an error where it does something else."""
    names = [target.id for target in statement.targets]
    if {'dict', '_base_'} & set(names):
        raise TypeError(f'it assigns {names}')
    return names


def _value(node: Any) -> Any:
    """A literal, or a dict(...) of such."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        positional = [_value(item) for item in node.args]
        if all(item.arg for item in node.keywords):
            return dict(
                *positional, **{str(item.arg): _value(item.value) for item in node.keywords}
            )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise TypeError(f'it holds a {type(node).__name__}')


# --------------------------------------------------------------------------------------------------
# Reading a pickle


def _read_torch(file: Path, map_location: MapLocation) -> Any:
    try:
        # a name that ends in .safetensors would make torch read it as that
        with _only_stand_ins(), file.open('rb') as stream:
            return torch.load(stream, map_location=map_location, weights_only=True)
    except _BROKEN as error:
        raise _broken(file, error) from error


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Inside, torch's restricted reader knows our stand-ins and nothing that others allowed."""
    with _ONE_AT_A_TIME:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(_stand_ins())
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def _broken(file: Path, error: BaseException) -> ValueError:
    """The error that names the file and the way out, from what a reader raised."""
    if isinstance(error, UnsafeWeightsError):
        return error
    message = str(error)
    wish = message if isinstance(error, _Refused) else ''
    if 'TorchScript' in message:
        wish = (
            "is a TorchScript archive, a program (where it is OpenAI's CLIP, take Hugging Face's "
            'safetensors of openai/clip-vit-base-patch32 or the like)'
        )
    for marker in ('Unsupported global: GLOBAL ', 'unsupported GLOBAL ', 'unrecognized function '):
        if marker in message:
            name = message.split(marker)[1].split(' ')[0]
            wish = f'asks to run or build {name!r}, which is no tensor'
    wish = wish or _unread_pickle(file)
    if wish:
        return UnsafeWeightsError(
            f'{file} {wish}; nothing was run. Where you trust its source, keep its tensors alone: '
            "torch.save({'state_dict': ...}), or use .safetensors"
        )
    # before its reason torch advises to read the file in the unsafe way
    *_, said = message.split('compatible with your use case: ')
    said = said.removeprefix('WeightsUnpickler error: ')
    reason = said.strip().splitlines()[0][:200] if said.strip() else type(error).__name__
    return ValueError(
        f'{file} is truncated, corrupt or no file of weights ({reason}): fetch it again and '
        f'compare its size (here {file.stat().st_size} bytes)'
    )


def _unread_pickle(file: Path) -> str:
    """Say why a pickle is none that the restricted reader takes; empty where it may be one."""
    with file.open('rb') as stream:
        start = stream.read(32)
    is_torch = _LEGACY_MAGIC in start
    if start.startswith(b'PK'):
        try:
            with zipfile.ZipFile(file) as archive:
                name = next(n for n in archive.namelist() if n.endswith('data.pkl'))
                with archive.open(name) as stream:
                    start, is_torch = stream.read(2), True
        except (*_BROKEN, StopIteration, zipfile.BadZipFile):
            return ''
    if not start.startswith(b'\x80') or len(start) < 2:
        return ''
    if not is_torch:
        return 'is a pickle that torch.save did not write (pickle.dump did, say)'
    if start[1] > _NEWEST_PROTOCOL:
        return (
            f'is a pickle of protocol {start[1]}, and the reader that runs no code takes protocol '
            f'2 or {_NEWEST_PROTOCOL} (torch.save writes 2 unless pickle_protocol is set)'
        )
    return ''


def _refuse_other_files(file: Path) -> None:
    with file.open('rb') as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        raise ValueError(f'{file} is empty: fetch it again')
    for marker, (what, fix) in _STARTS.items():
        if start.startswith(marker):
            raise ValueError(f'{file} is {what}, not a file of weights: {fix}')


# --------------------------------------------------------------------------------------------------
# Stand-ins: what a pickled name leads to


class _Dtype:
    """Stands for numpy.dtype: a name such as 'f8', little endian."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state[:5]
        if order not in ('<', '|', '=') or any(part is not None for part in structure):
            raise _Refused(f'holds a numpy array of byte order {order!r} and structure {structure}')

    def decode(self, raw: bytes, shape: tuple[int, ...]) -> Tensor:
        if self.name not in _DTYPES or not isinstance(raw, bytes):
            raise _Refused(f'holds a numpy array of type {self.name!r}, not of plain numbers')
        if not raw:
            return torch.empty(shape, dtype=_DTYPES[self.name])
        return torch.frombuffer(bytearray(raw), dtype=_DTYPES[self.name]).reshape(shape)


class _Array:
    """Stands for numpy.ndarray; `values` is None until the state came."""

    values: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, raw = state
        if not isinstance(dtype, _Dtype):
            raise _Refused('holds a numpy array without a type')
        values = dtype.decode(raw, tuple(reversed(shape)) if column_major else tuple(shape))
        self.values = values.permute(*reversed(range(values.ndim))) if column_major else values


class _History:
    """Stands for mmengine's HistoryBuffer: two arrays and a length; its functions are left out."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.log, self.count = state['_log_history'], state['_count_history']
        self.max_length = int(state['max_length'])


class _Namespace:
    """Stand-in for argparse.Namespace, which DeiT, MAE and DINO save with their weights."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values = state


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, raw: bytes) -> int | float | bool:
    return dtype.decode(raw, ()).item()


def _no_bytes() -> bytes:
    """Stands for bytes, which pickle calls for those of an empty array."""
    return b''


def _attribute(owner: object, name: str) -> str:
    """Stands for getattr, by which buffers name their own functions: gives the name alone."""
    if owner is not _History:
        raise _Refused(f'asks for the attribute {name!r} of an object')
    return name


def _stand_ins() -> list[Any]:
    stand_ins = [
        (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (dict, 'mmengine.config.config.ConfigDict'),
        (_Namespace, 'argparse.Namespace'),
        (_attribute, 'builtins.getattr'),
        (_no_bytes, 'builtins.bytes'),
        (_Array, 'numpy.ndarray'),
        (_Dtype, 'numpy.dtype'),
    ]
    for core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
        stand_ins.append((_reconstruct, f'{core}.multiarray._reconstruct'))
        stand_ins.append((_scalar, f'{core}.multiarray.scalar'))
    return stand_ins


def _restore(value: Any, history_buffer: Callable[..., Any], seen: dict[int, Any]) -> Any:
    """The same content with arrays and buffers in place of stand-ins; containers are kept."""
    if isinstance(value, _Array):
        return value.values.numpy() if value.values is not None else None
    if isinstance(value, _History):
        log, count = (_restore(part, history_buffer, seen) for part in (value.log, value.count))
        return history_buffer(log, count, value.max_length)
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_restore(item, history_buffer, seen) for item in value)
    if id(value) in seen or not isinstance(value, (dict, list)):
        return value
    seen[id(value)] = value
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        value[key] = _restore(value[key], history_buffer, seen)
    return value


# --------------------------------------------------------------------------------------------------
# Files behind names


def _look_up(name: str, urls: dict[str, str]) -> str:
    key = name.split('://', 1)[1]
    if key not in urls:
        raise ValueError(f'{name} is not a known model: give the path or the URL of its file')
    return urls[key]


def _download(url: str) -> Path:
    """The file behind a URL, in torch's cache; the first process of each machine fetches it."""
    file = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    several = dist.is_available() and dist.is_initialized()
    first = not several or int(os.environ.get('LOCAL_RANK', dist.get_rank())) == 0
    if first and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    if several:
        dist.barrier()
    return file
