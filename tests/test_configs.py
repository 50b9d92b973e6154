"""Every config parses and builds, and says what the paper's A.1 and tables say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mmdet.datasets.transforms  # noqa: F401  (registers the transforms that the configs name)
import mmpretrain.datasets.transforms  # noqa: F401
import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

CONFIGS = Path(__file__).parents[1] / 'configs'
RUNNABLE = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
IMAGENET = [path for path in RUNNABLE if path.parent.name == 'imagenet']
COCO = [path for path in RUNNABLE if path.parent.name == 'coco']
BUDGETS = {'1d4x': 0.25, '1d2x': 0.5, '1x': 1, '2x': 2, '4x': 4, None: None}

# The paper's tables 1 and 2: top-1, top-5.
PAPER_IMAGENET = {
    'resnet18_8xb32-100e_in1k': ('70.25', '89.38'),
    'kw-resnet18-1d2x_8xb32-100e_in1k': ('72.81', '90.66'),
    'kw-resnet18-1x_8xb32-100e_in1k': ('73.67', '91.17'),
    'kw-resnet18-2x_8xb32-100e_in1k': ('74.03', '91.37'),
    'kw-resnet18-4x_8xb32-100e_in1k': ('74.16', '91.42'),
    'resnet18_8xb512-300e_in1k': ('70.44', '89.72'),
    'kw-resnet18-1d4x_8xb512-300e_in1k': ('72.73', '90.83'),
    'kw-resnet18-1d2x_8xb512-300e_in1k': ('73.33', '91.42'),
    'kw-resnet18-1x_8xb512-300e_in1k': ('74.77', '92.13'),
    'kw-resnet18-2x_8xb512-300e_in1k': ('75.19', '92.18'),
    'kw-resnet18-4x_8xb512-300e_in1k': ('76.05', '92.68'),
    'resnet50_8xb512-300e_in1k': ('78.44', '94.24'),
    'kw-resnet50-1d2x_8xb512-300e_in1k': ('79.30', '94.71'),
    'kw-resnet50-1x_8xb512-300e_in1k': ('80.38', '95.19'),
    'kw-resnet50-4x_8xb512-300e_in1k': ('81.05', '95.21'),
}
# Table 3: box AP, AP50, AP75, then mask AP, AP50, AP75.
PAPER_COCO = {
    'mask-rcnn_resnet50_fpn_ms-1x_coco': ('39.6', '61.6', '43.3', '36.4', '58.7', '38.6'),
    'mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco': ('41.8', '64.5', '45.9', '38.4', '61.4', '41.2'),
    'mask-rcnn_kw-resnet50-4x_fpn_ms-1x_coco': ('42.4', '65.4', '46.3', '38.9', '62.0', '41.5'),
}
# Counted in the released models; the plain networks are torchvision's.
PARAMETERS = {
    (18, None): 11_689_512,
    (18, 0.25): 4_031_768,
    (18, 0.5): 7_431_044,
    (18, 1): 11_932_148,
    (18, 2): 23_242_127,
    (18, 4): 45_862_085,
    (50, None): 25_557_032,
    (50, 0.5): 17_638_264,
    (50, 1): 28_052_310,
    (50, 4): 102_015_144,
}


def named(path: Path) -> str:
    return path.stem


def depth_and_budget(stem: str) -> tuple[int, float | None]:
    """What the name of a config promises."""
    depth, budget = re.search(r'resnet(\d+)(?:-(\w+x))?_', stem).groups()
    return int(depth), BUDGETS[budget]


def build(cfg: Config) -> torch.nn.Module:
    """The model as a Runner of this config would build it."""
    model = dict(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model)


class Built(NamedTuple):
    """What the tests ask of a built model, which is itself too large to keep."""

    parameters: int
    shapes: dict[str, torch.Size]
    drop_paths: list[float]


@cache
def built(path: Path) -> Built:
    model = build(Config.fromfile(path))
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    return Built(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes={name: value.shape for name, value in model.state_dict().items()},
        drop_paths=[rate for rate in rates if rate],
    )


@pytest.mark.parametrize('path', RUNNABLE, ids=named)
def test_builds(path):
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build(hook)
    assert built(path).parameters > 0


def test_the_configs_are_those_of_the_paper():
    assert {path.stem for path in IMAGENET} == set(PAPER_IMAGENET)
    assert {path.stem for path in COCO} == set(PAPER_COCO)


@pytest.mark.parametrize('path', IMAGENET, ids=named)
def test_classifier_is_what_the_name_promises(path):
    depth, budget = depth_and_budget(path.stem)
    backbone = Config.fromfile(path).model.backbone
    assert (backbone.depth, backbone.budget) == (depth, budget)
    assert built(path).parameters == PARAMETERS[depth, budget]


@pytest.mark.parametrize('path', IMAGENET, ids=named)
def test_imagenet_recipe(path):
    cfg = Config.fromfile(path)
    depth, budget = depth_and_budget(path.stem)
    per_gpu, epochs = map(int, re.search(r'_8xb(\d+)-(\d+)e_in1k', path.stem).groups())
    small = depth == 18 and budget in (0.25, 0.5)

    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == 8 * per_gpu
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == 1

    annealed = dict(type='KWTemperatureHook', epochs={100: 10, 300: 20}[epochs])
    assert cfg.custom_hooks == ([] if budget is None else [annealed])

    blocks = {18: 8, 50: 16}[depth]
    assert built(path).drop_paths == ([] if small or epochs == 100 else [0.1] * blocks)

    optimizer = {k: v for k, v in cfg.optim_wrapper.optimizer.items() if k != '_scope_'}
    loss = cfg.model.head.loss
    augments = (cfg.model.get('train_cfg') or {}).get('augments', [])
    train = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert train['RandomResizedCrop'].scale == 224
    assert (train['RandomFlip'].prob, train['RandomFlip'].direction) == (0.5, 'horizontal')
    if epochs == 100:
        assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
        assert loss.type == 'CrossEntropyLoss'
        assert not augments
        assert set(train) == {
            'LoadImageFromFile',
            'RandomResizedCrop',
            'RandomFlip',
            'PackInputs',
        }
        return

    assert optimizer == dict(type='AdamW', lr=0.004, betas=(0.9, 0.999), weight_decay=0.05)
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')
    mixing = [('Mixup', 0.8), ('CutMix', 1.0)]
    assert [(a.type, a.alpha) for a in augments] == ([] if budget == 0.25 else mixing)
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


def test_evaluation_is_the_bicubic_centre_of_the_image(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'imagenet/kw-resnet18-1x_8xb512-300e_in1k.py')
    pixels = np.random.default_rng(0).integers(0, 256, (300, 375, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / 'image.png')

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    result = pipeline(dict(img_path=str(tmp_path / 'image.png'), gt_label=0))

    expected = image.resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
    rgb = result['inputs'].flip(0).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(rgb, np.asarray(expected))


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


def learning_rates(cfg: Config, epoch_length: int, work_dir: Path) -> np.ndarray:
    recorder = Recorder()
    runner = Runner(
        model=OneWeight(),
        work_dir=str(work_dir),
        default_scope=cfg.default_scope,
        train_dataloader=dict(
            dataset=[dict(inputs=torch.zeros(1))] * epoch_length,
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[recorder],
        log_level='WARNING',
        experiment_name=f'{work_dir.name}_{cfg.default_scope}',
    )
    runner.train()
    return np.array(recorder.rates)


def test_learning_rate_of_300_epochs(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'imagenet/kw-resnet18-1x_8xb512-300e_in1k.py')
    rates = learning_rates(cfg, 2, tmp_path)
    warm_up, rest = np.arange(40), np.arange(560)
    np.testing.assert_allclose(rates[:40], 0.004 * (1e-3 + 0.999 * warm_up / 39), rtol=1e-6)
    cosine = 0.002 * (1 + np.cos(np.pi * rest / 560))
    np.testing.assert_allclose(rates[40:], cosine, rtol=1e-6, atol=1e-12)
    assert len(rates) == 600


def test_learning_rate_of_100_epochs(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'imagenet/kw-resnet18-1x_8xb32-100e_in1k.py')
    rates = learning_rates(cfg, 1, tmp_path)
    np.testing.assert_allclose(rates, [0.1] * 30 + [0.01] * 30 + [1e-3] * 30 + [1e-4] * 10)


def test_learning_rate_of_12_epochs(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py')
    rates = learning_rates(cfg, 50, tmp_path)
    iterations = np.arange(600)
    expected = 1e-4 * np.minimum(1, 1e-3 + 0.999 * iterations / 499)
    expected[8 * 50 :] *= 0.1
    expected[11 * 50 :] *= 0.1
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def weight_decays(cfg: Config) -> dict[str, tuple[torch.nn.Module, torch.Tensor, float]]:
    """For each trained parameter its module, itself, and the weight decay that it gets."""
    model = build(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    modules = dict(model.named_modules())
    return {
        name: (modules[name.rpartition('.')[0]], parameter, decay[id(parameter)])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def test_weight_decay_of_300_epochs():
    # This one has every kind of parameter, the non-local basis included.
    cfg = Config.fromfile(CONFIGS / 'imagenet/kw-resnet50-1d2x_8xb512-300e_in1k.py')
    for name, (_, parameter, decay) in weight_decays(cfg).items():
        assert decay == (0.05 if parameter.ndim > 1 else 0), name


def test_weight_decay_of_100_epochs():
    cfg = Config.fromfile(CONFIGS / 'imagenet/kw-resnet18-1d2x_8xb32-100e_in1k.py')
    assert {decay for _, _, decay in weight_decays(cfg).values()} == {1e-4}


def test_weight_decay_of_12_epochs():
    cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py')
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    for name, (module, _, decay) in weight_decays(cfg).items():
        assert decay == (0 if isinstance(module, norms) else 0.05), name


@pytest.mark.parametrize('path', COCO, ids=named)
def test_coco_recipe(path):
    cfg = Config.fromfile(path)
    depth, budget = depth_and_budget(path.stem)
    backbone = cfg.model.backbone

    assert (backbone.depth, backbone.budget) == (depth, budget)
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    optimizer = dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.optimizer == optimizer
    assert cfg.optim_wrapper.get('clip_grad') is None
    held = dict(type='KWDisableAttentionInitHook')
    assert cfg.custom_hooks == ([] if budget is None else [held])


@pytest.mark.parametrize('path', COCO, ids=named)
def test_detector_starts_from_the_output_of_its_imagenet_config(path):
    start = Config.fromfile(path).model.backbone.init_cfg
    folder, stem, checkpoint = Path(start.checkpoint).parts
    classifier = CONFIGS / 'imagenet' / f'{stem}.py'

    assert depth_and_budget(stem) == depth_and_budget(path.stem)
    assert (start.type, start.prefix, folder) == ('Pretrained', 'backbone.', 'work_dirs')
    assert checkpoint == f'epoch_{Config.fromfile(classifier).train_cfg.max_epochs}.pth'

    def backbone(config):
        shapes = built(config).shapes
        return {name: shape for name, shape in shapes.items() if name.startswith('backbone.')}

    assert backbone(classifier) == backbone(path)


def test_detector_loads_the_output_of_its_imagenet_config(tmp_path, monkeypatch):
    cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py')
    classifier = build(Config.fromfile(CONFIGS / 'imagenet/kw-resnet50-1x_8xb512-300e_in1k.py'))
    monkeypatch.chdir(tmp_path)
    checkpoint = Path(cfg.model.backbone.init_cfg.checkpoint)
    checkpoint.parent.mkdir(parents=True)
    torch.save(dict(state_dict=classifier.state_dict()), checkpoint)

    detector = build(cfg)
    detector.backbone.init_weights()

    expected = classifier.backbone.state_dict()
    loaded = detector.backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_coco_images_come_in_many_scales(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py')
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


def table_rows(folder: str) -> dict[str, list[str]]:
    """The rows of a README's tables that begin with a link to a config, by its stem."""
    lines = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8').splitlines()
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        link = re.fullmatch(r'\[(.+)\]\((.+)\.py\)', cells[0])
        if link:
            assert link[1] == link[2], f'{folder}/README.md: {cells[0]} links to another config'
            assert link[1] not in rows, f'{folder}/README.md lists {link[1]} twice'
            rows[link[1]] = cells[1:]
    return rows


