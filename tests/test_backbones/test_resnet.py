"""KWResNet against the paper's tables, the plain ResNets and MMPretrain's and MMDetection's use."""

from pathlib import Path

import mmdet
import pytest
import torch
import torch.distributed as dist
from kernels import trainable
from mmdet.models.backbones import ResNet as MMDetResNet
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet as MMPretrainResNet
from torch import nn

import mmkw
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.networks import partition_network
from mmkw.openmmlab.backbones import KWResNet, resnet_plan

# Table 14: depth, budget, m and n of the four warehouses.
TABLE_14 = [
    (18, 1 / 4, (224, 188, 188, 108), (56, 47, 47, 27)),
    (18, 1 / 2, (224, 188, 188, 108), (112, 94, 94, 54)),
    (18, 1, (56, 47, 47, 27), (56, 47, 47, 27)),
    (18, 2, (56, 47, 47, 27), (112, 94, 94, 54)),
    (18, 4, (56, 47, 47, 27), (224, 188, 188, 108)),
    (50, 1 / 2, (348, 416, 552, 188), (174, 208, 276, 94)),
    (50, 1, (87, 104, 138, 47), (87, 104, 138, 47)),
    (50, 4, (87, 104, 138, 47), (348, 416, 552, 188)),
]

# released-models.md: exact parameters of the classifiers with 1000 classes.
PARAMETERS = {
    (18, 1 / 4): 4_031_768,
    (18, 1 / 2): 7_431_044,
    (18, 1): 11_932_148,
    (18, 2): 23_242_127,
    (18, 4): 45_862_085,
    (50, 1 / 2): 17_638_264,
    (50, 1): 28_052_310,
    (50, 4): 102_015_144,
}


def small(**kwargs):
    """A narrow KWResNet18 for tests of behaviour."""
    return KWResNet(**{'depth': 18, 'stem_channels': 16, 'base_channels': 16, **kwargs})


@pytest.mark.parametrize(('depth', 'budget', 'm', 'n'), TABLE_14)
def test_table_14_and_parameter_counts(depth, budget, m, n):
    backbone = KWResNet(depth, budget)
    mixtures = {name: 0 for name in backbone.warehouses}
    for layer in backbone.modules():
        if isinstance(layer, KWConv2d):
            (name,) = (k for k, w in backbone.warehouses.items() if w is layer.warehouse)
            mixtures[name] += layer.partition.num_mixtures
    assert tuple(mixtures.values()) == m
    assert tuple(len(warehouse.cells) for warehouse in backbone.warehouses.values()) == n
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert parameters + (backbone.feat_dim + 1) * 1000 == PARAMETERS[depth, budget]


def test_table_15_reassigned_stages():
    network = KWResNet(18, budget=None)
    partitions = partition_network(network, resnet_plan(network))
    # Cell sizes, then the kernels (k, in, out) of each reassigned stage, row by row.
    expected = {
        'layer1': ((64, 64), [(3, 64, 64)] * 4 + [(3, 64, 128), (1, 64, 128)]),
        'layer2': ((128, 128), [(3, 128, 128)] * 3 + [(3, 128, 256), (1, 128, 256)]),
        'layer3': ((256, 256), [(3, 256, 256)] * 3 + [(3, 256, 512), (1, 256, 512)]),
        'layer4': ((512, 512), [(3, 512, 512)] * 3),
    }
    for stage, (cell, kernels) in expected.items():
        assert partitions[stage].cell_shape == (*cell, 1, 1)
        found = [k.kernel_shape for k in partitions[stage].kernels.values()]
        assert [(k, i, o) for o, i, k, _ in found] == kernels
    assert 'layer2.0.conv1' in partitions['layer1'].kernels
    assert 'layer2.0.downsample.0' in partitions['layer1'].kernels


def test_bottleneck_entry_of_stage_1_is_plain():
    backbone = KWResNet(50)
    plain = [name for name, module in backbone.named_modules() if type(module) is nn.Conv2d]
    assert plain == ['conv1', 'layer1.0.conv1', 'layer1.0.downsample.0']
    assert backbone.layer2[0].conv1.warehouse is backbone.warehouses['layer1']
    assert backbone.layer2[0].conv2.stride == (2, 2)


