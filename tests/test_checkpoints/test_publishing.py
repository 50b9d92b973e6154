"""Published checkpoints, read by torch's own restricted reader and by MMEngine."""

import hashlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_pickles import creates
from mmengine.runner import load_checkpoint as load_into_model
from toy_runs import Toy, toy_runner

import mmkw
from mmkw.checkpoints import UnsafeCheckpointError, load_checkpoint, publish_checkpoint

TOOL = Path(mmkw.__file__).parents[1] / 'tools' / 'model_converters' / 'publish_model.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run with EMAHook, and its last checkpoint."""
    folder = tmp_path_factory.mktemp('run')
    runner = toy_runner(folder, epochs=2)
    runner.train()
    return runner, folder / 'epoch_2.pth'


def save(path, **content):
    torch.save(content, path)
    return path


def test_published_checkpoint_of_a_run(trained, tmp_path):
    runner, source = trained
    path = publish_checkpoint(source, tmp_path / 'toy.pth')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path == tmp_path / f'toy-{digest[:8]}.pth'
    assert [path] == list(tmp_path.iterdir())

    published = torch.load(path, weights_only=True)
    original = load_checkpoint(source)
    assert set(published) == {'meta', 'state_dict'}
    assert {'cfg', 'epoch', 'iter', 'seed', 'experiment_name'} <= set(published['meta'])
    assert published['meta']['epoch'] == 2
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    for name, value in ema.ema_model.module.state_dict().items():
        assert torch.equal(published['state_dict'][name], value), name
    assert published['state_dict']._metadata == original['state_dict']._metadata
    model = Toy()
    load_into_model(model, str(path), strict=True)
    assert path.stat().st_size < source.stat().st_size / 2


def test_weights_of_the_optimizer(trained, tmp_path):
    runner, source = trained
    path = publish_checkpoint(source, tmp_path / 'toy', use_ema=False)
    published = torch.load(path, weights_only=True)['state_dict']
    averaged = load_checkpoint(source)['state_dict']
    assert published._metadata == averaged._metadata
    assert not torch.equal(published['layers.0.weight'], averaged['layers.0.weight'])
    for name, value in runner.model.state_dict().items():
        assert torch.equal(published[name], value), name


def test_same_checkpoint_gives_the_same_file(trained, tmp_path):
    first, again = (publish_checkpoint(trained[1], tmp_path / 'toy.pth') for _ in range(2))
    assert first == again and len(list(tmp_path.iterdir())) == 1
    twice = publish_checkpoint(first, tmp_path / 'toy.pth')
    assert twice == first


def test_state_dict_alone_and_views(tmp_path):
    """A slice of a large tensor is published as what it shows."""
    large = torch.randn(1000, 1000)
    path = publish_checkpoint(save(tmp_path / 'a.pth', weight=large[:2, :2]), tmp_path / 'b')
    published = torch.load(path, weights_only=True)
    assert torch.equal(published['state_dict']['weight'], large[:2, :2])
    assert published['meta'] == {} and path.stat().st_size < 10_000


def test_views_among_the_weights_of_the_optimizer(tmp_path):
    large = torch.randn(1000, 1000)
    averages = {'module.weight': large[:2, :2], 'steps': torch.tensor(3)}
    source = save(
        tmp_path / 'a.pth', state_dict=dict(weight=torch.ones(2, 2)), ema_state_dict=averages
    )
    path = publish_checkpoint(source, tmp_path / 'b', use_ema=False)
    published = torch.load(path, weights_only=True)['state_dict']
    assert torch.equal(published['weight'], large[:2, :2]) and path.stat().st_size < 10_000


def test_metadata_becomes_plain(tmp_path):
    meta = dict(
        dataset_meta=dict(classes=('cat', 'dog'), palette=np.array([[1, 2, 3]])),
        accuracy=np.float32(0.5),
        epoch=np.int64(3),
    )
    source = save(tmp_path / 'a.pth', state_dict=dict(weight=torch.ones(1)), meta=meta)
    published = torch.load(publish_checkpoint(source, tmp_path / 'b'), weights_only=True)
    assert published['meta'] == dict(
        dataset_meta=dict(classes=('cat', 'dog'), palette=[[1, 2, 3]]), accuracy=0.5, epoch=3
    )


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (dict(state_dict={}), 'holds no state dict'),
        (dict(state_dict=dict(weight=[1.0])), "'weight' is of type list"),
        (dict(epoch=3), "'epoch' is of type int"),
        (dict(state_dict={5: torch.ones(1)}), 'tensors by name, but 5 is of type Tensor'),
        (
            dict(state_dict=dict(weight=torch.tensor([1.0, float('nan')]))),
            'weight has values that are infinite',
        ),
        (
            dict(state_dict=dict(weight=torch.ones(1)), meta=dict(a=dict(b={1}))),
            'meta.a.b is of type set',
        ),
    ],
)
def test_bad_content_is_named(content, message, tmp_path):
    source = save(tmp_path / 'a.pth', **content)
    with pytest.raises(ValueError, match=message) as error:
        publish_checkpoint(source, tmp_path / 'b.pth')
    assert str(source) in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_bad_arguments_are_named(tmp_path):
    source = save(tmp_path / 'a.pth', weight=torch.ones(1))
    with pytest.raises(ValueError, match='has no averaged weights'):
        publish_checkpoint(source, tmp_path / 'b.pth', use_ema=False)
    with pytest.raises(FileNotFoundError, match='no.pth does not exist'):
        publish_checkpoint(tmp_path / 'no.pth', tmp_path / 'b.pth')
    with pytest.raises(FileNotFoundError, match='folder .*none does not exist'):
        publish_checkpoint(source, tmp_path / 'none' / 'b.pth')
    torch.save([torch.ones(1)], source)
    with pytest.raises(ValueError, match='of type list'):
        publish_checkpoint(source, tmp_path / 'b.pth')


def test_checkpoint_hook_publishes(tmp_path):
    """MMEngine's hook reads the last checkpoint again for that."""
    hook = dict(type='CheckpointHook', published_keys=['meta', 'state_dict'])
    folder = tmp_path / 'hook'
    toy_runner(folder, epochs=2, default_hooks=dict(checkpoint=hook)).train()
    (path,) = folder.glob('epoch_2-????????.pth')
    assert set(load_checkpoint(path)) == {'meta', 'state_dict'}


def test_tool(trained, tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        runpy.run_path(str(TOOL), run_name='__main__')

    run(trained[1], tmp_path / 'toy.pth', '--no-ema')
    (path,) = tmp_path.iterdir()
    assert f'{trained[1]} -> {path} (' in capsys.readouterr().out
    assert path == publish_checkpoint(trained[1], tmp_path / 'toy.pth', use_ema=False)

    hostile = save(tmp_path / 'hostile.pth', state_dict=creates(tmp_path / 'ran'))
    with pytest.raises(UnsafeCheckpointError):
        publish_checkpoint(hostile, tmp_path / 'out.pth')
    with pytest.raises(SystemExit) as error:
        run(hostile, tmp_path / 'out.pth')
    assert str(error.value).startswith('error: ') and '\n' not in str(error.value)
    assert set(tmp_path.iterdir()) == {path, hostile}
