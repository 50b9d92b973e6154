"""Eq. 4 and its gradient as one kernel each, by Triton; a program for each mixture.

:mod:`mmkw.ops.attention` says what they compute. They need CUDA, or ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attend(
    logits, beta, temperature, alpha, mixtures, cells, width, eps, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    z = tl.load(logits + row * width + column, mask=column < width, other=0.0)
    learned = z / (tl.sum(tl.abs(z), 0) + eps)
    is_cell = column < cells
    start = tl.load(beta + (row % mixtures) * cells + column, mask=is_cell, other=0.0)
    tau = tl.load(temperature)
    difference = start - learned
    # Exact at both ends, as torch.lerp is.
    low, high = learned + tau * difference, start - (1 - tau) * difference
    tl.store(alpha + row * cells + column, tl.where(tau < 0.5, low, high), mask=is_cell)


@triton.jit
def _attend_backward(
    logits, temperature, grad_alpha, grad, cells, width, eps, delta, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    is_logit = column < width
    z = tl.load(logits + row * width + column, mask=is_logit, other=0.0)
    g = tl.load(grad_alpha + row * cells + column, mask=column < cells, other=0.0)
    total = tl.sum(tl.abs(z), 0) + eps
    dot = tl.sum(g * z, 0) / total
    share = tl.minimum(total / delta, 1.0)
    steepness = (1 - tl.load(temperature)) * share * share * share / total
    sign = tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0))
    tl.store(grad + row * width + column, steepness * (g - sign * dot), mask=is_logit)


def attend(logits: Tensor, beta: Tensor, temperature: Tensor, eps: float) -> Tensor:
    """``alpha`` for logits ``(N, m, n)`` or, with the zero cell, ``(N, m, n + 1)``."""
    logits, (mixtures, cells) = logits.contiguous(), beta.shape
    alpha = logits.new_empty(*logits.shape[:-1], cells)
    _attend[(logits.shape[:-1].numel(),)](
        logits, beta.contiguous(), temperature, alpha, mixtures, cells, logits.shape[-1], eps,
        BLOCK=triton.next_power_of_2(logits.shape[-1]),
    )  # fmt: skip
    return alpha


def attend_backward(
    logits: Tensor, temperature: Tensor, grad_alpha: Tensor, eps: float, delta: float
) -> Tensor:
    """The gradient of the logits."""
    logits = logits.contiguous()
    grad = torch.empty_like(logits)
    _attend_backward[(logits.shape[:-1].numel(),)](
        logits, temperature, grad_alpha.contiguous(), grad, grad_alpha.shape[-1],
        logits.shape[-1], eps, delta, BLOCK=triton.next_power_of_2(logits.shape[-1]),
    )  # fmt: skip
    return grad
