"""ONNX files in ONNX Runtime, against PyTorch."""

from functools import partial

import pytest
import torch
from fitted_norms import fit_norms
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import CLASSIFIER, DETECTOR, load_tool, refused, write_random_model
from torch import nn

from mmkw import CondConv2d, DYConv2d, KWConv2d, ODConv2d, fold_attentions, set_temperature
from mmkw.deployment import compare_onnx, exported_part, to_onnx

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


def check(network, shapes, **options):
    part = exported_part(network)
    n, *rest = shapes[0]
    content = to_onnx(part, torch.randn(max(n, 2), *rest), **options)
    for comparison in compare_onnx(content, part, shapes, repeats=0):
        assert comparison.error < 1e-4, comparison
    return onnx.load_from_string(content)


LAYERS = dict(
    dense=partial(KWConv2d, 16, 16, 3, stride=2, padding=1, cell_ratio=0.5),
    depthwise=partial(KWConv2d, 16, 16, 3, padding=1, groups=16),
    groups=partial(
        KWConv2d, 16, 16, 3, padding='same', dilation=(2, 1), groups=2, spatial_partition=False
    ),
    odconv=partial(ODConv2d, 16, 16, 3, stride=2, padding=1),
    dyconv=partial(DYConv2d, 16, 16, 1, stride=2),
    condconv=partial(CondConv2d, 16, 8, 3, padding=1, bias=False),
)


@pytest.mark.parametrize(
    'names',
    [['groups', 'odconv'], pytest.param(list(LAYERS), marks=pytest.mark.slow)],
    ids=['some', 'all'],
)
def test_layers_of_all_kinds(names):
    torch.manual_seed(0)
    network = nn.Sequential(*(LAYERS[name]() for name in names))
    model = check(network, [(1, 16, 40, 56), (5, 16, 40, 56), (5, 16, 64, 48)])
    shape = model.graph.input[0].type.tensor_type.shape
    assert [bool(size.dim_param) for size in shape.dim] == [True, False, True, True]
    check(network, [(3, 16, 40, 56)], dynamic_batch=False)


def test_vanishing_outputs_are_refused():
    network = KWConv2d(3, 4, 1, bias=False)
    nn.init.zeros_(network.warehouse.cells)
    with pytest.raises(ValueError, match='exceeds 1e-12 in PyTorch.* are the weights trained'):
        check(network, [(2, 3, 8, 8)])


def test_folded_attentions():
    torch.manual_seed(0)
    network = nn.Sequential(KWConv2d(8, 8, 3, padding=1, cell_ratio=0.125, budget=2)).eval()
    set_temperature(network, 0)
    assert fold_attentions(network, 0)
    check(network, [(1, 8, 9, 9), (5, 8, 12, 9)])


# Dynamic layers take seconds each to export.
ONE_LAYER = """
model['backbone'] = dict(
    type='DynamicBackbone',
    backbone=dict(
        type='mmpretrain.ResNet', depth=18, num_stages=1, strides=(2,), dilations=(1,),
        out_indices=(0,), base_channels=16, stem_channels=16,
    ),
    layer=dict(type='KWConv2d'),
    layers=['layer1.0.conv1'],
)
model['head']['in_channels'] = 16
"""


def test_tool_exports_a_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(CLASSIFIER + ONE_LAYER)
    write_random_model('config.py', 'model.pth')
    load_tool('deployment/export_onnx').main(
        ['config.py', 'model.pth', 'model.onnx', '--shape', '32']
    )
    out = capsys.readouterr().out
    assert 'batch 5, 64 x 96: relative error' in out and 'wrote model.onnx' in out
    model = onnx.load(tmp_path / 'model.onnx')
    assert [o.name for o in model.graph.output] == ['output0']
    load_tool('deployment/export_onnx').main(
        ['config.py', 'model.pth', 'model.onnx', '--shape', '32', '--batch-size', '1']
    )
    out = capsys.readouterr().out
    assert 'batch 1, 32 x 32: relative error' in out and 'times as fast as' in out
    shape = onnx.load(tmp_path / 'model.onnx').graph.input[0].type.tensor_type.shape
    assert [size.dim_value for size in shape.dim] == [1, 3, 32, 32]


@pytest.mark.slow
def test_tool_exports_backbone_and_neck_of_a_detector(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(DETECTOR)
    write_random_model('config.py', 'model.pth')
    load_tool('deployment/export_onnx').main(
        ['config.py', 'model.pth', 'model.onnx', '--shape', '96']
    )
    assert 'wrote model.onnx' in capsys.readouterr().out
    assert len(onnx.load(tmp_path / 'model.onnx').graph.output) == 5


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='at least 2 images, but got 1'):
        to_onnx(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    (tmp_path / 'config.py').write_text(CLASSIFIER)
    tool = load_tool('deployment/export_onnx')
    assert 'at least 1, but got 0' in refused(
        tool, 'config.py', 'no.pth', 'model.onnx', '--batch-size', '0'
    )
    assert 'no.pth does not exist' in refused(tool, 'config.py', 'no.pth', 'model.onnx')
    assert not (tmp_path / 'model.onnx').exists()


NETWORKS = dict(
    resnet18=dict(type='KWResNet', depth=18),
    resnet50=dict(type='KWResNet', depth=50),
    mobilenet=dict(type='KWMobileNetV2'),
    convnext=dict(type='KWConvNeXt'),
    odconv=dict(
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        layer=dict(type='ODConv2d'),
        layers=['layer*.conv?'],
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_networks(name):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    shapes = [(n, 3, size, size) for n in (1, 5) for size in (224, 256)]
    network = MODELS.build(NETWORKS[name])
    set_temperature(network, 1 if name == 'odconv' else 0.3)
    if name == 'mobilenet':
        fit_norms(network, 224)
    check(network, shapes)


@pytest.mark.slow
def test_vision_transformer_has_a_fixed_size():
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    for size in (224, 256):
        network = MODELS.build(dict(type='KWVisionTransformer', arch='deit-tiny', img_size=size))
        set_temperature(network, 0.3)
        check(network, [(1, 3, size, size), (5, 3, size, size)], dynamic_size=False)
    part = exported_part(network)
    with pytest.raises(ValueError, match='--fixed-size'):
        compare_onnx(to_onnx(part, torch.zeros(2, 3, 256, 256)), part, [(2, 3, 224, 224)])
