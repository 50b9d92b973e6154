"""Counting multiply-adds on a real run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Callable

from torch import nn

from ..methods.base import AttentionLinear, DynamicLayer

_Conv = nn.modules.conv._ConvNd
_ConvTranspose = nn.modules.conv._ConvTransposeNd


@dataclass(frozen=True)
class Operations:
    """Multiply-adds by what they are for.

    Attributes:
        convolution: convolutions and linear layers, plain or with a sample's own kernel.
        assembling: mixing the kernels of KW layers from cells (Eq. 3): ``m * n`` times the size
            of a cell, for each sample; ``m * (h + 1)`` times where attentions are folded.
        attention: linear layers of the attention modules.
    """

    convolution: int = 0
    assembling: int = 0
    attention: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.convolution + other.convolution,
            self.assembling + other.assembling,
            self.attention + other.attention,
        )

    @property
    def total(self) -> int:
        return self.convolution + self.assembling + self.attention


def count_operations(model: nn.Module, run: Callable[[], object]) -> Operations:
    """Count what all layers of a model do in their forward passes, see
    :func:`operations_of_layers`."""
    return sum(operations_of_layers(model, run).values(), Operations())


def operations_of_layers(model: nn.Module, run: Callable[[], object]) -> dict[str, Operations]:
    """Count what each layer of a model does in its forward passes.

    KW layers count by the formula of the paper, whatever route computes them; their attentions
    count by themselves. Biases, norms, pooling and products of activations with each other
    (self-attention) are left out.

    Args:
        model: has the layers to watch.
        run: calls the model, as often as is to be counted.

    Returns:
        The multiply-adds of ``run``, by the layer's name; layers that were not called are missing.
    """
    counts: dict[str, Operations] = {}

    def count(name: str, layer: nn.Module, inputs: tuple, output) -> None:
        x = inputs[0]
        if isinstance(layer, DynamicLayer):
            operations = Operations(
                convolution=output.numel() * math.prod(layer.kernel_shape[1:]),
                assembling=len(x) * layer.mixing_operations,
            )
        elif isinstance(layer, AttentionLinear):
            operations = Operations(attention=output.numel() * layer.weight.shape[1])
        else:
            # Each input of a transposed convolution is used as often as each output of another.
            uses = x if isinstance(layer, _ConvTranspose) else output
            operations = Operations(convolution=uses.numel() * layer.weight[0].numel())
        counts[name] = counts.get(name, Operations()) + operations

    hooks = [
        module.register_forward_hook(partial(count, name))
        for name, module in model.named_modules()
        if isinstance(module, (DynamicLayer, AttentionLinear, _Conv, nn.Linear))
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts
