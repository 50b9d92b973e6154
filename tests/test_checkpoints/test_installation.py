"""MMEngine with mmkw's help, before, with and after it; and config texts, which nobody executes."""

import os

import mmengine.runner
import numpy as np
import pytest
import torch
from hostile_pickles import creates
from mmdet.apis import DetInferencer
from mmengine.fileio import LocalBackend, dump, get_file_backend, put, put_text
from mmengine.fileio.backends import backends, prefix_to_backends
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.visualization import Visualizer
from toy_runs import toy_runner

from mmkw.checkpoints import (
    UnsafeCheckpointError,
    install,
    load_checkpoint,
    save_checkpoint,
    uninstall,
)

MODULES = (mmengine.runner, mmengine.runner.checkpoint, mmengine.runner.runner)


@pytest.fixture
def uninstalled():
    """The process as if mmkw had not been imported."""
    uninstall()
    yield
    uninstall()
    install()


def state():
    """What of MMEngine could have been replaced."""
    return (
        dict(CheckpointLoader._schemes),
        [module.save_checkpoint for module in MODULES],
        dict(backends),
        dict(prefix_to_backends),
    )


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def test_installing_is_undone_completely(uninstalled):
    before = state()
    assert all(loader.__module__.startswith('mmengine.') for loader in before[0].values())
    assert {saver.__module__ for saver in before[1]} == {'mmengine.runner.checkpoint'}
    install()
    installed = state()
    install()
    assert state() == installed
    assert not set(installed[0].values()) & set(before[0].values())
    assert set(before[0]) == set(installed[0])
    assert installed[2:] == before[2:]
    for _ in range(2):
        uninstall()
        assert state() == before
        assert list(CheckpointLoader._schemes) == list(before[0])
    install()
    assert state() == installed


def test_others_keep_their_own(uninstalled, monkeypatch):
    """Loaders and savers that somebody registered before and after."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    loaders = {name: lambda filename, map_location, name=name: name for name in 'abc'}
    CheckpointLoader.register_scheme('a://', loaders['a'])
    CheckpointLoader.register_scheme('pavi://', loaders['b'], force=True)
    install()
    assert CheckpointLoader._get_checkpoint_loader('a://x') is loaders['a']
    assert CheckpointLoader._get_checkpoint_loader('pavi://x') is not loaders['b']
    CheckpointLoader.register_scheme('s3-new://', loaders['c'])
    CheckpointLoader.register_scheme('https://', loaders['c'], force=True)
    monkeypatch.setattr(mmengine.runner.runner, 'save_checkpoint', loaders['c'])
    uninstall()
    for address, name in (('a', 'a'), ('pavi', 'b'), ('s3-new', 'c'), ('https', 'c')):
        assert CheckpointLoader._get_checkpoint_loader(f'{address}://x') is loaders[name]
    assert mmengine.runner.runner.save_checkpoint is loaders['c']


def test_reading_before_with_and_after(uninstalled, tmp_path, monkeypatch):
    # As if on torch 2.5 and older, where MMEngine trusts the file.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    marker, good, hostile = tmp_path / 'marker', tmp_path / 'good.pth', tmp_path / 'hostile.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), good)
    torch.save(creates(marker), hostile)
    for is_installed in (False, True, False):
        if is_installed:
            install()
        else:
            uninstall()
        assert load(good)['state_dict']['weight'].tolist() == [1, 1]
        if is_installed:
            with pytest.raises(UnsafeCheckpointError):
                load(hostile)
        else:
            load(hostile)
            marker.unlink()
        # Those who call torch themselves get what they ask for.
        torch.load(hostile, weights_only=False)
        marker.unlink()


def test_writing_before_with_and_after(uninstalled, tmp_path, monkeypatch):
    """Only checkpoints are replaced in one step and synchronised with the disk."""
    synced, real = [], os.fsync
    monkeypatch.setattr(os, 'fsync', lambda file: (synced.append(file), real(file)))
    visualizer = Visualizer(vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path))
    inodes = []
    for step in range(3):
        if step == 1:
            install()
        else:
            uninstall()
        for module in MODULES:
            module.save_checkpoint(dict(step=step), str(tmp_path / 'new' / 'checkpoint.pth'))
        assert load_checkpoint(tmp_path / 'new' / 'checkpoint.pth') == dict(step=step)
        assert len(synced) == (3 if step else 0)

        put(b'content', str(tmp_path / 'a.bin'))
        put_text('content', str(tmp_path / 'a.txt'))
        dump(dict(step=step), str(tmp_path / 'a.json'))
        visualizer.add_image('image', np.zeros((4, 4, 3), np.uint8))
        assert type(get_file_backend(str(tmp_path / 'a.bin'))) is LocalBackend
        inodes.append([(tmp_path / f'a.{kind}').stat().st_ino for kind in ('bin', 'txt', 'json')])
        assert len(synced) == (3 if step else 0)
    assert inodes[0] == inodes[1] == inodes[2]
    assert (tmp_path / 'vis_data' / 'vis_image' / 'image_0.png').stat().st_size > 0


def test_other_backends_write_checkpoints_themselves(tmp_path, monkeypatch):
    class Store(LocalBackend):
        def put(self, obj, filepath):
            super().put(obj, tmp_path / f'stored_{filepath}')

    monkeypatch.setitem(backends, 'store', Store)
    mmengine.runner.save_checkpoint(dict(a=2), 'a.pth', backend_args=dict(backend='store'))
    assert load_checkpoint(tmp_path / 'stored_a.pth') == dict(a=2)


@pytest.fixture
def program(tmp_path):
    """A config text that creates a file when it is executed; there is none after any test."""
    marker = tmp_path / 'executed'
    yield f'open({str(marker)!r}, "w").close()\nmodel = dict()\n'
    assert not marker.exists()


def test_resuming_executes_no_config(tmp_path, program):
    toy_runner(tmp_path / 'work', epochs=2).train()
    path = tmp_path / 'work' / 'epoch_2.pth'
    checkpoint = load_checkpoint(path)
    checkpoint['meta'].update(config=program, cfg=program)
    checkpoint['message_hub']['runtime_info']['cfg'] = program
    torch.save(checkpoint, path)
    assert load(path)['meta']['config_text'] == program
    runner = toy_runner(tmp_path / 'work', epochs=3, resume=True)
    runner.train()
    assert runner.iter == 6
    assert program not in runner.message_hub.runtime_info.values()


@pytest.mark.parametrize(
    'where, message',
    [
        ('meta', 'Cannot find the config'),
        ('message_hub', 'give the config file beside the weights'),
    ],
)
def test_inferencer_executes_no_config(where, message, tmp_path, program):
    checkpoint = dict(meta=dict(cfg=program), state_dict={})
    if where == 'message_hub':
        info = dict(cfg=program, iter=1)
        checkpoint = dict(meta={}, message_hub=dict(runtime_info=info), state_dict={})
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        DetInferencer(weights=str(tmp_path / 'a.pth'), device='cpu')
    # What was loaded can be saved, and is read again.
    loaded = load(tmp_path / 'a.pth')
    save_checkpoint(loaded, tmp_path / 'b.pth')
    assert load_checkpoint(tmp_path / 'b.pth') == loaded
