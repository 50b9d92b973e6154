"""tools/image_demo.py with a classifier and a detector of random weights."""

import re

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_runs import load_tool, refused, weights, write_random_model, write_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp('images'))
    for name in ('tiny', 'detector'):
        write_random_model(folder / f'{name}.py', folder / f'{name}.pth')
    return folder


@pytest.fixture
def look(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def look(*args):
        load_tool('image_demo').main([*args, '--device=cpu'])
        return capsys.readouterr().out

    return look


def test_classifier(look, folder):
    """The class names come from the config where the checkpoint has none."""
    image = 'images/train/bright/bright0.png'
    shown = look(image, 'tiny.py', 'tiny.pth', '--out-dir=classified')
    assert f'{image} -> classified/bright0.png' in shown
    rows = re.findall(r'^  (0\.\d{3})  (dark|bright)$', shown, re.M)
    assert sorted(name for _, name in rows) == ['bright', 'dark']
    assert sum(float(score) for score, _ in rows) == pytest.approx(1, abs=2e-3)

    model = MODELS.build(dict(Config.fromfile('tiny.py').model, _scope_='mmpretrain')).eval()
    model.load_state_dict(weights('tiny.pth'))
    pixels = torch.from_numpy(cv2.imread(image)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        scores = model((pixels - 127.5) / 64, mode='tensor').softmax(1)[0]
    assert float(rows[0][0]) == pytest.approx(scores.max().item(), abs=1e-3)
    assert cv2.imread('classified/bright0.png') is not None


def test_detector_on_a_folder(look, folder):
    shown = look('scenes', 'detector.py', 'detector.pth', '--score-thr=0', '--out-dir=detected')
    for name in ('0.png', '1.png'):
        assert f'scenes/{name} -> detected/vis/{name}' in shown
        assert cv2.imread(f'detected/vis/{name}').shape == (64, 64, 3)
    rows = re.findall(r'^  0\.\d{3}  box  at \d+, \d+, \d+, \d+$', shown, re.M)
    assert 2 <= len(rows) <= 10
    shown = look('scenes/0.png', 'detector.py', 'detector.pth', '--score-thr=1')
    assert 'nothing with a score of at least 1.0' in shown


def test_errors(look, folder):
    tool = load_tool('image_demo')
    assert 'image no.png does not exist' in refused(tool, 'no.png', 'tiny.py', 'tiny.pth')
    image = 'images/train/bright/bright0.png'
    line = refused(tool, image, 'tiny.py', 'tiny.pth', '--out-dir=images/train/bright')
    assert f'drawing of {image} would take its place; name another folder' in line
    (folder / 'empty').mkdir()
    assert 'folder empty holds no image' in refused(tool, 'empty', 'tiny.py', 'tiny.pth')
    scene = 'scenes/0.png'
    assert 'checkpoint file no.pth does not exist' in refused(tool, scene, 'tiny.py', 'no.pth')
    for config, checkpoint in (('tiny.py', 'detector.pth'), ('detector.py', 'tiny.pth')):
        line = refused(tool, scene, config, checkpoint)
        assert f'{checkpoint} does not fit the model of {config}' in line
    (folder / 'text.png').write_text('no image')
    assert 'text.png' in refused(tool, 'text.png', 'tiny.py', 'tiny.pth')
    assert 'text.png' in refused(tool, 'text.png', 'detector.py', 'detector.pth')
