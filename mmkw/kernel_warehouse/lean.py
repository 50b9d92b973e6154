"""Kernels that are assembled block by block when they are needed, and not kept.

A block is the kernels of some samples for some *rows*: output channels of the cells, in each of
the layer's output groups. Blocks bound the memory, and on the CPU they stay in the cache between
assembling and convolution, while each row of the cells is read once for all samples of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .partition import KernelPartition
from .sample_convolution import convolve, convolve_backward, is_channels_last

# Bytes of kernels in a block. Measured on two cores: larger ones leave the cache, and from 32 MiB
# on the C library takes fresh memory from the kernel, page by page, for each of them.
_BLOCK_BYTES = {'cpu': 3 * 2**23, 'cuda': 2**28}
# Fewer rows make products too narrow to be fast.
_MIN_ROWS = 32


class LeanConv(torch.autograd.Function):
    """Each sample's convolution with kernels that are assembled when they are needed.

    With ``g`` the gradient of the kernels, laid out as mixtures ``(N, m, c_out c_in ...)``, and
    ``e`` the cells, those of attentions and cells follow from Eq. 3: ``g e^T`` and
    ``alpha^T g``, summed over the samples.
    """

    @staticmethod
    def forward(
        ctx, x, attention, cells, partition, groups, stride, padding, dilation
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, attention, cells)
        ctx.partition, ctx.groups, ctx.geometry = partition, groups, (stride, padding, dilation)
        y = _convolve_blocks(
            x,
            lambda some, rows: _assemble(attention[some], cells[:, rows].contiguous(), partition),
            cells.shape[1], _num_rows(x, cells.shape[1], partition, groups), partition, groups,
            ctx.geometry,
        )  # fmt: skip
        ctx.dtype = y.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        inputs = ctx.saved_tensors
        # What autocast computed with, which is not on in the backward pass.
        x, attention, cells = (tensor.to(ctx.dtype) for tensor in inputs)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        # Half precision would lose small summands.
        sums = torch.promote_types(cells.dtype, torch.float32)
        grad_attention = torch.empty(attention.shape, dtype=sums, device=x.device)
        grad_cells = torch.empty(cells.shape, dtype=sums, device=x.device)
        c_out = cells.shape[1]
        num_rows = _num_rows(x, c_out, ctx.partition, ctx.groups)
        for some, rows in _blocks(x, c_out, num_rows, ctx.partition):
            some_cells = cells[:, rows].contiguous()
            kernels = _assemble(attention[some], some_cells, ctx.partition)
            grad_block = _of_rows(grad_y[some], c_out, rows).reshape(
                len(kernels), kernels.shape[1], *grad_y.shape[2:]
            )
            grad_kernels, of_x = convolve_backward(
                grad_block, x[some], kernels, ctx.groups, *ctx.geometry, grad_x is not None
            )
            of_attention, of_cells = _assemble_backward(
                grad_kernels, attention[some], some_cells, ctx.partition
            )
            _put(grad_attention[some], of_attention, is_first=rows.start == 0)
            _put(grad_cells[:, rows], of_cells, is_first=some.start == 0)
            if grad_x is not None:
                _put(grad_x[some], of_x, is_first=rows.start == 0)
        grads = (grad_x, grad_attention, grad_cells)
        grads = (g if g is None else g.to(tensor.dtype) for g, tensor in zip(grads, inputs))
        return (*grads, None, None, None, None, None)


def _put(total: Tensor, summand: Tensor, is_first: bool) -> None:
    """Write the first summand, which spares zeros, and add the others."""
    total.copy_(summand) if is_first else total.add_(summand)


def fold(weights: Tensor, cells: Tensor, partition: KernelPartition, groups: int) -> Tensor:
    """Mix the cells by constant weights, in blocks of rows, for :func:`assemble_folded`.

    Args:
        weights: shape ``(k, m, n)``.
        cells: shape ``(n, c_out, c_in, *spatial)``.
        partition: where the layer's mixtures stand in its kernel.
        groups: of the convolution.

    Returns:
        Shape ``(blocks, k, m, rows, c_in, *spatial)``.
    """
    c_out = cells.shape[1]
    rows = _divisor(c_out, _MIN_ROWS) if groups == 1 else c_out
    blocks = cells.unflatten(1, (-1, rows)).transpose(0, 1).flatten(2)
    mixed = weights.flatten(0, 1).expand(len(blocks), -1, -1).bmm(blocks)
    return mixed.view(-1, *weights.shape[:2], rows, *cells.shape[2:])


def convolve_folded(
    x: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    basis: Tensor,
    partition: KernelPartition,
    groups: int,
    geometry: tuple,
) -> Tensor:
    """Convolve each sample with its kernel of :func:`assemble_folded`.

    ``geometry`` is stride, padding and dilation.
    """
    blocks, _, m, num_rows = basis.shape[:4]
    c_out = blocks * num_rows

    def assemble_all(some: slice, rows: slice) -> Tensor:
        return assemble_folded(coefficients[some], scale[some], basis, partition)

    def assemble_rows(some: slice, rows: slice) -> Tensor:
        block = basis[rows.start // num_rows]
        mixtures = _product(coefficients[some], block.flatten(1))
        mixtures = mixtures.unflatten(1, (m, -1)) * scale[some, :, None]
        return _as_kernels(mixtures, basis.shape[3:], partition)

    if _num_rows(x, c_out, partition, groups) == c_out:
        return _convolve_blocks(x, assemble_all, c_out, c_out, partition, groups, geometry)
    return _convolve_blocks(x, assemble_rows, c_out, num_rows, partition, groups, geometry)


def assemble_folded(
    coefficients: Tensor, scale: Tensor, basis: Tensor, partition: KernelPartition
) -> Tensor:
    r"""Mix every sample's kernel from a basis of the layer's own.

    .. math::
        \mathbf{w}_i = s_i \sum_k c_k \mathbf{g}_{ik}

    Args:
        coefficients: ``c``, shape ``(N, k)``.
        scale: ``s``, shape ``(N, m)``.
        basis: ``g``, from :func:`fold`.
        partition: where the layer's mixtures stand in its kernel.

    Returns:
        Kernels of shape ``(N, out_channels, in_channels / groups, *kernel_size)``.
    """
    blocks, _, m, rows, c_in, *spatial = basis.shape
    mixtures = coefficients.expand(blocks, -1, -1).bmm(basis.flatten(2))
    mixtures = mixtures.view(blocks, -1, m, rows * c_in * math.prod(spatial)) * scale[..., None]
    mixtures = mixtures.movedim(0, 2).reshape(-1, m, blocks * rows, c_in, *spatial)
    return _as_kernels(mixtures, mixtures.shape[2:], partition)


def _convolve_blocks(
    x: Tensor,
    assemble: Callable[[slice, slice], Tensor],
    c_out: int,
    num_rows: int,
    partition: KernelPartition,
    groups: int,
    geometry: tuple,
) -> Tensor:
    """Convolve with kernels that ``assemble`` makes for samples and rows."""
    y = None
    for some, rows in _blocks(x, c_out, num_rows, partition):
        part = convolve(x[some], assemble(some, rows), groups, *geometry)
        if y is None and len(part) == len(x) and num_rows == c_out:
            return part
        if y is None:
            channels, size = partition.kernel_shape[0], part.shape[2:]
            if is_channels_last(part):
                y = part.new_empty(len(x), *size, channels).movedim(-1, 1)
            else:
                y = part.new_empty(len(x), channels, *size)
        target = _of_rows(y[some], c_out, rows)
        target.copy_(part.view_as(target))
    return y


def _num_rows(x: Tensor, c_out: int, partition: KernelPartition, groups: int) -> int:
    """Rows of a block. All of them, where blocks of samples do as well."""
    if x.device.type != 'cpu' or groups > 1 or is_channels_last(x):
        return c_out
    row_bytes = math.prod(partition.kernel_shape) // c_out * x.element_size()
    fewest = _divisor(c_out, _MIN_ROWS)
    return max(_divisor(c_out, _BLOCK_BYTES['cpu'] // (len(x) * row_bytes)), fewest)


def _blocks(
    x: Tensor, c_out: int, num_rows: int, partition: KernelPartition
) -> Iterator[tuple[slice, slice]]:
    """Samples and rows of each block."""
    limit = _BLOCK_BYTES.get(x.device.type, _BLOCK_BYTES['cuda'])
    sample_bytes = math.prod(partition.kernel_shape) // c_out * num_rows * x.element_size()
    samples = max(limit // sample_bytes, 1)
    for first in range(0, len(x), samples):
        for row in range(0, c_out, num_rows):
            yield slice(first, first + samples), slice(row, row + num_rows)


@functools.lru_cache(maxsize=256)
def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no larger than the limit, at least 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))


def _of_rows(y: Tensor, c_out: int, rows: slice) -> Tensor:
    """The output channels that some rows of the cells make, ``(N, groups, rows, *size)``."""
    return y.unflatten(1, (-1, c_out))[:, :, rows]


def _assemble(attention: Tensor, cells: Tensor, partition: KernelPartition) -> Tensor:
    """As :func:`assemble_kernels`, for some rows of the cells."""
    mixtures = _product(attention.flatten(0, 1), cells.flatten(1))
    return _as_kernels(mixtures, cells.shape[1:], partition)


def _assemble_backward(
    grad_kernels: Tensor, attention: Tensor, cells: Tensor, partition: KernelPartition
) -> tuple[Tensor, Tensor]:
    """Gradients of attention and cells."""
    shape, order = _layout(cells.shape[1:], partition)
    grad = grad_kernels.reshape([-1, *(shape[i] for i in order[1:])])
    grad = grad.permute([order.index(i) for i in range(len(order))])
    grad = grad.reshape(len(attention) * partition.num_mixtures, -1)
    grad_attention = _product(grad, cells.flatten(1).t())
    grad_cells = _product(attention.flatten(0, 1).t().contiguous(), grad)
    return grad_attention.view(attention.shape), grad_cells.view(cells.shape)


def _as_kernels(mixtures: Tensor, cell_shape, partition: KernelPartition) -> Tensor:
    """Put mixtures, ``(N, m, ...)``, each at its place in kernels of some rows of the cells."""
    shape, order = _layout(cell_shape, partition)
    kernels = mixtures.view(shape).permute(order)
    out_channels, in_channels = shape[2] * shape[4], shape[3] * shape[5]
    return kernels.reshape(-1, out_channels, in_channels, *partition.kernel_shape[2:])


def _layout(cell_shape, partition: KernelPartition) -> tuple[list[int], list[int]]:
    """The axes of mixtures, and their order in kernels."""
    c_out, c_in, *spatial = cell_shape
    return [-1, *partition.grid, c_out, c_in, math.prod(spatial)], [0, 2, 4, 3, 5, 1, 6]


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, '_linear_pointwise'
)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a b``, for few rows and many columns.

    PyTorch computes float32 products on the CPU by MKL. oneDNN, which does its convolutions,
    takes half to a quarter of the time for these shapes, measured on two cores. It has no gradient.
    """
    has_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if _HAS_ONEDNN and a.device.type == 'cpu' and a.dtype == torch.float32 and not has_gradient:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, 'none', [], '')
    return a.mm(b)
