"""No path that loads weights runs what is in the file; checkpoints of mmengine still resume."""

import builtins
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

import navit_backbone.backbone  # noqa: F401  registers the reader
from navit_backbone.checkpoint import UnsafeWeightsError, read_checkpoint
from navit_backbone.weight_files import config_values


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built:
    """Unpickling this calls a function and hands a state to what it gave."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def poisoned_buffer(marker):
    """mmengine's buffer with a statistic of the attacker's choice, called at the next log line."""
    buffer = HistoryBuffer([1.0], [1])
    state = {**buffer.__getstate__(), 'statistics_methods': {'mean': os.system}}
    return Built(HistoryBuffer, (), state)


# A dtype that says: these 8 bytes are no object, and their field 'a' is one.
POINTERS = Built(
    np.dtype, ('V8', False, True), (3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0)
)
PAYLOADS = {
    'os.system': lambda m: Runs(os.system, f'touch {m}'),
    'open': lambda m: Runs(builtins.open, str(m), 'w'),
    'eval': lambda m: Runs(builtins.eval, f"open({str(m)!r}, 'w')"),
    'exec': lambda m: Runs(builtins.exec, f"open({str(m)!r}, 'w')"),
    'getattr': lambda m: Runs(getattr, np.ndarray, 'tofile'),
    'getattr of a module': lambda m: Runs(getattr, HistoryBuffer.__init__, '__globals__'),
    'poisoned buffer': poisoned_buffer,
    'object array': lambda m: np.array([Runs(os.system, f'touch {m}')], dtype=object),
    'array of objects as bytes': lambda m: Built(
        np._core.multiarray._reconstruct,
        (np.ndarray, (0,), b'b'),
        (1, (1,), POINTERS, False, b'\x41' * 8),
    ),
}


@pytest.fixture
def marker(tmp_path):
    """A file that appears when a payload runs."""
    path = tmp_path / 'it_ran'
    yield path
    assert not path.exists(), 'the payload ran'


def plain_content():
    torch.manual_seed(0)
    return {'state_dict': {'w': torch.ones(2)}, 'meta': {'epoch': 1, 'iter': 1}}


@pytest.mark.parametrize('name', PAYLOADS)
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['optimizer', 'state_dict', 'message_hub'])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, marker, name, zipped, place):
    file = tmp_path / 'hostile.pth'
    content = plain_content()
    content.setdefault(place, {})['x'] = PAYLOADS[name](marker)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(UnsafeWeightsError, match=r'hostile.pth') as caught:
            read(str(file))
        assert 'nothing was run' in str(caught.value)
        assert 'keep its tensors alone' in str(caught.value)


def test_plain_pickle_and_old_tar_are_refused(tmp_path, marker):
    payload = pickle.dumps(Runs(os.system, f'touch {marker}'))
    (tmp_path / 'plain.pth').write_bytes(payload)
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    with zipfile.ZipFile(tmp_path / 'zipped.pth', 'w') as archive:
        archive.writestr('archive/data.pkl', payload)
        archive.writestr('archive/version', '3')
    for name in ('plain.pth', 'old.pth', 'zipped.pth'):
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('zipped', [True, False])
def test_pickles_of_newer_protocols_are_named(tmp_path, zipped):
    file, tensors = tmp_path / 'w.pth', {'a.weight': torch.zeros(2, 2)}
    for protocol in (4, 5):
        options = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        torch.save(tensors, file, **options)
        with pytest.raises(UnsafeWeightsError, match=rf'w.pth is a pickle of protocol {protocol}'):
            read_checkpoint(file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r'w\.pth'):
        read_checkpoint(file)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_pickle_that_torch_did_not_write_is_named(tmp_path, protocol):
    content = pickle.dumps({'a.weight': np.zeros((2, 2))}, protocol=protocol)
    (tmp_path / 'w.pkl').write_bytes(content)
    with pytest.raises(UnsafeWeightsError, match=r'w\.pkl is a pickle that torch.save did not'):
        read_checkpoint(tmp_path / 'w.pkl')


def test_torchscript_archive_is_refused(tmp_path):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    module.save(str(tmp_path / 'script.pt'))
    with pytest.raises(
        UnsafeWeightsError, match=r'script.pt is a TorchScript archive.*safetensors'
    ):
        read_checkpoint(tmp_path / 'script.pt')


def test_what_others_allowed_does_not_hold_here_and_holds_again_afterwards(tmp_path, marker):
    torch.save(plain_content() | {'x': Runs(os.system, f'touch {marker}')}, tmp_path / 'w.pth')
    torch.save(plain_content() | {'x': Runs(getattr, np.ndarray, 'tofile')}, tmp_path / 'g.pth')
    with torch.serialization.safe_globals([getattr, (os.system, 'posix.system'), HistoryBuffer]):
        before = set(torch.serialization.get_safe_globals())
        for name in ('w.pth', 'g.pth'):
            with pytest.raises(UnsafeWeightsError, match=name):
                read_checkpoint(tmp_path / name)
        assert set(torch.serialization.get_safe_globals()) == before


def test_environment_cannot_switch_unpickling_on(tmp_path, marker, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(plain_content() | {'x': Runs(os.system, f'touch {marker}')}, tmp_path / 'w.pth')
    with pytest.raises(UnsafeWeightsError, match=r'system'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))


@pytest.mark.parametrize('seed', range(60))
def test_damaged_bytes_give_one_clear_error_or_the_file(tmp_path, seed):
    rng = np.random.default_rng(seed)
    file = tmp_path / 'w.pth'
    hub = {'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0, 2.0], [1, 1])}}}
    torch.save(plain_content() | hub, file, _use_new_zipfile_serialization=bool(seed % 2))
    data = bytearray(file.read_bytes())
    for place in rng.integers(len(data), size=1 + seed % 5):
        data[place] = rng.integers(256)
    file.write_bytes(data)
    told = 'w.pth'
    try:
        CheckpointLoader.load_checkpoint(str(file))
    except ValueError as error:
        told = str(error)
    assert 'w.pth' in told


# --------------------------------------------------------------------------------------------------
# Checkpoints of mmengine itself


def test_buffers_arrays_and_scalars_come_back(tmp_path):
    content = {
        'log': HistoryBuffer([1.5, 2.5, 3.5], [1, 2, 3], max_length=7),
        'empty': HistoryBuffer(),
        'palette': np.arange(6, dtype=np.uint8).reshape(2, 3),
        'columns': np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        'flags': np.array([True, False]),
        'best': np.float64(0.25),
        'count': (np.int64(3), [np.float32(0.5)]),
        'nested': ConfigDict(a=1, b=ConfigDict(c=(2, 3))),
    }
    torch.save({'meta': content, 'state_dict': {}}, tmp_path / 'w.pth')
    got = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))['meta']
    for key in ('log', 'empty'):
        assert isinstance(got[key], HistoryBuffer)
        assert got[key].max_length == content[key].max_length
        for mine, theirs in zip(got[key].data, content[key].data, strict=True):
            assert np.array_equal(mine, theirs)
    got['log'].update(4.0)
    assert got['log'].statistics('mean', 2) == pytest.approx((3.5 + 4.0) / 4)
    for key in ('palette', 'columns', 'flags'):
        assert got[key].dtype == content[key].dtype
        assert np.array_equal(got[key], content[key])
    assert (got['best'], got['count'], got['nested']) == (0.25, (3, [0.5]), content['nested'])


@pytest.mark.parametrize('value', [np.array(['a']), np.array([1], '>f8'), np.array([1j])])
def test_arrays_that_are_no_plain_numbers_are_refused(tmp_path, value):
    torch.save({'meta': {'x': value}, 'state_dict': {}}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'w.pth.*numpy array'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))


CODE = "import os\nos.system('touch {marker}')\n"
CONFIG_TEXTS = {
    'statement': CODE,
    'call': "x = __import__('os').system('touch {marker}')",
    'method': "x = dict().setdefault('a', 1)",
    'template': 'x = "{{{{$NONE:1}}}}"',
    'base': "_base_ = ['other.py']",
    'comprehension': 'x = [i for i in (1, 2)]',
    'another name for dict': 'dict = exec\nx = dict("{marker}")',
    'a name that is read': 'x = open',
    'unpacked': 'x = dict(*[1], **open)',
    'no Python': 'x = <class',
}


@pytest.mark.parametrize('case', CONFIG_TEXTS)
@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_config_text_inside_a_checkpoint_may_only_state_values(tmp_path, marker, case, place):
    text = CONFIG_TEXTS[case].format(marker=marker)
    content = plain_content() | {'message_hub': {'runtime_info': {}}}
    target = content['meta'] if place == 'meta' else content['message_hub']['runtime_info']
    target['cfg'] = text
    target['config'] = 'x = 1'  # mmengine never writes this key, and runs it
    torch.save(content, tmp_path / 'w.pth')
    with pytest.warns(UserWarning, match=r'w.pth: the config stored in it .* was left out'):
        got = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))
    found = got['meta'] if place == 'meta' else got['message_hub']['runtime_info']
    assert not {'cfg', 'config'} & set(found)


def test_config_that_mmengine_writes_passes(tmp_path):
    config = Config(
        dict(
            model=dict(type='A', sizes=[(1, 2), (3, -4.5)], name=None, on=True, text="it's"),
            custom_imports=dict(imports=['navit_backbone.backbone'], allow_failed_imports=False),
            pipeline=[dict(type='Load', octave_base_scale=4), dict(type='Pack', keys=('a', 'b'))],
            mapping={'1x1': 2, 3: 'four'},
        )
    )
    torch.save(plain_content() | {'meta': {'cfg': config.pretty_text}}, tmp_path / 'w.pth')
    got = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.pth'))['meta']['cfg']
    assert got == config.pretty_text
    assert config_values(got) == config.to_dict()


def test_every_scheme_of_mmengine_is_ours():
    for name in ('f.pth', 'http://a/f.pth', 'https://a/f.pth', 's3://a', 'petrel://a', 'pavi://a',
                 'modelzoo://a', 'torchvision://a', 'open-mmlab://a', 'openmmlab://a', 'mmcls://a',
                 'x:s3://a'):  # fmt: skip
        loader = CheckpointLoader._get_checkpoint_loader(name)
        assert loader.__module__ == 'navit_backbone.weight_files', name
    for name in ('s3://a', 'pavi://a', 'mmcls://a'):
        with pytest.raises(ValueError, match=f'{name}.*give its path'):
            CheckpointLoader.load_checkpoint(name)


def test_a_file_behind_a_url_is_read_as_safely(tmp_path, marker, monkeypatch):
    torch.save(plain_content(), tmp_path / 'good.pth')
    torch.save(plain_content() | {'x': Runs(os.system, f'touch {marker}')}, tmp_path / 'bad.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(
        torch.hub,
        'download_url_to_file',
        lambda url, target, **_: (tmp_path / url.split('/')[-1]).rename(target),
    )
    got = CheckpointLoader.load_checkpoint('https://host/path/good.pth')
    assert torch.equal(got['state_dict']['w'], torch.ones(2))
    with pytest.raises(UnsafeWeightsError, match=r'bad.pth'):
        CheckpointLoader.load_checkpoint('http://host/bad.pth')
