"""Networks of MMSegmentation: their configs, and a run of the tools on scenes of digits."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from config_models import SEGMENTATION, build, classifier_before, load, named, readme_rows
from mmengine.registry import MODELS, DefaultScope
from tiny_runs import load_tool

from mmkw import get_temperature, set_temperature
from mmkw.checkpoints import load_checkpoint
from mmkw.openmmlab.backbones import KWResNet

pytest.importorskip('mmseg')

CONFIG = f"""
_base_ = '{Path(__file__).parents[1]}/data/pspnet_kw-resnet18-1x_digits.py'
custom_hooks = [dict(type='KWTemperatureHook', iters=4)]
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=ITERS, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, save_optimizer=True))
"""


@pytest.mark.parametrize('path', SEGMENTATION, ids=named)
def test_networks_and_their_starts(path):
    """README's counts, features that fit the heads, a start from the ImageNet config's output."""
    model = build(load(path)).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert readme_rows('segmentation')[path.stem] == [f'{parameters:,}']
    classifier = build(load(classifier_before(path)))
    needed, given = (
        {name: value.shape for name, value in network.backbone.state_dict().items()}
        for network in (model, classifier)
    )
    # A ConvNeXt for segmentation normalises the output of every stage, a classifier the last.
    assert all(needed[name] == given[name] for name in needed if not re.match(r'norm[012]\.', name))
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 64, 64))
    heads = (model.decode_head, model.auxiliary_head)
    for head in heads:
        channels = [feature.shape[1] for feature in features]
        indices = head.in_index
        taken = [channels[i] for i in indices] if isinstance(indices, list) else channels[indices]
        assert taken == head.in_channels
    assert features[-1].shape[2] == (8 if 'pspnet' in path.stem else 2)


@pytest.mark.parametrize('contract', [True, False])
def test_dilated_network_from_plain_weights_is_the_plain_one(contract):
    """At temperature 1, in MMSegmentation's own ResNet."""
    torch.manual_seed(0)
    options = dict(
        depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=contract
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        plain = MODELS.build(dict(type='mmseg.ResNet', **options))
    network = KWResNet(out_indices=(3,), **options)
    plain.eval(), network.eval()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.load_state_dict(plain.state_dict(), strict=False)
    set_temperature(network, 1)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[-1], plain(x)[-1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where a run was trained for two of four iterations, and then to the end."""
    load_tool('dataset_converters/digits')
    from dataset_converters.digits import DigitsSettings, make_digits

    folder = tmp_path_factory.mktemp('segmentation')
    settings = DigitsSettings(renderings=1, train_scenes=6, val_scenes=3)
    make_digits(folder / 'data' / 'digits', settings)
    train = load_tool('train')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for iters in (2, 4):
            (folder / 'scenes.py').write_text(CONFIG.replace('ITERS', str(iters)))
            train.main(['scenes.py', '--resume', '--work-dir', 'run'])
    return folder


def test_training_resumes_and_anneals_by_iterations(folder):
    halfway, last = (load_checkpoint(folder / f'run/iter_{n}.pth') for n in (2, 4))
    hub = last['message_hub']['log_scalars']['train/temperature']
    assert hub.current() == 0
    assert halfway['message_hub']['log_scalars']['train/temperature'].current() == 0.5
    model = build(load(folder / 'scenes.py'))
    model.load_state_dict(last['state_dict'])
    assert get_temperature(model.backbone) == 0


def test_scores_and_drawings(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    tool = load_tool('test')
    tool.main(['scenes.py', 'run/iter_4.pth', '--work-dir', 'test', '--show-dir', 'drawn'])
    assert re.search(r'mIoU: \d', capsys.readouterr().out)
    drawn = sorted((folder / 'test').rglob('vis_image/*.png'))
    drawn += sorted((folder / 'drawn').rglob('vis_image/*.png'))
    assert len(drawn) == 3
    assert len(np.unique(cv2.imread(str(drawn[0])))) > 2


def test_image_demo(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    image = 'data/digits/coco/val/000001.png'
    load_tool('image_demo').main([image, 'scenes.py', 'run/iter_4.pth', '--device', 'cpu'])
    out = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r'^  (\d\.\d+)  ', out, re.MULTILINE)]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert (folder / 'outputs' / '000001.png').is_file()


def test_label_maps_are_the_masks(folder):
    from pycocotools.coco import COCO

    coco = COCO(folder / 'data/digits/coco/annotations/instances_val.json')
    for image in coco.imgs.values():
        labels = cv2.imread(
            str(folder / 'data/digits/coco/labels/val' / image['file_name']), cv2.IMREAD_UNCHANGED
        )
        expected = np.zeros_like(labels)
        for annotation in coco.imgToAnns[image['id']]:
            expected[coco.annToMask(annotation) == 1] = annotation['category_id']
        np.testing.assert_array_equal(labels, expected)
