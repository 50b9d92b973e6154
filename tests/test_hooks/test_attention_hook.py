"""KWAttentionHook in a real run, read back from the files that TensorBoard shows."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_runs import CLASSIFIER, write_classification_data


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_classification_data(tmp_path / 'images' / 'train')
    (tmp_path / 'tiny.py').write_text(CLASSIFIER)
    config = Config.fromfile('tiny.py')
    config.work_dir = 'run'
    # Runs that begin in the same second would share their logs.
    config.experiment_name = tmp_path.name
    config.train_cfg.update(max_epochs=1)
    config.visualizer = dict(
        type='UniversalVisualizer',
        vis_backends=[dict(type='TensorboardVisBackend'), dict(type='LocalVisBackend')],
    )
    return config


def test_scalars_and_maps_reach_tensorboard(config):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    quiet = copy.deepcopy(config)
    quiet.work_dir = quiet.experiment_name = 'quiet'
    config.custom_hooks += [dict(type='KWAttentionHook', interval=1, map_interval=2)]
    runner = Runner.from_cfg(config)
    runner.train()
    runner.visualizer.close()
    (file,) = Path('run').rglob('events.out.*')
    events = accumulator.EventAccumulator(str(file), size_guidance={'images': 0}).Reload()
    warehouse = 'backbone.warehouses.layer2'
    initial = events.Scalars(f'attention/initial/{warehouse}')
    assert [event.step for event in initial] == [1, 2]
    # Annealing from one-to-one: what is not yet on other cells is on the initial one.
    assert 1 > initial[0].value > initial[1].value > 0.5
    entropy = events.Scalars(f'attention/entropy/{warehouse}')
    assert 0 < entropy[0].value < entropy[1].value < 1
    (image,) = events.Images(f'attention/{warehouse}')
    assert image.step == 2 and image.height > 100 and image.width > 100
    assert f'attention/spread/{warehouse}' in events.Tags()['scalars']

    other = Runner.from_cfg(quiet)
    other.train()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(runner.model.state_dict()[name], value, rtol=0, atol=0)
