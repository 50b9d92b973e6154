"""What averaging, mixed precision, accumulation and recomputation do to a run and its resuming.

Distributed training is compared in test_tools/test_train_tools.py, and resumed after faults in
test_tools/test_faults.py.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from temperature_runs import BFloat16OptimWrapper, expected_schedule, train

import mmkw
from mmkw.openmmlab.backbones import KWResNet

EPOCHS = 4


class Float16OptimWrapper(AmpOptimWrapper):
    """AmpOptimWrapper with its scaler, on the CPU, where its constructor refuses to run."""

    def __init__(self, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=256.0, growth_interval=3)
        self._scale_update_param = None

    @contextmanager
    def optim_context(self, model):
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', dtype=torch.float16):
            yield


class Backbone(KWResNet):
    def forward(self, x):
        return super().forward(x)[-1]


EMA = dict(type='EMAHook', momentum=0.1)
FEATURES = {
    'plain': dict(),
    'ema': dict(hooks=[EMA]),
    'bf16': dict(optim_wrapper=dict(type=BFloat16OptimWrapper)),
    'fp16': dict(optim_wrapper=dict(type=Float16OptimWrapper)),
    'accumulation': dict(optim_wrapper=dict(accumulative_counts=2)),
    'with_cp': dict(with_cp=True),
    'all': dict(
        hooks=[EMA],
        optim_wrapper=dict(type=BFloat16OptimWrapper, accumulative_counts=2),
        with_cp=True,
    ),
}


def run(work_dir, feature, epochs=EPOCHS, **config):
    """Train a small network with a feature; returns runner and recorder."""
    config = dict(config, **FEATURES[feature])
    with_cp = config.pop('with_cp', False)
    torch.manual_seed(0)
    # Batch norm over four values would make a rounding error grow without bound.
    layer = Backbone(
        18, in_channels=4, stem_channels=8, base_channels=8, norm_eval=True, with_cp=with_cp
    )
    hooks = [dict(type='KWTemperatureHook', epochs=3), *config.pop('hooks', [])]
    work_dir.mkdir(exist_ok=True)
    return train(work_dir, hooks, epochs=epochs, layer=layer, randomness=dict(seed=0), **config)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The uninterrupted run of a feature."""
    folder = tmp_path_factory.mktemp('whole')
    return cache(lambda feature: run(folder / feature, feature))


def checkpoint_of(runner, epoch=EPOCHS):
    return mmkw.checkpoints.load_checkpoint(f'{runner.work_dir}/epoch_{epoch}.pth')


@pytest.mark.parametrize(
    'feature',
    [
        'plain',
        'all',
        pytest.param('fp16', marks=pytest.mark.newer_torch),
        # The first has these, all at once.
        *(
            pytest.param(feature, marks=pytest.mark.slow)
            for feature in ('ema', 'bf16', 'accumulation', 'with_cp')
        ),
    ],
)
def test_resumed_run_equals_the_whole_one(feature, tmp_path, whole):
    """Bit by bit, with the averages and the scale of the loss."""
    first, before = run(tmp_path, feature, epochs=2)
    hub = checkpoint_of(first, epoch=2)['message_hub']['log_scalars']['train/temperature']
    assert hub.current() == pytest.approx(before.used[-1]) == pytest.approx(1 - 8 / 12)
    resumed, after = run(tmp_path, feature, resume=True)
    runner, recorder = whole(feature)
    assert before.used + after.used == recorder.used
    ended, expected = checkpoint_of(resumed), checkpoint_of(runner)
    assert ('ema_state_dict' in expected) == (feature in ('ema', 'all'))
    for key in {'state_dict', 'ema_state_dict'} & set(expected):
        for name, value in expected[key].items():
            assert torch.equal(ended[key][name], value), name
    assert ('loss_scaler' in expected['optimizer']) == (feature == 'fp16')
    if feature == 'fp16':
        scaler = expected['optimizer']['loss_scaler']
        assert scaler['scale'] > 256
        assert ended['optimizer']['loss_scaler'] == scaler


@pytest.mark.parametrize(
    ('feature', 'tolerance'),
    [
        ('ema', 0),
        ('with_cp', 1e-6),
        ('bf16', 0.05),
        pytest.param('fp16', 0.05, marks=pytest.mark.newer_torch),
    ],
)
def test_run_with_a_feature_equals_the_one_without(feature, tolerance, whole):
    """The same weights, seen against how far training moved them after its first epoch."""
    runner, recorder = whole(feature)
    plain, plain_recorder = whole('plain')
    assert recorder.used == plain_recorder.used
    assert recorder.used == pytest.approx(expected_schedule(12, 16), abs=1e-7)
    begin = checkpoint_of(plain, epoch=1)['state_dict']
    names = [name for name, _ in plain.model.named_parameters()]
    start, one, other = (
        torch.cat([state_dict[name].flatten() for name in names])
        for state_dict in (begin, runner.model.state_dict(), plain.model.state_dict())
    )
    assert (one - other).norm() <= tolerance * (other - start).norm()
