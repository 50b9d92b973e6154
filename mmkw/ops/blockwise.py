"""Kernels that are assembled block by block when they are needed, and not kept.

A block holds the kernels of some samples for some *rows*: output channels of the bank's tensors, in
each of the layer's output groups. Blocks bound the memory, and on the CPU they stay in the cache
between assembling and convolution, while each row of the bank is read once for all samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .convolution import convolve, convolve_backward, convolve_kernels, is_channels_last
from .mixing import KernelLayout, assemble_kernels, scale_maps, scale_positions

# Bytes of kernels in a block. Measured on two cores: larger ones leave the cache, and from 32 MiB
# on the C library takes fresh memory from the kernel, page by page, for each of them.
BLOCK_BYTES = {'cpu': 3 * 2**23, 'cuda': 2**28}
# Fewer rows make products too narrow to be fast.
MIN_ROWS = 32
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


class BlockwiseConv(torch.autograd.Function):
    """Each sample's convolution with kernels that are assembled when they are needed.

    With ``g`` the gradient of the mixtures ``(N, m, c_out c_in ...)`` and ``e`` the bank, those of
    coefficients and bank are ``g e^T`` and ``alpha^T g``, summed over the samples. With factors
    ``s`` of the output channels and ``G`` the gradient of the kernels ``K`` without them, those of
    factors and kernels are ``<K, G>`` for each channel, and ``s G``, so that neither the scaled
    input nor the output before the factors is kept.

    Where the backward pass is itself differentiated, it goes through the readable reference.
    """

    @staticmethod
    def forward(
        ctx, x, coefficients, bank, position_scale, input_scale, output_scale, layout, groups,
        stride, padding, dilation,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, coefficients, bank, position_scale, input_scale, output_scale)
        ctx.layout, ctx.groups, ctx.geometry = layout, groups, (stride, padding, dilation)

        def assemble(some: slice, rows: slice) -> Tensor:
            kernels = assemble_rows(coefficients[some], bank[:, rows].contiguous(), layout)
            return scale_positions(kernels, _some(position_scale, some))

        x, c_out = scale_maps(x, input_scale), bank.shape[1]
        y = convolve_blocks(
            x, assemble, c_out, rows_per_block(x, c_out, layout, groups), layout, groups,
            ctx.geometry,
        )  # fmt: skip
        ctx.dtype = y.dtype
        return scale_maps(y, output_scale)

    @staticmethod
    def backward(ctx, grad_y):
        # Autograd has its mode on here only if the gradients shall have gradients.
        backward = _differentiable_backward if torch.is_grad_enabled() else _backward
        return (*backward(ctx, grad_y), None, None, None, None, None)


def _differentiable_backward(ctx, grad_y) -> list[Tensor | None]:
    # Views, because coefficients depend on x: the gradient of x itself shall not include theirs.
    inputs = [
        None if tensor is None else tensor.view_as(tensor).to(ctx.dtype)
        for tensor in ctx.saved_tensors
    ]
    x, coefficients, bank, position_scale, input_scale, output_scale = inputs
    kernels = assemble_kernels(coefficients, bank, ctx.layout, position_scale)
    y = convolve_kernels(scale_maps(x, input_scale), kernels, ctx.groups, *ctx.geometry)
    y = scale_maps(y, output_scale)
    needed = ctx.needs_input_grad[: len(inputs)]
    wanted = [tensor for tensor, needs in zip(inputs, needed) if needs]
    grads = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
    return [next(grads) if needs else None for needs in needed]


def _backward(ctx, grad_y) -> list[Tensor | None]:
    inputs = ctx.saved_tensors
    # What autocast computed with, which is not on in the backward pass.
    x, coefficients, bank, position_scale, input_scale, output_scale = (
        None if tensor is None else tensor.to(ctx.dtype) for tensor in inputs
    )
    scaled_x = scale_maps(x, input_scale)
    needs_x = ctx.needs_input_grad[0] or input_scale is not None
    grad_x = torch.empty_like(x) if needs_x else None
    # Half precision would lose small summands.
    sums = torch.promote_types(bank.dtype, torch.float32)
    grad_coefficients, grad_bank, grad_scale, grad_output_scale = (
        None if tensor is None else torch.empty(tensor.shape, dtype=sums, device=x.device)
        for tensor in (coefficients, bank, position_scale, output_scale)
    )
    c_out = bank.shape[1]
    num_rows = rows_per_block(x, c_out, ctx.layout, ctx.groups)
    for some, rows in blocks(x, c_out, num_rows, ctx.layout):
        some_bank = bank[:, rows].contiguous()
        kernels = assemble_rows(coefficients[some], some_bank, ctx.layout)
        scale = _some(position_scale, some)
        grad_block = _of_rows(grad_y[some], c_out, rows).reshape(
            len(kernels), kernels.shape[1], *grad_y.shape[2:]
        )
        scaled = scale_positions(kernels, scale)
        factors = None
        if output_scale is not None:
            factors = _of_rows(output_scale[some], c_out, rows).flatten(1)
        grad_kernels, of_x = convolve_backward(
            grad_block, scaled_x[some], scale_maps(scaled, factors), ctx.groups, *ctx.geometry,
            needs_grad_x=grad_x is not None,
        )  # fmt: skip
        if factors is not None:
            of_factors = (grad_kernels * scaled).flatten(2).sum(dim=2, dtype=sums)
            target = _of_rows(grad_output_scale[some], c_out, rows)
            target.copy_(of_factors.view_as(target))
            grad_kernels = scale_maps(grad_kernels, factors)
        if scale is not None:
            of_scale = (grad_kernels * kernels).flatten(3).sum(dim=(1, 2), dtype=sums)
            _put(grad_scale[some], of_scale, is_first=rows.start == 0)
            grad_kernels = scale_positions(grad_kernels, scale)
        of_coefficients, of_bank = _assemble_backward(
            grad_kernels, coefficients[some], some_bank, ctx.layout
        )
        _put(grad_coefficients[some], of_coefficients, is_first=rows.start == 0)
        _put(grad_bank[:, rows], of_bank, is_first=some.start == 0)
        if grad_x is not None:
            _put(grad_x[some], of_x, is_first=rows.start == 0)
    grad_input_scale = None
    if input_scale is not None:
        grad_input_scale = (grad_x * x).flatten(2).sum(dim=2, dtype=sums)
        grad_x = scale_maps(grad_x, input_scale)
    grads = (
        grad_x, grad_coefficients, grad_bank, grad_scale, grad_input_scale, grad_output_scale
    )  # fmt: skip
    return [g if g is None else g.to(tensor.dtype) for g, tensor in zip(grads, inputs)]


def _some(position_scale: Tensor | None, some: slice) -> Tensor | None:
    return None if position_scale is None else position_scale[some]


def _put(total: Tensor, summand: Tensor, is_first: bool) -> None:
    """Write the first summand, which saves zeroing, and add the others."""
    total.copy_(summand) if is_first else total.add_(summand)


def convolve_blocks(
    x: Tensor,
    assemble: Callable[[slice, slice], Tensor],
    c_out: int,
    num_rows: int,
    layout: KernelLayout,
    groups: int,
    geometry: tuple,
) -> Tensor:
    """Convolve each sample with its own kernel, block by block.

    Args:
        x: shape ``(N, in_channels, *size)``.
        assemble: makes the kernels of some samples for some rows.
        c_out: rows of the bank's tensors.
        num_rows: rows of a block.
        layout: where mixtures stand in the kernel.
        groups: of the convolution.
        geometry: stride, padding and dilation.

    Returns:
        Shape ``(N, out_channels, *out_size)``, in the memory format of ``x``.
    """
    y = None
    for some, rows in blocks(x, c_out, num_rows, layout):
        part = convolve(x[some], assemble(some, rows), groups, *geometry)
        if y is None and len(part) == len(x) and num_rows == c_out:
            return part
        if y is None:
            channels, size = layout.kernel_shape[0], part.shape[2:]
            if is_channels_last(part):
                y = part.new_empty(len(x), *size, channels).movedim(-1, 1)
            else:
                y = part.new_empty(len(x), channels, *size)
        target = _of_rows(y[some], c_out, rows)
        target.copy_(part.view_as(target))
    return y


def rows_per_block(x: Tensor, c_out: int, layout: KernelLayout, groups: int) -> int:
    """Rows of a block: all of them where blocks of samples are as good."""
    if x.device.type != 'cpu' or groups > 1 or is_channels_last(x):
        return c_out
    row_bytes = math.prod(layout.kernel_shape) // c_out * x.element_size()
    fitting = _divisor(c_out, BLOCK_BYTES['cpu'] // (len(x) * row_bytes))
    return max(fitting, fewest_rows(c_out))


def fewest_rows(c_out: int) -> int:
    """The smallest useful number of rows in a block."""
    return _divisor(c_out, MIN_ROWS)


def blocks(
    x: Tensor, c_out: int, num_rows: int, layout: KernelLayout
) -> Iterator[tuple[slice, slice]]:
    """Samples and rows of each block."""
    limit = BLOCK_BYTES.get(x.device.type, BLOCK_BYTES['cuda'])
    sample_bytes = math.prod(layout.kernel_shape) // c_out * num_rows * x.element_size()
    samples = max(limit // sample_bytes, 1)
    for first in range(0, len(x), samples):
        for row in range(0, c_out, num_rows):
            yield slice(first, first + samples), slice(row, row + num_rows)


@functools.lru_cache(maxsize=256)
def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no larger than the limit, at least 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))


def _of_rows(y: Tensor, c_out: int, rows: slice) -> Tensor:
    """The output channels that some rows of the bank make, ``(N, groups, rows, *size)``."""
    return y.unflatten(1, (-1, c_out))[:, :, rows]


def assemble_rows(coefficients: Tensor, bank: Tensor, layout: KernelLayout) -> Tensor:
    """As :func:`assemble_kernels`, for some rows of the bank and without gradients."""
    mixtures = product(coefficients.flatten(0, 1), bank.flatten(1))
    mixtures = mixtures.view(*coefficients.shape[:2], -1)
    return layout.place(mixtures, bank.shape[1:])


def _assemble_backward(
    grad_kernels: Tensor, coefficients: Tensor, bank: Tensor, layout: KernelLayout
) -> tuple[Tensor, Tensor]:
    """Gradients of coefficients and bank."""
    grad = layout.collect(grad_kernels, bank.shape[1:]).flatten(0, 1)
    grad_coefficients = product(grad, bank.flatten(1).t())
    grad_bank = product(coefficients.flatten(0, 1).t().contiguous(), grad)
    return grad_coefficients.view(coefficients.shape), grad_bank.view(bank.shape)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b``, for few rows and many columns.

    PyTorch computes float32 products on the CPU by MKL. oneDNN, which does its convolutions,
    takes half to a quarter of the time for these shapes, measured on two cores. It has no gradient.
    """
    has_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if HAS_ONEDNN and a.device.type == 'cpu' and a.dtype == torch.float32 and not has_gradient:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, 'none', [], '')
    return a.mm(b)
