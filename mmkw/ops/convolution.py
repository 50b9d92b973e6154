"""Convolution of each sample with its own kernel, and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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
    y = CONVOLUTIONS[len(size)](
        x.reshape(1, -1, *size),
        kernels.flatten(0, 1),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=samples * groups,
    )
    return y.view(samples, -1, *y.shape[2:])


def convolve(x, kernels, groups, stride, padding, dilation) -> Tensor:
    """As :func:`convolve_kernels`, by the operation that suits shapes and device."""
    if _is_pointwise(kernels, groups, stride, padding):
        if is_channels_last(x):
            pixels = x.movedim(1, -1).flatten(1, -2)
            y = pixels.bmm(kernels.flatten(2).transpose(1, 2))
            return y.unflatten(1, x.shape[2:]).movedim(-1, 1)
        return kernels.flatten(2).bmm(x.flatten(2)).unflatten(2, x.shape[2:])
    if _takes_samples_apart(x, groups):
        conv = functools.partial(
            CONVOLUTIONS[x.dim() - 2], stride=stride, padding=padding, dilation=dilation
        )
        return torch.cat([conv(sample, kernel) for sample, kernel in zip(x.split(1), kernels)])
    return convolve_kernels(x, kernels, groups, stride, padding, dilation)


def convolve_backward(
    grad_y, x, kernels, groups, stride, padding, dilation, *, needs_grad_x: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of kernels and, if needed, of ``x``."""
    if _is_pointwise(kernels, groups, stride, padding):
        grad, weights, grad_x = grad_y.flatten(2), kernels.flatten(2), None
        if needs_grad_x and is_channels_last(x):
            grad_x = grad.transpose(1, 2).bmm(weights).transpose(1, 2).view_as(x)
        elif needs_grad_x:
            grad_x = weights.transpose(1, 2).bmm(grad).view_as(x)
        return grad.bmm(x.flatten(2).transpose(1, 2)).view_as(kernels), grad_x

    def backward(grad_y, x, kernel, groups):
        return torch.ops.aten.convolution_backward(
            grad_y, x, kernel, None, stride, padding, dilation, False,
            [0] * len(stride), groups, [needs_grad_x, True, False],
        )[:2]  # fmt: skip

    if _takes_samples_apart(x, groups):
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


def _is_pointwise(kernels: Tensor, groups: int, stride, padding) -> bool:
    is_single = groups == 1 and kernels[0, 0, 0].numel() == 1
    return is_single and not any(padding) and set(stride) == {1}


def is_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and not x.is_contiguous()


def _takes_samples_apart(x: Tensor, groups: int) -> bool:
    """Whether to make a call for each sample: side by side in the channels, samples would lose
    the memory format, without which the CPU converts maps before and after each call."""
    return groups == 1 and x.device.type == 'cpu' and is_channels_last(x)
