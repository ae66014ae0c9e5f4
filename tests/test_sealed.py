"""A sealed file tells whether it was changed: any bit of a tensor, any word of its header."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights import navit

from navit_backbone.checkpoint import load_weights, save_navit, weights_of
from navit_backbone.sealed import check_seal, digest, write_sealed
from navit_backbone.weight_files import read_header, read_safetensors

TENSORS = {
    'a': torch.arange(6, dtype=torch.float32).reshape(2, 3),
    'b': torch.ones(3, dtype=torch.bfloat16),
    'none': torch.zeros(0, 4),
    'one': torch.tensor(7),
}
HEADER = {'format': 'mine', 'said': 'ja'}


@pytest.fixture
def file(tmp_path):
    write_sealed(tmp_path / 'deeper' / 'w.safetensors', TENSORS, HEADER)
    return tmp_path / 'deeper' / 'w.safetensors'


def test_what_is_written_comes_back(file):
    tensors, header = read_safetensors(file)
    assert header.items() >= HEADER.items()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [item.name for item in file.parent.iterdir()] == ['w.safetensors']
    (file.parent / 'other').touch()
    assert file.stat().st_mode == (file.parent / 'other').stat().st_mode


CHANGES = {
    'a bit': ({**TENSORS, 'b': torch.tensor([1.0, 1.0, 1.0078125], dtype=torch.bfloat16)}, {}),
    'a shape': ({**TENSORS, 'a': TENSORS['a'].reshape(3, 2)}, {}),
    'a type': ({**TENSORS, 'b': torch.ones(3, dtype=torch.float16)}, {}),
    'a name': ({('c' if k == 'a' else k): t for k, t in TENSORS.items()}, {}),
    'another shape of nothing': ({**TENSORS, 'none': torch.zeros(4, 0)}, {}),
    'a tensor less': ({k: t for k, t in TENSORS.items() if k != 'one'}, {}),
    'a word': (TENSORS, {'said': 'nein'}),
    'a field more': (TENSORS, {'config': '{}'}),
}


@pytest.mark.parametrize('case', CHANGES)
def test_a_change_is_found(file, case):
    tensors, words = CHANGES[case]
    save_file(tensors, file, metadata=read_header(file) | words)
    with pytest.raises(ValueError, match=r'w\.safetensors was changed or damaged'):
        read_safetensors(file)


def test_a_byte_on_disk_is_found(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match='was changed or damaged'):
        read_safetensors(file)


def test_digest_knows_neither_order_nor_layout():
    scattered = {**TENSORS, 'a': TENSORS['a'].t().contiguous().t()}
    backwards = dict(reversed(scattered.items()))
    assert digest(backwards, dict(reversed(HEADER.items()))) == digest(TENSORS, HEADER)


def test_files_without_a_digest_pass(file):
    check_seal(file, TENSORS, HEADER)


def test_a_write_that_fails_leaves_what_was_there(file):
    def stop(what, done, total):
        if what == 'writing' and done > 20:
            raise OSError('no space left')

    before = file.read_bytes()
    with pytest.raises(OSError, match='no space left'):
        write_sealed(file, TENSORS, {}, progress=stop)
    with pytest.raises(ValueError, match='b is of torch.complex64: files hold F64'):
        write_sealed(file, TENSORS | {'b': torch.zeros(2, dtype=torch.complex64)}, HEADER)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_every_type_and_layout_is_read_by_the_package(tmp_path):
    torch.manual_seed(0)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {f'{kind}': torch.randint(0, 100, (3, 5)).to(kind) for kind in kinds}
    tensors |= {'turned': torch.randn(5, 3).t(), 'odd': torch.ones(3, dtype=torch.int8)}
    tensors |= {'ä "quoted"': torch.randn(2), 'once': torch.ones(4)}
    tensors['again'] = tensors['once']  # one memory under two names
    path = write_sealed(tmp_path / 'w.safetensors', tensors, HEADER | {'words': 'ä\n"'})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert read_header(path)['words'] == 'ä\n"'
    assert int.from_bytes(path.read_bytes()[:8], 'little') % 8 == 0


def test_progress_tells_bytes_up_to_all_of_them(tmp_path):
    said = []
    write_sealed(tmp_path / 'w.safetensors', TENSORS, {}, progress=lambda *word: said.append(word))
    assert [what for what, _, _ in said] == ['checksum'] * 4 + ['writing'] * 4
    size = sum(tensor.nbytes for tensor in TENSORS.values())
    assert all(total == size for _, _, total in said)
    assert [done for _, done, _ in said[:4]] == sorted(done for _, done, _ in said[:4])
    assert said[3][1] == said[7][1] == size


def test_weights_of_a_backbone_are_sealed(tmp_path):
    file = tmp_path / 'w.safetensors'
    save_navit(file, weights_of(navit()))
    load_weights(navit(), file)
    header = read_header(file)
    save_file(read_safetensors(file)[0], file, metadata=header | {'input_mean': '[0, 0, 0]'})
    with pytest.raises(ValueError, match='was changed or damaged'):
        load_weights(navit(), file)
