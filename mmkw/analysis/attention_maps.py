"""Heat maps of attentions: mixtures by cells, a map for each warehouse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .attention import LayerAttention

# Layers with fewer rows than this share of the map have no room for a name of their own.
_LEAST_SHARE = 0.025


def draw_map(title: str, layers: Sequence[LayerAttention]) -> Figure:
    """The mean attentions of the layers of one warehouse.

    Rows are mixtures, layer after layer in the order of the network, and columns are cells. Red
    weights are positive, blue ones negative.
    """
    figure = Figure(figsize=(7.5, 5), layout='constrained')
    axis = figure.subplots()
    _draw(axis, layers, _stacked(layers))
    axis.set_title(title, fontsize=10)
    return figure


def draw_comparison(
    title: str,
    first: Sequence[LayerAttention],
    second: Sequence[LayerAttention],
    names: tuple[str, str],
) -> Figure:
    """The attentions for two images side by side, with their difference on a scale of its own."""
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    axes = figure.subplots(1, 3)
    one, two = _stacked(first), _stacked(second)
    limit = max(np.abs(one).max(), np.abs(two).max())
    for axis, values, name in zip(axes, (one, two), names):
        _draw(axis, first, values, limit)
        axis.set_title(name, fontsize=10)
    _draw(axes[2], first, two - one)
    axes[2].set_title(f'{names[1]} less {names[0]}', fontsize=10)
    figure.suptitle(title)
    return figure


def as_image(figure: Figure) -> np.ndarray:
    """A figure as RGB, shape ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _stacked(layers: Sequence[LayerAttention]) -> np.ndarray:
    return np.concatenate([layer.mean for layer in layers])


def _draw(
    axis: Axes, layers: Sequence[LayerAttention], values: np.ndarray, limit: float | None = None
) -> None:
    limit = limit or np.abs(values).max() or 1.0
    image = axis.imshow(
        values, cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto', interpolation='nearest'
    )
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
    ends = np.cumsum([len(layer.mean) for layer in layers])
    starts = ends - [len(layer.mean) for layer in layers]
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color='0.4', linewidth=0.5)
    for layer in layers:
        if layer.own_cells is not None and layer.own_cells[0]:
            axis.axvline(layer.own_cells[0] - 0.5, color='0.7', linewidth=0.5)
    shown = _with_room([*zip(starts, ends)])
    axis.set_yticks([(starts[i] + ends[i] - 1) / 2 for i in shown])
    prefix = _common_prefix([layer.layer for layer in layers])
    axis.set_yticklabels([layers[i].layer[len(prefix) :] for i in shown], fontsize=6)
    kind = 'kernels' if layers[0].own_cells is None else 'cells'
    axis.set_xlabel(kind, fontsize=8)
    axis.tick_params(axis='x', labelsize=7)


def _with_room(spans: Sequence[tuple[int, int]]) -> list[int]:
    """The layers whose names do not overlap the one before."""
    shown, least, last = [], _LEAST_SHARE * spans[-1][1], -np.inf
    for index, (start, end) in enumerate(spans):
        middle = (start + end) / 2
        if middle - last >= least:
            shown.append(index)
            last = middle
    return shown


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot, such as ``backbone.``."""
    parts = [name.split('.')[:-1] for name in names]
    common = []
    for level in zip(*parts):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ''.join(f'{part}.' for part in common)
