"""Convolution as a product of each sample's kernel with its unfolded pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import Mixture


def mix_matrices(mixture: Mixture, groups: int) -> Tensor:
    """Every sample's kernel as matrices, in the order of :func:`unfold_pixels`.

    The bank is transposed before it is mixed rather than each sample's kernel after it. Exporters
    do so once, so that exported networks permute nothing but, with several output groups,
    coefficients.

    Returns:
        Shape ``(N, groups, out_channels / groups, positions * in_channels / groups)``.
    """
    coefficients, bank, layout, position_scale = mixture
    n, c_out, c_in, *spatial = bank.shape
    positions, out_groups, in_groups = layout.grid
    own_positions = math.prod(spatial)
    alpha = coefficients.unflatten(1, layout.grid)
    if own_positions == 1:
        # (N, out group, 1, position and input group, n) @ (c_out, n, c_in)
        alpha = alpha if out_groups == 1 else alpha.transpose(1, 2)
        alpha = alpha.reshape(-1, out_groups, 1, positions * in_groups, n)
        cells = bank.reshape(n, c_out, c_in).transpose(0, 1)
        mixed = alpha.matmul(cells)
    else:
        # (N, out group, 1, input group, n) @ (c_out and position, n, c_in)
        alpha = alpha.reshape(-1, out_groups, 1, in_groups, n)
        cells = bank.reshape(n, c_out, c_in, own_positions).permute(1, 3, 0, 2)
        mixed = alpha.matmul(cells.reshape(c_out * own_positions, n, c_in))
        positions = own_positions
    if position_scale is not None:
        mixed = mixed.reshape(-1, out_groups * c_out, positions, in_groups * c_in)
        mixed = mixed * position_scale[:, None, :, None]
    return mixed.reshape(-1, groups, out_groups * c_out // groups, positions * in_groups * c_in)


def kernel_matrices(kernels: Tensor, groups: int) -> Tensor:
    """Kernels ``(N, out, in / groups, *kernel_size)`` as :func:`mix_matrices` gives them."""
    return kernels.flatten(3).transpose(2, 3).flatten(2).unflatten(1, (groups, -1))


def convolve_matrices(
    x: Tensor,
    matrices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve each sample with its own kernel, in operations whose sizes may all be unknown.

    Args:
        x: shape ``(N, in_channels, *size)``.
        matrices: see :func:`mix_matrices`.
        kernel_size, stride, padding, dilation: a number per spatial dimension.
    """
    groups, rows = matrices.shape[1:3]
    pixels = unfold_pixels(x, groups, kernel_size, stride, padding, dilation)
    y = matrices.matmul(pixels.flatten(3))
    return y.reshape(x.shape[0], groups * rows, *pixels.shape[3:])


def unfold_pixels(
    x: Tensor,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The pixels that each kernel position reads.

    Returns:
        Shape ``(N, groups, positions * in_channels / groups, *out_size)``.
    """
    if any(padding):
        x = F.pad(x, [width for pad in reversed(padding) for width in (pad, pad)])
    x = x.unflatten(1, (groups, -1))
    # The last axis first, so that positions come out row by row.
    for axis in reversed(range(len(kernel_size))):
        k, s, step = kernel_size[axis], stride[axis], dilation[axis]
        if k == s == 1:
            continue
        after = (slice(None),) * (len(kernel_size) - 1 - axis)
        # Bounds that count from the end are constants, whatever the size.
        reads = (slice(i * step, -(k - 1 - i) * step or None, s) for i in range(k))
        x = torch.cat([x[(..., read, *after)] for read in reads], 2)
    return x
