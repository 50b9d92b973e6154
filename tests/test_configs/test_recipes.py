"""Networks are trained as the released ones were, and where nothing is released as the paper says.

The tables are read off the release. The first test compares every value in them with the built
network and optimizer, with the learning rates of a run, and with the config's data and hooks.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from config_models import (
    COCO,
    CONFIGS,
    IMAGENET,
    SOFTMAX_METHODS,
    Promise,
    built,
    load,
    named,
    promise,
)
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image


def steps(rate: float, *lengths: int) -> np.ndarray:
    """A tenth of the rate after each length."""
    return np.concatenate([np.full(n, rate / 10**i) for i, n in enumerate(lengths)])


def cosine(rate: float, length: int, end: float) -> np.ndarray:
    return end + (rate - end) * (1 + np.cos(np.pi * np.arange(length) / length)) / 2


def warmed_up(rates: np.ndarray, length: int) -> np.ndarray:
    return rates * np.append(np.linspace(1e-3, 1, length), np.ones(len(rates) - length))


class Recipe(NamedTuple):
    """One way to train.

    Attributes:
        images: on each GPU.
        annealing: epochs over which KW's temperature falls from 1; ``None`` to hold it at 0.
        optimizer: all but the learning rate.
        rates: the learning rate of every iteration.
        epoch_length: iterations in an epoch of ``rates``.
        max_norm: of gradients.
        gpus: how many.
        half_precision: whether it trains with automatic mixed precision.
    """

    images: int
    epochs: int
    annealing: int | None
    optimizer: dict
    rates: np.ndarray
    epoch_length: int = 2
    max_norm: float | None = None
    gpus: int = 8
    half_precision: bool = False


SGD = dict(type='SGD', momentum=0.9)
ADAMW = dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
RECIPES = {
    'resnet, 100 epochs': Recipe(
        32, 100, 10, dict(SGD, weight_decay=1e-4), steps(0.1, 30, 30, 30, 10), epoch_length=1
    ),
    'mobilenet-v2': Recipe(
        32, 150, 15, dict(SGD, nesterov=True, weight_decay=4e-5), cosine(0.05, 300, end=1e-6)
    ),
    'mobilenet-v2 of ODConv': Recipe(
        32, 150, None, dict(SGD, weight_decay=4e-5), cosine(0.05, 150, end=0), epoch_length=1
    ),
    '300 epochs': Recipe(
        512, 300, 20, ADAMW,
        warmed_up(np.append(np.full(40, 0.004), cosine(0.004, 560, end=1e-6)), 40),
    ),
    # Nothing is released: mmpretrain's DeiT, where a step of the cosine is an epoch.
    'deit': Recipe(
        128, 300, 20, dict(ADAMW, eps=1e-8),
        warmed_up(np.append(np.full(40, 1e-3), cosine(1e-3, 280, end=1e-5).repeat(2)), 40),
        max_norm=5.0,
    ),
    'detector': Recipe(
        2, 12, None, ADAMW, warmed_up(steps(1e-4, 400, 150, 50), 500), epoch_length=50
    ),
    'detector of ODConv': Recipe(
        2, 12, None, dict(SGD, weight_decay=1e-4), warmed_up(steps(0.02, 400, 150, 50), 500),
        epoch_length=50,
    ),
    'detector of FDConv': Recipe(
        4, 12, None, ADAMW, warmed_up(steps(1e-4, 500, 50, 50), 500), epoch_length=50, gpus=4,
        half_precision=True,
    ),
    'faster detector of FDConv': Recipe(
        8, 12, None, dict(SGD, weight_decay=1e-4), warmed_up(steps(0.02, 400, 150, 50), 500),
        epoch_length=50, gpus=2,
    ),
    'convnext detector': Recipe(
        2, 12, None, ADAMW, warmed_up(steps(1e-4, 450, 100, 50), 500), epoch_length=50
    ),
}  # fmt: skip
RECIPE_OF = {
    r'odconv-mobilenet.*_8xb32-150e_in1k': 'mobilenet-v2 of ODConv',
    r'faster-rcnn_fdconv-.*': 'faster detector of FDConv',
    r'mask-rcnn_fdconv-.*': 'detector of FDConv',
    r'.*_fpn_1x_coco': 'detector of ODConv',
    r'.*_8xb32-100e_in1k': 'resnet, 100 epochs',
    r'.*_8xb32-150e_in1k': 'mobilenet-v2',
    r'.*_8xb512-300e_in1k': '300 epochs',
    r'.*_8xb128-300e_in1k': 'deit',
    r'mask-rcnn_.*(resnet50|mobilenet).*_coco': 'detector',
    r'mask-rcnn_.*convnext.*_coco': 'convnext detector',
}

# The rate of each residual block. In ConvNeXt it grows from 0 to the rate of the last block.
DROP_PATHS = {
    r'kw-resnet18-(1d4x|1d2x)_8xb512.*': [0.0] * 8,
    r'kw-resnet18-.*_8xb512.*': [0.1] * 8,
    r'(mask-rcnn_)?kw-resnet50-.*': [0.1] * 16,
    r'faster-rcnn_kw-resnet50-.*': [],
    r'convnext-tiny_8xb512.*': np.linspace(0, 0.1, 18),
    r'kw-convnext-tiny-.*_8xb512.*': np.linspace(0, 0.3, 18),
    r'mask-rcnn_(kw-)?convnext-tiny.*': np.linspace(0, 0.4, 18),
    r'(mask-rcnn_)?resnet50_.*': [0.0] * 16,
    r'(kw-)?resnet18.*_8xb.*': [0.0] * 8,
    # No block of MobileNetV2 has any, nor is there one left in DeiT.
    r'.*(mobilenet-v2|deit).*': [],
    # The compared methods.
    r'(odconv|dyconv|condconv|dcd|fdconv)-resnet18.*_8xb512.*': [0.1] * 8,
    r'fdconv-resnet50_8xb512.*': [0.1] * 16,
    r'(mask-rcnn_)?(odconv|dyconv)-resnet50-.*(_8xb512|_fpn_ms-1x).*': [0.1] * 16,
    r'.*(odconv|dyconv|condconv|dcd|fdconv)-resnet.*': [],
}

# Of those trained for less than 300 epochs.
LABEL_SMOOTHING = {
    'kw-mobilenet-v2-w100-1x_8xb32-150e_in1k',
    'kw-mobilenet-v2-w100-4x_8xb32-150e_in1k',
    'kw-mobilenet-v2-w050-4x_8xb32-150e_in1k',
}

# Parts of detectors' backbones that do not train. Warehouses do, whoever uses them.
FROZEN = {
    'resnet50': {'conv1', 'bn1', 'layer1'},
    'mobilenet-v2-w100': {'conv1', 'layer1', 'layer2'},
    'convnext-tiny': set(),
}

# ConvNeXt-Tiny's layers for the decay of learning rates in detectors, by layers below the heads.
LAYERS_BELOW_HEADS = {
    r'downsample_layers\.0': 7,
    r'stages\.0': 6,
    r'(downsample_layers|stages)\.1': 5,
    r'downsample_layers\.2|stages\.2\.[012]': 4,
    r'stages\.2\.[345]': 3,
    r'stages\.2\.[678]': 2,
    r'(downsample_layers|stages)\.3': 1,
}


def first_match(table: dict[str, Any], stem: str) -> Any:
    return next(value for pattern, value in table.items() if re.fullmatch(pattern, stem))


@pytest.mark.parametrize('path', IMAGENET + COCO, ids=named)
def test_trains_as_released(path):
    cfg, model = load(path), built(path)
    promised = promise(path.stem)
    recipe = RECIPES[first_match(RECIPE_OF, path.stem)]

    check_schedule(cfg, recipe)
    check_hooks(cfg, recipe, promised)
    check_weight_decay(path, recipe, promised)
    expected = first_match(DROP_PATHS, path.stem)
    rates = model.drop_paths if len(expected) else [rate for rate in model.drop_paths if rate]
    assert rates == pytest.approx(list(expected), abs=1e-7)
    if path in COCO:
        check_frozen_parts_and_norms(path, promised)
        check_layer_wise_learning_rates(path, promised.network)
    else:
        check_start(path, promised)
        check_loss_and_augmentation(path, recipe, promised)


def check_schedule(cfg: Config, recipe: Recipe) -> None:
    assert cfg.train_cfg.max_epochs == recipe.epochs
    assert cfg.train_dataloader.batch_size == recipe.images
    assert cfg.auto_scale_lr.base_batch_size == recipe.gpus * recipe.images
    assert (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper') == recipe.half_precision
    assert (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm') == recipe.max_norm
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == 1
    optimizer = {
        key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != '_scope_'
    }
    rate = optimizer.pop('lr')
    assert optimizer == recipe.optimizer
    schedulers = json.dumps(cfg.param_scheduler)
    rates = learning_rates(rate, schedulers, recipe.epochs, recipe.epoch_length)
    np.testing.assert_allclose(rates, recipe.rates, rtol=1e-6, atol=1e-12)


class Recorder(Hook):
    """Keeps the learning rate of every iteration."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])


