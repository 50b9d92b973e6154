"""A method of some 30 lines that registers itself: nothing else of the package has to know it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mmkw.methods import Method, register_method
from mmkw.methods.base import AttentionLinear
from mmkw.methods.kernel_bank import KernelBankConv2d


class Gates(nn.Module):
    def __init__(self, in_channels, num_kernels):
        super().__init__()
        self.fc = AttentionLinear(in_channels, num_kernels)

    def reset_parameters(self):
        self.fc.reset_parameters()

    def forward(self, pooled):
        return self.fc(pooled).tanh()


class ToyConv2d(KernelBankConv2d):
    def __init__(self, *args, num_kernels=3, device=None, dtype=None, **kwargs):
        super().__init__(*args, device=device, dtype=dtype, **kwargs)
        self.add_kernels(num_kernels, device, dtype)
        self.attention = Gates(self.in_channels, num_kernels).to(device, dtype)

    def mix(self, pooled):
        return self.mix_kernels(self.attention(pooled))


@register_method
@dataclass(frozen=True)
class Toy(Method):
    layers = {2: ToyConv2d}
    num_kernels: int = 3


def toy(layer, x, geometry):
    """Its equation, as those of the package's methods in ``test_methods/by_hand.py``."""
    fc = layer.attention.fc
    outputs = []
    for sample in x:
        gates = torch.tanh(fc.weight @ sample.mean((1, 2)) + fc.bias)
        kernel = sum(gate * weight for gate, weight in zip(gates, layer.weight))
        outputs.append(F.conv2d(sample[None], kernel, **geometry)[0])
    return torch.stack(outputs)
