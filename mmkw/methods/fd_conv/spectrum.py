"""Fourier spectra of kernels and maps: their sets of coefficients and bands."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...ops.routes import recording_mode

_CPU = torch.device('cpu')


def uncached_if_recorded(function: Any) -> Any:
    """A cached function, or itself where its result would be a placeholder of a recording.

    Sets and masks follow from sizes alone. They are cached by size and device, not kept as buffers
    of each layer: layers of one size share them, and moving or copying a network leaves them alone.
    """
    return function if recording_mode() is None else function.__wrapped__


def kernel_spectrum(kernel: Tensor) -> Tensor:
    """The Fourier coefficients of a kernel.

    Args:
        kernel: shape ``(C_out, C_in, k, k)``, seen as a matrix of ``C_out k`` rows, output channel
            by output channel, and ``C_in k`` columns.

    Returns:
        Complex, shape ``(R, S)`` with ``R = C_out k`` and ``S = C_in k / 2 + 1``.
    """
    out_channels, in_channels, size, _ = kernel.shape
    matrix = kernel.transpose(1, 2).reshape(out_channels * size, in_channels * size)
    return torch.fft.rfft2(matrix)


def spectrum_kernels(spectra: Tensor, size: int) -> Tensor:
    """The inverse of :func:`kernel_spectrum`, for ``(N, R, S)`` and kernels of side ``size``.

    Spectra of weighted sets are not those of real kernels: in the first and the last column, rows
    and their mirror images differ. There the real part counts after the transform of the columns,
    on every device.
    """
    columns = 2 * (spectra.shape[2] - 1)
    kernels = real_columns(torch.fft.ifft(spectra, dim=1), columns)
    kernels = torch.fft.irfft(kernels, n=columns, dim=2)
    return kernels.unflatten(1, (-1, size)).unflatten(3, (-1, size)).transpose(2, 3)


def real_columns(spectrum: Tensor, size: int) -> Tensor:
    """Leave out the imaginary parts that a real signal of this size along the last axis has not."""
    find_mask = uncached_if_recorded(_complex_columns)
    mask = find_mask(spectrum.shape[-1], size % 2 == 0, spectrum.real.dtype, spectrum.device)
    return torch.complex(spectrum.real, spectrum.imag * mask)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # Kept for later calls, which autograd may follow.
def _complex_columns(
    columns: int, is_even: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """1 for the columns of a real signal's spectrum that may be complex, else 0."""
    mask = torch.ones(columns, dtype=dtype, device=device)
    mask[0] = 0
    if is_even:
        mask[-1] = 0
    return mask


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # Kept for later calls, which autograd may follow.
def frequency_order(rows: int, columns: int, device: torch.device = _CPU) -> Tensor:
    """The coefficients of an ``R x S`` spectrum, row by row, in the order of their frequency.

    The order is stable and in float32 with one fused multiply-add, so that it is the same
    everywhere: checkpoints do not hold it.
    """
    row = torch.arange(rows, device='cpu')
    row = torch.where(row < (rows + 1) // 2, row, row - rows).float() * _float32(1.0 / rows)
    column = torch.arange(columns, device='cpu').float() * _float32(1.0 / (2 * (columns - 1)))
    # The square of a float32 number is exact in float64, and the sum is rounded once.
    squares = (row * row).double()[:, None] + column.double().square()
    # PyTorch's root of float32 numbers may be off by a bit, which changes the order.
    distances = squares.float().double().sqrt().float()
    return distances.flatten().argsort(stable=True).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def frequency_groups(rows: int, columns: int, groups: int, device: torch.device = _CPU) -> Tensor:
    """The set of each Fourier coefficient of an ``R x S`` spectrum, by its distance from 0.

    Raises:
        ValueError: if the sets cannot have the same size.
    """
    check_groups(rows * columns, groups)
    order = uncached_if_recorded(frequency_order)(rows, columns)
    result = torch.empty_like(order)
    result[order] = torch.arange(len(order), device='cpu') // (len(order) // groups)
    return result.to(device)


def check_groups(coefficients: int, groups: int) -> None:
    """Raise ValueError if the sets cannot have the same size."""
    if coefficients % groups:
        raise ValueError(
            f'FDConv2d cuts {coefficients} Fourier coefficients into num_kernels={groups} sets of '
            f'equal size, which does not divide them; choose a divisor of {coefficients}'
        )


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device='cpu')


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def band_masks(
    size: tuple[int, int],
    bands: tuple[int, ...],
    mask_size: tuple[int, int] = (64, 64),
    device: torch.device = _CPU,
) -> Tensor:
    """Which coefficients of a map's spectrum the low part of each band keeps.

    Masks are made for maps of one size and resized by the nearest neighbour, as in the authors'
    code.

    Args:
        size: height and width of the map.
        bands: for each mask the inverse of twice the frequency that it ends at.
        mask_size: the size that masks are made for. Defaults to 64 x 64.
        device: of the masks. Defaults to the CPU.

    Returns:
        0 or 1, shape ``(bands, height, width // 2 + 1)``.
    """
    rows = torch.fft.fftfreq(mask_size[0], device='cpu').abs()
    columns = torch.fft.rfftfreq(mask_size[1], device='cpu').abs()
    highest = torch.maximum(rows[:, None], columns)

    def nearest(target: int, source: int) -> Tensor:
        scale = _float32(source / target)
        return (torch.arange(target, device='cpu') * scale).floor().long().clamp(max=source - 1)

    row = nearest(size[0], len(rows))
    column = nearest(size[1] // 2 + 1, len(columns))
    limits = torch.stack([_float32(0.5 / band + 1e-8) for band in bands])
    masks = highest < limits[:, None, None]
    return masks[:, row][:, :, column].float().to(device)