def test_budget_none_is_the_plain_network():
    kw, plain = small(budget=None), MMPretrainResNet(18, stem_channels=16, base_channels=16)
    assert list(kw.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    'arguments',
    [
        dict(style='caffe', depth=50),
        dict(deep_stem=True, avg_down=True),
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2)),
        dict(norm_cfg=dict(type='GN', num_groups=4)),
        dict(in_channels=1),
    ],
    ids=str,
)
def test_arguments_mean_what_they_mean_in_mmpretrain(arguments):
    arguments = {'depth': 18, 'stem_channels': 16, 'base_channels': 16, **arguments}
    kw, plain = KWResNet(**arguments), MMPretrainResNet(**arguments)
    x = torch.randn(2, arguments.get('in_channels', 3), 64, 64)
    assert [y.shape for y in kw(x)] == [y.shape for y in plain(x)]
    for name, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            twin = kw.get_submodule(name)
            for attribute in ('stride', 'padding', 'dilation', 'groups', 'kernel_size'):
                assert getattr(twin, attribute) == getattr(module, attribute), name


def test_arguments_of_an_mmdet_config():
    """The backbone of mmdet's Mask R-CNN base with nothing but the type changed."""
    base = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    backbone = Config.fromfile(base).model.backbone
    backbone.update(type='KWResNet', dcn=None, plugins=None, pretrained=None)
    backbone = MODELS.build(backbone)
    backbone.train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(norm.training for norm in norms), 'attention norms included'
    assert [y.shape[1] for y in backbone(torch.zeros(1, 3, 64, 64))] == [256, 512, 1024, 2048]


