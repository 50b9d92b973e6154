"""Timing side by side, on machines whose speed changes while one measures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Spread(NamedTuple):
    """Median of some values, with their lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        quantiles: list[float] = np.quantile(values, [0.5, 0.25, 0.75]).tolist()
        return cls(*quantiles)


class Rates(NamedTuple):
    """What a machine reached on simple work.

    Attributes:
        matmul: multiply-adds per second of a large matrix product.
        convolution: multiply-adds per second of a large 3 x 3 convolution.
        bandwidth: bytes per second, read plus written, of a large copy.
    """

    matmul: float
    convolution: float
    bandwidth: float


def time_alternately(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 10,
    min_seconds: float = 0.1,
    device: str | torch.device = 'cpu',
) -> dict[str, list[float]]:
    """Time runs in turns: A, B, A, B, ... after a warm-up of all.

    Whatever slows the machine down for a while thus hits all of them, and ratios of the same
    round stay meaningful.

    Args:
        runs: what to time, by name.
        rounds: turns of each. Defaults to 10.
        min_seconds: shorter runs repeat to fill a turn of about this length. Defaults to 0.1.
        device: where they run; each turn waits for a GPU to finish. Defaults to the CPU.

    Returns:
        For each name the seconds of one run, by round.

    Raises:
        ValueError: if ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be at least 1, but got {rounds}')
    is_cuda = torch.device(device).type == 'cuda'

    def turn(run: Callable[[], object], repeats: int) -> float:
        if is_cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        if is_cuda:
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, run in runs.items():
        # Libraries choose their algorithms and compile kernels in the first runs.
        turn(run, 3 if is_cuda else 1)
        repeats[name] = max(1, math.ceil(min_seconds / turn(run, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(turn(run, repeats[name]))
    return seconds


@torch.no_grad()
def measure_rates(
    device: str | torch.device = 'cpu',
    dtype: torch.dtype = torch.float32,
    rounds: int = 5,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Rates:
    """Measure the rates that bounds are computed with, in alternating rounds; medians.

    Args:
        device, dtype: where, and of which numbers. Defaults to float32 on the CPU.
        rounds: see :func:`time_alternately`. Defaults to 5.
        memory_format: of the convolution's tensors. Defaults to contiguous.
    """
    # Large enough to reach the rate, small enough to take about 0.1 s on two cores.
    is_cuda = torch.device(device).type == 'cuda'
    size, samples, megabytes = (8192, 256, 1024) if is_cuda else (1536, 8, 128)
    tensor = dict(device=device, dtype=dtype)
    a, b = torch.randn(2, size, size, **tensor)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False, **tensor).to(memory_format=memory_format)
    x = torch.randn(samples, 256, 28, 28, **tensor).to(memory_format=memory_format)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    runs = {'matmul': lambda: a @ b, 'convolution': lambda: conv(x), 'copy': copy}
    seconds = time_alternately(runs, rounds, device=device)
    median = {name: Spread.of(values).median for name, values in seconds.items()}
    return Rates(
        matmul=size**3 / median['matmul'],
        convolution=x.numel() * conv.weight[0].numel() / median['convolution'],
        bandwidth=2 * source.numel() / median['copy'],
    )
