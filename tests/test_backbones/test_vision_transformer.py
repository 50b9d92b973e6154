"""KWVisionTransformer against the paper's Table 11, the plain network and MMPretrain's use."""

import pytest
import torch
from kernels import trainable
from mmcv.cnn.bricks import DropPath
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.structures import DataSample
from torch import nn

import mmkw
from mmkw.methods.kernel_warehouse import KWLinear
from mmkw.networks import partition_network
from mmkw.openmmlab.backbones import KWVisionTransformer, split_qkv, vision_transformer_plan

ARCH = dict(embed_dims=32, num_layers=4, num_heads=4, feedforward_channels=128)


def arguments_of(**kwargs):
    return {'arch': ARCH, 'img_size': 32, 'patch_size': 8, **kwargs}


def small(**kwargs):
    """Four narrow blocks in two groups, for tests of behaviour."""
    return KWVisionTransformer(**arguments_of(**{'blocks_per_warehouse': 2, **kwargs}))


@pytest.mark.parametrize(
    ('arch', 'budget', 'expected', 'table_11', 'difference'),
    [
        ('deit-tiny', 1, 6_393_052, 6.39e6, 0.001),
        ('deit-tiny', 4, 18_796_852, 20.44e6, 0.081),
        ('deit-small', 3 / 4, 19_242_844, 19.23e6, 0.001),
        ('deit-small', 1, 24_335_548, 24.36e6, 0.002),
    ],
)
def test_parameter_counts(arch, budget, expected, table_11, difference):
    backbone = KWVisionTransformer(arch, budget)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    parameters += (backbone.embed_dims + 1) * 1000
    assert parameters == expected
    assert abs(parameters / table_11 - 1) < difference


@pytest.mark.parametrize(
    ('budget', 'value', 'mlp'),
    [
        # Cell shape, mixtures and cells of a group of six blocks of DeiT-Small.
        (1, ((384, 384, 1), 6, 6), ((384, 384, 1), 6 * 8, 48)),
        (4, ((384, 384, 1), 6, 24), ((384, 384, 1), 6 * 8, 192)),
        (1 / 2, ((192, 192, 1), 6 * 4, 12), ((192, 192, 1), 6 * 32, 96)),
        (3 / 4, ((384, 384, 1), 6, 6), ((192, 192, 1), 6 * 32, 96)),
    ],
)
def test_plan(budget, value, mlp):
    network = split_qkv(VisionTransformer('deit-small'))
    partitions = partition_network(network, vision_transformer_plan(network, budget))
    assert list(partitions) == ['value1', 'mlp1', 'value2', 'mlp2']
    for name, partition in partitions.items():
        expected = value if name.startswith('value') else mlp
        assert (partition.cell_shape, partition.num_mixtures, partition.num_cells) == expected
    assert list(partitions['value2'].kernels) == [
        f'layers.{i}.attn.qkv.value' for i in range(6, 12)
    ]
    assert list(partitions['mlp1'].kernels)[:3] == [
        'layers.0.ffn.layers.0.0',
        'layers.0.ffn.layers.1',
        'layers.1.ffn.layers.0.0',
    ]


@pytest.mark.parametrize(
    ('blocks_per_warehouse', 'groups'), [(1, [1, 1, 1, 1]), (3, [3, 1]), (6, [4]), (None, [4])]
)
def test_groups_of_blocks(blocks_per_warehouse, groups):
    backbone = small(blocks_per_warehouse=blocks_per_warehouse)
    cells = {name: len(warehouse.cells) for name, warehouse in backbone.warehouses.items()}
    assert [cells.pop(f'value{number}') for number in range(1, len(groups) + 1)] == groups
    assert list(cells.values()) == [8 * blocks for blocks in groups]


def test_only_values_and_mlps_are_kernel_warehouse_layers():
    kw = dict(small().named_modules())
    plain = dict(VisionTransformer(**arguments_of()).named_modules())
    replaced = [f'layers.{i}.ffn.layers.{j}' for i in range(4) for j in ('0.0', '1')]
    values = [f'layers.{i}.attn.qkv.value' for i in range(4)]
    assert sorted(name for name, m in kw.items() if isinstance(m, KWLinear)) == sorted(
        replaced + values
    )
    for name, module in plain.items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in replaced:
            twin = kw[name + '.query_key' if name.endswith('qkv') else name]
            assert isinstance(module, type(twin)), name
    query_key = kw['layers.0.attn.qkv.query_key']
    assert query_key.weight.shape == (64, 32)
    assert kw['layers.0.attn.qkv.value'].bias.shape == (32,)


