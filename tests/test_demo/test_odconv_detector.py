"""A Mask R-CNN with an ODConv ResNet on the scenes of digits, through the tools."""

import sys

import pytest
import torch
from tiny_runs import ROOT, TOOLS, load_tool, run, scalars

from mmkw.checkpoints import load_checkpoint

DETECTOR = f"""
_base_ = '{ROOT}/configs/demo/mask-rcnn_kw-resnet18-1x_fpn_digits.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3)),
        layer=dict(type='ODConv2d', num_kernels=4),
        layers=['layer*.conv?'],
    )
)
custom_hooks = [dict(type='KWDisableAttentionInitHook')]
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1))
"""


@pytest.mark.slow
def test_trains_resumes_and_evaluates(tmp_path):
    digits = load_tool('dataset_converters/digits')
    settings = digits.DigitsSettings(renderings=1, train_scenes=8, val_scenes=4)
    digits.make_digits(tmp_path / 'data/digits', settings)
    (tmp_path / 'detector.py').write_text(DETECTOR)
    train = [sys.executable, TOOLS / 'train.py', 'detector.py', '--work-dir=out']
    run(tmp_path, *train)
    first = load_checkpoint(tmp_path / 'out/epoch_1.pth')['state_dict']

    output = run(tmp_path, *train, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert 'coco/segm_mAP' in output
    second = load_checkpoint(tmp_path / 'out/epoch_2.pth')['state_dict']
    assert first.keys() == second.keys()
    attentions = [name for name in first if name.endswith('.attention.spatial_fc.weight')]
    assert len(attentions) == 16
    for name in attentions:
        assert not torch.equal(first[name], second[name]), name
    logged = scalars(tmp_path / 'out')
    assert {line['epoch'] for line in logged} <= {1, 2}
    assert all(line['temperature'] == 1 for line in logged)

    output = run(tmp_path, sys.executable, TOOLS / 'test.py', 'detector.py', 'out/epoch_2.pth')
    assert 'coco/bbox_mAP:' in output and 'coco/segm_mAP:' in output
