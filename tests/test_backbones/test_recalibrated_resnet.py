"""SE, CBAM and ECA in a ResNet: parameters, and each against its equations."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from torch import nn

import mmkw  # noqa: F401

CLASSIFIER = 512 * 1000 + 1000
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(kind, depth=18, base_channels=64, frozen_stages=-1, **options):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='RecalibratedResNet',
            depth=depth,
            stem_channels=base_channels,
            base_channels=base_channels,
            frozen_stages=frozen_stages,
            recalibration=dict(type=kind, **options),
        )
    )


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def se(module, x):
    squeezed = torch.einsum('oi,ni->no', module.conv1.conv.weight[..., 0, 0], x.mean((2, 3)))
    hidden = (squeezed + module.conv1.conv.bias).clamp(min=0)
    logits = torch.einsum('oi,ni->no', module.conv2.conv.weight[..., 0, 0], hidden)
    return x * sigmoid(logits + module.conv2.conv.bias)[..., None, None]


def cbam(module, x):
    first, last = module.channel.fc1, module.channel.fc2
    logits = 0
    for pooled in (x.mean((2, 3)), x.flatten(2).max(2)[0]):
        hidden = (pooled @ first.weight[..., 0, 0].T + first.bias).clamp(min=0)
        logits = logits + hidden @ last.weight[..., 0, 0].T + last.bias
    x = x * sigmoid(logits)[..., None, None]
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    y = F.conv2d(maps, module.spatial.conv.conv.weight, padding=3)
    # As norms start, in evaluation.
    return x * sigmoid(y / (1 + 1e-5) ** 0.5)


def eca(module, x):
    left, middle, right = module.conv.weight.flatten()
    pooled = F.pad(x.mean((2, 3)), (1, 1))
    logits = left * pooled[:, :-2] + middle * pooled[:, 1:-1] + right * pooled[:, 2:]
    return x * sigmoid(logits)[..., None, None]


BY_HAND = {'SE': se, 'CBAM': cbam, 'ECA': eca}


@pytest.mark.parametrize(
    ('kind', 'parameters'), [('SE', 11_778_592), ('CBAM', 11_779_392), ('ECA', 11_689_536)]
)
def test_parameters(kind, parameters):
    """Of a ResNet18 with 1000 classes, by the methods' own code."""
    found = sum(parameter.numel() for parameter in make(kind).parameters())
    assert found + CLASSIFIER == parameters


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('kind', BY_HAND)
def test_scales_what_is_added_to_the_identity(kind, depth):
    network = make(kind, depth=depth, base_channels=16)
    network.eval()
    block = network.layer2[0]
    for parameter in block.drop_path.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.dim() > 1 else None
    last_norm = block.norm2 if depth == 18 else block.norm3
    seen = {}
    last_norm.register_forward_hook(lambda m, i, o: seen.update(features=o.clone()))
    block.downsample.register_forward_hook(lambda m, i, o: seen.update(identity=o.clone()))
    block.register_forward_hook(lambda m, i, o: seen.update(output=o.clone()))
    nn.init.ones_(last_norm.weight)
    network(IMAGES)
    recalibrated = BY_HAND[kind](block.drop_path.recalibration, seen['features'])
    expected = (recalibrated + seen['identity']).clamp(min=0)
    torch.testing.assert_close(seen['output'], expected)


def test_a_plain_checkpoint_fits():
    network = make('ECA', base_channels=8)
    plain = ResNet(18, base_channels=8, stem_channels=8)
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and len(missing) == 8


def test_options():
    """Counts by hand: linear layers to 16 of the 64 channels, and convolutions of other sizes."""
    block = make('CBAM', ratio=4, kernel_size=3).layer1[0].drop_path.recalibration
    assert sum(p.numel() for p in block.parameters()) == 2 * 64 * 16 + 16 + 64 + 2 * 9 + 2
    block = make('ECA', kernel_size=5).layer4[0].drop_path.recalibration
    assert [p.numel() for p in block.parameters()] == [5]


def test_frozen_stages():
    network = make('SE', frozen_stages=1, base_channels=8)
    assert not any(p.requires_grad for p in network.layer1.parameters())
    assert all(p.requires_grad for p in network.layer2.parameters())


def test_bad_type_is_named():
    with pytest.raises(ValueError, match="one of SE, CBAM, ECA, but got 'GE'"):
        make('GE')


@pytest.mark.parametrize('kind', ['CBAM', 'ECA'])
def test_even_kernels_are_refused(kind):
    with pytest.raises(ValueError, match=f'kernel_size of {kind} must be odd, but got 4'):
        make(kind, kernel_size=4)