def test_budget_none_is_the_plain_network():
    kw, plain = small(budget=None), VisionTransformer(**arguments_of())
    assert {k: v.shape for k, v in kw.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


@pytest.mark.parametrize('qkv_bias', [True, False])
def test_split_qkv_computes_the_same(qkv_bias):
    torch.manual_seed(0)
    network = VisionTransformer(**arguments_of(out_type='raw', qkv_bias=qkv_bias)).double()
    network.eval()
    network.layers[0].requires_grad_(False)
    for block in network.layers:
        if qkv_bias:
            nn.init.normal_(block.attn.qkv.bias)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        (expected,) = network(x)
        (y,) = split_qkv(network)(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert not any(module.training for module in network.modules())
    for index, block in enumerate(network.layers):
        for name, parameter in block.named_parameters():
            assert parameter.requires_grad == (index > 0), name


def run_with_kernels(kw, x):
    """Outputs for ``x``, and each KW layer's kernels for it by name."""
    kernels, handles = {}, []
    for name, module in kw.named_modules():
        if isinstance(module, KWLinear):
            handles.append(
                module.register_forward_pre_hook(
                    lambda layer, inputs, name=name: kernels.update({name: layer.kernels(*inputs)})
                )
            )
    with torch.no_grad():
        outputs = kw(x)
    for handle in handles:
        handle.remove()
    return outputs, kernels


def load_sample(plain, kw, kernels, sample):
    """Give the plain network what ``kw`` computes one sample with."""
    state = {k: v for k, v in kw.state_dict().items() if not k.startswith('warehouses.')}
    state = {k: v for k, v in state.items() if '.attention.' not in k}
    state.update({f'{name}.weight': kernel[sample] for name, kernel in kernels.items()})
    for i in range(len(plain.layers)):
        for kind in ('weight', 'bias'):
            parts = [
                state.pop(f'layers.{i}.attn.qkv.{part}.{kind}', None)
                for part in ('query_key', 'value')
            ]
            if None not in parts:
                state[f'layers.{i}.attn.qkv.{kind}'] = torch.cat(parts)
    plain.load_state_dict(state, strict=True)


@pytest.mark.parametrize('temperature', [1, 0.3, 0])
@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(budget=3 / 4, qkv_bias=False),
        dict(budget=2, out_type='featmap', out_indices=(1, 3), final_norm=False),
        dict(out_type='raw', with_cls_token=False, cell_ratio=(1, 1 / 2), pre_norm=True),
        dict(out_type='avg_featmap', layer_scale_init_value=0.5, attention=dict(reduction=1 / 2)),
        dict(layer_cfgs=dict(ffn_type='swiglu_fused')),
        dict(layer_cfgs=dict(num_fcs=3), attention=dict(norm_layer='BatchNorm1d')),
    ],
    ids=str,
)
def test_equals_the_plain_network_with_each_sample_s_kernels(arguments, temperature):
    """A naive loop: MMPretrain's network, one sample at a time, with that sample's weights."""
    torch.manual_seed(0)
    kw = small(**arguments).double().eval()
    mmkw.set_temperature(kw, temperature)
    for parameter in kw.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)  # biases, norms and layer scales other than 0 or 1
    own = ('budget', 'cell_ratio', 'attention')
    plain_arguments = {k: v for k, v in arguments.items() if k not in own}
    plain = VisionTransformer(**arguments_of(**plain_arguments)).double()
    plain.eval()
    # Larger than the trained size, so that position embeddings are resized.
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)

    outputs, kernels = run_with_kernels(kw, x)
    assert len(kernels) == 4 * (4 if 'num_fcs' in str(arguments) else 3)
    for name, kernel in kernels.items():
        assert torch.equal(kernel[0], kernel[1]) == (temperature == 1), name
    for sample in range(2):
        load_sample(plain, kw, kernels, sample)
        with torch.no_grad():
            expected = plain(x[sample : sample + 1])
        assert len(outputs) == len(expected)
        for y, plain_y in zip(outputs, expected):
            torch.testing.assert_close(y[sample : sample + 1], plain_y, rtol=1e-10, atol=1e-11)


def test_a_training_step_of_a_classifier_reaches_every_parameter():
    torch.manual_seed(0)
    classifier = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='KWVisionTransformer', **arguments_of(drop_path_rate=0.1)),
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=32),
            _scope_='mmpretrain',
        )
    )
    classifier.init_weights()
    nn.init.normal_(classifier.head.layers.head.weight)  # MMPretrain's zeros stop all gradients
    classifier.train()
    mmkw.set_temperature(classifier, 0.5)
    samples = [DataSample().set_gt_label(label) for label in range(4)]
    losses = classifier.loss(torch.randn(4, 3, 32, 32), samples)
    losses['loss'].backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize('frozen_stages', [-1, 1, 2, 3, 4])
