"""The built wheel, used from an empty folder: no file of the repository is within reach."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_runs import ROOT, load_tool

FIVE_LINES = """
_base_ = 'mmkw::demo/kw-resnet18-1x_digits.py'
train_dataloader = dict(dataset=dict(data_root='digits/imagenet', indices=16))
val_dataloader = dict(dataset=dict(data_root='digits/imagenet', indices=16))
test_dataloader = val_dataloader
model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels=128))
"""

BY_NAME = """
import json, sys
import numpy as np
import mmkw
from mmengine.config import Config
from mmengine.hub import get_config
from mmpretrain import ImageClassificationInferencer, get_model, list_models

name = 'kw-resnet18-1x_8xb512-300e_in1k'
by_hub = get_config(f'mmkw::imagenet/{name}.py')
open('config.py', 'w').write(f"_base_ = 'mmkw::imagenet/{name}.py'")
by_base = Config.fromfile('config.py')
model = get_model(name)
classified = ImageClassificationInferencer(name)(np.zeros((64, 64, 3), np.uint8))[0]
print()  # The progress bar leaves the line open.
print(json.dumps(dict(
    package=mmkw.__file__,
    listed=list_models('kw-resnet18-*300e'),
    parameters=sum(parameter.numel() for parameter in model.parameters()),
    backbones=[by_hub.model.backbone.type, by_base.model.backbone.type],
    scores=len(classified['pred_scores']),
)))
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder that the wheel of the working tree is installed into."""
    pytest.importorskip('setuptools', minversion='77', reason='pyproject.toml asks for 77 to build')
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('installed')
    for name in ('mmkw', 'configs', 'tools'):
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith('.'):
            shutil.copy(path, source)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    options = ['--no-deps', '--no-build-isolation']
    subprocess.run([*pip, 'wheel', *options, '-w', source / 'wheel', source], check=True)
    wheel = next((source / 'wheel').glob('mmkw-*.whl'))
    subprocess.run([*pip, 'install', '--no-deps', '--target', target, wheel], check=True)
    return target


def run(installed, folder, *command):
    """Run a command of Python in the folder, with the installed wheel; returns its output.

    mim is where tools/setup_env.sh puts it, or else among the packages.
    """
    path = os.pathsep.join([str(installed), os.path.join(sys.prefix, 'mim')])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': '-1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_models_by_name_and_configs_by_scope(installed, tmp_path):
    found = json.loads(run(installed, tmp_path, '-c', BY_NAME).splitlines()[-1])
    assert found['package'].startswith(str(installed))
    budgets = ('1d4x', '1d2x', '1x', '2x', '4x')
    assert {f'kw-resnet18-{budget}_8xb512-300e_in1k' for budget in budgets} <= set(found['listed'])
    assert found['parameters'] == 11_932_148
    assert found['backbones'] == ['KWResNet'] * 2
    assert found['scores'] == 1000


@pytest.mark.slow
def test_training_and_testing_with_mim_from_a_config_of_five_lines(installed, tmp_path):
    tools = installed / 'mmkw/.mim/tools'
    run(installed, tmp_path, tools / 'dataset_converters/digits.py', 'digits', '--renderings', '1')
    (tmp_path / 'mine.py').write_text(FIVE_LINES)
    listed = run(installed, tmp_path, '-m', 'mim', 'search', 'mmkw', '--valid-config')
    assert 'kw-resnet18-1x_8xb512-300e_in1k' in listed
    mim = ('-m', 'mim')
    trained = run(installed, tmp_path, *mim, 'train', 'mmkw', 'mine.py', '--gpus', '0')
    assert 'Training finished successfully' in trained
    checkpoint = 'work_dirs/mine/epoch_1.pth'
    tested = run(
        installed,
        tmp_path,
        *(*mim, 'test', 'mmkw', 'mine.py', '--checkpoint', checkpoint, '--gpus', '0'),
    )
    assert 'accuracy/top1' in tested
    assert 'Failed to search registry' not in trained + tested


def test_every_model_is_listed_with_what_the_tables_say():
    tool = load_tool('misc/make_model_index')
    command = 'python tools/misc/make_model_index.py'
    for path, text in tool.render().items():
        assert (ROOT / path).read_text(encoding='utf-8') == text, f'run {command}'
    for folder in tool.FOLDERS:
        configs = {path.stem for path in (ROOT / 'configs' / folder).glob('*.py')}
        text = (ROOT / 'configs' / folder / 'README.md').read_text(encoding='utf-8')
        listed = [model['Name'] for model in tool.metafile(folder, text)['Models']]
        assert len(set(listed)) == len(listed)
        assert configs == set(listed)
