"""Convolution as products of each sample's kernel with its unfolded pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import Mixture


def mix_matrices(mixture: Mixture, groups: int) -> Tensor:
    """Every sample's kernel as matrices, for :func:`convolve_matrices`.

    The bank is transposed before it is mixed rather than each sample's kernel after it. Exporters
    do so once, so that exported networks transpose no kernels but those of grouped convolutions
    and of cells that have both positions and input groups.

    Returns:
        Shape ``(N, groups, parts, positions * in_channels / groups, rows)``, where
        ``groups * parts * rows`` are the output channels.
    """
    coefficients, bank, layout, position_scale, *_ = mixture
    n, c_out, c_in, *spatial = bank.shape
    positions, out_groups, in_groups = layout.grid
    own_positions = math.prod(spatial)
    if out_groups > 1:
        coefficients = coefficients.unflatten(1, layout.grid).transpose(1, 2)
    cells = bank.reshape(n, c_out, c_in, own_positions).permute(0, 3, 2, 1).reshape(1, n, -1)
    # One product for all samples. ONNX Runtime would keep a copy of a constant matrix for each
    # layer that shares the cells, but keeps none of a batch of one.
    mixed = coefficients.reshape(1, -1, n).matmul(cells)
    if min(in_groups, own_positions) > 1:
        mixed = mixed.reshape(-1, in_groups, own_positions, c_in * c_out).transpose(1, 2)
    mixed = mixed.reshape(-1, out_groups, positions * own_positions, in_groups * c_in, c_out)
    if position_scale is not None:
        mixed = mixed * position_scale[:, None, :, None, None]
    mixed = mixed.flatten(2, 3)
    if groups > out_groups:
        mixed = mixed.unflatten(3, (groups // out_groups, -1)).transpose(2, 3).flatten(1, 2)
    return mixed.unflatten(1, (groups, -1))


def kernel_matrices(kernels: Tensor, groups: int) -> Tensor:
    """Kernels ``(N, out, in / groups, *kernel_size)`` as :func:`mix_matrices` gives them."""
    kernels = kernels.flatten(3).unflatten(1, (groups, 1, -1))
    return kernels.permute(0, 1, 2, 5, 4, 3).flatten(3, 4)


def convolve_matrices(
    x: Tensor,
    matrices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve each sample with its own kernel, in operations whose sizes may all be unknown.

    Pixels are unfolded along all axes but the first, unless that has a stride. Along it, each row
    of the kernel is multiplied with all pixels, and the products are shifted and added, which
    copies less.

    Args:
        x: shape ``(N, in_channels, *size)``.
        matrices: see :func:`mix_matrices`.
        kernel_size, stride, padding, dilation: a number per spatial dimension.
    """
    groups, num_axes = matrices.shape[1], len(kernel_size)
    # Measured in ONNX Runtime, channels last save up to a sixth, but not where groups have few.
    is_last = groups == 1
    num_rows = kernel_size[0] if stride[0] == 1 else 1

    def reads(axis: int) -> list[tuple]:
        """For each position along the axis, an index of the pixels that it reads."""
        k, s, step = kernel_size[axis], stride[axis], dilation[axis]
        after = [slice(None)] * (num_axes - 1 - axis + is_last)
        # Bounds that count from the end are constants, whatever the size.
        return [(..., slice(i * step, -(k - 1 - i) * step or None, s), *after) for i in range(k)]

    if any(padding):
        x = F.pad(x, [width for pad in reversed(padding) for width in (pad, pad)])
    x = x.unflatten(1, (groups, -1))
    x = x.movedim(2, -1) if is_last else x
    # The last axis first, so that positions come out row by row.
    for axis in reversed(range(int(stride[0] == 1), num_axes)):
        if kernel_size[axis] > 1 or stride[axis] > 1:
            x = torch.cat([x[read] for read in reads(axis)], -1 if is_last else 2)

    matrices = matrices.unflatten(3, (num_rows, -1))
    if is_last:
        y = x.flatten(2, -2)[:, :, None, None].matmul(matrices).unflatten(-2, x.shape[2:-1])
    else:
        y = matrices.mT.matmul(x.flatten(3)[:, :, None, None]).unflatten(-1, x.shape[3:])
    if num_rows > 1:
        y = reduce(torch.add, (row[read] for row, read in zip(y.unbind(3), reads(0))))
    else:
        y = y.squeeze(3)
    y = y.movedim(-1, 3) if is_last else y
    return y.flatten(1, 3)
