"""The attentions of a model over data: their mean, and what it is made of, layer by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import whole_file
from ..methods import DynamicLayer
from ..methods.base import DynamicLinear

STATISTICS = ('negative', 'entropy', 'initial', 'spread')


@dataclass(frozen=True)
class LayerAttention:
    """The attentions of one layer over ``count`` samples.

    Attributes:
        layer: its name in the model.
        group: what it is shown with: the warehouse from which it mixes its kernels; ``K kernels``
            for layers that mix ``K`` kernels of their own.
        mean: of the weights over the samples, shape ``(m, n)``.
        deviation: the standard deviation over the samples, of the same shape.
        negative: share of weights below 0.
        entropy: of a mixture's absolute weights as shares, divided by ``log n``: from 0 (a single
            cell) to 1 (all cells alike).
        initial: share of the absolute weights that is on the cell from which the mixture started,
            over the mixtures that started from one; ``None`` for methods without such cells.
        spread: how much the weights differ between the samples: the root of their variance over
            that of their mean square, from 0 (the same for all) to 1 (a mean of 0).
        count: the number of samples.
        initial_cells: for each mixture the cell from which it started, or ``None``.
        own_cells: the first of the layer's own cells in the warehouse, and one past the last.
    """

    layer: str
    group: str
    mean: np.ndarray
    deviation: np.ndarray
    negative: float
    entropy: float
    initial: float | None
    spread: float
    count: int
    initial_cells: tuple[int | None, ...] | None = None
    own_cells: tuple[int, int] | None = None

    def statistics(self) -> dict[str, float]:
        """The numbers by name, without those that the method does not have."""
        numbers = {name: getattr(self, name) for name in STATISTICS}
        return {name: value for name, value in numbers.items() if value is not None}


@dataclass
class _Sums:
    """Sums over the samples of one layer: tensors, but numbers before the first sample."""

    count: int = 0
    weights: Any = 0.0
    squares: Any = 0.0
    negative: Any = 0.0
    entropy: Any = 0.0
    initial: Any = 0.0


@dataclass
class AttentionRecorder:
    """Adds up the attentions of all samples that a model sees while it records.

    Works for all dynamic layers that mix kernels. Attentions are those of evaluation mode, also
    while the model trains, and recording changes nothing in the model.

    Args:
        model: has dynamic layers.

    Raises:
        ValueError: if no layer of the model mixes kernels.
    """

    model: nn.Module
    _sums: dict[str, _Sums] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.layers = mixing_layers(self.model)
        if not self.layers:
            raise ValueError(
                f'{type(self.model).__name__} has no layers that mix kernels by attentions, so '
                f"there are none to look at; use dynamic layers, such as those of type='KWResNet'"
            )

    @contextmanager
    def recording(self) -> Iterator[AttentionRecorder]:
        """Record every run of the model within the context."""
        handles = [
            layer.register_forward_pre_hook(self._adder(name))
            for name, layer in self.layers.items()
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _adder(self, name: str):
        # Before the forward pass: layers that follow the routing of another one find it there.
        def add(layer: Any, inputs: tuple) -> None:
            with torch.no_grad(), _evaluating(layer):
                x = inputs[0]
                if not len(x):
                    return
                if isinstance(layer, DynamicLinear):
                    x = layer.tokens(x).transpose(1, 2)
                weights = layer.mixing_weights(layer.pool(x)).double()
            self._add(self._sums.setdefault(name, _Sums()), layer, weights)

        return add

    @staticmethod
    def _add(sums: _Sums, layer: DynamicLayer, weights: Tensor) -> None:
        size = weights.abs()
        shares = size / size.sum(-1, keepdim=True).clamp_min(1e-12)
        n = weights.shape[-1]
        sums.count += len(weights)
        sums.weights = sums.weights + weights.sum(0)
        sums.squares = sums.squares + weights.square().sum(0)
        sums.negative = sums.negative + (weights < 0).sum() / weights[0].numel()
        entropy = torch.special.entr(shares).sum(-1).mean(-1) / max(math.log(n), 1e-12)
        sums.entropy = sums.entropy + entropy.sum()
        started = _started(layer)
        if started:
            mixtures, cells = zip(*started)
            sums.initial = sums.initial + shares[:, list(mixtures), list(cells)].mean(-1).sum()

    def results(self) -> list[LayerAttention]:
        """What was recorded, in the order of the layers in the model.

        Raises:
            ValueError: if the model has not run while recording.
        """
        groups = _groups(self.model, self.layers)
        names = [name for name in self.layers if name in self._sums]
        if not names:
            raise ValueError('no attention was recorded, as no image went through the model')
        return [self._result(name, groups[name]) for name in names]

    def _result(self, name: str, group: str) -> LayerAttention:
        sums, layer = self._sums[name], self.layers[name]
        mean, square = sums.weights / sums.count, sums.squares / sums.count
        variance = (square - mean.square()).clamp_min(0)
        partition = getattr(layer, 'partition', None)
        own = None
        if partition is not None:
            own = (partition.first_cell, partition.first_cell + partition.num_own_cells)
        return LayerAttention(
            layer=name,
            group=group,
            mean=mean.cpu().numpy(),
            deviation=variance.sqrt().cpu().numpy(),
            negative=float(sums.negative) / sums.count,
            entropy=float(sums.entropy) / sums.count,
            initial=float(sums.initial) / sums.count if _started(layer) else None,
            spread=float((variance.sum() / square.sum().clamp_min(1e-24)).sqrt()),
            count=sums.count,
            initial_cells=None if partition is None else partition.initial_cells,
            own_cells=own,
        )


def mixing_layers(model: nn.Module) -> dict[str, DynamicLayer]:
    """The layers of a model that mix kernels, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, DynamicLayer) and layer.mixes and not layer.awaits_plan
    }


