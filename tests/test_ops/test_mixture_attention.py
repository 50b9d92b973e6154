"""Eq. 4 and its gradient, beside a loop over mixtures and what autograd makes of it."""

import os
import subprocess
import sys

import pytest
import torch
from by_hand import ATTENTION_FUNCTIONS

from mmkw.ops import mixture_attention


def by_hand(logits, beta, temperature):
    """Eq. 4, mixture by mixture."""
    caf = ATTENTION_FUNCTIONS['caf']
    learned = torch.stack([torch.stack([caf(row) for row in rows]) for rows in logits])
    return temperature * beta + (1 - temperature) * learned[..., : beta.shape[-1]]


def example(zero_cell=True, scale=1.0):
    torch.manual_seed(0)
    logits = scale * torch.randn(2, 3, 4 + zero_cell, dtype=torch.float64)
    logits[0, 0, 1] = 0
    return logits.requires_grad_(), torch.eye(3, 4, dtype=torch.float64)


@pytest.mark.parametrize('zero_cell', [True, False])
@pytest.mark.parametrize('temperature', [0.0, 0.3, 1.0])
def test_equals_the_equation(temperature, zero_cell):
    logits, beta = example(zero_cell)
    tau = torch.tensor(temperature, dtype=torch.float64)
    alpha, expected = mixture_attention(logits, beta, tau), by_hand(logits, beta, tau)
    torch.testing.assert_close(alpha, expected)
    weights = torch.randn_like(alpha)
    (gradient,) = torch.autograd.grad((alpha * weights).sum(), logits)
    (by_autograd,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, by_autograd)


@pytest.mark.parametrize('scale', [0, 1e-6, 1e-3, 1e-2])
def test_gradient_is_bounded_where_logits_are_small(scale):
    """It is that of Eq. 4 times (s / 0.1) ** 3, with the denominator s."""
    logits, beta = example(scale=scale)
    tau = torch.tensor(0.25, dtype=torch.float64)
    alpha, expected = mixture_attention(logits, beta, tau), by_hand(logits, beta, tau)
    weights = torch.randn_like(alpha)
    (gradient,) = torch.autograd.grad((alpha * weights).sum(), logits)
    (steep,) = torch.autograd.grad((expected * weights).sum(), logits)
    denominators = logits.abs().sum(-1, keepdim=True) + 1e-3
    assert denominators.max() < 0.1
    torch.testing.assert_close(gradient, steep * (denominators / 0.1) ** 3)
    assert gradient.abs().max() < 30


def test_second_derivatives():
    logits, beta = example()
    logits = (logits + 0.5 * logits.sign()).detach().requires_grad_()  # away from the kinks
    tau = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: mixture_attention(z, beta, tau), logits + 0.01)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, beta = example()
    logits = logits.detach().to(dtype).requires_grad_()
    alpha = mixture_attention(logits, beta, torch.tensor(0.3))
    assert alpha.dtype == torch.float32
    alpha.sum().backward()
    assert logits.grad.dtype == dtype


FUSED = """
import torch
from mmkw.ops import fused_attention, mixture_attention

torch.manual_seed(0)
for scale in (1.0, 1e-3):
    for cells in (4, 5):
        for temperature in (0.0, 0.3, 0.7, 1.0):
            tau = torch.tensor(temperature, dtype=torch.float64)
            logits = scale * torch.randn(2, 3, 5, dtype=torch.float64)
            logits[0, 0, 1] = 0
            logits.requires_grad_()
            beta = torch.eye(3, cells, dtype=torch.float64)
            weights = torch.randn(2, 3, cells, dtype=torch.float64)
            results = []
            for is_fused in (False, True):
                if is_fused:
                    with fused_attention():
                        alpha = mixture_attention(logits, beta, tau)
                else:
                    alpha = mixture_attention(logits, beta, tau)
                results.append((alpha, *torch.autograd.grad((alpha * weights).sum(), logits)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)
print('equal')
"""


@pytest.mark.newer_torch
def test_triton_kernels_equal_the_operations_of_pytorch():
    """By Triton's interpreter, which has to be asked for before Triton is imported."""
    pytest.importorskip('triton')
    run = subprocess.run(
        [sys.executable, '-c', FUSED],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ['equal'], run.stderr