def test_none_means_what_it_means_in_mmdet():
    arguments = dict(depth=18, base_channels=16, stem_channels=None, init_cfg=None)
    kw, plain = KWResNet(**arguments), MMDetResNet(**arguments)
    assert kw.conv1.weight.shape == plain.conv1.weight.shape
    assert kw.init_cfg[0]['type'] == plain.init_cfg[0]['type'] == 'Kaiming'


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages_freeze_attentions_and_idle_warehouses(frozen_stages):
    backbone = small(frozen_stages=frozen_stages)
    backbone.train()
    assert trainable(backbone.conv1) == {frozen_stages < 0}
    for stage in range(1, 5):
        is_frozen = stage <= frozen_stages
        layers = getattr(backbone, f'layer{stage}')
        assert trainable(layers) == {not is_frozen}
        norms = [m for m in layers.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert {norm.training for norm in norms} == {not is_frozen}
        # Stage s's warehouse also serves the entry of stage s + 1; that of stage 4 serves no other.
        needed = stage + 1 > frozen_stages if stage < 4 else not is_frozen
        assert trainable(backbone.warehouses[f'layer{stage}']) == {needed}


def test_warehouses_of_frozen_stages_train_on_purpose():
    """The cells of frozen attentions; those of stage 1 serve frozen layers only."""
    torch.manual_seed(0)
    arguments = dict(frozen_stages=2, norm_eval=True)
    backbone = small(**arguments, freeze_idle_warehouses=False).train()
    assert trainable(backbone.warehouses) == {True}
    assert trainable(backbone.layer1) == trainable(backbone.layer2) == {False}
    x = torch.randn(2, 3, 32, 32)
    backbone(x)[0].square().sum().backward()
    # As when all trains.
    expected = small(norm_eval=True).train()
    expected.load_state_dict(backbone.state_dict())
    expected(x)[0].square().sum().backward()
    cells = backbone.warehouses['layer1'].cells.grad
    assert cells.any()
    torch.testing.assert_close(cells, expected.warehouses['layer1'].cells.grad)


def test_norm_eval():
    backbone = small(norm_eval=True)
    backbone.train()
    assert backbone.training
    x = torch.randn(1, 3, 32, 32)
    backbone(x)[0].sum().backward()  # a batch of 1 is fine, as no norm sees batch statistics
    assert backbone.warehouses['layer1'].cells.grad is not None


def test_with_cp_gives_the_same_gradients():
    torch.manual_seed(0)
    plain, checkpointed = small(norm_eval=True), small(norm_eval=True, with_cp=True)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    for backbone in (plain, checkpointed):
        mmkw.set_temperature(backbone, 0.5)
        backbone.train()
        backbone(x)[0].square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_with_cp_in_distributed_training(tmp_path):
    """Blocks share cells, so that several backward passes of blocks reach one parameter."""
    torch.manual_seed(0)
    images, grads = torch.randn(2, 3, 32, 32, requires_grad=True), []
    backbones = [small(norm_eval=True, with_cp=True) for _ in range(2)]
    backbones[1].load_state_dict(backbones[0].state_dict())
    dist.init_process_group('gloo', f'file://{tmp_path}/meeting', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(backbones[1], static_graph=True)
        for network, backbone in zip((backbones[0], wrapped), backbones):
            mmkw.set_temperature(backbone, 0.5)
            network.train()
            sum(output.square().sum() for output in network(images)).backward()
            grads.append([parameter.grad for parameter in backbone.parameters()])
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(*grads)


def test_drop_path():
    growing = small(drop_path_rate=0.1)
    rates = [
        getattr(b.drop_path, 'drop_prob', 0)
        for s in (1, 2, 3, 4)
        for b in getattr(growing, f'layer{s}')
    ]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    constant = small(drop_path_rate=0.1, constant_drop_path=True)
    rates = [b.drop_path.drop_prob for s in (1, 2, 3, 4) for b in getattr(constant, f'layer{s}')]
    assert rates == [0.1] * 8


def test_init_weights_keeps_the_kernel_warehouse_initialisation():
    """A network's initialisers pick layers by class; attention linears are not among them."""
    torch.manual_seed(0)
    backbone = small(init_cfg=dict(type='Constant', val=7.0, layer=['Linear', 'Conv2d']))
    backbone.init_weights()
    assert (backbone.conv1.weight == 7).all()
    attention = backbone.layer1[0].conv1.attention
    assert attention.fc2.weight.std() > 0 and not attention.fc2.bias.any()
    assert backbone.warehouses['layer1'].cells.std() > 0


def test_layer_wise_learning_rates():
    backbone = KWResNet(50)
    assert backbone.get_layer_depth('backbone.warehouses.layer3.cells', 'backbone.') == (
        backbone.get_layer_depth('backbone.layer3.0.conv2.attention.fc1.weight', 'backbone.')
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(depth=20), r'depth must be one of \[18, 34, 50, 101, 152\], but got 20'),
        (dict(budget='big'), "budget must be a positive number such as 1, 0.5 or '3/4'"),
        (
            dict(budget=1 / 7),
            'budget 1/7 leaves no whole number of cells.* suit this network are 1/4, 1/2, 3/4,',
        ),
        (dict(budget=1000), 'budget must be at most 64, but got 1000'),
        (dict(cell_ratio=1 / 100), 'cell_ratio 1/100 leaves no whole cell'),
        (dict(cell_ratio=3 / 4), 'does not divide'),
        (dict(dcn=dict(type='DCN')), 'KWResNet cannot take dcn='),
        (dict(plugins=[dict()]), 'KWResNet cannot take plugins='),
        (dict(pretrained='x', init_cfg=dict(type='A')), 'either pretrained or init_cfg'),
        (dict(multi_grid=(1, 2, 4)), 'for each of the 2 blocks of the last stage'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize('depth, conv', [(18, 'conv1'), (50, 'conv2')])
def test_dilations_of_mmsegmentation(depth, conv):
    """As its ResNet: half in the first block, or a dilation for each block of the last stage."""

    def dilations(**options):
        network = KWResNet(
            depth=depth, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), attention=None, **options
        )
        images = torch.randn(2, 3, 64, 64)
        assert network(images)[-1].shape[2:] == (8, 8)
        convs = [getattr(block, conv) for block in [*network.layer3, *network.layer4]]
        assert all(layer.padding == layer.dilation for layer in convs)
        return [layer.dilation[0] for layer in convs]

    blocks = {18: (2, 2), 50: (6, 3)}[depth]
    third = [1] + [2] * (blocks[0] - 1)
    assert dilations(contract_dilation=True) == third + [2] + [4] * (blocks[1] - 1)
    grid = [1, 2, 4][: blocks[1]]
    assert dilations(contract_dilation=True, multi_grid=grid) == third + grid
    assert dilations(multi_grid=grid) == [2] * blocks[0] + grid


def test_pretrained_is_an_init_cfg():
    network = small(pretrained='somewhere.pth')
    assert network.init_cfg == dict(type='Pretrained', checkpoint='somewhere.pth')