class OneWeight(BaseModel):
    """The smallest model that a Runner trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))

    def forward(self, inputs, mode='loss'):
        return dict(loss=(self.weight * inputs[0]).sum())


@cache
def learning_rates(rate: float, schedulers: str, epochs: int, epoch_length: int) -> np.ndarray:
    recorder = Recorder()
    with TemporaryDirectory() as folder:
        Runner(
            model=OneWeight(),
            work_dir=folder,
            train_dataloader=dict(
                dataset=[dict(inputs=torch.zeros(1))] * epoch_length,
                batch_size=1,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=rate)),
            param_scheduler=json.loads(schedulers),
            default_hooks=dict(logger=None, checkpoint=None),
            custom_hooks=[recorder],
            log_level='WARNING',
            experiment_name=Path(folder).name,
        ).train()
    return np.array(recorder.rates)


def check_hooks(cfg: Config, recipe: Recipe, promised: Promise) -> None:
    hooks = []
    if promised.method in ('kw', *SOFTMAX_METHODS) and cfg.default_scope == 'mmdet':
        hooks.append(dict(type='KWDisableAttentionInitHook'))
    elif promised.method in SOFTMAX_METHODS:
        hooks.append(dict(type='KWTemperatureHook', begin=30, end=1, epochs=10))
    elif promised.method == 'kw':
        hooks.append(dict(type='KWTemperatureHook', epochs=recipe.annealing))
    if promised.network == 'convnext-tiny' and cfg.default_scope == 'mmpretrain':
        average = dict(
            type='EMAHook',
            momentum=pytest.approx(1 - 0.9999),
            evaluate_on_ema=True,
            evaluate_on_origin=True,
            # Before the hooks of default priority, that they see the averaged weights.
            priority='ABOVE_NORMAL',
        )
        hooks.append(average)
    assert cfg.custom_hooks == hooks
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.max_keep_ckpts == 3
    if cfg.default_scope == 'mmpretrain':
        assert checkpoint.save_best == 'accuracy/top1'


def check_weight_decay(path: Path, recipe: Recipe, promised: Promise) -> None:
    model = built(path)
    tokens = ('backbone.cls_token', 'backbone.pos_embed')
    in_detector = path in COCO and 'convnext' not in path.stem
    found = Counter()
    for name, setting in model.settings.items():
        kind = 'matrix'
        if name in tokens:
            kind = 'token'
        elif name.endswith('.gamma'):
            kind = 'layer scale'
        elif name.endswith('.bias') or len(model.shapes[name]) == 1:
            kind = 'vector'
        if in_detector:
            # No decay goes by names with `norm` in them, and batch norms are called bn.
            is_inner = '.attention.norm.' in name or '.KSM_Local.norm.' in name
            kind = 'norm of an attention' if is_inner else 'other'
        found[kind] += 1
        decays = (
            kind in ('matrix', 'other')
            or (kind == 'layer scale' and promised.method is not None)
            or promised.own_recipe
        )
        expected = recipe.optimizer['weight_decay'] if decays else 0
        assert setting.weight_decay == pytest.approx(expected), name
    has_norms = promised.method in ('kw', 'odconv', 'fdconv')
    assert (found['norm of an attention'] > 0) == (in_detector and has_norms)
    assert found['layer scale'] == (18 if 'convnext' in path.stem else 0)


def check_start(path: Path, promised: Promise) -> None:
    """Every norm starts at 1; classifiers of dynamic ResNets as PyTorch's linear layers."""
    model = built(path)
    assert model.norm_scales == {1.0}
    if not promised.network.startswith('resnet') or promised.method in ('condconv', 'dcd'):
        return
    weight, bias = model.classifier
    if promised.method is None:
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert weight.abs().max() > 0.03 and not bias.any()
    else:
        bound = 1 / math.sqrt(weight.shape[1])
        for values in (weight, bias):
            assert values.abs().max().item() == pytest.approx(bound, rel=0.02)
            assert values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def check_loss_and_augmentation(path: Path, recipe: Recipe, promised: Promise) -> None:
    cfg = load(path)
    loss = cfg.model.head.loss
    augments = (cfg.model.get('train_cfg') or {}).get('augments', [])
    train = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert train['RandomResizedCrop'].scale == 224
    assert (train['RandomFlip'].prob, train['RandomFlip'].direction) == (0.5, 'horizontal')
    if recipe.epochs == 300 or path.stem in LABEL_SMOOTHING:
        assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')
    else:
        assert loss.type == 'CrossEntropyLoss'
    if recipe.epochs < 300:
        assert not augments
        assert set(train) == {
            'LoadImageFromFile',
            'RandomResizedCrop',
            'RandomFlip',
            'PackInputs',
        }
        return

    mixing = [('Mixup', 0.8), ('CutMix', 1.0)]
    assert [(a.type, a.alpha) for a in augments] == ([] if promised.budget == 0.25 else mixing)
    crop = train['RandomResizedCrop']
    assert (crop.backend, crop.interpolation) == ('pillow', 'bicubic')
    rand_augment = train['RandAugment']
    assert rand_augment.policies == 'timm_increasing'  # inc1
    assert (rand_augment.num_policies, rand_augment.total_level) == (2, 10)
    assert (rand_augment.magnitude_level, rand_augment.magnitude_std) == (9, 0.5)  # m9, mstd0.5
    assert rand_augment.hparams.interpolation == 'bicubic'
    erasing = train['RandomErasing']
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    # Noise of the images' own statistics, in the BGR order in which they are loaded.
    assert erasing.fill_color == cfg.data_preprocessor.mean[::-1]
    assert erasing.fill_std == cfg.data_preprocessor.std[::-1]