@pytest.mark.parametrize(
    ('folder', 'paper'),
    [('imagenet', PAPER_IMAGENET), ('coco', PAPER_COCO)],
    ids=['imagenet', 'coco'],
)
def test_readme_tables(folder, paper):
    rows = table_rows(folder)
    assert set(rows) == set(paper)
    for stem, (parameters, *numbers) in rows.items():
        assert parameters == f'{built(CONFIGS / folder / f"{stem}.py").parameters:,}', stem
        assert tuple(numbers) == paper[stem], stem


CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='KWResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
)
"""
DETECTOR = """
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
model = dict(backbone=dict(type='KWResNet', init_cfg=None))
"""
BUILD_IN_RUNNER = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
model = Runner.from_cfg(cfg).model
print(type(model).__name__, sum(p.numel() for p in model.backbone.parameters()))
"""


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (CLASSIFIER, f'ImageClassifier {PARAMETERS[18, 1] - 513 * 1000}'),
        (DETECTOR, f'MaskRCNN {PARAMETERS[50, 1] - 2049 * 1000}'),
    ],
    ids=['mmpretrain', 'mmdet'],
)
def test_custom_imports_is_all_that_a_config_needs(tmp_path, text, expected):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmkw'])\n" + text, encoding='utf-8')
    # A process of its own, because nothing must have registered KWResNet before.
    command = [sys.executable, '-c', BUILD_IN_RUNNER, str(config), str(tmp_path / 'work')]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == expected
