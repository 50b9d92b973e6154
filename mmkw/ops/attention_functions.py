r"""Functions that turn the logits of a mixture into its attentions.

For logits :math:`z_j` of one mixture (the paper's Table 8 compares them):

================  ===========================================  ====================
name              :math:`\alpha_j`                             of the paper
================  ===========================================  ====================
``caf``           :math:`z_j / (\sum_p |z_p| + 10^{-3})`       Eq. 4, its second term
``softmax``       :math:`e^{z_j} / \sum_p e^{z_p}`             Table 8
``sigmoid``       :math:`1 / (1 + e^{-z_j})`                   Table 8
``nonnegative``   :math:`\max(z_j, 0) / (\sum_p |z_p| +        Table 8
                  10^{-3})`
================  ===========================================  ====================

The small constant is the released models'.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

_EPS = 1e-3
# Normalisers below this one have a gradient that differs from Eq. 4, see `bound_gradient`.
_MIN_STEEP = 0.1


def normaliser(logits: Tensor) -> Tensor:
    """The denominator of Eq. 4 over the last dimension, in at least float32."""
    # Half precision would lose the sum over a hundred cells and more.
    logits = in_full_precision(logits)
    return logits.abs().sum(dim=-1) + _EPS


def in_full_precision(logits: Tensor) -> Tensor:
    """Logits in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def contrast(logits: Tensor) -> Tensor:
    """The second term of Eq. 4: attentions of both signs, whose absolute values sum up to 1."""
    logits = bound_gradient(logits)
    return logits / normaliser(logits)[..., None]


def contrast_nonnegative(logits: Tensor) -> Tensor:
    """As :func:`contrast`, with negative logits set to 0 after the sum."""
    logits = bound_gradient(logits)
    return logits.clamp(min=0) / normaliser(logits)[..., None]


def anneal(learned: Tensor, initial: Tensor, temperature: Tensor) -> Tensor:
    r""":math:`\tau \beta + (1 - \tau) a`, exact at both ends: ``beta`` at 1, ``a`` at 0.

    Args:
        learned: ``a``, of any shape.
        initial: ``beta``, of a shape that expands to that.
        temperature: ``tau`` in [0, 1], a tensor without dimensions.
    """
    return torch.lerp(learned, initial.to(learned).expand_as(learned), temperature.to(learned))


def bound_gradient(logits: Tensor) -> Tensor:
    r"""The same logits, with a smaller gradient for mixtures whose logits are all close to 0.

    Eq. 4 is as steep as :math:`1 / s`, where ``s`` is its denominator: 1000 at zero logits. If all
    images of a batch are the same, the batch norm of the attention turns their differences, 0, into
    zero hidden vectors and logits. Its own gradient has the factor
    :math:`1 / \sqrt{10^{-5}} = 316` then, and layers multiply these factors up: over a ResNet18
    gradients grow to :math:`10^{16}`, though the input says nothing about the loss.

    So the gradient of a mixture is multiplied by :math:`(s / \delta)^3` where
    :math:`s < \delta = 0.1`. The slope becomes :math:`s^2 / \delta^3`. It is at most
    :math:`1 / \delta = 10`, and at zero logits 0.001: times 316 less than 1, so that gradients do
    not grow from layer to layer, but not 0, so that a bias can still leave 0. With an exponent of
    2 the product would be 32. Where ``s`` is larger, as in training on images that differ, the
    gradient is that of Eq. 4. Values never change.
    """
    # A traced graph is for inference, and must be the same with gradients and without.
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return logits
    share = (normaliser(logits.detach()) / _MIN_STEEP).clamp(max=1)
    logits = logits.to(share.dtype)
    # lerp between equal values is exact, and its gradient has the weight as a factor.
    return torch.lerp(logits.detach(), logits, share[..., None] ** 3)


ATTENTION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'caf': contrast,
    'softmax': lambda logits: in_full_precision(logits).softmax(-1),
    'sigmoid': lambda logits: in_full_precision(logits).sigmoid(),
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
