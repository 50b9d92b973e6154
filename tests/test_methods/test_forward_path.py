"""How far a reader has to walk: the way of an input through a layer in training."""

import torch
from forward_path import forward_path

from mmkw import KWConv2d


def test_forward_of_a_kernel_warehouse_layer_is_short():
    # Without a bias, as in the networks of the paper.
    stations = forward_path(KWConv2d(64, 64, 3, padding=1, bias=False), torch.randn(2, 64, 56, 56))
    assert len({file for file, _ in stations}) <= 7
    assert len(stations) <= 25
