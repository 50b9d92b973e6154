"""The work of the host: operations that it launches, and how long it takes between them.

A GPU waits for the host where batches are small. The work is measured with one thread, a batch of 2
and maps so small that the computation itself takes little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmkw.analysis.launches import count_launches
from mmkw.analysis.timing import Spread, time_alternately
from mmkw.methods.kernel_warehouse import KWConv2d

from .measuring import ratio_of_rounds
from .networks import Network
from .setting import Setting

BATCH_SIZE = 2
LAYER_CHANNELS, LAYER_RESOLUTION = 64, 8


def released_forward(layer: KWConv2d, x: Tensor) -> Tensor:
    """Compute a KW convolution by the release's sequence of operations.

    Pooling, linear layer, norm, ReLU, linear layer, and Eq. 4 term by term; then all kernels,
    which autograd keeps, and one convolution with a group for each sample.
    """
    attention, warehouse = layer.attention, layer.warehouse
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    hidden = F.relu_(attention.norm(attention.fc1(pooled)))
    logits = attention.logits(hidden)
    learned = logits / (logits.abs().sum(-1, keepdim=True) + 1e-3)
    temperature = warehouse.temperature
    alpha = attention.beta * temperature + learned[..., :-1] * (1 - temperature)
    mixtures = alpha.matmul(warehouse.cells.flatten(1))
    kernels = layer.partition.place(mixtures, warehouse.cells.shape[1:])
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), None, layer.stride, layer.padding,
        layer.dilation, layer.groups * len(x),
    )  # fmt: skip
    y = y.view(len(x), -1, *y.shape[2:])
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


@contextmanager
def as_released(model: nn.Module) -> Iterator[None]:
    """Let the KW convolutions of a model compute by :func:`released_forward` for a while."""
    layers = [module for module in model.modules() if isinstance(module, KWConv2d)]
    for layer in layers:
        layer.__dict__['forward'] = partial(released_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__['forward']


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def training_step(network: Network, images: Tensor, samples: list) -> Callable[[], None]:
    """Forward and backward pass, to call; has run once, as first runs set things up.

    The loss of a classifier is the mean square of its scores; detectors have their own losses.
    No paths are dropped.
    """
    network.model.train()
    for module in network.model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0

    def step() -> None:
        network.model.zero_grad(set_to_none=True)
        if network.is_detector:
            loss = network.loss(images, samples)
        else:
            loss = network.model(images).square().mean()
        loss.backward()

    step()
    return step


def measure_host(networks: Sequence[Network]) -> list[dict]:
    """Launches and microseconds of a training step of 2 images.

    Args:
        networks: of the same plain twin, the plain one first.

    Returns:
        For each network, and once more for each KW network computed as the release does, a record
        with ``name``, ``plain``, ``launches``, ``microseconds`` and ``ratio``, the last two as
        :class:`Spread`.
    """
    steps: dict[str, Callable[[], object]] = {}
    with _one_thread():
        for network in networks:
            step = training_step(network, *network.make_batch(BATCH_SIZE))
            steps[network.name] = step
            if network.has_warehouses:
                steps[f'{network.name} (as released)'] = _released(network.model, step)
        return _compare(steps, networks[0].setting)


def measure_layer(setting: Setting) -> list[dict]:
    """As :func:`measure_host`, the forward and the backward pass of one layer.

    It has 3 x 3 kernels and 64 channels, and sees 2 maps of 8 x 8 pixels.

    Returns:
        The records, with ``mode`` ``'forward'`` and ``'backward'``.
    """
    torch.manual_seed(0)
    geometry: dict[str, Any] = dict(kernel_size=3, padding=1, bias=False)
    plain = setting.prepare(nn.Conv2d(LAYER_CHANNELS, LAYER_CHANNELS, **geometry))
    layer = setting.prepare(KWConv2d(LAYER_CHANNELS, LAYER_CHANNELS, budget=1, **geometry))
    size = (BATCH_SIZE, LAYER_CHANNELS, LAYER_RESOLUTION, LAYER_RESOLUTION)
    x = torch.randn(size, device=setting.device, requires_grad=True)
    forwards = {'plain': partial(plain, x), 'mmkw': partial(layer, x)}
    forwards['as released'] = partial(released_forward, layer, x)
    with _one_thread():
        records = [
            dict(r, name=f'layer, forward: {r["name"]}') for r in _compare(forwards, setting)
        ]
        leaves = [x, *plain.parameters(), *layer.parameters()]
        backwards = {name: _backward(run, leaves) for name, run in forwards.items()}
        records += [
            dict(r, name=f'layer, backward: {r["name"]}') for r in _compare(backwards, setting)
        ]
    return records


def _backward(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], None]:
    loss = forward().square().sum()

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss.backward(retain_graph=True)

    run()
    return run


def _released(model: nn.Module, step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with as_released(model):
            step()

    run()
    return run


def _compare(runs: Mapping[str, Callable[[], object]], setting: Setting) -> list[dict]:
    """Count and time runs in turns; the first is the plain one."""
    launches = {name: count_launches(run) for name, run in runs.items()}
    seconds = time_alternately(runs, setting.rounds, device=setting.device)
    plain = next(iter(runs))
    return [
        dict(
            name=name,
            plain=plain,
            launches=launches[name],
            microseconds=Spread.of([1e6 * value for value in own])._asdict(),
            ratio=ratio_of_rounds(own, seconds[plain])._asdict(),
        )
        for name, own in seconds.items()
    ]
