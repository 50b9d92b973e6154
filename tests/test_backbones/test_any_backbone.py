"""KWBackbone: backbones of MMPretrain and MMDetection without a plan, alone and in detectors."""

import copy
import logging
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mmdet
import pytest
import torch
from kernels import kw_layers, trainable
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

import mmkw
from mmkw.networks import WarehouseConfig, apply_plan
from mmkw.openmmlab.backbones.any_backbone import backbone_plan, build_plain

ROOT = Path(mmkw.__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from dataset_converters.digits import DigitsSettings, make_digits  # noqa: E402

REGNET = dict(type='mmpretrain.RegNet', arch='regnetx_400mf')

# What is known of layers that stay plain: how many for which reason, stems apart. Those that stay
# plain only because of what their attention would cost are not counted here.
STAY_PLAIN = {
    # Two layers in each squeeze-and-excitation, one in each of 16 blocks.
    'EfficientNet': (
        dict(type='mmpretrain.EfficientNet', arch='b0'),
        {r'sees a single position: .*\.se\.conv[12]\.conv': 32},
    ),
    # 9 of the 11 blocks have one.
    'MobileNetV3': (
        dict(type='mmpretrain.MobileNetV3', arch='small'),
        {r'sees a single position: .*\.se\.conv[12]\.conv': 18},
    ),
    'Swin': (
        dict(type='mmpretrain.SwinTransformer', arch='tiny', img_size=64, pad_small_map=True),
        {
            r'in a self-attention \(\w*MSA\w*\): .*\.qkv': 12,
            r'in a self-attention \(\w*MSA\w*\): .*\.proj': 12,
        },
    ),
    'SwinV2': (
        dict(
            type='mmpretrain.SwinTransformerV2',
            arch='tiny',
            img_size=64,
            window_size=4,
            pad_small_map=True,
        ),
        {
            r'its weight is read outside its forward: .*\.qkv': 12,
            r'in a self-attention \(\w*MSA\w*\): .*\.proj': 12,
            r'in a self-attention \(\w*MSA\w*\): .*\.cpb_mlp\.[02]': 24,
        },
    ),
    # torch's own attention, and the convolutions that shorten keys and values in stages 1 to 3.
    'PVT': (
        dict(type='mmdet.PyramidVisionTransformer', num_layers=[1, 1, 1, 1]),
        {
            r'its weight is read outside its forward: .*\.attn\.attn\.out_proj': 4,
            r'in a self-attention \(SpatialReductionAttention\): .*\.attn\.sr': 3,
        },
    ),
}

IMAGE = (3, 64, 64)


def build(backbone, **arguments):
    return MODELS.build(
        dict(type='KWBackbone', backbone=backbone, **{'input_shape': IMAGE, **arguments})
    )


@pytest.mark.parametrize('name', STAY_PLAIN)
def test_what_stays_plain(name):
    config, expected = STAY_PLAIN[name]
    plan = backbone_plan(build_plain(config), input_shape=IMAGE)
    reasons = [f'{reason}: {layer}' for layer, reason in plan.plain.items()]
    for pattern, count in expected.items():
        assert sum(re.fullmatch(pattern, reason) is not None for reason in reasons) == count
    others = Counter(reason.split(' (')[0] for reason in plan.plain.values())
    assert others.pop("sees the network's own input") == 1
    others.pop('its attention costs too much', None)
    assert others.total() == sum(expected.values())


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmpretrain.DenseNet', arch='121'),
        dict(type='mmpretrain.HRNet', arch='w18'),
        dict(type='mmdet.ResNeXt', depth=50, groups=32, base_width=4),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_attentions_of_large_backbones_are_at_most_a_quarter(backbone):
    network = build_plain(backbone)
    plan = backbone_plan(network, input_shape=IMAGE)
    attention = sum(plan.attention.values())
    assert 0 < attention <= sum(parameter.numel() for parameter in network.parameters()) / 4
    if backbone['type'] != 'mmdet.ResNeXt':
        assert any(re.fullmatch(r'stage3_dense is split into \d+: .*', note) for note in plan.notes)


# What is left of the wrapped backbone


MOBILENET = dict(type='mmpretrain.MobileNetV2', widen_factor=0.25)


@pytest.mark.parametrize('frozen_stages', [-1, 2, 7])
def test_frozen_stages_of_a_backbone_that_freezes_them_in_train(frozen_stages):
    """MobileNetV2's stages 1 to 7 are layer1 to layer7."""
    kw = build(dict(**MOBILENET, frozen_stages=frozen_stages), warehouse=dict(max_attention=1))
    users = {}
    for name, layer in kw_layers(kw).items():
        (warehouse,) = (k for k, w in kw.warehouses.items() if w is layer.warehouse)
        users.setdefault(warehouse, []).append(name)

    def is_frozen(layer):
        return re.match(r'layer(\d)', layer) is not None and int(layer[5]) <= frozen_stages

    for _ in range(2):
        for name, layer in kw_layers(kw).items():
            assert trainable(layer) == {not is_frozen(name)}, name
            assert layer.attention.norm.training != is_frozen(name), name
        for name, layers in users.items():
            assert trainable(kw.warehouses[name]) == {not all(map(is_frozen, layers))}, name
        kw.eval()
        kw.train()
    idle = sum(all(map(is_frozen, layers)) for layers in users.values())
    assert (idle > 0) == (frozen_stages > 0)
    kw = build(
        dict(**MOBILENET, frozen_stages=frozen_stages),
        warehouse=dict(max_attention=1),
        freeze_idle_warehouses=False,
    )
    kw.train()
    assert trainable(kw.warehouses) == {True}


def test_norm_eval_reaches_the_attentions():
    kw = build(dict(**REGNET, norm_eval=True))
    kw.train()
    norms = [m for m in kw.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training for norm in norms)
    kw(torch.randn(1, *IMAGE))[0].sum().backward()  # a batch of 1 is then fine


@pytest.mark.parametrize('backbone', [REGNET, STAY_PLAIN['Swin'][0]], ids=['RegNet', 'Swin'])
def test_init_weights_leaves_the_kernel_warehouse_initialisation(backbone):
    torch.manual_seed(0)
    kw = build(backbone)
    before = {name: value.clone() for name, value in kw.state_dict().items()}
    kw.init_weights()
    after = kw.state_dict()
    kept = [name for name in before if name.endswith('.cells') or '.attention.' in name]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)


def test_checkpoint_of_its_own(tmp_path):
    """With all names but those of cells and attentions being the plain backbone's."""
    source = build(REGNET).state_dict()
    assert source.keys() - build_plain(REGNET).state_dict().keys() == {
        name for name in source if name.startswith('warehouses.') or '.attention.' in name
    }
    torch.save(
        dict(state_dict={f'backbone.{name}': value for name, value in source.items()}),
        tmp_path / 'kw.pth',
    )
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'kw.pth'), prefix='backbone.')
    target = build(dict(**REGNET, init_cfg=start))
    target.init_weights()
    loaded = target.state_dict()
    for name, value in source.items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize(('size', 'kernel', 'stride'), [(7, 3, 1), (8, 3, 2), (9, 5, 2), (6, 1, 1)])
def test_adaptive_padding(size, kernel, stride):
    plain = Conv2dAdaptivePadding(8, 16, kernel, stride, groups=4, dilation=1).double()
    network = nn.Sequential(copy.deepcopy(plain))
    kw = apply_plan(network, {'all': WarehouseConfig(['0'])}).eval()[0]
    x = torch.randn(2, 8, size, size + 1, dtype=torch.float64)
    for temperature in (0, 1):
        mmkw.set_temperature(network, temperature)
        plain.bias.data.copy_(kw.bias)
        with torch.no_grad():
            y = kw(x)
            for i, weight in enumerate(kw.kernels(x)):
                plain.weight.data.copy_(weight)
                torch.testing.assert_close(y[i], plain(x[i : i + 1])[0])


