"""State dicts of networks as they would be with plain layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..methods.kernel_warehouse.layers import Warehouse
from ..openmmlab.backbones.vision_transformer import SplitQKV


def plain_state_dict(network: nn.Module, kernels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that a network would have with plain layers in the places of dynamic ones.

    Biases and all other tensors are the network's. Attentions and warehouses have no place in it,
    and queries, keys and values of a vision transformer are in one tensor again.

    Args:
        network: has dynamic layers.
        kernels: the plain layers' weights by the names of the dynamic layers, those of shared
            layers under all of their names.
    """
    tensors = dict(network.state_dict())
    modules = dict(network.named_modules(remove_duplicate=False))
    warehouses = [name for name, module in modules.items() if isinstance(module, Warehouse)]
    inner = tuple(f'{name}.' for name in (*kernels, *warehouses))
    biases = {f'{name}.bias' for name in kernels}
    tensors = {
        name: value
        for name, value in tensors.items()
        if name in biases or not name.startswith(inner)
    }
    tensors.update((f'{name}.weight', kernel) for name, kernel in kernels.items())
    for name, module in modules.items():
        if isinstance(module, SplitQKV):
            _fuse(tensors, name)
    return tensors


def _fuse(tensors: dict[str, Tensor], name: str) -> None:
    for kind in ('weight', 'bias'):
        parts = [tensors.pop(f'{name}.{part}.{kind}', None) for part in ('query_key', 'value')]
        if parts[0] is not None:
            tensors[f'{name}.{kind}'] = torch.cat(parts)
