"""Convolution without any kernel: the bank's responses to the input, mixed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mixing import KernelLayout, Shape


def mix_responses(
    x: Tensor,
    coefficients: Tensor,
    bank: Tensor,
    layout: KernelLayout,
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
    (samples, _, *size), (n, c_out, c_in) = x.shape, bank.shape[:3]
    positions, out_groups, in_groups = layout.grid
    kernel_size = layout.kernel_shape[2:]
    out_size = [
        (i + 2 * pad - step * (k - 1) - 1) // s + 1
        for i, k, s, pad, step in zip(size, kernel_size, stride, padding, dilation)
    ]
    links = pixel_links(
        tuple(size), tuple(out_size), kernel_size, *map(tuple, (stride, padding, dilation))
    )

    pixels = x.flatten(2).unflatten(1, (in_groups, c_in)).permute(2, 0, 1, 3)
    responses = bank.view(n * c_out, c_in).matmul(pixels.flatten(1))
    responses = responses.view(n, c_out, samples, -1).permute(2, 1, 0, 3)

    # No link: a mixture of weight 0.
    alpha = coefficients.view(samples, positions, out_groups, in_groups, n)
    alpha = torch.cat([alpha, torch.zeros_like(alpha[:, :1])], dim=1)
    alpha = alpha[:, links.to(x.device)].permute(0, 5, 4, 1, 3, 2)
    y = torch.bmm(
        responses.reshape(samples, c_out, -1),
        alpha.reshape(samples, -1, out_groups * math.prod(out_size)),
    )
    return y.view(samples, c_out, out_groups, -1).transpose(1, 2).reshape(samples, -1, *out_size)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # Kept for later calls, which autograd may follow.
def pixel_links(
    size: Shape, out_size: Shape, kernel_size: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> Tensor:
    """For each input and output pixel the kernel position between them, or one past the last."""
    index, is_linked = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    for i, o, k, s, pad, step in zip(size, out_size, kernel_size, stride, padding, dilation):
        distance = torch.arange(i)[:, None] + pad - s * torch.arange(o)
        position = distance.div(step, rounding_mode='floor')
        fits = (distance % step == 0) & (position >= 0) & (position < k)
        pairs = (index.shape[0] * i, index.shape[1] * o)
        index = (index[:, None, :, None] * k + position[:, None]).reshape(pairs)
        is_linked = (is_linked[:, None, :, None] & fits[:, None]).reshape(pairs)
    return index.where(is_linked, torch.tensor(math.prod(kernel_size)))
