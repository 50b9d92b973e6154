"""Kernel assembling (Eqs. 2 and 3, Algorithm 1 part B) and each sample's convolution.

Three routes compute the same. The *reference* is the readable one: :func:`assemble_kernels`, then
:func:`convolve_kernels`; the release does that. It keeps a kernel for every sample until the
backward pass. The *lean* route assembles blocks of kernels, and again in the backward pass instead
of keeping them. For small maps on the CPU, *responses* never assembles them.
:func:`dynamic_conv` chooses one by shape and device; :func:`forced_route` takes a given one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .lean import LeanConv, assemble_folded, convolve_folded
from .partition import KernelPartition
from .sample_convolution import CONVOLUTIONS, convolve_kernels

ROUTES = ('reference', 'lean', 'responses')
_forced_route: str | None = None


@contextmanager
def forced_route(route: str) -> Iterator[None]:
    """Compute all KW layers by one route, for comparisons and debugging; not for threads.

    Args:
        route: ``'reference'``, ``'lean'`` or ``'responses'``; layers that the latter does not
            support take the reference.

    Raises:
        ValueError: if there is no such route.
    """
    if route not in ROUTES:
        raise ValueError(f'route must be one of {ROUTES}, but got {route!r}')
    global _forced_route
    previous, _forced_route = _forced_route, route
    try:
        yield
    finally:
        _forced_route = previous


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
    mixtures = mixtures.view(
        attention.shape[0], *partition.grid, c_out, c_in, cells[0, 0, 0].numel()
    )
    kernels = mixtures.permute(0, 2, 4, 3, 5, 1, 6)
    return kernels.reshape(attention.shape[0], *partition.kernel_shape)


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
        return CONVOLUTIONS[x.dim() - 2](x, kernels[0], bias, groups=groups, **geometry)

    x, geometry = _skip_pixels(x, partition, geometry)
    route = _choose_route(x, cells, partition, groups)
    if route == 'responses':
        y = mix_responses(x, attention, cells, partition, **geometry)
    elif route == 'lean':
        y = LeanConv.apply(x, attention, cells, partition, groups, *geometry.values())
    else:
        y = convolve_kernels(x, assemble_kernels(attention, cells, partition), groups, **geometry)
    return _add_bias(y, bias)


def folded_conv(
    x: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    basis: Tensor,
    partition: KernelPartition,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """As :func:`dynamic_conv`, with the kernels of :func:`assemble_folded`."""
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    if len(x) == 0:
        return CONVOLUTIONS[x.dim() - 2](
            x, x.new_zeros(partition.kernel_shape), bias, groups=groups, **geometry
        )
    x, geometry = _skip_pixels(x, partition, geometry)
    if _forced_route == 'reference' or is_transformed():
        kernels = assemble_folded(coefficients, scale, basis, partition)
        y = convolve_kernels(x, kernels, groups, **geometry)
    else:
        geometry = tuple(geometry.values())
        y = convolve_folded(x, coefficients, scale, basis, partition, groups, geometry)
    return _add_bias(y, bias)


def _skip_pixels(x: Tensor, partition: KernelPartition, geometry: dict) -> tuple[Tensor, dict]:
    """Leave out the pixels that a pointwise convolution with a stride does not read."""
    stride = geometry['stride']
    if any(size > 1 for size in partition.kernel_shape[2:]) or any(geometry['padding']):
        return x, geometry
    x = x[(..., *(slice(None, None, step) for step in stride))]
    return x, dict(geometry, stride=(1,) * len(stride))


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))


def _choose_route(x: Tensor, cells: Tensor, partition: KernelPartition, groups: int) -> str:
    can_mix_responses = groups == 1 and cells[0, 0, 0].numel() == 1
    if _forced_route == 'responses' and not can_mix_responses:
        return 'reference'
    if _forced_route is not None:
        return _forced_route
    # A small map: kernels would be larger than the cells' responses to it. These take `input
    # groups x pixels` products with all cells, kernels `m` of them and the memory for one kernel
    # a sample. On two cores the former win up to twice as many products.
    positions, out_groups, in_groups = partition.grid
    is_small = in_groups * x[0, 0].numel() <= 2 * positions * out_groups
    if can_mix_responses and is_small and x.device.type == 'cpu':
        return 'responses'
    return 'reference' if is_transformed() else 'lean'


# Unknown to PyTorch 2.1 and 2.2, whose compiler follows autograd functions by itself.
_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def is_transformed() -> bool:
    """Whether PyTorch records or transforms the computation, which wants plain operations."""
    return _is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


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
@torch.inference_mode(False)  # Kept for later calls, which autograd may follow.
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
