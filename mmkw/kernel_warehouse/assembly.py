"""Kernel assembling (Eqs. 2 and 3, Algorithm 1 part B) and each sample's convolution."""

from __future__ import annotations

import functools
import math
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
    """Convolve each sample with its own kernel, mixed from the warehouse.

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
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    if len(x) == 0:
        # RoI heads see empty batches; zero kernels keep the shapes and the autograd graph.
        kernels = assemble_kernels(attention.sum(0, keepdim=True), cells, partition)
        return _CONVOLUTIONS[x.dim() - 2](x, kernels[0], bias, groups=groups, **geometry)

    if all(size == 1 for size in partition.kernel_shape[2:]) and not any(padding):
        x = x[(..., *(slice(None, None, step) for step in stride))]
        geometry['stride'] = (1,) * len(stride)
    if _prefers_responses(x, cells, partition, groups):
        y = mix_responses(x, attention, cells, partition, **geometry)
    else:
        y = convolve_kernels(x, assemble_kernels(attention, cells, partition), groups, **geometry)
    return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))


def convolve_kernels(
    x: Tensor,
    kernels: Tensor,
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve each sample with its own kernel, ``(N, out, in / groups, *kernel_size)``."""
    samples, _, *size = x.shape
    if groups == 1 and kernels[0, 0, 0].numel() == 1 and not any(padding) and set(stride) == {1}:
        return torch.bmm(kernels.flatten(2), x.flatten(2)).unflatten(2, size)
    # Samples side by side in the channels, each with groups of its own.
    y = _CONVOLUTIONS[len(size)](
        x.reshape(1, -1, *size),
        kernels.flatten(0, 1),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=samples * groups,
    )
    return y.view(samples, -1, *y.shape[2:])


def _prefers_responses(x: Tensor, cells: Tensor, partition: KernelPartition, groups: int) -> bool:
    """Whether the map is so small that kernels would be larger than the cells' responses to it.

    Responses take ``input groups x pixels`` products with all cells, kernels ``m`` of them and
    the memory for one kernel a sample. On two cores the former win up to twice as many products.
    """
    positions, out_groups, in_groups = partition.grid
    return (
        x.device.type == 'cpu'
        and groups == 1
        and cells[0, 0, 0].numel() == 1
        and in_groups * x[0, 0].numel() <= 2 * positions * out_groups
    )


def mix_responses(
    x: Tensor,
    attention: Tensor,
    cells: Tensor,
    partition: KernelPartition,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    r"""The same convolution with its sums reordered: first cells times pixels, then mixtures.

    .. math::
        y_q = \sum_p \mathbf{w}_{i(p, q)} x_p = \sum_p \sum_j \alpha_{i(p, q) j} (\mathbf{e}_j x_p)

    where mixture ``i(p, q)`` is the one at the kernel position that links input pixel ``p`` to
    output pixel ``q``. No kernel is ever assembled, and the first product is one for the batch.
    For ungrouped convolutions with cells of spatial size 1.
    """
    (samples, _, *size), (n, c_out, c_in) = x.shape, cells.shape[:3]
    positions, out_groups, in_groups = partition.grid
    kernel_size = partition.kernel_shape[2:]
    out_size = [
        (i + 2 * pad - step * (k - 1) - 1) // s + 1
        for i, k, s, pad, step in zip(size, kernel_size, stride, padding, dilation)
    ]
    links = _links(
        tuple(size), tuple(out_size), kernel_size, *map(tuple, (stride, padding, dilation))
    )

    pixels = x.flatten(2).unflatten(1, (in_groups, c_in)).permute(2, 0, 1, 3)
    responses = cells.view(n * c_out, c_in).matmul(pixels.flatten(1))
    responses = responses.view(n, c_out, samples, -1).permute(2, 1, 0, 3)

    # No link: a mixture of weight 0.
    alpha = attention.view(samples, positions, out_groups, in_groups, n)
    alpha = torch.cat([alpha, torch.zeros_like(alpha[:, :1])], dim=1)
    alpha = alpha[:, links.to(x.device)].permute(0, 5, 4, 1, 3, 2)
    y = torch.bmm(
        responses.reshape(samples, c_out, -1),
        alpha.reshape(samples, -1, out_groups * math.prod(out_size)),
    )
    return y.view(samples, c_out, out_groups, -1).transpose(1, 2).reshape(samples, -1, *out_size)


@functools.lru_cache(maxsize=256)
def _links(size, out_size, kernel_size, stride, padding, dilation) -> Tensor:
    """For input and output pixels the kernel position between them, or one past the last."""
    index, is_linked = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    for i, o, k, s, pad, step in zip(size, out_size, kernel_size, stride, padding, dilation):
        distance = torch.arange(i)[:, None] + pad - s * torch.arange(o)
        position = distance.div(step, rounding_mode='floor')
        fits = (distance % step == 0) & (position >= 0) & (position < k)
        pairs = (index.shape[0] * i, index.shape[1] * o)
        index = (index[:, None, :, None] * k + position[:, None]).reshape(pairs)
        is_linked = (is_linked[:, None, :, None] & fits[:, None]).reshape(pairs)
    return index.where(is_linked, torch.tensor(math.prod(kernel_size)))


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
    return y if bias is None else y + bias.to(y.dtype)
