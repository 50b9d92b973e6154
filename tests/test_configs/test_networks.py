"""Every config builds and trains a step; sizes are the paper's."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from config_models import (
    COCO,
    CONFIGS,
    IMAGENET,
    RUNNABLE,
    build,
    build_optimizer,
    built,
    load,
    model_name,
    named,
    promise,
    readme_rows,
    replaced_backbone,
)
from mmdet.testing import demo_mm_inputs
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmpretrain.structures import DataSample
from tiny_runs import load_tool

# Puts the tool's folder on the path.
load_tool('analysis_tools/paper_tables')

from paper import printed  # noqa: E402

# Where the paper's count is another: by what part of it at most. The README says so.
DIFFERS_FROM_PAPER = {
    'kw-resnet18-1d4x': 0.02,
    'odconv-mobilenet-v2-w100-4x': 0.001,
    'deit-small': 0.001,
    'kw-deit-small-1x': 0.002,
    'kw-deit-small-3d4x': 0.001,
    'kw-deit-tiny-4x': 0.09,
}
BACKBONES = {
    'resnet18': dict(type='KWResNet', depth=18),
    'resnet34': dict(type='KWResNet', depth=34),
    'resnet50': dict(type='KWResNet', depth=50),
    'resnet101': dict(type='KWResNet', depth=101),
    'mobilenet-v2-w050': dict(type='KWMobileNetV2', widen_factor=0.5),
    'mobilenet-v2-w075': dict(type='KWMobileNetV2', widen_factor=0.75),
    'mobilenet-v2-w100': dict(type='KWMobileNetV2', widen_factor=1.0),
    'convnext-tiny': dict(type='KWConvNeXt', arch='tiny'),
    'deit-tiny': dict(type='KWVisionTransformer', arch='deit-tiny'),
    'deit-small': dict(type='KWVisionTransformer', arch='deit-small'),
}


@pytest.mark.parametrize('path', RUNNABLE, ids=named)
def test_builds(path):
    cfg = load(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build(hook)
    assert built(path).parameters > 0


def takes_long(path: Path) -> bool:
    """Detectors but that of the demo, most ablations, large classifiers."""
    if path in COCO:
        return True
    if path.parent.name == 'ablations':
        # The options are those of layers, which have tests of their own.
        return 'kw-resnet18-1x-share' not in path.stem
    large = 'resnet18-[248]x|resnet50-[14]x|resnet34|resnet101|w075|released|deit-small|tiny-3d4x'
    return re.search(large, path.stem) is not None


@pytest.mark.parametrize(
    'path',
    [pytest.param(p, marks=pytest.mark.slow if takes_long(p) else ()) for p in RUNNABLE],
    ids=named,
)
def test_training_step(path):
    """Gradients reach all that is trained, as the DistributedDataParallel of 8 GPUs needs it."""
    torch.manual_seed(0)
    cfg = load(path)
    model = build(cfg)
    optim_wrapper = build_optimizer(cfg, model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().flatten()[:100].clone() for name, p in trained.items()}
    reached = set()
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    if cfg.default_scope == 'mmdet':
        num_classes = cfg.model.roi_head.bbox_head.num_classes
        with_mask = 'mask_head' in cfg.model.roi_head
        data = demo_mm_inputs(2, (3, 64, 64), [1, 1], num_classes, with_mask=with_mask)
    else:
        data = dict(
            inputs=list(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)),
            data_samples=[DataSample().set_gt_label(label) for label in (0, 1)],
        )

    model.train()
    losses = model.train_step(data, optim_wrapper)

    assert torch.isfinite(losses['loss'])
    assert reached == set(trained)
    for name, parameter in trained.items():
        assert torch.isfinite(parameter).all(), name
        # Biases may have no gradient to move them, where a path was dropped.
        if parameter.ndim > 1:
            assert not torch.equal(parameter.flatten()[:100], before[name]), name


@pytest.mark.parametrize('path', IMAGENET + COCO, ids=named)
def test_backbone_is_what_the_name_promises(path):
    promised = promise(path.stem)
    backbone = load(path).model.backbone
    expected = dict(BACKBONES[promised.network])
    if promised.method in (None, 'kw'):
        assert backbone.budget == promised.budget
    else:
        layer = dict(backbone.layer)
        assert layer.pop('type').lower() == f'{promised.method}2d'.replace('dcd', 'dcdconv')
        assert layer == ({} if promised.budget is None else dict(num_kernels=promised.budget))
        backbone = replaced_backbone(load(path))
        # The budget of the plain backbone, where it is one that can have warehouses.
        assert backbone.get('budget') is None
        expected['type'] = backbone.type
        plain = expected['type'].rpartition('.')[2].removeprefix('KW')
        assert plain == BACKBONES[promised.network]['type'].removeprefix('KW')
    # Detectors leave the paper's sizes, which are the defaults, out.
    size = {key: value for key, value in expected.items() if key in backbone}
    assert {key: backbone[key] for key in size} == size
    assert len(size) == 2 or path in COCO


@pytest.mark.parametrize('path', IMAGENET, ids=named)
def test_parameters_are_the_papers(path):
    """The README has the exact counts, most of which are those of released models."""
    row, name = printed(f'imagenet/{path.stem}'), model_name(path.stem)
    if row is None:
        return
    parameters = built(path).parameters
    is_equal = f'{parameters / 1e6:.2f}' == f'{row.millions:.2f}'
    assert is_equal == (name not in DIFFERS_FROM_PAPER)
    if not is_equal:
        assert parameters / 1e6 == pytest.approx(row.millions, rel=DIFFERS_FROM_PAPER[name])


@pytest.mark.parametrize(
    'path', [p for p in COCO if re.match(r'mask-rcnn_kw-.+-1x_fpn', p.stem)], ids=named
)
def test_features_fit_the_neck(path):
    cfg = load(path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(copy.deepcopy(cfg.model.backbone)).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[1] for feature in features] == cfg.model.neck.in_channels
    # Strides of 4 to 32, as the anchors and RoI levels have them.
    assert [feature.shape[2] for feature in features] == [16, 8, 4, 2]


@pytest.mark.parametrize('folder', ['imagenet', 'coco'])
def test_readmes_have_the_parameters(folder):
    """test_paper_tables.py checks their other numbers, and that they list all configs."""
    for stem, (parameters, *_) in readme_rows(folder).items():
        assert parameters == f'{built(CONFIGS / folder / f"{stem}.py").parameters:,}', stem


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


# By default, test_any_backbone.py has a detector, and test_train_tools.py trains a classifier.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (CLASSIFIER, f'ImageClassifier {11_932_148 - 513 * 1000}'),
        (DETECTOR, f'MaskRCNN {28_052_310 - 2049 * 1000}'),
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
