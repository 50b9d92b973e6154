r"""Attentions of mixtures over their cells, from logits: Eq. 4 of KernelWarehouse and its variants.

.. math::
    \alpha_{ij} = \tau \beta_{ij} + (1 - \tau) f_j(z_i) \qquad (4)

For the logits :math:`z` of one mixture, ``f`` is one of these (the paper's Table 8):

================  ===========================================  ====================
name              :math:`f_j(z)`                               of the paper
================  ===========================================  ====================
``caf``           :math:`z_j / (\sum_p |z_p| + 10^{-3})`       Eq. 4, its second term
``softmax``       :math:`e^{z_j} / \sum_p e^{z_p}`             Table 8
``sigmoid``       :math:`1 / (1 + e^{-z_j})`                   Table 8
``nonnegative``   :math:`\max(z_j, 0) / (\sum_p |z_p| +        Table 8
                  10^{-3})`
================  ===========================================  ====================

The small constant is the released models'.

Eq. 4 is as steep as :math:`1 / s`, where ``s`` is its denominator: 1000 at zero logits. If all
images of a batch are the same, the batch norm of the attention turns their differences, 0, into
zero hidden vectors and logits. Its own gradient has the factor :math:`1 / \sqrt{10^{-5}} = 316`
then, and layers multiply these factors: over a ResNet18 gradients grow to :math:`10^{16}`, though
the input says nothing about the loss.

So the gradient of a mixture is multiplied by :math:`(s / \delta)^3` where
:math:`s < \delta = 0.1`. The slope becomes :math:`s^2 / \delta^3`. It is at most
:math:`1 / \delta = 10`, and at zero logits 0.001: times 316 less than 1, so that gradients do not
grow from layer to layer, but not 0, so that a bias can still leave 0. With an exponent of 2 the
product would be 32. Where ``s`` is larger, as in training on images that differ, the gradient is
that of Eq. 4. Values never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .mixing import HALF
from .routes import recording_mode

_EPS = 1e-3
_MIN_STEEP = 0.1  # delta


def mixture_attention(
    logits: Tensor, beta: Tensor, temperature: Tensor, function: str = 'caf'
) -> Tensor:
    r"""The attentions of Eq. 4.

    Where there is a logit more than cells, it is that of the zero cell. Its attention is dropped,
    as a zero cell adds nothing to a mixture.

    Args:
        logits: ``z``, shape ``(..., n)`` or ``(..., n + 1)``.
        beta: the attentions at temperature 1, of a shape that expands to ``(..., n)``.
        temperature: ``tau`` in [0, 1], a tensor without dimensions.
        function: ``f``, see :mod:`mmkw.ops.attention`. Defaults to ``'caf'``.

    Returns:
        ``alpha``, shape ``(..., n)``, in at least float32: half precision would lose the sum over
        a hundred cells and more. It is exact at both ends: ``beta`` at temperature 1, ``f`` at 0.
    """
    if logits.dtype in HALF:
        logits = logits.float()
    beta, temperature = beta.to(logits.dtype), temperature.to(logits.dtype)
    if function == 'caf' and recording_mode() is None:
        return _Contrast.apply(logits, beta, temperature)
    learned = ATTENTION_FUNCTIONS[function](logits)[..., : beta.shape[-1]]
    return torch.lerp(learned, beta.expand_as(learned), temperature)


_is_fused = False


@contextmanager
def fused_attention() -> Iterator[None]:
    """Compute Eq. 4 and its gradient by one kernel of Triton each. Not thread-safe.

    Off by default, as it has not been measured on a GPU. It needs Triton, and tensors on a GPU or
    ``TRITON_INTERPRET=1``.
    """
    global _is_fused
    previous, _is_fused = _is_fused, True
    try:
        yield
    finally:
        _is_fused = previous


def normaliser(logits: Tensor) -> Tensor:
    """``s``, the denominator of Eq. 4, over the last dimension, which stays with size 1."""
    return torch.linalg.vector_norm(logits, 1, -1, keepdim=True) + _EPS


def contrast(logits: Tensor) -> Tensor:
    """The second term of Eq. 4: attentions of both signs, whose absolute values sum up to 1."""
    logits = bound_gradient(logits)
    return logits / normaliser(logits)


def contrast_nonnegative(logits: Tensor) -> Tensor:
    """As :func:`contrast`, with negative logits set to 0 after the sum."""
    logits = bound_gradient(logits)
    return logits.clamp(min=0) / normaliser(logits)


def bound_gradient(logits: Tensor) -> Tensor:
    """The same logits, with the smaller gradient that the top of this file derives."""
    # A traced graph is for inference, and must be the same with gradients and without.
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return logits
    share = (normaliser(logits.detach()) / _MIN_STEEP).clamp(max=1) ** 3
    # lerp between equal values is exact, and its gradient has the weight as a factor.
    return torch.lerp(logits.detach(), logits, share.expand_as(logits))


ATTENTION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'caf': contrast,
    'softmax': lambda logits: logits.softmax(-1),
    'sigmoid': torch.sigmoid,
    'nonnegative': contrast_nonnegative,
}


def check_function(name: str) -> str:
    """Return ``name`` if there is such an attention function.

    Raises:
        ValueError: if there is none.
    """
    if name not in ATTENTION_FUNCTIONS:
        raise ValueError(
            f'function must be one of {", ".join(ATTENTION_FUNCTIONS)}, but got {name!r}'
        )
    return name


class _Contrast(torch.autograd.Function):
    r"""Eq. 4 with ``caf``, its gradient written out, in as few operations as PyTorch allows.

    With :math:`a = z / s` and the gradient ``g`` of :math:`\alpha` (0 for the zero cell), that of
    the logits is

    .. math::
        \frac{1 - \tau}{s} \min(s / \delta, 1)^3 \Big(g_j - \mathrm{sgn}(z_j) \sum_p g_p a_p\Big)

    Where the backward pass is itself differentiated, it goes through :func:`contrast`.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, beta: Tensor, temperature: Tensor) -> Tensor:
        if _is_fused and logits.dim() == 3 and beta.dim() == 2:
            from .triton_attention import attend

            ctx.save_for_backward(logits, None, None, beta, temperature)
            return attend(logits, beta, temperature, _EPS)
        sums = torch.linalg.vector_norm(logits, 1, -1, keepdim=True).add_(_EPS)
        learned = logits / sums
        ctx.save_for_backward(logits, learned, sums, beta, temperature)
        return torch.lerp(learned[..., : beta.shape[-1]], beta, temperature)

    @staticmethod
    def backward(ctx, grad: Tensor):
        logits, learned, sums, beta, temperature = ctx.saved_tensors
        cells = beta.shape[-1]
        # Autograd has its mode on here only if the gradients shall have gradients.
        if torch.is_grad_enabled():
            learned = contrast(logits)[..., :cells]
            alpha = torch.lerp(learned, beta.expand_as(learned), temperature)
            return (*torch.autograd.grad(alpha, logits, grad, create_graph=True), None, None)
        if learned is None:
            from .triton_attention import attend_backward

            return attend_backward(logits, temperature, grad, _EPS, _MIN_STEEP), None, None
        dot = (grad * learned[..., :cells]).sum(-1, keepdim=True)
        if cells < logits.shape[-1]:
            grad = F.pad(grad, (0, 1))
        steepness = sums.clamp(max=_MIN_STEEP).pow_(3).div_(sums)
        steepness.mul_(torch.rsub(temperature, _MIN_STEEP**-3, alpha=_MIN_STEEP**-3))
        return torch.addcmul(grad, learned.sign(), dot, value=-1).mul_(steepness), None, None
