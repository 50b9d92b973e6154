"""Attentions folded into the cells, layer by layer, for faster inference of large warehouses."""

from __future__ import annotations

from numbers import Real

from torch import nn

from .layers import _KWLayer
from .warehouse import warehouses


def fold_attentions(model: nn.Module, min_saving: float = 4) -> dict[str, int]:
    """Fold the attentions of the layers where it saves most, for inference.

    A layer then mixes ``h + 1`` tensors of its own instead of the ``n`` cells of its warehouse,
    see ``KWConv2d.fold_attention``. The outputs are the same to rounding. The price is memory,
    ``h + 1`` times that of the layer's kernel. Checkpoints do not change. ``model.train()`` and
    :func:`unfold_attentions` end it.

    Args:
        model: in eval mode and at temperature 0.
        min_saving: fold layers with at least so many cells for each of the ``h + 1`` tensors.
            Defaults to 4. Infinity folds none, 0 all.

    Returns:
        The bytes that each folded layer takes in addition, by name.

    Raises:
        ValueError: if the model has no warehouse, its temperature is not 0, or ``min_saving`` is
            negative.
        RuntimeError: if a layer is in training mode.
    """
    if not isinstance(min_saving, Real) or not min_saving >= 0:
        raise ValueError(f'min_saving must be a number of at least 0, but got {min_saving!r}')
    warehouses(model)
    added = {}
    for name, layer in _layers(model):
        if layer.partition.num_cells >= min_saving * (layer.num_hidden + 1):
            layer.fold_attention()
            added[name] = layer.basis.numel() * layer.basis.element_size()
    return added


def unfold_attentions(model: nn.Module) -> None:
    """Let all layers mix the cells of their warehouses again."""
    for _, layer in _layers(model):
        layer.unfold_attention()


def _layers(model: nn.Module) -> list[tuple[str, _KWLayer]]:
    named = model.named_modules()
    return [(n, m) for n, m in named if isinstance(m, _KWLayer) and m.attention is not None]