def group_attentions(attentions: Iterable[LayerAttention]) -> dict[str, list[LayerAttention]]:
    """Layers by what they are shown with, see :class:`LayerAttention`."""
    groups: dict[str, list[LayerAttention]] = {}
    for attention in attentions:
        groups.setdefault(attention.group, []).append(attention)
    return groups


def group_statistics(attentions: Iterable[LayerAttention]) -> dict[str, dict[str, float]]:
    """The mean of each statistic over the layers of a group, by group and statistic."""
    return {
        group: {
            name: float(np.mean([layer.statistics()[name] for layer in layers]))
            for name in STATISTICS
            if all(name in layer.statistics() for layer in layers)
        }
        for group, layers in group_attentions(attentions).items()
    }


def save_attentions(attentions: Iterable[LayerAttention], path: str | os.PathLike) -> None:
    """Write an NPZ file.

    It holds for each layer ``<layer>/mean`` and ``<layer>/deviation``, shape ``(m, n)``, the
    statistics, such as ``<layer>/entropy``, and where the method has them
    ``<layer>/initial_cells``, -1 for none.
    """
    arrays: dict[str, Any] = {}
    for attention in attentions:
        values = attention.statistics()
        arrays[f'{attention.layer}/mean'] = attention.mean
        arrays[f'{attention.layer}/deviation'] = attention.deviation
        arrays.update({f'{attention.layer}/{name}': value for name, value in values.items()})
        if attention.initial_cells is not None:
            cells = [-1 if cell is None else cell for cell in attention.initial_cells]
            arrays[f'{attention.layer}/initial_cells'] = np.array(cells)
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def _groups(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, str]:
    names = {module: name for name, module in model.named_modules()}
    groups = {}
    for name, layer in layers.items():
        if hasattr(layer, 'warehouse'):
            groups[name] = names.get(layer.warehouse, 'warehouse')
        else:
            groups[name] = f'{layer.num_kernels} kernels'
    return groups


def _started(layer: DynamicLayer) -> list[tuple[int, int]]:
    """Mixtures that started from a cell, with the cell."""
    partition = getattr(layer, 'partition', None)
    cells = () if partition is None else partition.initial_cells
    return [(mixture, cell) for mixture, cell in enumerate(cells) if cell is not None]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, so that running statistics stay as they are."""
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
