"""Checkpoints in the safetensors format."""

import json
import sys

import pytest
import torch
from golden import load_golden, make_released_checkpoint
from mmengine.runner import load_checkpoint as mmengine_load_checkpoint
from safetensors import safe_open
from tiny_runs import load_tool
from torch import nn

from mmkw.checkpoints import CheckpointError, convert_released, load_checkpoint, save_checkpoint
from mmkw.checkpoints.safetensors_format import checkpoint_from_bytes, checkpoint_to_bytes
from mmkw.openmmlab.backbones import KWResNet


def test_converted_by_the_tool(tmp_path):
    src, dst = tmp_path / 'released.pth', tmp_path / 'mmkw.safetensors'
    torch.save(make_released_checkpoint(load_golden('kw_mobilenetv2_050_1x')), src)
    load_tool('model_converters/released_to_mmkw').main([str(src), str(dst)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [dst.name, src.name]
    expected = convert_released(src)
    with safe_open(dst, 'pt') as file:
        assert json.loads(file.metadata()['mmkw.meta']) == expected['meta']
        assert set(file.keys()) == set(expected['state_dict'])
        for name, value in expected['state_dict'].items():
            assert torch.equal(file.get_tensor(name), value), name

    checkpoint = checkpoint_from_bytes(dst.read_bytes())
    assert checkpoint['meta'] == expected['meta']
    assert set(checkpoint['state_dict']) == set(expected['state_dict'])
    for name, value in expected['state_dict'].items():
        assert torch.equal(checkpoint['state_dict'][name], value), name


def test_mmengine_loads_it(tmp_path):
    """By ``load_from`` and by ``init_cfg``; a damaged file is a checkpoint error like others."""
    path = tmp_path / 'model.safetensors'
    network = nn.ModuleDict(dict(backbone=KWResNet(18, base_channels=16, stem_channels=16)))
    save_checkpoint(dict(state_dict=network.state_dict()), path)
    other = nn.ModuleDict(dict(backbone=KWResNet(18, base_channels=16, stem_channels=16)))
    mmengine_load_checkpoint(other, str(path), map_location='cpu', strict=True)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    backbone = KWResNet(18, base_channels=16, stem_channels=16, init_cfg=init_cfg)
    backbone.init_weights()
    for name, value in network['backbone'].state_dict().items():
        assert torch.equal(other['backbone'].state_dict()[name], value), name
        assert torch.equal(backbone.state_dict()[name], value), name
    assert load_checkpoint(path, 'meta')['state_dict']['backbone.bn1.weight'].is_meta

    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r'model\.safetensors .*truncated'):
        load_checkpoint(path)


def test_shared_and_strided_tensors_and_all_types():
    base = torch.randn(4, 6)
    state_dict = dict(
        base=base,
        same=base,
        column=base[:, 1],
        transposed=base.t(),
        repeated=torch.zeros(1).expand(3, 2),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        counter=torch.tensor(7),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(base[0]),
    )
    found = checkpoint_from_bytes(checkpoint_to_bytes(dict(state_dict=state_dict)))
    assert found['meta'] == {}
    assert set(found['state_dict']) == set(state_dict)
    for name, value in state_dict.items():
        assert found['state_dict'][name].dtype == value.dtype
        assert torch.equal(found['state_dict'][name], value), name


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    path = tmp_path / 'model.safetensors'
    with pytest.raises(ValueError, match=r"also has \['optimizer'\]; write a \.pth"):
        save_checkpoint(dict(state_dict={}, optimizer={}), path)
    with pytest.raises(ValueError, match=r'meta .*Path.* write a \.pth'):
        save_checkpoint(dict(state_dict={}, meta=dict(source=path)), path)
    with pytest.raises(FileNotFoundError, match=r'missing does not exist'):
        save_checkpoint(dict(state_dict={}), tmp_path / 'missing' / path.name)
    assert not list(tmp_path.iterdir())


def test_damaged_content_is_refused():
    content = checkpoint_to_bytes(dict(state_dict=dict(weight=torch.ones(50)), meta=dict(a=1)))
    for length in (0, 4, 8, 30, len(content) - 1):
        with pytest.raises(ValueError, match='not a whole .safetensors file'):
            checkpoint_from_bytes(content[:length])
    damaged = content.replace(rb'{\"a\": 1}', rb'{\"a\": 1[')
    assert damaged != content
    with pytest.raises(ValueError, match='not a whole .safetensors file'):
        checkpoint_from_bytes(damaged)


def test_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r"pip install 'safetensors>=0\.4,<1'"):
        save_checkpoint(dict(state_dict={}), tmp_path / 'model.safetensors')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_every_map_location_is_honoured(suffix, tmp_path):
    path = tmp_path / f'a{suffix}'
    save_checkpoint(dict(state_dict=dict(w=torch.arange(3.0))), path)
    for place in ('meta', torch.device('meta'), {'cpu': 'meta'}):
        assert load_checkpoint(path, place)['state_dict']['w'].is_meta
    for place in ('cpu', None, {}, lambda storage, location: None):
        assert load_checkpoint(path, place)['state_dict']['w'].tolist() == [0, 1, 2]

    def full(storage, location):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.cuda.OutOfMemoryError, match='^CUDA out of memory'):
        load_checkpoint(path, full)
    with pytest.raises(CheckpointError, match="cannot be put on 'nowhere'.*map_location='cpu'"):
        load_checkpoint(path, 'nowhere')
