"""Tiny classifier, detector, data and runs for the tests of the tools."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint

import mmkw
from mmkw.checkpoints import load_checkpoint

ROOT = Path(mmkw.__file__).parents[1]
TOOLS = ROOT / 'tools'

# The running statistics of batch norm would differ between ranks by nature, so they stay as they
# are; sampling in order makes the global batches of one and of two processes the same.
CLASSIFIER = """
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[64.0] * 3)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='KWResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        norm_eval=True,
        zero_init_residual=False,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=128,
        topk=(1,),
        loss=dict(type='CrossEntropyLoss'),
    ),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet',
        data_root='{{ fileDirname }}/images',
        split='train',
        metainfo=dict(classes=('dark', 'bright')),
        pipeline=pipeline,
    ),
)
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.08, momentum=0.9))
param_scheduler = dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=4)
auto_scale_lr = dict(base_batch_size=16)
custom_hooks = [dict(type='KWTemperatureHook', epochs=3)]
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    visualization=dict(type='VisualizationHook'),
)
randomness = dict(seed=0)
"""

DETECTOR = """
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
default_scope = 'mmdet'
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='KWResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        out_indices=(0, 1, 2, 3),
        norm_eval=True,
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=1),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=1),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)),
)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
dataset = dict(
    type='CocoDataset',
    metainfo=dict(classes=('box',)),
    data_root='{{ fileDirname }}',
    ann_file='scenes.json',
    data_prefix=dict(img='scenes/'),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
        **dataset,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=meta_keys),
        ],
        **dataset,
    ),
)
val_dataloader = test_dataloader
val_evaluator = test_evaluator = dict(
    type='CocoMetric', ann_file='{{ fileDirname }}/scenes.json', metric=['bbox', 'segm']
)
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    visualization=dict(type='DetVisualizationHook', score_thr=0.0),
)
"""


def write_classification_data(folder):
    random = np.random.default_rng(0)
    for label, name in enumerate(('dark', 'bright')):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            image = random.integers(0, 200, (32, 32, 3), dtype=np.uint8) + 55 * label
            cv2.imwrite(str(folder / name / f'{name}{index}.png'), image.astype(np.uint8))


def write_detection_data(folder):
    (folder / 'scenes').mkdir()
    images, annotations = [], []
    for index in range(2):
        image = np.zeros((64, 64, 3), np.uint8)
        image[16:48, 8:40] = 255
        cv2.imwrite(str(folder / 'scenes' / f'{index}.png'), image)
        images.append(dict(id=index, file_name=f'{index}.png', height=64, width=64))
        outline = [8, 16, 40, 16, 40, 48, 8, 48]
        annotations.append(
            dict(
                id=index + 1,
                image_id=index,
                category_id=1,
                bbox=[8, 16, 32, 32],
                area=1024,
                iscrowd=0,
                segmentation=[outline],
            )
        )
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='box')])
    (folder / 'scenes.json').write_text(json.dumps(content))


def write_tiny(folder):
    """Configs and data: tiny.py, a classifier, and detector.py."""
    write_classification_data(folder / 'images' / 'train')
    write_detection_data(folder)
    (folder / 'tiny.py').write_text(CLASSIFIER)
    (folder / 'detector.py').write_text(DETECTOR)
    return folder


def write_random_model(config_file, checkpoint, temperature=None, **meta):
    """A checkpoint of the model of a config as it starts with seed 0."""
    config = Config.fromfile(config_file)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    if temperature is not None:
        model.init_weights()
        mmkw.set_temperature(model, temperature)
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), str(checkpoint))


def environment(folder, **more):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        'CUDA_VISIBLE_DEVICES': '-1',
        'OMP_NUM_THREADS': '1',
        'PORT': str(port),
        'PYTHON': sys.executable,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(folder)]),
        **more,
    }


def run(folder, *command, expect=0, timeout=300, **more):
    """Run a command in the folder; returns its output and errors together."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def scalars(work_dir):
    """What the loggers wrote during training, in the order of the runs."""
    lines = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]


def weights(path):
    return load_checkpoint(path)['state_dict']


def assert_trained_alike(work_dir, single):
    """The same weights up to rounding, seen against how far training moved them."""
    start, end = weights(single / 'epoch_1.pth'), weights(single / 'epoch_4.pth')
    other = weights(work_dir / 'epoch_4.pth')
    trained = [name for name in end if not torch.equal(start[name], end[name])]
    assert 'backbone.warehouses.layer4.cells' in trained
    for name in trained:
        moved = (end[name] - start[name]).norm()
        assert (other[name] - end[name]).norm() < 2e-4 * moved + 1e-7, name


def assert_trained_as_one(work_dir, single, output):
    """Two ranks with half of the batches each, with ``--auto-scale-lr`` as in the single run."""
    assert output.count('No GPU is available') == 1
    # Each process evaluates half of the images.
    assert re.search(r'Epoch\(val\) \[4\]\[1/1\] +accuracy/top1', output)
    assert_trained_alike(work_dir, single)
    rates = [line['lr'] for line in scalars(work_dir)]
    assert rates[-1] == pytest.approx(0.04)


def load_tool(name):
    """Import a tool as Python does when it runs it; ``name`` is its path in tools/ without .py."""
    path = TOOLS / f'{name}.py'
    for folder in (TOOLS, path.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def refused(tool, *args):
    """The one line with which a tool ends after an error."""
    with pytest.raises(SystemExit) as error:
        tool.main([str(arg) for arg in args])
    assert str(error.value).startswith('error: ') and '\n' not in str(error.value)
    return str(error.value)
