"""The statistics of attentions, against what the layers themselves say."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import mmkw
from mmkw.analysis.attention import (
    AttentionRecorder,
    group_attentions,
    group_statistics,
    save_attentions,
)
from mmkw.methods import CGConv2d, CondConv2d, DYConv2d, ODConv2d, WeightNetConv2d
from mmkw.methods.cond_conv import share_routing
from mmkw.methods.dcd import DCDConv2d


def network():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
    )
    plan = {'shared': dict(layers=['1', '2'], cell_ratio=0.5, budget=0.5)}
    return mmkw.convert(plain, mmkw.KernelWarehouse(plan=plan)).eval()


def record(model, *batches):
    with AttentionRecorder(model).recording() as recorder, torch.no_grad():
        for x in batches:
            model(x)
    return {result.layer: result for result in recorder.results()}


def test_means_and_statistics_are_those_of_all_images():
    model = network()
    x = torch.randn(5, 3, 8, 8)
    seen = record(model, x[:3], x[3:])
    assert list(seen) == ['1', '2']
    layer, result = model[1], seen['1']
    with torch.no_grad():
        alpha = layer.mix(model[0](x).mean((2, 3))).coefficients.double().numpy()
    assert result.count == 5 and result.group == 'warehouses.shared'
    np.testing.assert_allclose(result.mean, alpha.mean(0), atol=1e-7)
    np.testing.assert_allclose(result.deviation, alpha.std(0), atol=1e-6)
    assert result.negative == pytest.approx((alpha < 0).mean())
    shares = np.abs(alpha) / np.abs(alpha).sum(-1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(-1).mean() / np.log(alpha.shape[-1])
    assert result.entropy == pytest.approx(entropy, rel=1e-5)
    rows = [(i, cell) for i, cell in enumerate(layer.partition.initial_cells) if cell is not None]
    initial = np.mean([shares[:, i, cell] for i, cell in rows])
    assert result.initial == pytest.approx(initial, rel=1e-5)
    spread = np.sqrt(alpha.var(0).sum() / (alpha**2).mean(0).sum())
    assert result.spread == pytest.approx(spread, rel=1e-4)


def test_at_temperature_1_all_is_on_the_initial_cells():
    model = network()
    mmkw.set_temperature(model, 1)
    results = record(model, torch.randn(2, 3, 8, 8))
    for result in results.values():
        assert (result.initial, result.entropy, result.spread) == (1, 0, 0)
        for mixture, cell in enumerate(result.initial_cells):
            expected = np.zeros(result.mean.shape[1])
            if cell is not None:
                expected[cell] = 1
            np.testing.assert_array_equal(result.mean[mixture], expected)


def test_recording_a_training_network_changes_nothing():
    model = network().train()
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 8, 8)
    with AttentionRecorder(model).recording() as recorder:
        y = model(x)
    torch.testing.assert_close(y, twin(x), rtol=0, atol=0)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    model(x)
    assert recorder.results()[0].count == 4


def test_folded_layers_show_the_same():
    model = network()
    x = torch.randn(2, 3, 8, 8)
    before = record(model, x)
    mmkw.fold_attentions(model, 0)
    after = record(model, x)
    np.testing.assert_allclose(after['2'].mean, before['2'].mean, atol=1e-5)


def test_other_methods_show_the_weights_of_their_kernels():
    torch.manual_seed(0)
    model = nn.Sequential(
        DYConv2d(3, 16, 3), ODConv2d(16, 16, 3), CondConv2d(16, 16, 1), CondConv2d(16, 16, 1),
        DCDConv2d(16, 16, 1), CGConv2d(16, 16, 1), WeightNetConv2d(16, 8, 1),
    ).eval()  # fmt: skip
    share_routing([model[2], model[3]])
    seen = record(model, torch.randn(3, 3, 8, 8))
    # The last three mix no kernels.
    assert list(seen) == ['0', '1', '2', '3']
    groups = group_attentions(seen.values())
    assert {name: len(layers) for name, layers in groups.items()} == {
        '4 kernels': 2,
        '8 kernels': 2,
    }
    np.testing.assert_allclose(seen['0'].mean.sum(), 1, atol=1e-6)
    np.testing.assert_array_equal(seen['2'].mean, seen['3'].mean)
    statistics = group_statistics(seen.values())['4 kernels']
    assert set(statistics) == {'negative', 'entropy', 'spread'}
    with pytest.raises(ValueError, match='no layers that mix kernels'):
        AttentionRecorder(nn.Sequential(model[4]))


def test_npz(tmp_path):
    seen = record(network(), torch.randn(2, 3, 8, 8))
    save_attentions(seen.values(), tmp_path / 'a.npz')
    with np.load(tmp_path / 'a.npz') as file:
        np.testing.assert_array_equal(file['2/mean'], seen['2'].mean)
        assert file['2/entropy'] == seen['2'].entropy
        cells = [-1 if cell is None else cell for cell in seen['2'].initial_cells]
        assert file['2/initial_cells'].tolist() == cells


def test_without_any_image():
    with pytest.raises(ValueError, match='no image went through'):
        AttentionRecorder(network()).results()
