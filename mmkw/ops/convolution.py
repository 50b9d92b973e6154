"""Convolution of each sample with its own kernel, assembled block by block and not kept.

A block holds the kernels of some samples for some *rows*: output channels of the bank's tensors, in
each of the layer's output groups. Blocks bound the memory, and on the CPU they stay in the cache
between assembling and convolution, while each row of the bank is read once for all samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import (
    HALF,
    KernelLayout,
    Mixture,
    Scratch,
    assemble_block,
    assemble_kernels,
    scale_maps,
    scale_positions,
    scratch_for,
)

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Bytes of kernels in a block. Measured on two cores: larger ones leave the cache, smaller ones make
# the calls too many.
BLOCK_BYTES = {'cpu': 2**23, 'cuda': 2**28}
# Fewer rows make products too narrow to be fast.
MIN_ROWS = 32


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
    conv = CONVOLUTIONS[len(size)]
    if samples == 0:
        # RoI heads see empty batches. One kernel of zeros keeps the shapes and the graph.
        return conv(x, kernels.sum(0), None, stride, padding, dilation, groups)
    # Samples side by side in the channels, each with groups of its own.
    kernels, x = kernels.flatten(0, 1), x.reshape(1, -1, *size)
    y = conv(x, kernels, None, stride, padding, dilation, samples * groups)
    return y.view(samples, -1, *y.shape[2:])


def convolve(x, kernels, groups, stride, padding, dilation) -> Tensor:
    """As :func:`convolve_kernels`, by the operation that suits shapes and device."""
    way = _way(x, kernels, groups, stride, padding)
    if way == 'products':
        return kernels.flatten(2).bmm(x.flatten(2)).unflatten(2, x.shape[2:])
    if way == 'products of pixels':
        pixels = x.movedim(1, -1).flatten(1, -2)
        y = pixels.bmm(kernels.flatten(2).transpose(1, 2))
        return y.unflatten(1, x.shape[2:]).movedim(-1, 1)
    if way == 'samples':
        conv = CONVOLUTIONS[x.dim() - 2]
        pairs = zip(x.split(1), kernels)
        return torch.cat([conv(*pair, None, stride, padding, dilation) for pair in pairs])
    return convolve_kernels(x, kernels, groups, stride, padding, dilation)


def convolve_backward(
    grad_y, x, kernels, groups, stride, padding, dilation, *, needs_grad_x: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of kernels and, if needed, of ``x``."""
    way = _way(x, kernels, groups, stride, padding)
    if way.startswith('products'):
        grad, weights, grad_x = grad_y.flatten(2), kernels.flatten(2), None
        if needs_grad_x and way == 'products of pixels':
            grad_x = grad.transpose(1, 2).bmm(weights).transpose(1, 2).view_as(x)
        elif needs_grad_x:
            grad_x = weights.transpose(1, 2).bmm(grad).view_as(x)
        return grad.bmm(x.flatten(2).transpose(1, 2)).view_as(kernels), grad_x

    def backward(grad_y, x, kernel, groups):
        return torch.ops.aten.convolution_backward(
            grad_y, x, kernel, None, stride, padding, dilation, False,
            [0] * len(stride), groups, [needs_grad_x, True, False],
        )[:2]  # fmt: skip

    if way == 'samples':
        parts = zip(grad_y.split(1), x.split(1), kernels)
        of_x, of_kernels = zip(*(backward(*part, groups) for part in parts))
        return torch.stack(of_kernels), torch.cat(of_x) if needs_grad_x else None
    of_x, of_kernels = backward(
        grad_y.reshape(1, -1, *grad_y.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        kernels.flatten(0, 1),
        x.shape[0] * groups,
    )
    return of_kernels.view_as(kernels), of_x.view_as(x) if needs_grad_x else None


def _way(x: Tensor, kernels: Tensor, groups: int, stride, padding) -> str:
    """How to convolve.

    ======================  =====================================================================
    ``products``            a pointwise convolution is a product of matrices for each sample
    ``products of pixels``  the same for maps with the channels last
    ``samples``             a call for each sample: side by side in the channels, they would lose
                            the memory format, without which the CPU converts maps before and
                            after each call
    ``groups``              samples side by side in the channels, as groups of one convolution
    ======================  =====================================================================
    """
    is_last = not x.is_contiguous() and is_channels_last(x)
    if groups == max(kernels.shape[3:]) == max(stride) == 1 and not any(padding):
        return 'products of pixels' if is_last else 'products'
    return 'samples' if is_last and groups == 1 and x.device.type == 'cpu' else 'groups'


def is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


_kept_share = 1 / 4


@contextmanager
def kept_kernels(share: float) -> Iterator[None]:
    """Keep more or fewer kernels for the backward pass. Not thread-safe.

    The blockwise route keeps the kernels of a layer where they take at most this share of the
    memory of the layer's input, and assembles the others again. By default it is 1/4, on all
    devices: layers with small kernels on large maps save the work, as in most of a detector, and
    the memory that training keeps grows by some percent at most.

    Args:
        share: 0 keeps none, infinity keeps all, as the authors' code does.

    Raises:
        ValueError: if it is not a number of at least 0.
    """
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not share >= 0:
        raise ValueError(f'share must be a number of at least 0, but got {share!r}')
    global _kept_share
    previous, _kept_share = _kept_share, share
    try:
        yield
    finally:
        _kept_share = previous


class BlockwiseConv(torch.autograd.Function):
    """Each sample's convolution with kernels that are assembled when they are needed.

    They are assembled again for the backward pass, but for those that :func:`kept_kernels` keeps.

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
        geometry,
    ) -> Tensor:  # fmt: skip
        inputs = (x, coefficients, bank, position_scale, input_scale, output_scale)
        ctx.layout, ctx.groups, ctx.geometry = layout, groups, geometry
        if input_scale is not None:
            x = scale_maps(x, input_scale)
        mixture = Mixture(coefficients, bank, layout, position_scale)
        whole, kept = slice(None), None
        is_kept = math.prod(layout.kernel_shape) <= _kept_share * math.prod(x.shape[1:])
        if is_kept and any(ctx.needs_input_grad):
            kept = assemble_block(mixture._replace(position_scale=None), None, whole, whole)
            kernels = kept if position_scale is None else scale_positions(kept, position_scale)
            y = convolve(x, kernels, groups, *geometry)
        elif len(parts := blocks(x, bank.shape[1], layout, groups)) == 1:
            y = convolve(x, assemble_block(mixture, None, whole, whole), groups, *geometry)
        else:
            assemble = functools.partial(assemble_block, mixture, scratch_for(x))
            y = convolve_blocks(x, assemble, parts, bank.shape[1], layout, groups, geometry)
        ctx.save_for_backward(*inputs, kept)
        ctx.dtype = y.dtype
        return y if output_scale is None else scale_maps(y, output_scale)

    @staticmethod
    def backward(ctx, grad_y):
        # Autograd has its mode on here only if the gradients shall have gradients.
        backward = _differentiable_backward if torch.is_grad_enabled() else _backward
        return (*backward(ctx, grad_y), None, None, None)


def _differentiable_backward(ctx, grad_y) -> list[Tensor | None]:
    # Views, because coefficients depend on x: the gradient of x itself shall not include theirs.
    inputs = [
        None if tensor is None else tensor.view_as(tensor).to(ctx.dtype)
        for tensor in ctx.saved_tensors[:-1]
    ]
    x, coefficients, bank, position_scale, input_scale, output_scale = inputs
    kernels = assemble_kernels(Mixture(coefficients, bank, ctx.layout, position_scale))
    y = convolve_kernels(scale_maps(x, input_scale), kernels, ctx.groups, *ctx.geometry)
    y = scale_maps(y, output_scale)
    needed = ctx.needs_input_grad[: len(inputs)]
    wanted = [tensor for tensor, needs in zip(inputs, needed) if needs]
    grads = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
    return [next(grads) if needs else None for needs in needed]


def _backward(ctx, grad_y) -> list[Tensor | None]:
    *inputs, kept = ctx.saved_tensors
    # What autocast computed with, which is not on in the backward pass.
    x, coefficients, bank, position_scale, input_scale, output_scale = (
        None if tensor is None else tensor.to(ctx.dtype) for tensor in inputs
    )
    scaled_x = scale_maps(x, input_scale)
    mixture = Mixture(coefficients, bank, ctx.layout, position_scale, output_scale=output_scale)
    c_out = bank.shape[1]
    whole = slice(0, None)
    parts = [(whole, whole)] if kept is not None else blocks(x, c_out, ctx.layout, ctx.groups)
    scratch = scratch_for(x) if len(parts) > 1 else None
    totals: list[Tensor | None] = []
    for samples, rows in parts:
        found = _block_backward(
            _of_rows(grad_y[samples], c_out, rows),
            scaled_x[samples],
            mixture,
            kept,
            scratch,
            samples,
            rows,
            ctx.groups,
            ctx.geometry,
            needs_x=ctx.needs_input_grad[0] or input_scale is not None,
        )
        if len(parts) == 1:
            totals = found
            break
        if not totals:
            totals = _totals(found, (x, coefficients, bank, position_scale, output_scale))
        of_x, of_coefficients, of_bank, of_positions, of_outputs = totals
        _put(of_coefficients[samples], found[1], is_first=rows.start == 0)
        _put(of_bank[:, rows], found[2], is_first=samples.start == 0)
        if of_x is not None:
            _put(of_x[samples], found[0], is_first=rows.start == 0)
        if of_positions is not None:
            _put(of_positions[samples], found[3], is_first=rows.start == 0)
        if of_outputs is not None:
            _put(_of_rows(of_outputs[samples], c_out, rows), found[4], is_first=True)
    of_x, of_coefficients, of_bank, of_positions, of_outputs = totals
    of_inputs = None
    if input_scale is not None:
        of_inputs = _sum_over(of_x * x, 2)
        of_x = scale_maps(of_x, input_scale)
    grads = (of_x, of_coefficients, of_bank, of_positions, of_inputs, of_outputs)
    return [
        None if grad is None else grad.reshape(like.shape).to(like.dtype)
        for grad, like in zip(grads, inputs)
    ]


def _totals(found: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Memory for the sums of gradients over blocks. Half precision would lose small summands."""
    return [
        None
        if grad is None
        else torch.empty(like.shape, dtype=_sum_type(like) if i else like.dtype, device=like.device)
        for i, (grad, like) in enumerate(zip(found, inputs))
    ]


def _put(total: Tensor, summand: Tensor, is_first: bool) -> None:
    """Write the first summand, which saves zeroing, and add the others."""
    summand = summand.view_as(total)
    total.copy_(summand) if is_first else total.add_(summand)


def _sum_over(x: Tensor, first_dim: int) -> Tensor:
    return x.flatten(first_dim).sum(dim=first_dim, dtype=_sum_type(x))


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in HALF else x.dtype


def _block_backward(
    grad_y: Tensor,
    x: Tensor,
    mixture: Mixture,
    kept: Tensor | None,
    scratch: Scratch | None,
    samples: slice,
    rows: slice,
    groups: int,
    geometry: tuple,
    needs_x: bool,
) -> list[Tensor | None]:
    """The gradients of ``x``, coefficients, bank, position and output scales, of one block.

    Args:
        grad_y: of the block, shape ``(N, output groups, rows, *out_size)``.
        x: of the block, with the input scale.
        mixture: of all blocks.
        kept: the kernels of the block without the position scale; ``None`` if they were not kept.
        scratch: memory for all blocks; ``None`` for fresh memory.
        samples, rows: which block it is.
        groups, geometry: of the convolution.
        needs_x: whether the gradient of ``x`` is needed.
    """
    coefficients, bank = mixture.coefficients[samples], mixture.bank[:, rows]
    unscaled = kept
    if unscaled is None:
        unscaled = assemble_block(mixture._replace(position_scale=None), scratch, samples, rows)
    kernels = unscaled
    of_output = of_position = factors = None
    if mixture.position_scale is not None:
        kernels = scale_positions(unscaled, mixture.position_scale[samples])
    if mixture.output_scale is not None:
        factors = _of_rows(mixture.output_scale[samples], mixture.bank.shape[1], rows).flatten(1)
    of_kernels, of_x = convolve_backward(
        grad_y.flatten(1, 2), x, scale_maps(kernels, factors), groups, *geometry,
        needs_grad_x=needs_x,
    )  # fmt: skip
    if factors is not None:
        of_output = _sum_over(of_kernels * kernels, 2)
        of_kernels = scale_maps(of_kernels, factors)
    if mixture.position_scale is not None:
        of_position = (of_kernels * unscaled).flatten(3).sum((1, 2), dtype=_sum_type(x))
        of_kernels = scale_positions(of_kernels, mixture.position_scale[samples])
    out = None
    if scratch is not None:
        out = scratch.take('mixtures', (*coefficients.shape[:2], bank[0].numel()), bank)
    grad = mixture.layout.collect(of_kernels, bank.shape[1:], out).flatten(0, 1)
    of_coefficients = grad.mm(bank.flatten(1).t()).view(coefficients.shape)
    of_bank = coefficients.flatten(0, 1).t().mm(grad).view(bank.shape)
    return [of_x, of_coefficients, of_bank, of_position, of_output]


def convolve_blocks(
    x: Tensor,
    assemble: Callable[[slice, slice], Tensor],
    parts: Sequence[tuple[slice, slice]],
    c_out: int,
    layout: KernelLayout,
    groups: int,
    geometry: tuple,
) -> Tensor:
    """Convolve each sample with its own kernel, block by block.

    Args:
        x: shape ``(N, in_channels, *size)``.
        assemble: makes the kernels of some samples for some rows.
        parts: the blocks, see :func:`blocks`.
        c_out: rows of the bank's tensors.
        layout: where mixtures stand in the kernel.
        groups: of the convolution.
        geometry: stride, padding and dilation.

    Returns:
        Shape ``(N, out_channels, *out_size)``, in the memory format of ``x``.
    """
    y = None
    for samples, rows in parts:
        part = convolve(x[samples], assemble(samples, rows), groups, *geometry)
        if y is None:
            channels, size = layout.kernel_shape[0], part.shape[2:]
            if is_channels_last(part):
                y = part.new_empty(len(x), *size, channels).movedim(-1, 1)
            else:
                y = part.new_empty(len(x), channels, *size)
        target = _of_rows(y[samples], c_out, rows)
        target.copy_(part.view_as(target))
    return y


def blocks(
    x: Tensor, c_out: int, layout: KernelLayout, groups: int, num_rows: int | None = None
) -> list[tuple[slice, slice]]:
    """Samples and rows of each block.

    Args:
        x: shape ``(N, in_channels, *size)``.
        c_out: rows of the bank's tensors.
        layout: where mixtures stand in the kernel.
        groups: of the convolution.
        num_rows: rows of a block. Defaults to ``None``, :func:`rows_per_block`.
    """
    limit = BLOCK_BYTES.get(x.device.type, BLOCK_BYTES['cuda'])
    kernel_bytes = math.prod(layout.kernel_shape) * x.element_size()
    if num_rows is None and len(x) * kernel_bytes <= limit:
        return [(slice(0, len(x)), slice(0, c_out))]
    if num_rows is None:
        num_rows = rows_per_block(x, c_out, layout, groups)
    samples = max(limit // (kernel_bytes // c_out * num_rows), 1)
    return [
        (slice(first, first + samples), slice(row, row + num_rows))
        for first in range(0, len(x), samples)
        for row in range(0, c_out, num_rows)
    ]


def rows_per_block(x: Tensor, c_out: int, layout: KernelLayout, groups: int) -> int:
    """Rows of a block: all of them where blocks of samples are as good."""
    if x.device.type != 'cpu' or groups > 1 or is_channels_last(x):
        return c_out
    row_bytes = math.prod(layout.kernel_shape) // c_out * x.element_size()
    fitting = divisor(c_out, BLOCK_BYTES['cpu'] // (len(x) * row_bytes))
    return max(fitting, divisor(c_out, MIN_ROWS))


@functools.lru_cache(maxsize=256)
def divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no larger than the limit, at least 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))


def _of_rows(y: Tensor, c_out: int, rows: slice) -> Tensor:
    """The output channels that some rows of the bank make, ``(N, groups, rows, *size)``."""
    return y.unflatten(1, (-1, c_out))[:, :, rows]
