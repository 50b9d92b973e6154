"""Counting multiply-adds on a real run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

from torch import nn

from ..kernel_warehouse.attention import AttentionLinear
from ..sample_conv.layer import DynamicLayer

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

    @property
    def total(self) -> int:
        return self.convolution + self.assembling + self.attention


def count_operations(model: nn.Module, run: Callable[[], object]) -> Operations:
    """Count what the layers of a model do in their forward passes.

    KW layers count by the formula of the paper, whatever route computes them. Biases, norms,
    pooling and products of activations with each other (self-attention) are left out.

    Args:
        model: has the layers to watch.
        run: calls the model, as often as is to be counted.

    Returns:
        The multiply-adds of ``run``.
    """
    counts = dict(convolution=0, assembling=0, attention=0)

    def count(layer: nn.Module, inputs: tuple, output) -> None:
        x = inputs[0]
        if isinstance(layer, DynamicLayer):
            counts['convolution'] += output.numel() * math.prod(layer.kernel_shape[1:])
            counts['assembling'] += len(x) * layer.mixing_operations
        elif isinstance(layer, AttentionLinear):
            counts['attention'] += output.numel() * layer.weight.shape[1]
        else:
            # Each input of a transposed convolution is used as often as each output of another.
            uses = x if isinstance(layer, _ConvTranspose) else output
            counts['convolution'] += uses.numel() * layer.weight[0].numel()

    layers = [
        module
        for module in model.modules()
        if isinstance(module, (DynamicLayer, AttentionLinear, _Conv, nn.Linear))
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return Operations(**counts)