# A backbone of the other package, whose own layers (LN2d, GRN; in the other direction Focus) are
# in that package's registry only.
DETECTOR = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
backbone = dict(type='mmpretrain.ConvNeXt', arch='atto', use_grn=True, layer_scale_init_value=0.0)
model = dict(
    backbone=dict(_delete_=True, type='KWBackbone', backbone=backbone, input_shape=(3, 64, 64))
)
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
backbone = dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.25)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='KWBackbone', backbone=backbone, input_shape=(3, 64, 64)),
)
"""
BUILD_IN_RUNNER = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile(sys.argv[1])
config.work_dir = sys.argv[2]
model = Runner.from_cfg(config).model
print(type(model).__name__, type(model.backbone).__module__, len(model.backbone.warehouses))
"""


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (DETECTOR, r'RetinaNet mmpretrain\.models\.backbones\.convnext [1-9]\d*'),
        pytest.param(
            CLASSIFIER,
            r'ImageClassifier mmdet\.models\.backbones\.csp_darknet [1-9]\d*',
            marks=pytest.mark.slow,
        ),
    ],
    ids=['mmdet', 'mmpretrain'],
)
def test_custom_imports_is_all_that_a_config_needs(text, expected, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmkw'])\n" + text, encoding='utf-8')
    # A process of its own, because nothing must have been registered before.
    command = [sys.executable, '-c', BUILD_IN_RUNNER, str(config), str(tmp_path / 'work')]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(expected, run.stdout.splitlines()[-1])


# Options and errors


def test_plan_by_name_patterns():
    plan = dict(
        three=dict(layers=['layer3.*.conv2'], budget=2),
        four=dict(layers=['layer4.*.conv1', 'layer4.1?.conv3'], attention=dict(reduction=1 / 8)),
    )
    kw = build(
        REGNET, plan=plan, warehouse=dict(attention=dict(norm_layer='LayerNorm', reduction=1 / 4))
    )
    layers = kw_layers(kw)
    assert set(layers) == {
        *(f'layer3.{i}.conv2' for i in range(7)),
        *(f'layer4.{i}.conv1' for i in range(12)),
        *(f'layer4.{i}.conv3' for i in (10, 11)),
    }
    assert set(kw.warehouses) == {'three', 'four'}
    assert len(kw.warehouses['three'].cells) == 2 * 63  # of 7 layers of 3 x 3
    for name, layer in layers.items():
        assert isinstance(layer.attention.norm, nn.LayerNorm)
        width = max(layer.in_channels // (4 if name.startswith('layer3') else 8), 16)
        assert layer.attention.norm.normalized_shape == (width,)


def test_the_plan_is_logged():
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        kw = build(REGNET)
    finally:
        logger.removeHandler(handler)
    (message,) = (text for text in messages if text.startswith('KernelWarehouse plan of RegNet: '))
    assert all(re.search(rf'^{name} +\d+ +layer', message, re.M) for name in kw.warehouses)
    assert "sees the network's own input: conv1" in message


SWIN_V2 = STAY_PLAIN['SwinV2'][0]


@pytest.mark.parametrize(
    ('backbone', 'arguments', 'message'),
    [
        (
            REGNET,
            dict(warehouse=dict(budgets=2)),
            "KWBackbone without a plan has no option 'budgets'; did you mean 'budget'",
        ),
        (
            REGNET,
            dict(warehouse=dict(layers=['*']), plan=dict(a=dict(layers=['*']))),
            "KWBackbone with a plan has no option 'layers'; its options are budget, cell_ratio, ",
        ),
        (REGNET, dict(plan=dict(a=dict(budget=2))), "warehouse 'a' needs the argument layers"),
        (REGNET, dict(warehouse=dict(exclude=['layer9.*'])), "'layer9.*' matches no convolution"),
        (REGNET, dict(plan=dict(a=dict(layers=['layer9.*']))), "'layer9.*' matches no convolut"),
        (
            REGNET,
            dict(plan=dict(a=dict(layers=['layer1.*']), b=dict(layers=['*.0.conv3']))),
            "'layer1.0.conv3' is in warehouse 'a' and again in 'b'",
        ),
        (
            REGNET,
            dict(warehouse=dict(exclude=['layer*'])),
            'no layer of RegNet can have a warehouse: .*: conv1; excluded: layer',
        ),
        (
            SWIN_V2,
            dict(plan=dict(a=dict(layers=['stages.0.blocks.0.attn.w_msa.qkv']))),
            r"'stages.0.blocks.0.attn.w_msa.qkv' \(its weight is read outside its forward\)",
        ),
        (
            REGNET,
            dict(input_shape=(1, 64, 64)),
            r'RegNet cannot run on .* \(2, 1, 64, 64\) .* with input_shape=\(channels, height',
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(backbone, **arguments)


# In detectors


class LossRecorder(Hook):
    """Keeps the loss of every iteration."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(folder, DigitsSettings(renderings=1, image_size=16, train_scenes=4, val_scenes=2))
    return folder


def kw_backbone(**backbone):
    return dict(type='KWBackbone', backbone=backbone, input_shape=(3, 128, 128))


def mmdet_model(path):
    model = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / path).model
    # Untrained, one-stage detectors find nothing above the usual thresholds.
    model.test_cfg.score_thr = 0.0
    return dict(_delete_=True, **model.to_dict())


def mask_rcnn():
    backbone = dict(**REGNET, out_indices=(0, 1, 2, 3), frozen_stages=1)
    return dict(
        backbone=dict(_delete_=True, **kw_backbone(**backbone)),
        neck=dict(in_channels=[32, 64, 160, 384]),
    )


def retinanet():
    model = mmdet_model('_base_/models/retinanet_r50_fpn.py')
    backbone = dict(type='ResNeXt', depth=50, groups=8, base_width=4, norm_eval=True)
    model['backbone'] = kw_backbone(**backbone)
    model['bbox_head']['num_classes'] = 10
    return model


def yolox():
    model = mmdet_model('yolox/yolox_tiny_8xb8-300e_coco.py')
    del model['data_preprocessor']['batch_augments']
    model['backbone'] = kw_backbone(**model['backbone'])
    model['bbox_head']['num_classes'] = 10
    return model


@pytest.mark.parametrize(
    'model',
    [
        mask_rcnn,
        pytest.param(retinanet, marks=pytest.mark.slow),
        pytest.param(yolox, marks=pytest.mark.slow),
    ],
)
def test_detectors_train_and_evaluate(model, digits, tmp_path):
    config = Config.fromfile(ROOT / 'configs/demo/mask-rcnn_kw-resnet18-1x_fpn_digits.py')
    config.merge_from_dict(dict(model=model()))
    has_masks = 'roi_head' in config.model
    annotations = str(digits / 'coco/annotations/instances_{}.json')
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        dataset.data_root = str(digits / 'coco') + '/'
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.update(
            ann_file=annotations.format('val'), metric=['bbox', 'segm'][: 1 + has_masks]
        )
    config.train_dataloader.batch_size = 2
    config.work_dir = str(tmp_path)
    config.experiment_name = f'any_backbone_{model.__name__}'
    config.custom_hooks = [dict(type='KWTemperatureHook', iters=4)]
    recorder = LossRecorder()
    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = Runner.from_cfg(config)
        runner.register_hook(recorder)
        cells = {
            name: warehouse.cells.detach().clone()
            for name, warehouse in runner.model.backbone.warehouses.items()
        }
        runner.train()
    assert len(recorder.losses) == 2 and all(map(math.isfinite, recorder.losses))
    assert mmkw.get_temperature(runner.model) == pytest.approx(0.5)
    metrics = runner.message_hub.log_scalars
    expected = {f'val/coco/{kind}_mAP' for kind in ('bbox', 'segm')[: 1 + has_masks]}
    assert expected <= set(metrics)
    for name, warehouse in runner.model.backbone.warehouses.items():
        moved = not torch.equal(cells[name], warehouse.cells)
        assert moved == warehouse.cells.requires_grad, name


def test_layer_wise_learning_rates():
    """By MMPretrain's constructor: cells learn as the first layer that uses them would."""
    from mmengine.optim import build_optim_wrapper

    plain = dict(type='mmpretrain.ConvNeXt', arch='atto')
    wrapped = dict(type='KWBackbone', backbone=plain, input_shape=(3, 64, 64))
    optimizer = dict(
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )

    def rates(backbone):
        head = dict(type='LinearClsHead', num_classes=2, in_channels=320)
        model = dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = copy.deepcopy(MODELS.build(model))
        groups = build_optim_wrapper(model, optimizer).optimizer.param_groups
        return {group['param_name'].removeprefix('backbone.'): group['lr'] for group in groups}

    expected, found = rates(plain), rates(wrapped)
    assert len(set(expected.values())) > 4
    same = expected.keys() & found.keys()
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    for stage in range(4):
        first = expected[f'stages.{stage}.0.pointwise_conv1.weight']
        assert found[f'warehouses.stage{stage + 1}_linear.cells'] == first