def check_frozen_parts_and_norms(path: Path, promised: Promise) -> None:
    model, network = built(path), promised.network
    parameters = [name for name in model.shapes if name.endswith(('.weight', '.bias', '.cells'))]
    parts = {True: set(), False: set()}
    for name in parameters:
        if re.match(r'backbone\.layer1\..*\.(KSM_Global|KSM_Local|FBM)\.', name):
            assert name in model.settings, 'the gates of FDConv train everywhere'
        elif name.startswith('backbone.'):
            parts[name in model.settings].add(name.split('.')[1])
    frozen = {'conv1', 'layer1'} | ({'bn1'} & FROZEN[network])
    assert parts[False] == (frozen if promised.own_recipe else FROZEN[network])
    assert not parts[False] & parts[True], 'a part is frozen as a whole'
    assert ('warehouses' in parts[True]) == (promised.method == 'kw')
    # Batch norms, those of attentions included, are in evaluation mode; layer norms have none.
    for name, (kind, is_training) in model.norms.items():
        if name.startswith('backbone.') and not name.endswith('.KSM_Local.norm'):
            assert ('BatchNorm' in kind) == (network != 'convnext-tiny'), name
            assert is_training == (network == 'convnext-tiny'), name


def check_layer_wise_learning_rates(path: Path, network: str) -> None:
    """Attentions have the rate of their layer; warehouses, like output norms, that of the heads."""
    found = Counter()
    rate = load(path).optim_wrapper.optimizer.lr
    for name, setting in built(path).settings.items():
        below = [
            layers
            for pattern, layers in LAYERS_BELOW_HEADS.items()
            if network == 'convnext-tiny' and re.match(rf'backbone\.({pattern})\.', name)
        ] or [0]
        found.update(below)
        assert [setting.lr] == pytest.approx([rate * 0.95**layers for layers in below]), name
    assert set(found) == set(range(8 if network == 'convnext-tiny' else 1))


