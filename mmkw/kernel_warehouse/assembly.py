"""Kernel assembling (Eqs. 2 and 3, Algorithm 1 part B) and each sample's convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .partition import KernelPartition

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def assemble_kernels(attention: Tensor, cells: Tensor, partition: KernelPartition) -> Tensor:
    r"""Mix every sample's kernel from the warehouse.

    .. math::
        \mathbf{w}_i = \alpha_{i1} \mathbf{e}_1 + \dots + \alpha_{in} \mathbf{e}_n \qquad (3)

    and :math:`\mathbf{W} = \mathbf{w}_1 \cup \dots \cup \mathbf{w}_m` (2), each at its place.

    Args:
        attention: ``alpha``, shape ``(N, m, n)``.
        cells: shape ``(n, c_out, c_in, *spatial)``.
        partition: where the layer's mixtures stand in its kernel.

    Returns:
        Kernels of shape ``(N, out_channels, in_channels / groups, *kernel_size)``.
    """
    mixtures = attention.matmul(cells.flatten(1))
    c_out, c_in = cells.shape[1:3]
    # The kernel size is made up of positions or of the cells' own spatial size, never of both.
    mixtures = mixtures.view(len(attention), *partition.grid, c_out, c_in, cells[0, 0, 0].numel())
    kernels = mixtures.permute(0, 2, 4, 3, 5, 1, 6)
    return kernels.reshape(len(attention), *partition.kernel_shape)


def dynamic_conv(
    x: Tensor,
    attention: Tensor,
    cells: Tensor,
    partition: KernelPartition,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Convolve each sample with its own assembled kernel.

    Args:
        x: shape ``(N, in_channels, *size)`` with one to three spatial dimensions.
        attention: ``alpha``, shape ``(N, m, n)``.
        cells: shape ``(n, c_out, c_in, *spatial)``.
        partition: where the layer's mixtures stand in its kernel.
        bias: static, shape ``(out_channels,)``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``, one number per
            spatial dimension.

    Returns:
        Shape ``(N, out_channels, *out_size)``.
    """
    conv = _CONVOLUTIONS[x.dim() - 2]
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    if len(x) == 0:
        # RoI heads see empty batches; zero kernels keep the shapes and the autograd graph.
        kernels = assemble_kernels(attention.sum(0, keepdim=True), cells, partition)
        return conv(x, kernels[0], bias, groups=groups, **geometry)

    kernels = assemble_kernels(attention, cells, partition)
    is_pointwise = all(size == 1 for size in partition.kernel_shape[2:]) and not any(padding)
    if is_pointwise and groups == 1:
        x = x[(..., *(slice(None, None, step) for step in stride))]
        y = torch.bmm(kernels.flatten(2), x.flatten(2)).view(len(x), -1, *x.shape[2:])
        return y if bias is None else y + bias.view(-1, *[1] * (x.dim() - 2))

    # Samples side by side in the channels, one group of convolution groups each.
    y = conv(
        x.reshape(1, -1, *x.shape[2:]),
        kernels.flatten(0, 1),
        None if bias is None else bias.repeat(len(x)),
        groups=len(x) * groups,
        **geometry,
    )
    return y.view(len(x), -1, *y.shape[2:])


def dynamic_linear(
    x: Tensor,
    attention: Tensor,
    cells: Tensor,
    partition: KernelPartition,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply each sample's tokens by its own assembled weight matrix.

    Args:
        x: shape ``(N, L, in_features)``.
        attention, cells, partition, bias: as for :func:`dynamic_conv`, with one spatial
            dimension of size 1.

    Returns:
        Shape ``(N, L, out_features)``.
    """
    weights = assemble_kernels(attention, cells, partition).flatten(2)
    y = torch.bmm(x, weights.transpose(1, 2))
    return y if bias is None else y + bias