def test_frozen_stages_freeze_attentions_and_idle_warehouses(frozen_stages):
    backbone = small(frozen_stages=frozen_stages, attention=dict(norm_layer='BatchNorm1d'))
    assert backbone.train() is backbone
    assert trainable(backbone.patch_embed) == {frozen_stages < 1}
    for index, block in enumerate(backbone.layers):
        is_frozen = index < frozen_stages
        assert trainable(block) == {not is_frozen}
        assert {module.training for module in block.modules()} == {not is_frozen}
    for name, warehouse in backbone.warehouses.items():
        last_block = 2 if name.endswith('1') else 4
        assert trainable(warehouse) == {frozen_stages < last_block}, name


def test_init_weights_treats_plain_layers_as_mmpretrain_does():
    torch.manual_seed(0)
    backbone = small(init_cfg=dict(type='Constant', val=7.0, layer='Linear'))
    kept = {
        name: value.clone()
        for name, value in backbone.state_dict().items()
        if name.startswith('warehouses.') or '.attention.' in name
    }
    backbone.init_weights()
    state = backbone.state_dict()
    assert len(kept) == 2 * 2 * 2 + 12 * 6
    for name, value in kept.items():
        assert torch.equal(state[name], value), name
    for name in ('qkv.query_key', 'proj'):
        assert (state[f'layers.3.attn.{name}.weight'] == 7).all()
        assert (state[f'layers.3.attn.{name}.bias'] == 0).all()
    assert 0.01 < state['pos_embed'].std() < 0.03

    # MLPs that stay plain keep the initialisation that MMPretrain gives them after init_cfg.
    backbone = small(budget=None, init_cfg=dict(type='Constant', val=7.0, layer='Linear'))
    backbone.init_weights()
    assert backbone.layers[0].ffn.layers[0][0].weight.abs().max() < 1


def test_drop_path():
    def rates(backbone):
        return [m.drop_prob for m in backbone.layers.modules() if isinstance(m, DropPath)]

    growing = [0.3 * block / 3 for block in range(4) for _ in range(2)]
    assert rates(small(drop_path_rate=0.3)) == pytest.approx(growing)


def test_layer_wise_learning_rates():
    backbone = small()
    depths = {
        name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in backbone.named_parameters()
    }
    plain = VisionTransformer(**arguments_of())
    for number in (1, 2):
        first_block = f'layers.{2 * number - 2}.attn.qkv.weight'
        for kind in ('value', 'mlp'):
            assert depths[f'warehouses.{kind}{number}.cells'] == plain.get_layer_depth(first_block)
    for name, depth in depths.items():
        if not name.startswith('warehouses.'):
            assert depth == plain.get_layer_depth(name), name


def test_position_embeddings_are_resized_on_loading():
    torch.manual_seed(0)
    source, target = small(), small(img_size=64)
    source.init_weights()
    target.load_state_dict(source.state_dict())
    assert target.pos_embed.shape == (1, 1 + 8 * 8, 32)
    plain = VisionTransformer(**arguments_of(img_size=64))
    plain.load_state_dict({'pos_embed': source.pos_embed}, strict=False)
    assert torch.equal(target.pos_embed, plain.pos_embed)
    assert torch.equal(target.warehouses['mlp2'].cells, source.warehouses['mlp2'].cells)


def test_plain_checkpoints_are_cut_into_cells():
    torch.manual_seed(0)
    plain, network = VisionTransformer(**arguments_of()), small()
    plain.eval(), network.eval()
    with pytest.warns(UserWarning, match='plain kernels, which were cut into cells'):
        network.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, *plain.img_size)
    torch.testing.assert_close(network(x)[0], plain(x)[0])


def test_plain_checkpoints_are_refused_below_a_budget_of_1():
    plain = VisionTransformer(**arguments_of())
    with pytest.raises(ValueError, match='plain kernel, layers.0.attn.qkv.value.weight'):
        small(budget='1/2').load_state_dict(plain.state_dict(), strict=False)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(budget='big'), "budget must be a positive number such as 1, 0.5 or '3/4'"),
        (dict(budget=1 / 7), r"warehouse 'value1': budget 1/7 leaves no whole number of cells"),
        (dict(cell_ratio=1 / 100), "warehouse 'value1': cell_ratio 1/100 leaves no whole cell"),
        (dict(cell_ratio=3 / 4), 'does not divide'),
        (dict(blocks_per_warehouse=0), 'must be a positive integer or None.*but got 0'),
        (dict(blocks_per_warehouse=True), 'must be a positive integer or None.*but got True'),
        (dict(blocks_per_warehouse=1.5), 'must be a positive integer or None.*but got 1.5'),
        (dict(attention=dict(norm_layer='Nrm')), "norm_layer must be a norm of torch.nn.*'Nrm'"),
        (dict(attention=dict(reduction=0)), 'reduction must be a positive number'),
        (dict(with_cls_token=False), 'with_cls_token must be True'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
