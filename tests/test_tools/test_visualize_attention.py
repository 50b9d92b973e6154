"""tools/analysis_tools/visualize_attention.py with a classifier and a detector."""

import json

import cv2
import numpy as np
import pytest
from tiny_runs import load_tool, refused, write_random_model, write_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp('attention'))
    for name in ('tiny', 'detector'):
        write_random_model(folder / f'{name}.py', folder / f'{name}.pth')
    return folder


@pytest.fixture
def look(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def look(*args):
        load_tool('analysis_tools/visualize_attention').main([*args, '--work-dir=work'])
        return ''.join(capsys.readouterr())

    return look


def test_classifier(look, folder):
    shown = look('tiny.py', 'tiny.pth', '--out-dir=maps')
    assert '2/2' in shown
    statistics = json.loads((folder / 'maps' / 'statistics.json').read_text())
    assert 'backbone.layer1.0.conv1' in statistics
    with np.load(folder / 'maps' / 'attention.npz') as arrays:
        mean = arrays['backbone.layer1.0.conv1/mean']
    assert np.abs(mean).sum(-1).max() <= 1
    drawn = sorted(path.stem for path in (folder / 'maps').glob('*.png'))
    assert drawn == [f'backbone.warehouses.layer{i}' for i in (1, 2, 3, 4)]
    assert cv2.imread(str(folder / 'maps' / f'{drawn[0]}.png')) is not None


def test_config_that_averages_weights(look, folder):
    """Before a run, EMAHook cannot take part in loading."""
    hook = "custom_hooks = [dict(type='EMAHook')]"
    (folder / 'averaged.py').write_text(f"_base_ = 'tiny.py'\n{hook}\n")
    assert '2/2' in look('averaged.py', 'tiny.pth', '--out-dir=averaged')


@pytest.mark.parametrize(
    ('model', 'images'),
    [
        ('tiny', ['images/train/bright/bright0.png', 'images/train/dark/dark0.png']),
        pytest.param('detector', ['scenes/0.png', 'scenes/1.png'], marks=pytest.mark.slow),
    ],
)
def test_two_images(model, images, look, folder):
    shown = look(f'{model}.py', f'{model}.pth', '--images', *images, f'--out-dir={model}_pair')
    assert 'backbone.warehouses.layer4_compared.png' in shown
    assert len(list((folder / f'{model}_pair').glob('*_compared.png'))) == 4


def test_detector(look):
    assert '1/1' in look('detector.py', 'detector.pth', '--max-batches=1', '--out-dir=detected')


def test_errors(look, folder):
    tool = load_tool('analysis_tools/visualize_attention')
    assert 'does not fit the model of tiny.py' in refused(tool, 'tiny.py', 'detector.pth')
    line = refused(tool, 'tiny.py', 'tiny.pth', '--images', 'no.png', 'scenes/0.png')
    assert 'image file no.png does not exist' in line
    line = refused(tool, 'tiny.py', 'tiny.pth', '--max-batches=0')
    assert 'must be at least 1' in line
