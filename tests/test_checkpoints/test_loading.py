"""Safe loading, against torch's own reader and against payloads that do work without it."""

import argparse
import contextlib
import datetime
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hostile_pickles import payloads, stream_of
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn
from toy_runs import toy_runner

from mmkw.checkpoints import CheckpointError, UnsafeCheckpointError, allow_classes, load_checkpoint

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'stream'])


def assert_same(actual, expected):
    """The same value of the same type, whatever the nesting."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert actual.requires_grad == expected.requires_grad
        assert actual.layout == expected.layout
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_same(one, other)
    elif isinstance(expected, (HistoryBuffer, argparse.Namespace)):
        assert_same(vars(actual), vars(expected))
    else:
        assert actual == expected


def read_by_torch(path):
    return torch.load(path, map_location='cpu', weights_only=False)


@FORMATS
def test_tensors_and_values_survive(tmp_path, zipped):
    weight = torch.randn(4, 6)
    saved = OrderedDict(
        weight=weight,
        tied=weight[1:],
        transposed=weight.t(),
        scalar=torch.tensor(0.5),
        empty=torch.empty(0, 3),
        bf16=torch.randn(3).bfloat16(),
        half=torch.randn(3).half(),
        boolean=torch.tensor([True, False]),
        complex=torch.randn(2, dtype=torch.complex64),
        leaf=torch.randn(2, requires_grad=True),
        parameter=nn.Parameter(torch.randn(2)),
        sparse=torch.eye(3).to_sparse(),
        size=weight.shape,
        dtype=torch.bfloat16,
        device=torch.device('cpu'),
        array=np.arange(6, dtype='>i4').reshape(2, 3),
        text_array=np.array(['ab', 'c']),
        number=np.float64(0.25),
        default=defaultdict(list, a=[1]),
        args=argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(b=b'\xff')),
        config=ConfigDict(a=dict(b=[1, 2])),
        when=datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
        others=({1, 2}, frozenset('a'), 2j, b'', bytearray(b'x'), slice(1, 2), None, 1 << 80),
    )
    path = tmp_path / 'saved.pth'
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path)
    assert_same(loaded, read_by_torch(path))
    assert_same(loaded['tied'], saved['tied'])
    loaded['weight'][1, 0] = 7
    assert loaded['tied'][0, 0] == 7


def test_state_dict_keeps_its_metadata(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(), path)
    assert load_checkpoint(path)._metadata['1'] == {'version': 2}


@pytest.mark.parametrize('container', ['zip', 'stream', 'pickle'])
@pytest.mark.parametrize(
    'shape',
    ['shell', 'eval', 'getattr', 'nested_load', 'partial', 'namespace', 'ordered_dict'],
)
def test_payload_does_not_run(tmp_path, shape, container):
    marker = tmp_path / 'pwned'
    content, culprit = payloads(marker)[shape]
    path = tmp_path / 'hostile.pth'
    if container == 'pickle':
        path.write_bytes(pickle.dumps(content, 2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == 'zip')
        read_by_torch(path)
    assert marker.exists(), 'the payload itself is broken'
    marker.unlink()

    with pytest.raises(UnsafeCheckpointError) as error:
        load_checkpoint(path)
    assert culprit in str(error.value)
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_old_call_instruction_does_not_run(tmp_path):
    marker = tmp_path / 'pwned'
    path = tmp_path / 'hostile.pth'
    path.write_bytes(stream_of(b'\x80\x02(S"touch %s"\niposix\nsystem\n.' % bytes(marker)))
    read_by_torch(path)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(UnsafeCheckpointError, match='pickle instruction'):
        load_checkpoint(path)
    assert not marker.exists()


def test_classes_cannot_be_changed(tmp_path):
    path = tmp_path / 'hostile.pth'
    # Namespace, given the state (None, {'polluted': True})
    body = b'\x80\x02cargparse\nNamespace\n(N}X\x08\x00\x00\x00polluted\x88stb.'
    path.write_bytes(stream_of(body))
    read_by_torch(path)
    assert argparse.Namespace.polluted
    del argparse.Namespace.polluted
    with pytest.raises(UnsafeCheckpointError, match='sets the state of'):
        load_checkpoint(path)
    assert not hasattr(argparse.Namespace, 'polluted')


def test_statistics_of_history_buffer_cannot_be_replaced(tmp_path):
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    path = tmp_path / 'hostile.pth'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistoryBuffer, '_statistics_methods', dict(mean=argparse.Namespace))
        torch.save(buffer, path)
    assert load_checkpoint(path).statistics('mean') == 2
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        # A class that is only an argument elsewhere; a type with a size that is not its own;
        # an array of Python objects; a codec that decompresses; a persistent id with a class.
        (b'cnumpy\nndarray\n(K\x02tR', 'calls'),
        (
            b'cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR(K\x03X\x01\x00\x00\x00<NNNM\xe8\x03J\xff\xff\xff\xffK\x00tb',
            'float64',
        ),
        (b'cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR', 'O8'),
        (b'c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlbtR', 'zlb'),
        (
            b'(X\x06\x00\x00\x00modulecargparse\nNamespace\nX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ',
            'module',
        ),
    ],
    ids=['argument_only', 'dtype_size', 'object_array', 'codec', 'module'],
)
def test_admitted_names_do_only_what_checkpoints_need(tmp_path, body, message):
    path = tmp_path / 'hostile.pth'
    path.write_bytes(stream_of(b'\x80\x02' + body + b'.'))
    with pytest.raises(UnsafeCheckpointError, match=message):
        load_checkpoint(path)


class Extra:
    """What a user may want in a checkpoint."""

    def __init__(self, value):
        self.value = value


def test_allow_classes(tmp_path):
    path = tmp_path / 'extra.pth'
    torch.save(dict(extra=Extra(7)), path)
    with pytest.raises(UnsafeCheckpointError) as error:
        load_checkpoint(path)
    assert f'{Extra.__module__}.Extra' in str(error.value)
    assert 'mmkw.checkpoints.allow_classes(Extra)' in str(error.value)
    allow_classes(Extra)
    assert load_checkpoint(path)['extra'].value == 7


def test_allow_classes_takes_no_names():
    with pytest.raises(TypeError, match="'posix.system'"):
        allow_classes('posix.system')


@FORMATS
def test_truncated(tmp_path, zipped):
    whole = tmp_path / 'whole.pth'
    torch.save(
        dict(state_dict=nn.Linear(30, 20).state_dict(), hub=HistoryBuffer([1.0], [1])),
        whole,
        _use_new_zipfile_serialization=zipped,
    )
    content = whole.read_bytes()
    path = tmp_path / 'truncated.pth'
    lengths = {1, 3, 20, *range(100, len(content), 97), len(content) - 30, len(content) - 1}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path)
        assert type(error.value) is CheckpointError, (length, error.value)
        assert str(path) in str(error.value)


@pytest.mark.parametrize('bits', [[4], pytest.param(range(8), marks=pytest.mark.slow)])
def test_flipped_bits(tmp_path, bits):
    """In every byte: the padding does not matter, and elsewhere it is noticed.

    torch itself reads wrong weights then, as it does not look at the checksums.
    """
    path = tmp_path / 'flipped.pth'
    saved = dict(weight=torch.randn(7), epochs=[1, 2])
    torch.save(saved, path)
    content = path.read_bytes()
    wrong = refused = 0
    for position in range(len(content)):
        for bit in bits:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert_same(load_checkpoint(path), saved)
            except CheckpointError as error:
                assert str(path) in str(error)
                refused += 1
                with contextlib.suppress(Exception):
                    wrong += not torch.equal(read_by_torch(path)['weight'], saved['weight'])
    assert refused > len(content) / 4 * len(bits)
    assert wrong >= 28 * len(bits)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'config = dict(lr=0.1)\n', 'is not a checkpoint'),
        (b'<!DOCTYPE html><title>404 Not Found</title>', 'is not a checkpoint'),
        (pickle.dumps([1, 2, 3], 2), 'cannot be read as a checkpoint'),
        (pickle.dumps([1, 2, 3], 5), 'cannot be read as a checkpoint'),
    ],
    ids=['empty', 'text', 'web_page', 'pickle', 'new_pickle'],
)
def test_not_a_checkpoint(tmp_path, content, message):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_other_archives(tmp_path):
    path = tmp_path / 'archive.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('folder/notes.txt', 'hello')
    with pytest.raises(CheckpointError, match='zip archive, but not one that torch'):
        load_checkpoint(path)

    script = tmp_path / 'script.pth'
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    with pytest.raises(CheckpointError, match='TorchScript'):
        load_checkpoint(script)


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='no.pth does not exist'):
        load_checkpoint(tmp_path / 'no.pth')
    with pytest.raises(IsADirectoryError, match='is a folder'):
        load_checkpoint(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    for name in ('/dev/null', tmp_path / 'pipe'):
        with pytest.raises(CheckpointError, match=f'{name} is a device or a pipe'):
            load_checkpoint(name)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(a=1), tmp_path / 'a.pth')
    assert load_checkpoint('~/a.pth') == dict(a=1)


def test_runner_checkpoint(tmp_path):
    toy_runner(tmp_path / 'work', epochs=2).train()
    path = tmp_path / 'work' / 'epoch_2.pth'
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint, read_by_torch(path))
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'} < set(checkpoint)
    assert isinstance(checkpoint['message_hub']['log_scalars']['train/loss'], HistoryBuffer)

    runner = toy_runner(tmp_path / 'work', epochs=3, resume=True)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 6)
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    earlier, _ = checkpoint['message_hub']['log_scalars']['train/loss'].data
    assert len(losses) == 6
    np.testing.assert_array_equal(losses[:4], earlier)