def test_evaluation_is_the_bicubic_centre_of_the_image(tmp_path):
    cfg = load(CONFIGS / 'imagenet/kw-resnet18-1x_8xb512-300e_in1k.py')
    pixels = np.random.default_rng(0).integers(0, 256, (300, 375, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / 'image.png')

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    result = pipeline(dict(img_path=str(tmp_path / 'image.png'), gt_label=0))

    expected = image.resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
    rgb = result['inputs'].flip(0).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(rgb, np.asarray(expected))


def test_coco_images_come_in_many_scales(tmp_path):
    cfg = load(CONFIGS / 'coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py')
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / 'image.png')
    square = [200.0, 200.0, 300.0, 200.0, 300.0, 300.0, 200.0, 300.0]
    instance = dict(bbox=[200, 200, 300, 300], bbox_label=0, mask=[square], ignore_flag=0)

    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    np.random.seed(0)
    short_sides, whole = Counter(), Counter()
    for _ in range(120):
        image = dict(img_path=str(tmp_path / 'image.png'), img_id=0, instances=[dict(instance)])
        height, width = pipeline(image)['inputs'].shape[-2:]
        assert max(height, width) <= 1333
        short_sides[min(height, width)] += 1
        whole[abs(width / height - 4 / 3) < 0.01] += 1

    assert set(short_sides) == set(range(480, 801, 32))
    assert min(whole[True], whole[False]) > 30  # about as often whole as cropped
