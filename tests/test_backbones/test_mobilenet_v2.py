"""KWMobileNetV2 against the paper's tables, released-models.md's counts and the plain network."""

import pytest
import torch
from kernels import trainable
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import MobileNetV2
from torch import nn

from mmkw.methods.kernel_warehouse import KWConv2d, KWLinear
from mmkw.networks import partition_network
from mmkw.openmmlab.backbones import KWMobileNetV2, mobilenet_v2_plan

# Table 14, width 1.0 (m, n), in the order in which the warehouses are first met; the last of 1/2
# is the classifier's.
TABLE_14 = {
    1 / 2: (
        (9, 36, 18, 27, 36, 27, 12, 27, 80),
        (9, 36, 18, 27, 36, 27, 6, 27, 40),
    ),
    1: ((9, 36, 34, 78, 18, 42, 27, 102, 36, 120, 27, 58, 27),) * 2,
    4: (
        (9, 36, 11, 1, 2, 18, 7, 3, 27, 4, 4, 36, 9, 3, 27, 11, 3, 27, 20),
        (36, 144, 44, 4, 8, 72, 28, 12, 108, 16, 16, 144, 36, 12, 108, 44, 12, 108, 80),
    ),
}
# At width 0.5 some channels are rounded otherwise; the shapes of the released checkpoints.
RELEASED_CELLS_050 = {
    1 / 2: (9, 36, 18, 27, 36, 27, 6, 27, 56),
    1: (9, 36, 20, 24, 18, 42, 27, 102, 36, 120, 27, 74, 27),
    4: (36, 144, 28, 4, 8, 72, 8, 12, 108, 16, 16, 144, 36, 12, 108, 44, 12, 108, 112),
}
# Exact parameters of the released classifiers with 1000 classes.
PARAMETERS = {
    (1.0, 1 / 2): 2_654_396,
    (1.0, 1): 5_168_146,
    (1.0, 4): 11_379_382,
    (0.5, 1 / 2): 1_466_888,
    (0.5, 1): 2_854_522,
    (0.5, 4): 4_648_587,
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize('budget', TABLE_14)
def test_table_14(budget):
    network = KWMobileNetV2(budget=None)
    partitions = partition_network(network, mobilenet_v2_plan(network, budget)).values()
    m, n = TABLE_14[budget]
    assert tuple(partition.num_mixtures for partition in partitions) == m
    assert tuple(partition.num_cells for partition in partitions) == n


@pytest.mark.parametrize('budget', RELEASED_CELLS_050)
def test_cells_at_width_050(budget):
    backbone = KWMobileNetV2(0.5, budget)
    cells = tuple(len(warehouse.cells) for warehouse in backbone.warehouses.values())
    assert cells == RELEASED_CELLS_050[budget]


def build_head(**arguments):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(num_classes=1000, in_channels=1280, **arguments))


KW_HEAD = dict(
    type='KWLinearClsHead',
    budget=1 / 2,
    cell_ratio=(1, 1 / 40),
    attention=dict(reduction=1 / 32),
)


@pytest.mark.parametrize(('width', 'budget'), PARAMETERS)
def test_parameter_counts(width, budget):
    head = build_head(**(KW_HEAD if budget < 1 else dict(type='LinearClsHead')))
    count = parameters(KWMobileNetV2(width, budget)) + parameters(head)
    assert count == PARAMETERS[width, budget]


def test_kw_classifier():
    """Table 14's last entry for 1/2x: 40 mixtures over 20 cells of 1000 x 32."""
    head = build_head(**KW_HEAD, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))
    head.init_weights()
    assert isinstance(head.fc, KWLinear)
    assert head.fc.warehouse.cells.shape == (20, 1000, 32, 1)
    assert head.fc.partition.num_mixtures == 40
    assert head.fc.warehouse.cells.std() > 0 and not head.fc.bias.any()
    x = torch.randn(3, 1280)
    kernels = head.fc.eval().kernels(x)
    expected = torch.stack([kernel @ sample for kernel, sample in zip(kernels, x)]) + head.fc.bias
    torch.testing.assert_close(head((x,)), expected, rtol=1e-4, atol=1e-5)


def test_budget_none_is_the_plain_network():
    assert list(KWMobileNetV2(budget=None).state_dict()) == list(MobileNetV2().state_dict())


def test_half_budget_leaves_early_pointwise_layers_plain():
    backbone = KWMobileNetV2(0.5, 1 / 2)
    for name, module in backbone.named_modules():
        if isinstance(module, (nn.Conv2d, KWConv2d)):
            is_late = name.startswith(('layer6.1.', 'layer6.2.', 'layer7.', 'conv2.'))
            is_kw = is_late or module.groups > 1 or name == 'conv1.conv'
            assert isinstance(module, KWConv2d) == is_kw, name


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 7])
def test_frozen_stages_and_norm_eval(frozen_stages):
    backbone = KWMobileNetV2(0.5, 4, frozen_stages=frozen_stages, norm_eval=True)
    assert backbone.train() is backbone
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training for norm in norms), 'attention norms included'
    assert trainable(backbone.warehouses['stem']) == trainable(backbone.conv1)
    assert trainable(backbone.conv1) == {frozen_stages < 0}
    for group in range(1, 8):
        assert trainable(getattr(backbone, f'layer{group}')) == {group > frozen_stages}
    # The first block of layer2 still needs the warehouses of stage 1 when layer1 is frozen.
    assert trainable(backbone.warehouses['stage1_depthwise']) == {frozen_stages < 2}
    assert trainable(backbone.warehouses['stage1_reduce']) == {frozen_stages < 2}
    assert trainable(backbone.warehouses['stage6_reduce']) == {True}, 'conv2 is never frozen'
    arguments = dict(frozen_stages=frozen_stages, freeze_idle_warehouses=False)
    assert trainable(KWMobileNetV2(0.5, 4, **arguments).train().warehouses) == {True}


def test_layer_wise_learning_rates_are_refused():
    with pytest.raises(NotImplementedError, match='KWMobileNetV2 has no layer-wise'):
        KWMobileNetV2(0.5).get_layer_depth('conv1.conv.weight')


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(budget=-1), ValueError, 'budget must be a positive number .* got -1'),
        (dict(budget=1 / 7), ValueError, "warehouse 'stage6_expand': budget 1/7 leaves no whole"),
        (dict(attention=dict(norm_layer='Norm')), ValueError, "norm_layer must be .* got 'Norm'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        KWMobileNetV2(0.5, **arguments)
