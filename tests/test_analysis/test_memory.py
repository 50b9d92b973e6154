"""Memory against sums by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmkw.analysis import kept_memory, peak_memory, tensor_bytes
from mmkw.methods.kernel_warehouse import KWConv2d
from mmkw.ops import forced_route, kept_kernels

FLOAT = 4


def resident(model, *inputs):
    return [*model.parameters(), *model.buffers(), *inputs]


def test_plain_network_keeps_what_its_backward_pass_reads():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    x = torch.rand(2, 3, 10, 10)
    kept = kept_memory(lambda: network(x).sum(), resident(network, x))
    # Outputs of convolution and ReLU, the latter once though two layers save it; batch statistics.
    feature_map = 2 * 8 * 10 * 10
    assert kept == FLOAT * (2 * feature_map + 2 * 8)
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    with_all = kept_memory(lambda: network(x).sum())
    norm_scale = 8
    assert with_all == kept + FLOAT * (x.numel() + weights + norm_scale + 2 * 8)


def test_views_keep_their_whole_storage_once():
    whole = torch.rand(100, requires_grad=True) * 1
    kept = kept_memory(lambda: (whole[:10] * whole[10:20]).sum())
    assert kept == FLOAT * 100


def test_custom_functions_count_and_recomputed_activations_do_not():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone())
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    x = torch.rand(50, requires_grad=True)
    assert kept_memory(lambda: Square.apply(x).sum(), [x]) == FLOAT * 50

    def deep(x):
        return x.sin().cos().exp()

    assert kept_memory(lambda: deep(x).sum(), [x]) == FLOAT * 50 * 2
    assert kept_memory(lambda: checkpoint(deep, x, use_reentrant=False).sum(), [x]) == 0


def test_parts_that_the_loss_does_not_depend_on_are_not_kept():
    x = torch.rand(50, requires_grad=True)

    def run():
        (x.exp() * 2).sin()
        return (3 * x).sin().sum()

    assert kept_memory(run, [x]) == FLOAT * 50


def test_the_reference_route_keeps_the_kernels_of_the_batch_and_the_blockwise_one_does_not():
    layer = KWConv2d(16, 16, 3, padding=1)
    x = torch.rand(4, 16, 32, 32)
    kernels = FLOAT * 4 * 16 * 16 * 9

    def kept_by(route):
        with forced_route(route), kept_kernels(0):
            return kept_memory(lambda: layer(x).sum(), resident(layer, x))

    # Beside some tensors of the attentions' size, (4, 9, 10).
    assert kernels < kept_by('reference') < 1.5 * kernels
    assert kept_by('blockwise') == kept_by('reference') - kernels


def test_peak_is_the_most_at_once():
    def run():
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b + 1
        del b
        return c

    assert peak_memory(run) == pytest.approx(2 * 1000 * FLOAT, abs=2 * 64)


def test_peak_of_training_exceeds_that_of_inference_by_what_is_kept():
    network = nn.Sequential(*(nn.Tanh() for _ in range(8)))
    x = torch.rand(10000, requires_grad=True)

    def infer():
        with torch.no_grad():
            return network(x)

    def train():
        network(x).sum().backward()
        x.grad = None

    size = x.numel() * FLOAT
    assert peak_memory(infer) == pytest.approx(2 * size, rel=0.02)
    assert kept_memory(lambda: network(x).sum(), [x]) == 8 * size
    # And one gradient more.
    assert peak_memory(train) == pytest.approx(9 * size, rel=0.02)


def test_tensor_bytes_counts_storages_once():
    whole = torch.zeros(6, 2, dtype=torch.float64)
    assert tensor_bytes([whole, whole[0], whole.t()]) == 6 * 2 * 8
    assert tensor_bytes([]) == 0
