"""What a run starts from decides its temperature, and contradictions are said at the start."""

from __future__ import annotations

import re

import mmdet.models.backbones as mmdet
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmpretrain.models.backbones import ResNet
from temperature_runs import Images, Network, make_runner
from torch import nn

import mmkw
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.openmmlab.backbones import KWResNet

NARROW = dict(depth=18, base_channels=8, stem_channels=8, zero_init_residual=False)

# At the size of 1 x 1 that images of 32 pixels end with, batch norm could not go on either.
GROUPS = dict(type='GN', num_groups=2)


class Parts(BaseModule):
    def __init__(self, backbone, neck):
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x):
        return self.neck(self.backbone(x)[-1])


class Recorder(Hook):
    """The temperature of the backbone and of the neck in every iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.backbone, self.neck = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for name in ('backbone', 'neck'):
            part = getattr(runner.model.body, name)
            if any(True for m in part.modules() if hasattr(m, 'temperature')):
                getattr(self, name).append(mmkw.get_temperature(part))


HOLD = dict(type='KWDisableAttentionInitHook')
ANNEAL = dict(type='KWTemperatureHook', epochs=1)
FALLING, ZERO = [0.75, 0.5, 0.25, 0, 0, 0, 0, 0], [0] * 8


def train(folder, hooks, backbone=None, neck=None, plain=False, batch_size=2, size=8, **config):
    """Four iterations an epoch; returns the temperatures and the log."""
    torch.manual_seed(0)
    kind = ResNet if plain else KWResNet
    network = Parts(kind(**{**NARROW, **(backbone or {})}), neck or nn.Conv2d(64, 4, 1))
    images, recorder = Images(size, (3, 32, 32)), Recorder()
    make_runner(
        folder, [*hooks, recorder], 2, network, images, batch_size=batch_size, **config
    ).train()
    log = '\n'.join(path.read_text() for path in sorted(folder.rglob('*.log')))
    return recorder, log


@pytest.fixture
def plain_file(tmp_path):
    torch.manual_seed(1)
    network = ResNet(**NARROW)
    torch.save(network.state_dict(), tmp_path / 'plain.pth')
    return network, dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))


@pytest.fixture
def kw_file(tmp_path):
    model = Network(Parts(KWResNet(**NARROW), nn.Conv2d(64, 4, 1)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'kw.pth')
    return str(tmp_path / 'kw.pth')


def test_from_scratch(tmp_path):
    recorder, log = train(tmp_path, [ANNEAL])
    assert recorder.backbone == FALLING
    assert 'new weights, temperature annealed over 4 iterations: body.backbone.warehouses.' in log


def test_from_a_kw_checkpoint(tmp_path, kw_file):
    backbone = dict(frozen_stages=1, norm_eval=True)
    recorder, log = train(tmp_path, [ANNEAL], backbone, load_from=kw_file)
    assert recorder.backbone == ZERO
    assert 'learned attentions, temperature held at 0: body.backbone.warehouses.' in log
    assert 'WARNING - mmkw' not in log


def test_changing_the_type_alone(tmp_path, plain_file):
    """A plain init_cfg is cut into cells; without annealing it is not trained."""
    plain, init_cfg = plain_file
    with pytest.warns(UserWarning, match='plain kernels, which were cut into cells') as caught:
        settings = dict(init_cfg=init_cfg, frozen_stages=1, norm_eval=True)
        recorder, log = train(tmp_path, [ANNEAL], settings)
    assert len({str(w.message) for w in caught if 'plain kernels' in str(w.message)}) == 1
    assert recorder.backbone == FALLING
    assert log.count('plain kernels cut into cells, temperature annealed over 4 iterations') == 1
    assert 'missing keys' not in log and 'WARNING - mmkw' not in log

    network = KWResNet(**NARROW, init_cfg=init_cfg)
    network.init_weights()
    network.eval(), plain.eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x)[0], plain(x)[0], rtol=1e-4, atol=1e-4)
    # Attentions begin where annealing ends: nothing is scrambled on the way.
    mmkw.set_temperature(network, 0)
    assert (network(x)[0] - plain(x)[0]).norm() < 0.02 * plain(x)[0].norm()

    with pytest.raises(RuntimeError, match='nothing anneals .* KWTemperatureHook'):
        train(tmp_path, [], dict(init_cfg=init_cfg))


def test_a_plain_checkpoint_below_a_budget_of_1_or_of_another_width(plain_file):
    _, init_cfg = plain_file
    with pytest.raises(ValueError, match='plain kernel, layer1.0.conv1.weight,.*budget below 1'):
        KWResNet(**NARROW, budget='1/2', init_cfg=init_cfg).init_weights()
    wide = {**NARROW, 'base_channels': 16}
    with pytest.raises(ValueError, match=r'conv1.weight of the checkpoint has shape \(8, 8, 3, 3'):
        KWResNet(**wide, init_cfg=init_cfg).init_weights()


def test_resumed_amid_annealing(tmp_path, plain_file):
    _, init_cfg = plain_file
    hook = dict(type='KWTemperatureHook', epochs=2)
    one = dict(by_epoch=True, max_epochs=1)
    first, _ = train(tmp_path, [hook], dict(init_cfg=init_cfg), train_cfg=one)
    second, log = train(tmp_path, [hook], dict(init_cfg=init_cfg), resume=True)
    assert first.backbone + second.backbone == pytest.approx([(8 - t) / 8 for t in range(1, 9)])
    assert 'attentions amid annealing' in log


def test_warehouses_in_the_neck_only_and_beside_a_trained_backbone(tmp_path, kw_file):
    recorder, _ = train(tmp_path, [ANNEAL], neck=KWConv2d(64, 4, 1), plain=True)
    assert recorder.neck == FALLING
    recorder, log = train(tmp_path, [ANNEAL], neck=KWConv2d(64, 4, 1), load_from=kw_file)
    assert recorder.backbone == ZERO and recorder.neck == FALLING
    assert 'new weights, temperature annealed over 4 iterations: body.neck.warehouse.' in log


@pytest.mark.parametrize('resume', [False, True])
def test_holding_the_temperature_of_plain_weights_is_refused(tmp_path, plain_file, resume):
    message = r'attentions have learned nothing yet, .*Anneal it: replace KWDisable'
    with pytest.raises(ValueError, match=message):
        # There is nothing to resume.
        train(tmp_path, [HOLD], dict(init_cfg=plain_file[1]), resume=resume)


def test_a_file_without_weights_for_frozen_layers_is_refused(tmp_path, plain_file):
    """Such as that of a backbone, whose names lack the prefix that a detector's have."""
    message = r"load_from='.*plain.pth' has no weights for body.backbone.layer1.*plain_to_mmkw.py"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, [ANNEAL], dict(frozen_stages=1), load_from=plain_file[1]['checkpoint'])


