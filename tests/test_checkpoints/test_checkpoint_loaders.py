"""Every way in which MMEngine finds a checkpoint ends in the safe reader."""

import json
import multiprocessing
import os
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hostile_pickles import creates
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import backends
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import nn

from mmkw.checkpoints import CheckpointError, UnsafeCheckpointError

WEIGHTS = dict(weight=torch.eye(2), bias=torch.ones(2))


class Requests(list):
    """What a server was asked for."""

    url = None


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args, requests, **kwargs):
        self.requests = requests
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.requests.append(self.path)
        if self.path != '/cut.pth':
            return super().do_GET()
        # A connection that breaks halfway.
        content = Path(self.directory, 'good.pth').read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def marker(tmp_path):
    """A file that appears if a payload runs; there is none after any test."""
    path = tmp_path / 'pwned'
    yield path
    assert not path.exists()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where torch and MMEngine keep downloads."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    (tmp_path / 'mmengine').mkdir()
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(tmp_path, marker, cache, monkeypatch):
    """A web server with a good, a hostile and a truncated file; lists the paths asked for."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    folder = tmp_path / 'site'
    folder.mkdir()
    torch.save(dict(state_dict=WEIGHTS), folder / 'good.pth')
    torch.save(dict(state_dict=WEIGHTS, meta=creates(marker)), folder / 'hostile.pth')
    (folder / 'truncated.pth').write_bytes((folder / 'good.pth').read_bytes()[:-40])
    (folder / 'page.pth').write_text('<!DOCTYPE html>')
    requests = Requests()
    handler = partial(Handler, directory=str(folder), requests=requests)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        requests.url = f'http://127.0.0.1:{http.server_port}'
        yield requests
        http.shutdown()


def load(filename):
    return CheckpointLoader.load_checkpoint(filename, map_location='cpu')


def assert_good(checkpoint):
    state_dict = checkpoint['state_dict']
    assert list(state_dict) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert torch.equal(state_dict[name], value)


def test_no_scheme_is_left_to_a_trusting_loader():
    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} == {
        'mmkw.checkpoints.checkpoint_loaders'
    }


def test_good_file_is_downloaded_once(server, cache):
    for _ in range(2):
        assert_good(load(f'{server.url}/good.pth'))
    assert server == ['/good.pth']
    assert [path.name for path in cache.iterdir()] == ['good.pth']


def test_hostile_file_is_refused(server):
    with pytest.raises(UnsafeCheckpointError, match=r'posix\.system.*allow_classes'):
        load(f'{server.url}/hostile.pth')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('truncated.pth', 'is truncated'),
        ('page.pth', 'is not a checkpoint'),
        ('cut.pth', 'is truncated|cannot be downloaded'),
        ('missing.pth', 'cannot be downloaded .*404'),
    ],
)
def test_bad_download_is_not_kept(name, message, server, cache):
    for _ in range(2):
        with pytest.raises(CheckpointError, match=message) as error:
            load(f'{server.url}/{name}')
        assert name in str(error.value)
    assert server == [f'/{name}'] * 2
    assert not list(cache.iterdir())


def test_no_connection(server, cache):
    with pytest.raises(CheckpointError, match='http://127.0.0.1:1/a.pth cannot be downloaded'):
        load('http://127.0.0.1:1/a.pth')
    with pytest.raises(CheckpointError, match='http://no port:x/a.pth cannot be downloaded'):
        load('http://no port:x/a.pth')
    with pytest.raises(CheckpointError, match='http://127.0.0.1:1/ names no file'):
        load('http://127.0.0.1:1/')


def test_damaged_file_in_the_cache_is_named(server, cache):
    (cache / 'good.pth').write_bytes(b'PK\x03\x04')
    with pytest.raises(CheckpointError, match=f'{cache}/good.pth.*delete it to download'):
        load(f'{server.url}/good.pth')
    assert server == []


class Pretrained(BaseModule):
    def __init__(self, **init_cfg):
        super().__init__(init_cfg=dict(type='Pretrained', **init_cfg))
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))


def test_init_cfg(server):
    model = Pretrained(checkpoint=f'{server.url}/good.pth')
    model.init_weights()
    assert_good(dict(state_dict=model.state_dict()))
    with pytest.raises(UnsafeCheckpointError):
        Pretrained(checkpoint=f'{server.url}/hostile.pth').init_weights()


def test_init_cfg_with_a_prefix(tmp_path, marker):
    state_dict = {f'backbone.{name}': value for name, value in WEIGHTS.items()}
    torch.save(dict(state_dict=state_dict), tmp_path / 'good.pth')
    torch.save(dict(state_dict=state_dict, meta=creates(marker)), tmp_path / 'hostile.pth')
    model = Pretrained(checkpoint=str(tmp_path / 'good.pth'), prefix='backbone.')
    model.init_weights()
    assert_good(dict(state_dict=model.state_dict()))
    model = Pretrained(checkpoint=str(tmp_path / 'hostile.pth'), prefix='backbone.')
    with pytest.raises(UnsafeCheckpointError):
        model.init_weights()


@pytest.mark.parametrize(
    ('name', 'urls'),
    [
        ('torchvision://resnet18', get_torchvision_models),
        ('modelzoo://resnet18', get_torchvision_models),
        ('open-mmlab://resnet50_caffe', get_external_models),
        ('openmmlab://detectron2/resnet50_caffe', get_external_models),
        ('mmcls://mobilenet_v2', get_mmcls_models),
    ],
)
def test_model_names(name, urls, cache, marker):
    """Files that the cache has already, under the names of the models' URLs."""
    model = name.split('://')[1]
    url = urls()[get_deprecated_model_names().get(model, model)]
    path = cache / url.rsplit('/', 1)[1]
    prefix = 'backbone.' if name.startswith('mmcls') else ''
    state_dict = {f'{prefix}{name}': value for name, value in WEIGHTS.items()}
    other = dict.fromkeys(['head.fc.weight'] if prefix else [], torch.zeros(1))
    torch.save(dict(state_dict=dict(state_dict, **other)), path)
    assert_good(load(name))

    torch.save(dict(state_dict=state_dict, meta=creates(marker)), path)
    with pytest.raises(UnsafeCheckpointError):
        load(name)
    with pytest.raises(CheckpointError, match=rf'{name}x: no model of this name.*{model}'):
        load(f'{name}x')


