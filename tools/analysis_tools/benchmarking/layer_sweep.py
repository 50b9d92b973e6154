"""One KW layer beside the plain one, over batch, resolution and number of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Callable

import torch
from torch import Tensor, nn

from mmkw.analysis.memory import tensor_bytes
from mmkw.analysis.operations import count_operations
from mmkw.analysis.timing import Rates, Spread, time_alternately
from mmkw.methods.kernel_warehouse import KWConv2d

from .measuring import TRAINING_FACTOR, ratio_of_rounds
from .setting import Setting


def measure_sweep(
    axes: Mapping[str, Sequence[int]],
    setting: Setting,
    rates: Rates,
    channels: int = 256,
    kernel_size: int = 3,
    modes: Sequence[str] = ('inference', 'train'),
    say: Callable[[str], object] = print,
) -> dict:
    """Measure one KW convolution beside the plain one, over batch, resolution and cells.

    Args:
        axes: the values of ``batch_size``, ``resolution`` and ``cells``; each varies alone, the
            others at their middle value.
        setting: where and how the layers compute.
        rates: the machine's, for the bounds.
        channels, kernel_size: of the layers, with a padding of half the kernel.
        modes: ``inference``, ``train`` or both, the default.
        say: called with a line for each measured point. Defaults to ``print``.
    """
    middle = {axis: values[len(values) // 2] for axis, values in axes.items()}
    measured: dict[str, list[dict]] = {}
    for axis, values in axes.items():
        measured[axis] = []
        for value in values:
            point = dict(middle, **{axis: value})
            for mode in ('inference', 'train'):
                if mode in modes:
                    record = measure_point(point, mode, channels, kernel_size, setting, rates)
                    measured[axis].append(dict(point, mode=mode, **record))
                    say(
                        f'layer, {mode}, batch {point["batch_size"]}, {point["resolution"]} x '
                        f'{point["resolution"]}, n = {point["cells"]}: '
                        f'{record["ratio"]["median"]:.2f} of plain'
                    )
    return dict(channels=channels, kernel_size=kernel_size, middle=middle, axes=measured)


def measure_point(
    point: dict, mode: str, channels: int, kernel_size: int, setting: Setting, rates: Rates
) -> dict:
    """Time a KW layer and the plain one, and what bounds the KW layer.

    Returns:
        ``seconds``, ``plain_seconds`` and ``ratio`` as :class:`Spread`, ``operations``, and the
        bounds: ``operations_seconds``, the plain layer's time and assembling at the rate of a
        matrix product; ``bytes_seconds``, the layer's cells, attention, input and output, and in
        training their gradients, once each through the memory.
    """
    geometry: dict[str, Any] = dict(kernel_size=kernel_size, padding=kernel_size // 2, bias=False)
    budget = f'{point["cells"]}/{kernel_size**2}'
    torch.manual_seed(0)
    layers = {
        'kw': KWConv2d(channels, channels, budget=budget, cell_ratio=1, **geometry),
        'plain': nn.Conv2d(channels, channels, **geometry),
    }
    size = (point['batch_size'], channels, point['resolution'], point['resolution'])
    x = torch.randn(size, device=setting.device).contiguous(memory_format=setting.memory_format)

    def run_of(layer: nn.Module):
        setting.prepare(layer).eval()

        def infer() -> Tensor:
            with torch.no_grad(), setting.autocast():
                return layer(x)

        def train() -> None:
            own = x.detach().requires_grad_()
            layer.zero_grad(set_to_none=True)
            with setting.autocast():
                y = layer(own)
            y.backward(torch.ones_like(y))

        return train if mode == 'train' else infer

    runs = {name: run_of(layer) for name, layer in layers.items()}
    operations = count_operations(layers['kw'], runs['kw'])
    with torch.no_grad(), setting.autocast():
        y = layers['plain'](x)
    weights = tensor_bytes(layers['kw'].parameters())
    traffic = weights + x.nbytes + y.nbytes
    if mode == 'train':
        # The backward pass reads weights, input and the output's gradient and writes the other two.
        traffic += 2 * (weights + x.nbytes) + y.nbytes
    seconds = time_alternately(runs, setting.rounds, device=setting.device)
    plain = Spread.of(seconds['plain'])
    mixing = TRAINING_FACTOR[mode] * (operations.assembling + operations.attention)
    return dict(
        seconds=Spread.of(seconds['kw'])._asdict(),
        plain_seconds=plain._asdict(),
        ratio=ratio_of_rounds(seconds['kw'], seconds['plain'])._asdict(),
        operations=asdict(operations),
        operations_seconds=plain.median + mixing / rates.matmul,
        bytes_seconds=traffic / rates.bandwidth,
    )
