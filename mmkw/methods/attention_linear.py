"""The linear layers of attentions."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionLinear(nn.Module):
    """A linear layer of an attention: Kaiming normal over fan_out, bias 0.

    Not an ``nn.Linear``, because MMEngine's initialisers pick layers by the name of their class:
    a network's ``init_cfg`` for its own linear layers would overwrite the attentions.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f'{in_features}, {out_features}, bias={self.bias is not None}'


def normalise_hidden(norm: nn.Module, hidden: Tensor) -> Tensor:
    """The hidden vectors of an attention, normalised; also where the batch is a single sample.

    A plain network goes on at a last batch of 1 image, as its norms average over positions, too.
    The hidden vector of an attention has none, so that batch norm would have nothing to average.
    For such a batch it uses its running statistics, as in evaluation, and leaves them as they are.
    SyncBatchNorm in several processes has the samples of all to average.

    Args:
        norm: batch norm or any other norm.
        hidden: shape ``(N, h)``.
    """
    if norm.training and len(hidden) == 1 and _sees_one_process(norm):
        return F.batch_norm(
            hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(hidden)


def _sees_one_process(norm: nn.Module) -> bool:
    """Whether it is a batch norm over the samples of this process alone."""
    is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    is_alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    return is_batch_norm and (is_alone or not isinstance(norm, nn.SyncBatchNorm))