def test_own_model_names(server, tmp_path, cache, marker):
    """MMEngine reads more names, for URLs and files, from its home."""
    names = dict(mine=f'{server.url}/good.pth', local='local.pth', hostile='hostile.pth')
    (tmp_path / 'mmengine' / 'open_mmlab.json').write_text(json.dumps(names))
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'mmengine' / 'local.pth')
    torch.save(creates(marker), tmp_path / 'mmengine' / 'hostile.pth')
    assert_good(load('open-mmlab://mine'))
    assert_good(load('open-mmlab://local'))
    with pytest.raises(UnsafeCheckpointError):
        load('open-mmlab://hostile')


@pytest.mark.parametrize('scheme', ['s3', 'petrel', 'cluster:s3'])
def test_object_store(scheme, tmp_path, marker, monkeypatch):
    class Store(LocalBackend):
        def get(self, filepath):
            return super().get(tmp_path / filepath.split('://')[1])

    monkeypatch.setitem(backends, 'petrel', Store)
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'good.pth')
    torch.save(creates(marker), tmp_path / 'hostile.pth')
    assert_good(load(f'{scheme}://good.pth'))
    with pytest.raises(UnsafeCheckpointError, match=f'{scheme}://hostile.pth'):
        load(f'{scheme}://hostile.pth')


def test_pavi(tmp_path, marker, monkeypatch):
    class Model:
        name = 'model.pth'

        def __init__(self, content):
            self.content = content

        def download(self, path):
            torch.save(self.content, path)

    models = dict(good=Model(dict(state_dict=WEIGHTS)), hostile=Model(creates(marker)))
    monkeypatch.setitem(sys.modules, 'pavi', SimpleNamespace(modelcloud=models))
    assert_good(load('pavi://good'))
    with pytest.raises(UnsafeCheckpointError):
        load('pavi://hostile')


def load_as_rank(rank, port, url, errors):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    torch.distributed.init_process_group('gloo')
    CheckpointLoader.load_checkpoint(f'{url}/good.pth')
    for name in ('missing', 'page'):
        try:
            CheckpointLoader.load_checkpoint(f'{url}/{name}.pth')
        except CheckpointError as error:
            errors.put(str(error))


def test_ranks_download_once(server, cache):
    """And where the first one fails, the others do not wait for it."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # New processes would first import OpenMMLab.
    context = multiprocessing.get_context('fork')
    errors = context.SimpleQueue()
    ranks = [
        context.Process(target=load_as_rank, args=(rank, port, server.url, errors))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
        assert rank.exitcode == 0
    found = [errors.get() for _ in range(4)]
    assert sum('404' in error for error in found) == 2
    assert sum('page.pth is not a checkpoint' in error for error in found) == 2
    assert server.count('/good.pth') == 1
    assert [path.name for path in cache.iterdir()] == ['good.pth']
