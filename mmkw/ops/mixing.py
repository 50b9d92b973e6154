"""Kernels mixed from a bank of tensors: where the mixtures stand in a kernel, and mixing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]
# Of the axes (sample, position, output group, input group, c_out, c_in, the cell's own position)
# in kernels. A kernel's size is made up of positions or of the cells' own, never of both.
_KERNEL_ORDER = (0, 2, 4, 3, 5, 1, 6)
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class KernelLayout:
    """Where linear mixtures stand in a kernel.

    Mixture ``i`` enumerates (spatial position, output group, input group), the last one fastest
    and spatial positions row by row. It fills ``W[output group, input group, position]``.

    Attributes:
        kernel_shape: ``(out_channels, in_channels / groups, *kernel_size)``.
        grid: the number of spatial positions, output groups and input groups.
    """

    kernel_shape: Shape
    grid: tuple[int, int, int]

    @classmethod
    def whole(cls, kernel_shape: Shape) -> KernelLayout:
        """One mixture that is the whole kernel."""
        return cls(tuple(kernel_shape), (1, 1, 1))

    @property
    def num_mixtures(self) -> int:
        """``m``, the number of linear mixtures of the kernel."""
        return math.prod(self.grid)

    def place(
        self, mixtures: Tensor, cell_shape: Sequence[int], out: Tensor | None = None
    ) -> Tensor:
        """Put mixtures at their places.

        Args:
            mixtures: shape ``(N, m, ...)`` with the elements of one cell in the last dimensions.
            cell_shape: ``(c_out, c_in, *spatial)``. Cells may have fewer output channels than
                the layout's; the result is then those rows of the kernel, in each output group.
            out: memory for the result. Defaults to ``None``, fresh memory where a view will not do.

        Returns:
            Shape ``(N, out_groups * c_out, in_channels / groups, *kernel_size)``.
        """
        samples, (c_out, c_in, *spatial) = mixtures.shape[0], cell_shape
        axes = (samples, *self.grid, c_out, c_in, math.prod(spatial))
        kernels = mixtures.reshape(axes).permute(_KERNEL_ORDER)
        if out is not None and not kernels.is_contiguous():
            kernels = out.view(kernels.shape).copy_(kernels)
        return kernels.reshape(samples, self.grid[1] * c_out, *self.kernel_shape[1:])

    def collect(
        self, kernels: Tensor, cell_shape: Sequence[int], out: Tensor | None = None
    ) -> Tensor:
        """The inverse of :meth:`place`, of shape ``(N, m, elements of a cell)``."""
        c_out, c_in, *spatial = cell_shape
        axes = (kernels.shape[0], *self.grid, c_out, c_in, math.prod(spatial))
        blocks = kernels.reshape([axes[i] for i in _KERNEL_ORDER])
        blocks = blocks.permute([_KERNEL_ORDER.index(i) for i in range(len(axes))])
        if out is not None and not blocks.is_contiguous():
            blocks = out.view(blocks.shape).copy_(blocks)
        return blocks.reshape(kernels.shape[0], self.num_mixtures, -1)

    def cut(self, kernel: Tensor, cell_shape: Sequence[int]) -> Tensor:
        """Cut one kernel into the blocks that its mixtures fill: :meth:`place` undone.

        Args:
            kernel: shape ``(out_channels, in_channels / groups, *kernel_size)``.
            cell_shape: ``(c_out, c_in, *spatial)``.

        Returns:
            Shape ``(m, c_out, c_in, *spatial)``, in the order of the mixtures.
        """
        return self.collect(kernel[None], cell_shape).reshape(-1, *cell_shape)


class Mixture(NamedTuple):
    """What every sample's kernel is mixed from, and factors for the channels of its maps.

    Attributes:
        coefficients: the weights ``alpha`` of each mixture, shape ``(N, m, n)``.
        bank: the ``n`` tensors that all samples mix, shape ``(n, c_out, c_in, *spatial)``: kernel
            cells of a warehouse or, with :meth:`KernelLayout.whole`, whole kernels.
        layout: where the mixtures stand in the kernel.
        position_scale: factors for the kernel's spatial positions, shape ``(N, positions)``.
            Defaults to ``None``, all 1.
        input_scale, output_scale: factors for the channels of each sample before and after the
            convolution, ``(N, in_channels)`` and ``(N, out_channels)``. Default to ``None``, all 1.
    """

    coefficients: Tensor
    bank: Tensor
    layout: KernelLayout
    position_scale: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None


def assemble_kernels(mixture: Mixture) -> Tensor:
    r"""Mix every sample's kernel, as readably as possible.

    .. math::
        \mathbf{w}_i = \alpha_{i1} \mathbf{e}_1 + \dots + \alpha_{in} \mathbf{e}_n

    for each mixture ``i``, put at its place in the kernel. With a position scale ``s``, the kernel
    is then multiplied by ``s_p`` at each spatial position ``p``. The factors of channels are not
    part of the kernels, see :func:`scale_channels`.

    Returns:
        Kernels of shape ``(N, out_channels, in_channels / groups, *kernel_size)``.
    """
    mixtures = mixture.coefficients.matmul(mixture.bank.flatten(1))
    kernels = mixture.layout.place(mixtures, mixture.bank.shape[1:])
    return scale_positions(kernels, mixture.position_scale)


def scratch_for(x: Tensor) -> Scratch | None:
    """Memory for blocks of kernels on the CPU; PyTorch itself keeps that of other devices."""
    return Scratch() if x.device.type == 'cpu' else None


class Scratch:
    """Memory that the blocks of one call use one after the other.

    On the CPU, fresh memory comes from the operating system page by page, which took as long as
    mixing the kernels.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor without values, which is valid until the name is taken again."""
        size, buffer = math.prod(shape), self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)


def assemble_block(
    mixture: Mixture, scratch: Scratch | None, samples: slice, rows: slice
) -> Tensor:
    """As :func:`assemble_kernels`, for some samples and some rows of the bank.

    Args:
        mixture: of all samples.
        scratch: holds the kernels; ``None`` for fresh memory.
        samples, rows: which block it is.
    """
    coefficients, bank = mixture.coefficients[samples], mixture.bank[:, rows]
    alpha, cells = coefficients.flatten(0, 1), bank.flatten(1)
    shape, out, placed = (len(alpha), cells.shape[1]), None, None
    if scratch is not None:
        out, placed = (scratch.take(name, shape, bank) for name in ('mixtures', 'kernels'))
    mixtures = torch.mm(alpha, cells, out=out).view(*coefficients.shape[:2], -1)
    kernels = mixture.layout.place(mixtures, bank.shape[1:], placed)
    if mixture.position_scale is None:
        return kernels
    return scale_positions(kernels, mixture.position_scale[samples])


def scale_channels(kernels: Tensor, mixture: Mixture, groups: int) -> Tensor:
    """Multiply kernels by the factors of their input and output channels.

    Args:
        kernels: one for each sample, ``(N, out_channels, in_channels / groups, *kernel_size)``.
        mixture: has the factors.
        groups: of the convolution.
    """
    ones = [1] * (kernels.dim() - 3)
    if mixture.input_scale is not None:
        factors = mixture.input_scale.view(kernels.shape[0], groups, 1, -1, *ones)
        kernels = (kernels.unflatten(1, (groups, -1)) * factors).flatten(1, 2)
    if mixture.output_scale is not None:
        kernels = kernels * mixture.output_scale.view(kernels.shape[0], -1, 1, *ones)
    return kernels


def scale_maps(x: Tensor, factors: Tensor | None) -> Tensor:
    """Multiply maps, ``(N, channels, *size)``, by a factor for each channel, ``(N, channels)``."""
    return x if factors is None else x * factors.to(x.dtype)[(..., *[None] * (x.dim() - 2))]


def scale_positions(kernels: Tensor, position_scale: Tensor | None) -> Tensor:
    """Multiply kernels, ``(N, out, in, *size)``, by a factor for each spatial position."""
    if position_scale is None:
        return kernels
    return kernels * position_scale.view(kernels.shape[0], 1, 1, *kernels.shape[3:])
