"""Convolving each sample with its own kernel: four routes to the same result.

The *reference* is the readable one: :func:`assemble_kernels`, then :func:`convolve_kernels`. It
keeps a kernel for every sample until the backward pass. The *blockwise* route assembles blocks of
kernels, and assembles them again in the backward pass instead of keeping them. The *bank_responses*
route never assembles kernels, which is faster for small maps on the CPU. The *unfolded* route
multiplies matrices, whatever the batch size; ``torch.jit.trace`` and ``torch.export`` record it.
:func:`dynamic_conv` chooses one by shape and device; :func:`forced_route` takes a given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .bank_responses import mix_responses
from .convolution import BlockwiseConv, convolve, convolve_kernels
from .mixing import Mixture, assemble_kernels, scale_maps
from .unfolded import convolve_matrices, kernel_matrices, mix_matrices

ROUTES = ('reference', 'blockwise', 'bank_responses', 'unfolded')
Choice = Callable[[Tensor, Mixture, int], str]
_forced_route: str | Choice | None = None


@contextmanager
def forced_route(route: str | Choice) -> Iterator[None]:
    """Compute dynamic layers by a given route. Not thread-safe.

    Args:
        route: one of ``ROUTES``, or a function that chooses one for each layer by input, mixture
            and groups. Layers that ``'bank_responses'`` does not support take the reference.

    Raises:
        ValueError: if there is no such route.
    """
    if not callable(route) and route not in ROUTES:
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
) -> Tensor:
    """Convolve each sample with a kernel of its own, which is mixed for it.

    Args:
        x: shape ``(N, in_channels, *size)`` with one to three spatial dimensions.
        mixture: what the kernels are mixed from, and factors for the channels before and after the
            convolution. The blockwise route does not keep what these were multiplied with.
        bias: static, shape ``(out_channels,)``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``, one number per
            spatial dimension.

    Returns:
        Shape ``(N, out_channels, *out_size)``.
    """
    route = choose_route(x, mixture, groups)
    is_pointwise = max(mixture.layout.kernel_shape[2:]) == 1 and not any(padding)
    if is_pointwise and max(stride) > 1 and route != 'unfolded':
        # Leave out the pixels that are not read.
        x = x[(..., *(slice(None, None, step) for step in stride))]
        stride = (1,) * len(stride)
    geometry = (stride, padding, dilation)
    if route == 'blockwise':
        coefficients, bank, layout, *scales = mixture
        y = BlockwiseConv.apply(x, coefficients, bank, *scales, layout, groups, geometry)
    else:
        y = scale_maps(x, mixture.input_scale)
        if route == 'unfolded':
            kernel_size = mixture.layout.kernel_shape[2:]
            y = convolve_matrices(y, mix_matrices(mixture, groups), kernel_size, *geometry)
        elif route == 'bank_responses':
            y = mix_responses(y, mixture.coefficients, mixture.bank, mixture.layout, *geometry)
        else:
            y = convolve_kernels(y, assemble_kernels(mixture), groups, *geometry)
        y = scale_maps(y, mixture.output_scale)
    return y if bias is None else add_bias(y, bias)


def kernel_conv(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """As :func:`dynamic_conv`, with kernels ``(N, out, in / groups, *kernel_size)`` as they are."""
    geometry, mode = (stride, padding, dilation), recording_mode()
    if _forced_route == 'unfolded' or (_forced_route is None and mode == 'any batch'):
        matrices = kernel_matrices(kernels, groups)
        y = convolve_matrices(x, matrices, kernels.shape[3:], *geometry)
    elif mode is not None or x.shape[0] == 0:
        y = convolve_kernels(x, kernels, groups, *geometry)
    else:
        y = convolve(x, kernels, groups, *geometry)
    return y if bias is None else add_bias(y, bias)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Add a number to each channel, in the type of ``y``."""
    return y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))


def choose_route(x: Tensor, mixture: Mixture, groups: int) -> str:
    """The route of :func:`dynamic_conv` for this input: the first that applies.

    ==================  ========================================================================
    a forced one        if the layer supports it, else ``'reference'``
    ``unfolded``        where a graph is recorded that has to serve any batch
    ``reference``       for empty batches
    ``bank_responses``  for small maps on the CPU, if the layer supports it
    ``reference``       where PyTorch records or transforms the computation
    ``blockwise``       else
    ==================  ========================================================================

    A map is small if ``input groups * pixels``, the products with the bank that its responses
    take, is at most twice ``positions * output groups``, the mixtures of a kernel for one input
    group. Measured on two cores, responses are faster up to there.
    """
    forced = _forced_route(x, mixture, groups) if callable(_forced_route) else _forced_route
    mode = recording_mode()
    if forced == 'unfolded' or (forced is None and mode == 'any batch'):
        return 'unfolded'
    if x.shape[0] == 0:
        return 'reference'
    _, bank, layout, position_scale, *_ = mixture
    takes_responses = groups == 1 and position_scale is None and max(bank.shape[3:]) == 1
    if forced is not None:
        return forced if takes_responses or forced != 'bank_responses' else 'reference'
    positions, out_groups, in_groups = layout.grid
    is_small = in_groups * math.prod(x.shape[2:]) <= 2 * positions * out_groups
    if takes_responses and is_small and x.device.type == 'cpu':
        return 'bank_responses'
    return 'blockwise' if mode is None else 'reference'


def is_forced(route: str) -> bool:
    return _forced_route == route


# Unknown to PyTorch before 2.7.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)

# Unknown to PyTorch 2.1 and 2.2, whose compiler follows autograd functions by itself.
_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def recording_mode() -> str | None:
    """Whether PyTorch records or transforms the computation, which needs plain operations.

    ================  ==========================================================================
    ``'any batch'``   ``torch.jit.trace`` and ``torch.export`` record a graph that has to serve any
                      batch: the unfolded route, as recordings keep the number of groups, and the
                      other routes have a group for each sample
    ``'as it is'``    the compiler records, or ``torch.func`` or forward-mode differentiation
                      transforms: the reference
    ``None``          nothing of that
    ================  ==========================================================================
    """
    if torch.jit.is_tracing() or _is_exporting():
        return 'any batch'
    is_transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return 'as it is' if is_transformed or _is_compiling() else None
