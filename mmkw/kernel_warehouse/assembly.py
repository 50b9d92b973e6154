"""Kernel assembling (Eqs. 2 and 3, Algorithm 1 part B) and each sample's convolution.

Three routes compute the same. The *reference* is the readable one: :func:`assemble_kernels`, then
:func:`convolve_kernels`; the release does that. It keeps a kernel for every sample until the
backward pass. The *lean* route assembles a few samples' kernels at a time, and again in the
backward pass instead of keeping them. For small maps on the CPU, *responses* never assembles them.
:func:`dynamic_conv` chooses one by shape and device; :func:`forced_route` takes a given one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .partition import KernelPartition

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ROUTES = ('reference', 'lean', 'responses')
# Bytes of kernels that the lean route assembles at a time. More of them make better use of each
# reading of the cells; fewer stay in the cache until they are used.
_KERNEL_BYTES = {'cpu': 2**25, 'cuda': 2**28}
# Multiply-adds from which a sample's convolution is worth a call of its own on the CPU. Measured on
# two cores, where smaller ones leave threads idle.
_LARGE_CONVOLUTION = 5e7
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
        return _CONVOLUTIONS[x.dim() - 2](x, kernels[0], bias, groups=groups, **geometry)

    if all(size == 1 for size in partition.kernel_shape[2:]) and not any(padding):
        x = x[(..., *(slice(None, None, step) for step in stride))]
        geometry['stride'] = (1,) * len(stride)
    route = _choose_route(x, cells, partition, groups)
    if route == 'responses':
        y = mix_responses(x, attention, cells, partition, **geometry)
    elif route == 'lean':
        y = _LeanConv.apply(x, attention, cells, partition, groups, *geometry.values())
    else:
        y = convolve_kernels(x, assemble_kernels(attention, cells, partition), groups, **geometry)
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
    return 'reference' if _is_transformed() else 'lean'


# Unknown to PyTorch 2.1 and 2.2, whose compiler follows autograd functions by itself.
_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def _is_transformed() -> bool:
    """Whether PyTorch records or transforms the computation, which wants plain operations."""
    return _is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()


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


class _LeanConv(torch.autograd.Function):
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
        outputs = []
        for some in _portions(x, partition):
            kernels = assemble_kernels(attention[some], cells, partition)
            outputs.append(_convolve(x[some], kernels, groups, *ctx.geometry))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        ctx.dtype = y.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        inputs = ctx.saved_tensors
        # What autocast computed with, which is not on in the backward pass.
        x, attention, cells = (tensor.to(ctx.dtype) for tensor in inputs)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_attention = torch.empty_like(attention)
        # Half precision would lose small summands.
        sums = torch.promote_types(cells.dtype, torch.float32)
        grad_cells = torch.zeros(cells.shape, dtype=sums, device=cells.device).flatten(1)
        for some in _portions(x, ctx.partition):
            kernels = assemble_kernels(attention[some], cells, ctx.partition)
            grad_kernels = _convolve_backward(
                grad_y[some], x[some], kernels, ctx.groups, *ctx.geometry,
                None if grad_x is None else grad_x[some],
            )  # fmt: skip
            grad_mixtures = _as_mixtures(grad_kernels, cells, ctx.partition)
            torch.matmul(grad_mixtures, cells.flatten(1).t(), out=grad_attention[some])
            alpha = attention[some].flatten(0, 1)
            grad_cells += alpha.t().mm(grad_mixtures.flatten(0, 1))
        grads = (grad_x, grad_attention, grad_cells.view_as(cells))
        grads = (g if g is None else g.to(tensor.dtype) for g, tensor in zip(grads, inputs))
        return (*grads, None, None, None, None, None)


def _portions(x: Tensor, partition: KernelPartition) -> Iterator[slice]:
    """Samples whose kernels are assembled together."""
    limit = _KERNEL_BYTES.get(x.device.type, _KERNEL_BYTES['cuda'])
    size = max(limit // (math.prod(partition.kernel_shape) * x.element_size()), 1)
    for first in range(0, len(x), size):
        yield slice(first, first + size)


def _convolve(x, kernels, groups, stride, padding, dilation) -> Tensor:
    """As :func:`convolve_kernels`, by the operation that suits shapes and device."""
    if _is_pointwise(kernels, groups, stride, padding):
        if _is_channels_last(x):
            pixels = x.movedim(1, -1).flatten(1, -2)
            y = pixels.bmm(kernels.flatten(2).transpose(1, 2))
            return y.unflatten(1, x.shape[2:]).movedim(-1, 1)
        return kernels.flatten(2).bmm(x.flatten(2)).unflatten(2, x.shape[2:])
    if _takes_samples_apart(x, kernels, groups):
        conv = functools.partial(
            _CONVOLUTIONS[x.dim() - 2], stride=stride, padding=padding, dilation=dilation
        )
        return torch.cat([conv(sample, kernel) for sample, kernel in zip(x.split(1), kernels)])
    return convolve_kernels(x, kernels, groups, stride, padding, dilation)


def _convolve_backward(
    grad_y, x, kernels, groups, stride, padding, dilation, grad_x: Tensor | None
) -> Tensor:
    """The gradient of the kernels; that of ``x`` is written to ``grad_x``."""
    if _is_pointwise(kernels, groups, stride, padding):
        grad, weights = grad_y.flatten(2), kernels.flatten(2)
        if grad_x is not None:
            if _is_channels_last(x):
                product = grad.transpose(1, 2).bmm(weights)
                grad_x.copy_(product.unflatten(1, x.shape[2:]).movedim(-1, 1))
            else:
                torch.bmm(weights.transpose(1, 2), grad, out=grad_x.flatten(2))
        return grad.bmm(x.flatten(2).transpose(1, 2)).view_as(kernels)

    def backward(grad_y, x, kernel, groups):
        return torch.ops.aten.convolution_backward(
            grad_y, x, kernel, None, stride, padding, dilation, False,
            [0] * len(stride), groups, [grad_x is not None, True, False],
        )[:2]  # fmt: skip

    if _takes_samples_apart(x, kernels, groups):
        grad_kernels = torch.empty_like(kernels)
        for i in range(len(x)):
            of_x, of_kernel = backward(grad_y[i : i + 1], x[i : i + 1], kernels[i], groups)
            grad_kernels[i] = of_kernel
            if grad_x is not None:
                grad_x[i] = of_x[0]
        return grad_kernels
    of_x, of_kernels = backward(
        grad_y.reshape(1, -1, *grad_y.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        kernels.flatten(0, 1),
        len(x) * groups,
    )
    if grad_x is not None:
        grad_x.copy_(of_x.view_as(x))
    return of_kernels.view_as(kernels)


def _as_mixtures(kernels: Tensor, cells: Tensor, partition: KernelPartition) -> Tensor:
    """``(N, out_channels, in_channels / groups, *kernel_size)`` -> ``(N, m, cell elements)``."""
    (positions, out_groups, in_groups), (c_out, c_in, *spatial) = partition.grid, cells.shape[1:]
    shape = (out_groups, c_out, in_groups, c_in, positions, math.prod(spatial))
    mixtures = kernels.reshape(len(kernels), *shape).permute(0, 5, 1, 3, 2, 4, 6)
    return mixtures.reshape(len(kernels), partition.num_mixtures, -1)


def _is_pointwise(kernels: Tensor, groups: int, stride, padding) -> bool:
    is_single = groups == 1 and kernels[0, 0, 0].numel() == 1
    return is_single and not any(padding) and set(stride) == {1}


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def _takes_samples_apart(x: Tensor, kernels: Tensor, groups: int) -> bool:
    """Whether one call for each sample is faster than one with more groups: dense, on the CPU."""
    is_large = kernels[0].numel() * x[0, 0].numel() >= _LARGE_CONVOLUTION
    # Side by side in the channels, samples would lose the memory format.
    return groups == 1 and x.device.type == 'cpu' and (is_large or _is_channels_last(x))


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
    y = dynamic_conv(x.transpose(1, 2), attention, cells, partition).transpose(1, 2)
    return y if bias is None else y + bias.to(y.dtype)
