"""Temperatures that a method does not know are refused, from wherever they come."""

import pytest
import torch

from mmkw.methods import ODConv2d, get_temperature, set_temperature
from mmkw.methods.kernel_warehouse import KWConv2d

NAN, INF = float('nan'), float('inf')


def state_with(layer, value, dtype=torch.float32):
    state_dict = layer.state_dict()
    (key,) = (key for key in state_dict if key.endswith('temperature'))
    return {**state_dict, key: torch.tensor(value, dtype=dtype)}


@pytest.mark.filterwarnings('ignore:for .*copying from a non-meta parameter')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ('make', 'value'),
    [
        (lambda: KWConv2d(4, 4, 1), -0.5),
        (lambda: KWConv2d(4, 4, 1), 1.5),
        (lambda: KWConv2d(4, 4, 1), NAN),
        (lambda: KWConv2d(4, 4, 1), INF),
        (lambda: ODConv2d(4, 4, 1), 0.0),
        (lambda: ODConv2d(4, 4, 1), NAN),
    ],
)
def test_loading_refuses_a_temperature_out_of_range(make, value, dtype):
    layer = make()
    before = get_temperature(layer)
    for options in (dict(), dict(strict=False), dict(assign=True)):
        with pytest.raises(ValueError, match=f'temperature of the checkpoint must be .* {value}'):
            make().load_state_dict(state_with(layer, value, dtype), **options)
        with pytest.raises(ValueError, match='temperature of the checkpoint must be'):
            make().to('meta').load_state_dict(state_with(layer, value, dtype), **options)
    assert get_temperature(layer) == before


def test_loading_takes_other_types_and_meta_tensors():
    layer = KWConv2d(4, 4, 1)
    layer.load_state_dict(state_with(layer, 1, torch.int64))
    assert get_temperature(layer) == 1
    shell = KWConv2d(4, 4, 1).to('meta')
    shell.load_state_dict(shell.state_dict(), assign=True)
    shell.load_state_dict(state_with(layer, 0.5), assign=True)
    assert get_temperature(shell) == 0.5


@pytest.mark.parametrize('value', [-0.1, 1.1, NAN, INF, '1', None, True])
def test_setting_refuses_it(value):
    with pytest.raises(ValueError, match='temperature must be a number in .0, 1.'):
        set_temperature(KWConv2d(4, 4, 1), value)
