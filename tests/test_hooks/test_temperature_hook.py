"""The temperature during real training runs: schedule, log, resume, EMA, accumulation, AMP."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from temperature_runs import (
    Network,
    Recorder,
    expected_schedule,
    make_runner,
    train,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import ROOT, environment
from torch import nn

import mmkw
from mmkw.methods import DYConv2d, ODConv2d
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.openmmlab.hooks import FiniteLossHook, KWAttentionHook, KWTemperatureHook


def read_log(work_dir):
    (path,) = work_dir.rglob('scalars.json')
    return [json.loads(line)['temperature'] for line in path.read_text().splitlines()]


def read_tensorboard(work_dir):
    events = EventAccumulator(str(next(work_dir.rglob('events.out.tfevents.*')).parent))
    events.Reload()
    return [event.value for event in events.Scalars('temperature')]


@pytest.mark.parametrize('length', [dict(epochs=2), dict(iters=8), dict(epochs=0.5)], ids=str)
def test_schedule_in_model_hub_log_and_tensorboard(tmp_path, length):
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    _, recorder = train(
        tmp_path,
        [dict(type='KWTemperatureHook', **length)],
        visualizer=dict(type='Visualizer', vis_backends=backends),
    )
    iters = length.get('iters', length.get('epochs', 0) * 4)
    expected = expected_schedule(iters, 16)
    assert recorder.used == pytest.approx(expected, abs=1e-7)
    assert recorder.hub == pytest.approx(expected, abs=1e-12)
    assert read_log(tmp_path) == pytest.approx(expected, abs=1e-4)
    assert read_tensorboard(tmp_path) == pytest.approx(expected, abs=1e-6)


def test_begin_and_end(tmp_path):
    hook = dict(type='KWTemperatureHook', iters=4, begin=0.8, end=0.2)
    _, recorder = train(tmp_path, [hook], epochs=2)
    assert recorder.used == pytest.approx([0.65, 0.5, 0.35, *[0.2] * 5], abs=1e-6)


def test_iteration_based_training(tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=6)
    _, recorder = train(tmp_path, [dict(type='KWTemperatureHook', iters=4)], train_cfg=loop)
    assert recorder.used == pytest.approx(expected_schedule(4, 6))


@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema_model_has_the_temperature_of_the_model(tmp_path, update_buffers, learned):
    """Though it is copied before the weights are loaded."""
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers)
    start = dict(state_dict=Network(KWConv2d(4, 4, 3, padding=1, cell_ratio=0.5)).state_dict())
    torch.save(start, tmp_path / 'learned.pth')
    load_from = str(tmp_path / 'learned.pth') if learned else None
    temperatures = []

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            (hook,) = (h for h in runner.hooks if type(h).__name__ == 'EMAHook')
            temperatures.append(mmkw.get_temperature(hook.ema_model))

    hooks = [dict(type='KWTemperatureHook', epochs=2), ema, Watch()]
    _, recorder = train(tmp_path, hooks, load_from=load_from)
    expected = [0] * 16 if learned else expected_schedule(8, 16)
    assert temperatures == recorder.used == recorder.hub == expected
    checkpoint = mmkw.checkpoints.load_checkpoint(tmp_path / 'epoch_1.pth')
    for state_dict in ('state_dict', 'ema_state_dict'):
        (value,) = (v for k, v in checkpoint[state_dict].items() if 'temperature' in k)
        assert value.item() == expected[3]


def test_gradient_accumulation_equals_the_larger_batch(tmp_path):
    """Two batches of 4 with mean gradients are one of 8: same temperatures, same weights."""
    (tmp_path / 'accumulated').mkdir()
    (tmp_path / 'large').mkdir()
    hook = dict(type='KWTemperatureHook', epochs=3)

    def new_layer():
        torch.manual_seed(0)
        # Batch norm sees other batches, layer norm does not.
        return KWConv2d(4, 4, 3, padding=1, attention=dict(norm_layer='LayerNorm'))

    small, recorder = train(
        tmp_path / 'accumulated',
        [hook],
        layer=new_layer(),
        optim_wrapper=dict(accumulative_counts=2),
    )
    large_runner = make_runner(tmp_path / 'large', [hook, large := Recorder()], layer=new_layer())
    large_runner._train_dataloader['batch_size'] = 8
    large_runner.train()
    assert recorder.used[::2] == recorder.used[1::2] == large.used
    for name, value in small.model.state_dict().items():
        torch.testing.assert_close(value, large_runner.model.state_dict()[name], msg=name)


def test_fine_tuning_holds_the_temperature_at_0(tmp_path, caplog):
    """Whatever the checkpoint says, and says so once."""
    pretrained = Network(KWConv2d(4, 4, 3, padding=1, cell_ratio=0.5))
    mmkw.set_temperature(pretrained, 0.7)
    torch.save(dict(state_dict=pretrained.state_dict()), tmp_path / 'pretrained.pth')
    recorder = Recorder()
    hooks = [dict(type='KWDisableAttentionInitHook'), recorder]
    runner = make_runner(tmp_path, hooks, load_from=str(tmp_path / 'pretrained.pth'))
    with caplog.at_level(logging.INFO, logger=runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        runner.train()
    assert recorder.used == recorder.hub == read_log(tmp_path) == [0.0] * 16
    assert caplog.text.count('temperature is held at 0') == 1


def test_evaluation_uses_the_temperature_of_the_checkpoint(tmp_path):
    train(tmp_path, [dict(type='KWTemperatureHook', epochs=4)], epochs=1)
    model = Network(KWConv2d(4, 4, 3, padding=1, cell_ratio=0.5))
    runner = Runner(model=model, work_dir=str(tmp_path), load_from=str(tmp_path / 'epoch_1.pth'))
    runner.load_or_resume()
    assert mmkw.get_temperature(runner.model) == 0.75


@pytest.mark.parametrize(
    ('hook', 'arguments', 'message'),
    [
        (KWTemperatureHook, dict(), 'either a positive number of epochs .* epochs=None, iters=N'),
        (KWTemperatureHook, dict(epochs=1, iters=1), 'epochs=1, iters=1'),
        (KWTemperatureHook, dict(epochs=0), 'epochs=0'),
        (KWTemperatureHook, dict(iters=-5), 'iters=-5'),
        (KWTemperatureHook, dict(iters=2.5), 'positive whole number of iters.*iters=2.5'),
        (KWTemperatureHook, dict(epochs=1, begin=float('nan')), 'begin must be a finite .* nan'),
        (KWTemperatureHook, dict(epochs=1, end='0'), "end must be a finite number, but got '0'"),
        (KWAttentionHook, dict(interval=0), 'interval of KWAttentionHook must be'),
        (KWAttentionHook, dict(interval=2, map_interval=3), 'interval of KWAttentionHook must be'),
        (FiniteLossHook, dict(interval=0), 'interval of FiniteLossHook .* 0'),
        (FiniteLossHook, dict(interval=-1), 'interval of FiniteLossHook .* -1'),
        (FiniteLossHook, dict(interval=1.5), 'interval of FiniteLossHook .* 1.5'),
    ],
)
def test_bad_arguments_are_named(hook, arguments, message):
    with pytest.raises(ValueError, match=message):
        hook(**arguments)


@pytest.mark.parametrize(
    ('layer', 'arguments', 'message'),
    [
        (KWConv2d, dict(begin=30), r'begin of KWTemperatureHook must be a number in \[0, 1\].*30'),
        (KWConv2d, dict(end=-1), r'end of KWTemperatureHook must be a number in \[0, 1\].*-1'),
        (ODConv2d, dict(), r'end of KWTemperatureHook must be .* at least 1.*got 0'),
        (DYConv2d, dict(begin=0.5, end=1), r'begin of KWTemperatureHook .* at least 1.*got 0.5'),
    ],
)
def test_temperatures_outside_the_range_of_the_method(tmp_path, layer, arguments, message):
    hook = dict(type='KWTemperatureHook', iters=4, **arguments)
    with pytest.raises(ValueError, match=message):
        make_runner(tmp_path, [hook], layer=layer(4, 4, 3, padding=1)).train()


@pytest.mark.parametrize('layer', [ODConv2d, DYConv2d])
def test_annealing_of_softmax_temperatures(tmp_path, layer):
    hook = dict(type='KWTemperatureHook', epochs=1, begin=30, end=1)
    _, recorder = train(tmp_path, [hook], epochs=2, layer=layer(4, 4, 3, padding=1))
    expected = [1 + 29 * max(0, (4 - t) / 4) for t in range(1, 9)]
    assert recorder.used == pytest.approx(expected)
    assert recorder.hub == pytest.approx(expected)
    # They are learned now.
    file = str(tmp_path / 'epoch_2.pth')
    options = dict(epochs=1, layer=layer(4, 4, 3, padding=1), load_from=file)
    _, recorder = train(tmp_path, [hook], **options)
    assert recorder.used == recorder.hub == [1] * 4


def test_fine_tuning_of_softmax_temperatures(tmp_path):
    layer = ODConv2d(4, 4, 3, padding=1)
    mmkw.set_temperature(layer, 30)
    hook = dict(type='KWDisableAttentionInitHook')
    _, recorder = train(tmp_path, [hook], epochs=1, layer=layer)
    assert recorder.used == [1] * 4


def test_methods_with_other_temperatures_do_not_mix(tmp_path):
    layer = nn.Sequential(KWConv2d(4, 4, 3, padding=1), ODConv2d(4, 4, 3, padding=1))
    hook = dict(type='KWTemperatureHook', iters=4)
    with pytest.raises(ValueError, match='Network mixes methods .*ODAttention, Warehouse'):
        make_runner(tmp_path, [hook], layer=layer).train()


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(type='KWTemperatureHook', epochs=1), 'no layers with a temperature'),
        (dict(type='KWDisableAttentionInitHook'), 'no layers with a temperature'),
        (dict(type='KWAttentionHook', interval=1), 'no layers that mix kernels'),
    ],
)
def test_models_without_dynamic_layers(tmp_path, hook, message):
    """That of a config is refused; a stand-in, as of tools that draw schedules, let through."""
    config = dict(cfg=dict(model=dict(type='Network')))
    with pytest.raises(ValueError, match=f'Network has {message}'):
        make_runner(tmp_path, [hook], 1, nn.Conv2d(4, 4, 3), **config).train()
    runner = make_runner(tmp_path, [hook], 1, nn.Conv2d(4, 4, 3))
    runner.train()
    log = '\n'.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert f'mmkw: {hook["type"]} does nothing: Network has no layers' in log


@pytest.mark.slow
def test_mmpretrain_draws_the_schedule_of_a_config(tmp_path):
    tool = Path(mmpretrain.__file__).parent / '.mim/tools/visualization/vis_scheduler.py'
    config = ROOT / 'configs/imagenet/kw-resnet18-1x_8xb512-300e_in1k.py'
    options = ['--not-show', '--dataset-size', '1100', '--ngpus', '1', '--save-path', 'lr.png']
    subprocess.run(
        [sys.executable, tool, config, *options],
        check=True, cwd=tmp_path, env=environment(tmp_path),
    )  # fmt: skip
    assert (tmp_path / 'lr.png').is_file()


def test_epochs_need_a_loop_that_counts_them(tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=6)
    runner = make_runner(tmp_path, [dict(type='KWTemperatureHook', epochs=1)], train_cfg=loop)
    with pytest.raises(ValueError, match='IterBasedTrainLoop; give iters instead'):
        runner.train()


def test_two_temperature_hooks_are_refused(tmp_path):
    hooks = [dict(type='KWTemperatureHook', epochs=1), dict(type='KWDisableAttentionInitHook')]
    with pytest.raises(ValueError, match='only one hook can set the temperature'):
        make_runner(tmp_path, hooks).train()