DEEP_STEM = dict(NARROW, deep_stem=True)


def deep_stem_file(folder, remove=(), **more):
    """A plain checkpoint in MMDetection's names, without some of its tensors."""
    torch.manual_seed(0)
    tensors = {**mmdet.ResNet(**DEEP_STEM).state_dict(), **more}
    torch.save(
        {f'body.backbone.{n}': v for n, v in tensors.items() if not n.startswith(tuple(remove))},
        folder / 'deep.pth',
    )
    return str(folder / 'deep.pth')


PLAIN_KERNELS = pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')


@PLAIN_KERNELS
def test_a_deep_stem_in_other_names_is_complete(tmp_path):
    settings = dict(DEEP_STEM, frozen_stages=1)
    _, log = train(tmp_path, [ANNEAL], settings, load_from=deep_stem_file(tmp_path))
    assert 'WARNING - mmkw' not in log


@PLAIN_KERNELS
@pytest.mark.parametrize(
    ('remove', 'more', 'named'),
    [
        (['stem.0.'], {}, ['stem.0.conv.weight', 'stem.2.bn.bias']),
        ([], {'layer4.1.bn2.weight': torch.ones(3)}, ['layer4.1.bn2.weight']),
        (['layer'], {}, ['layer1.0.bn1.weight']),
    ],
)
def test_parameters_that_a_checkpoint_left_are_one_warning(tmp_path, remove, more, named):
    start = deep_stem_file(tmp_path, remove, **more)
    _, log = train(tmp_path, [ANNEAL], DEEP_STEM, load_from=start)
    (warning,) = (line for line in log.splitlines() if 'WARNING - mmkw' in line)
    assert all(f'body.backbone.{name}' in warning for name in named)
    assert warning.count('body.backbone.') <= 10


@PLAIN_KERNELS
def test_a_second_checkpoint_may_give_the_rest(tmp_path, plain_file):
    start = tmp_path / 'stem.pth'
    torch.save({'body.backbone.conv1.weight': torch.ones(8, 3, 7, 7)}, start)
    backbone = dict(init_cfg=plain_file[1], frozen_stages=1)
    _, log = train(tmp_path, [ANNEAL], backbone, load_from=str(start))
    assert 'WARNING - mmkw' not in log


@PLAIN_KERNELS
def test_frozen_parameters_that_a_checkpoint_left_are_an_error(tmp_path):
    start = deep_stem_file(tmp_path, ['stem.'])
    message = r'no values .* for body\.backbone\.stem\.0\.conv\.weight.* frozen'
    with pytest.raises(ValueError, match=message) as error:
        train(tmp_path, [ANNEAL], dict(DEEP_STEM, frozen_stages=0), load_from=start)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('hook', 'settings', 'message'),
    [
        (HOLD, {}, 'are new, with random attentions, but the temperature is held at 0'),
        (ANNEAL, dict(frozen_stages=1), 'are frozen with random weights, as no checkpoint'),
    ],
)
def test_other_contradictions_are_one_warning(tmp_path, hook, settings, message):
    _, log = train(tmp_path, [hook], settings)
    (warning,) = (line for line in log.splitlines() if 'WARNING - mmkw' in line)
    assert re.search(message, warning)


def test_a_last_batch_of_one_image(tmp_path):
    """It does not stop training; batches of 1 throughout are warned of."""
    recorder, log = train(tmp_path, [ANNEAL], dict(norm_cfg=GROUPS), size=7)
    assert len(recorder.backbone) == 8
    assert 'batch_size=1' not in log
    _, log = train(tmp_path, [ANNEAL], dict(norm_cfg=GROUPS), batch_size=1, size=2)
    assert log.count('mmkw: train_dataloader.batch_size=1') == 1
    assert "norm_layer='LayerNorm'" in log
    (tmp_path / 'layer').mkdir()
    layer_norm = dict(attention=dict(norm_layer='LayerNorm'), norm_cfg=GROUPS)
    assert 'batch_size=1' not in train(tmp_path / 'layer', [ANNEAL], layer_norm, batch_size=1)[1]
