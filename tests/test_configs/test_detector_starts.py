"""Detectors start from what training by their ImageNet configs leaves."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from config_models import (
    COCO,
    CONFIGS,
    build,
    built,
    classifier_before,
    load,
    model_name,
    named,
)
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from torchvision.models import resnet50

from mmkw.checkpoints import load_checkpoint

FDCONV = [path for path in COCO if 'fdconv' in path.stem]


@pytest.mark.parametrize('path', [path for path in COCO if path not in FDCONV], ids=named)
def test_detector_starts_from_the_output_of_its_imagenet_config(path):
    classifier = classifier_before(path)
    assert model_name(classifier.stem) == model_name(path.stem)

    def backbone(config):
        shapes = built(config).shapes
        return {name: shape for name, shape in shapes.items() if name.startswith('backbone.')}

    needed, given = backbone(path), backbone(classifier)
    # A ConvNeXt detector normalises the output of every stage, a classifier that of the last.
    new = {name for name in needed if re.match(r'backbone\.norm[012]\.', name)}
    assert len(new) == (6 if 'convnext' in classifier.stem else 0)
    assert given == {name: shape for name, shape in needed.items() if name not in new}


def test_detector_loads_the_output_of_its_imagenet_config(tmp_path):
    cfg = copy.deepcopy(load(CONFIGS / 'coco/mask-rcnn_kw-mobilenet-v2-1x_fpn_ms-1x_coco.py'))
    stem = 'kw-mobilenet-v2-w100-1x_8xb32-150e_in1k'
    classifier = build(load(CONFIGS / f'imagenet/{stem}.py'))
    checkpoint = tmp_path / 'epoch_150.pth'
    torch.save(dict(state_dict=classifier.state_dict()), checkpoint)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)

    detector = build(cfg)
    detector.backbone.init_weights()

    expected = classifier.backbone.state_dict()
    loaded = detector.backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize('path', FDCONV, ids=named)
def test_fdconv_detector_starts_from_torchvisions_plain_resnet(path, tmp_path):
    cfg = copy.deepcopy(load(path).model.backbone)
    assert cfg.backbone.init_cfg == dict(type='Pretrained', checkpoint='torchvision://resnet50')
    plain = resnet50().state_dict()
    torch.save(plain, tmp_path / 'resnet50.pth')
    cfg.backbone.init_cfg.checkpoint = str(tmp_path / 'resnet50.pth')
    backbone = MODELS.build(cfg)
    backbone.init_weights()

    assert backbone.start_record.left == []
    loaded = backbone.state_dict()
    spectra = 0
    for name, value in plain.items():
        if name in loaded:
            assert torch.equal(loaded[name], value), name
        elif not name.startswith('fc.'):
            layer = backbone.get_submodule(name.removesuffix('.weight'))
            torch.testing.assert_close(layer.dft_weight, layer.converted(value))
            spectra += 1
    assert spectra == 48


class Average(Hook):
    """Averages the weights in float64; keeps what trains and what is evaluated."""

    priority = 'LOWEST'

    def __init__(self):
        self.evaluated = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        weights = {name: p.detach().double() for name, p in runner.model.named_parameters()}
        if runner.iter == 0:
            self.average = weights
        self.average = {
            name: 0.9999 * self.average[name] + 0.0001 * weight for name, weight in weights.items()
        }
        self.trained = weights

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.evaluated.append({name: p.clone() for name, p in runner.model.named_parameters()})


def test_convnext_detector_starts_from_the_moving_average(tmp_path):
    """Training as configured evaluates the weights and the average, and saves the average.

    The best checkpoint, like the last, holds the average, and the detector loads that.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        for split in ('train', 'val'):
            folder = tmp_path / 'data' / split / 'ab'[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f'{index}.png')
    small = dict(depths=[1, 1, 1, 1], channels=[16, 32, 48, 64])
    cfg = copy.deepcopy(load(CONFIGS / 'imagenet/kw-convnext-tiny-1x_8xb512-300e_in1k.py'))
    cfg.work_dir = str(tmp_path)
    cfg.model.backbone.arch = small
    cfg.model.head.in_channels = 64
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=2, num_workers=0)
        loader.dataset.update(data_root=str(tmp_path / 'data'), metainfo=dict(classes=['a', 'b']))
    cfg.optim_wrapper.optimizer.lr = 0.1
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 1
    recorder = Average()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(recorder)
    runner.train()

    saved = load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    best = load_checkpoint(tmp_path / 'best_accuracy_top1_epoch_1.pth')['state_dict']
    cells = 'backbone.warehouses.stage1_pointwise.cells'
    assert (recorder.trained[cells] - recorder.average[cells]).abs().mean() > 0.05
    for name, average in recorder.average.items():
        torch.testing.assert_close(saved[name].double(), average, rtol=1e-5, atol=1e-6, msg=name)
        # Four batches each: first the average, then the weights that train.
        assert len(recorder.evaluated) == 8
        for evaluated in recorder.evaluated[:4] + [best]:
            assert torch.equal(evaluated[name], saved[name]), name
        for evaluated in recorder.evaluated[4:]:
            assert torch.equal(evaluated[name].double(), recorder.trained[name]), name

    scores = runner.message_hub.log_scalars
    assert {'val/accuracy/top1', 'val/accuracy/top1_origin'} <= set(scores)

    detector = copy.deepcopy(load(CONFIGS / 'coco/mask-rcnn_kw-convnext-tiny-1x_fpn_ms-1x_coco.py'))
    detector.model.backbone.arch = small
    detector.model.backbone.init_cfg.checkpoint = str(tmp_path / 'epoch_1.pth')
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(detector.model.backbone)
    backbone.init_weights()
    loaded = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    started = [name for name in saved if name.startswith('backbone.')]
    assert cells in started
    assert all(torch.equal(loaded[name], saved[name]) for name in started)
