"""Modules that hold a bank of tensors from which kernels are mixed."""

from __future__ import annotations

from torch import Tensor, nn


class BankModule(nn.Module):
    """A module whose parameters of more than three dimensions are banks, not maps or kernels.

    ``network.to(memory_format=torch.channels_last)`` would take a bank for a map by its number of
    dimensions, or fail on it.
    """

    def _apply(self, fn, *args, **kwargs) -> BankModule:
        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(1)).view(tensor.shape) if tensor.dim() > 3 else fn(tensor)

        return super()._apply(apply, *args, **kwargs)
