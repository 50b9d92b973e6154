"""Convolving each sample with its own kernel: four routes to the same result.

The *reference* is the readable one: :func:`assemble_kernels`, then :func:`convolve_kernels`. It
keeps a kernel for every sample until the backward pass. The *blockwise* route assembles blocks of
kernels, and assembles them again in the backward pass instead of keeping them. The *bank_responses*
route never assembles kernels, which is faster for small maps on the CPU. The *unfolded* route
multiplies matrices, whatever the batch size; ``torch.jit.trace`` and ``torch.export`` record it.
:func:`dynamic_conv` chooses one by shape and device; :func:`forced_route` takes a given one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .bank_responses import can_mix_responses, mix_responses
from .blockwise import BlockwiseConv
from .convolution import CONVOLUTIONS, convolve_kernels
from .mixing import Mixture, assemble_kernels, scale_maps
from .unfolded import convolve_matrices, mix_matrices

ROUTES = ('reference', 'blockwise', 'bank_responses', 'unfolded')
_forced_route: str | None = None


@contextmanager
def forced_route(route: str) -> Iterator[None]:
    """Compute all dynamic layers by one route, for comparisons and debugging. Not thread-safe.

    Args:
        route: one of ``ROUTES``. Layers that ``'bank_responses'`` does not support take the
            reference.

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


def dynamic_conv(
    x: Tensor,
    mixture: Mixture,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    """Convolve each sample with its own kernel.

    Args:
        x: shape ``(N, in_channels, *size)`` with one to three spatial dimensions.
        mixture: what the kernels are mixed from.
        bias: static, shape ``(out_channels,)``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``, one number per
            spatial dimension.
        input_scale, output_scale: factors for the channels of each sample before and after the
            convolution, ``(N, in_channels)`` and ``(N, out_channels)``. The blockwise route does
            not keep what they were multiplied with. Default to ``None``, all 1.

    Returns:
        Shape ``(N, out_channels, *out_size)``.
    """
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    coefficients, bank, layout, position_scale = mixture
    if takes_matrices():
        matrices = mix_matrices(mixture, groups)
        x = scale_maps(x, input_scale)
        y = convolve_matrices(x, matrices, layout.kernel_shape[2:], **geometry)
        return add_bias(scale_maps(y, output_scale), bias)
    if x.shape[0] == 0:
        # RoI heads see empty batches. One kernel of zeros keeps the shapes and the graph.
        if position_scale is not None:
            position_scale = position_scale.sum(0, keepdim=True)
        kernels = assemble_kernels(coefficients.sum(0, keepdim=True), bank, layout, position_scale)
        x = scale_maps(x, input_scale)
        y = CONVOLUTIONS[x.dim() - 2](x, kernels[0], groups=groups, **geometry)
        return add_bias(scale_maps(y, output_scale), bias)

    x, geometry = skip_unread_pixels(x, layout.kernel_shape, geometry)
    route = choose_route(x, mixture, groups)
    if route == 'blockwise':
        y = BlockwiseConv.apply(
            x, coefficients, bank, position_scale, input_scale, output_scale, layout, groups,
            *geometry.values(),
        )  # fmt: skip
        return add_bias(y, bias)
    x = scale_maps(x, input_scale)
    if route == 'bank_responses':
        y = mix_responses(x, coefficients, bank, layout, **geometry)
    else:
        y = convolve_kernels(x, assemble_kernels(*mixture), groups, **geometry)
    return add_bias(scale_maps(y, output_scale), bias)


def skip_unread_pixels(
    x: Tensor, kernel_shape: Sequence[int], geometry: dict
) -> tuple[Tensor, dict]:
    """Leave out the pixels that a pointwise convolution with a stride does not read."""
    stride = geometry['stride']
    if any(size > 1 for size in kernel_shape[2:]) or any(geometry['padding']):
        return x, geometry
    x = x[(..., *(slice(None, None, step) for step in stride))]
    return x, dict(geometry, stride=(1,) * len(stride))


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))


def choose_route(x: Tensor, mixture: Mixture, groups: int) -> str:
    """The route of :func:`dynamic_conv` for this input.

    A forced one; else ``'bank_responses'`` for small maps on the CPU where it is possible;
    ``'reference'`` where PyTorch records or transforms the computation; else ``'blockwise'``.

    A map is small if ``input groups * pixels``, the products with the bank that its responses
    take, is at most twice ``positions * output groups``, the mixtures of a kernel for one input
    group. Measured on two cores, responses are faster up to there.
    """
    positions, out_groups, in_groups = mixture.layout.grid
    is_possible = can_mix_responses(mixture.bank, mixture.position_scale, groups)
    if _forced_route == 'bank_responses' and not is_possible:
        return 'reference'
    if _forced_route is not None:
        return _forced_route
    is_small = in_groups * x[0, 0].numel() <= 2 * positions * out_groups
    if is_possible and is_small and x.device.type == 'cpu':
        return 'bank_responses'
    return 'reference' if is_transformed() else 'blockwise'


def is_forced(route: str) -> bool:
    return _forced_route == route


def takes_matrices() -> bool:
    """Whether the unfolded route is taken: forced, or for a recording that has to serve any batch.

    The other routes have a convolution with a group for each sample, and recordings keep the
    number of groups.
    """
    if _forced_route is not None:
        return _forced_route == 'unfolded'
    return torch.jit.is_tracing() or _is_exporting()


# Unknown to PyTorch before 2.7.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)

# Unknown to PyTorch 2.1 and 2.2, whose compiler follows autograd functions by itself.
_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def is_transformed() -> bool:
    """Whether PyTorch records or transforms the computation, which needs plain operations."""
    return _is_compiling() or torch.jit.is_tracing() or is_function_transformed()


def is_function_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
