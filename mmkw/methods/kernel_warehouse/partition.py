"""Kernel partition and warehouse construction (Sections 3.2 and 3.3, Algorithm 1 part A).

Arithmetic on shapes only: no tensors, no modules. Given the kernels that share a warehouse and
a budget, it says how large a kernel cell is, how many cells the warehouse holds, how many linear
mixtures make up each kernel, and which cell each mixture starts from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational, Real
from typing import Union

from ...ops.mixing import KernelLayout, Shape

Ratio = Union[float, str, Fraction]
CellRatio = Union[Ratio, tuple[Ratio, Ratio], None]

# Far above the 4 of the paper; a mistyped budget would fill the memory.
MAX_BUDGET = 64
# Which cells a mixture starts from at temperature 1, in the paper's Tables 9 and 13.
ALLOCATIONS = {
    'one_to_one': 'one cell of its own, or the zero cell at budgets below 1 (the default)',
    'all_to_one': 'the sum of all cells of the warehouse',
    'several_to_one': 'the sum of b cells of its own, at whole budgets b of at least 2',
    'one_to_two': 'one cell that it shares with the next mixture, at budget 1/2',
    'none': 'no cells: attentions are as learned, whatever the temperature',
}


@dataclass(frozen=True)
class KernelPartition(KernelLayout):
    """One kernel cut into ``m`` linear mixtures, and the cells it starts from.

    Attributes:
        kernel_shape, grid: see :class:`~mmkw.ops.KernelLayout`.
        num_cells: ``n``, the size of the warehouse that the kernel draws on.
        first_cell: the first of the cells that this kernel alone starts from (its own cells).
        num_own_cells: how many cells, from ``first_cell`` on, are its own.
        initial_cells: for each mixture the cell that it equals at temperature 1 with one-to-one
            allocation, or ``None`` for the zero cell.
        allocation: which cells mixtures start from, see :data:`ALLOCATIONS`.
    """

    num_cells: int
    first_cell: int
    num_own_cells: int
    initial_cells: tuple[int | None, ...]
    allocation: str = 'one_to_one'

    @property
    def initial_pairs(self) -> list[tuple[int, int]]:
        """The mixtures and cells of which ``beta`` of Eq. 4 is 1."""
        if self.allocation == 'all_to_one':
            return list(itertools.product(range(self.num_mixtures), range(self.num_cells)))
        if self.allocation == 'several_to_one':
            each = self.num_own_cells // self.num_mixtures
            own = range(self.num_own_cells)
            return [(cell // each, self.first_cell + cell) for cell in own]
        if self.allocation == 'one_to_two':
            return [(i, self.first_cell + i // 2) for i in range(self.num_mixtures)]
        if self.allocation == 'none':
            return []
        pairs = enumerate(self.initial_cells)
        return [(mixture, cell) for mixture, cell in pairs if cell is not None]


@dataclass(frozen=True)
class WarehousePartition:
    """A warehouse and the kernels that share it.

    Attributes:
        cell_shape: ``(c_out, c_in, *spatial)`` of one kernel cell.
        num_cells: ``n``.
        kernels: the partition of each kernel, by name, in the order in which they own cells.
    """

    cell_shape: Shape
    num_cells: int
    kernels: Mapping[str, KernelPartition]

    @property
    def num_mixtures(self) -> int:
        """``m_t``, the linear mixtures of all kernels together; ``n = b * m_t``."""
        return sum(kernel.num_mixtures for kernel in self.kernels.values())


def as_fraction(name: str, value: Ratio) -> Fraction:
    """Read a positive ratio such as ``0.5``, ``3`` or ``'1/4'``.

    Integers, fractions and strings are exact. Other numbers become the nearest fraction with a
    denominator of at most 4096, so that ``1 / 3`` is a third.

    Raises:
        ValueError: if ``value`` is not a positive, finite number. ``name`` says which one.
    """
    expected = f"{name} must be a positive number such as 1, 0.5 or '3/4', but got {value!r}"
    if not isinstance(value, (Real, str)) or isinstance(value, bool):
        raise ValueError(expected)
    try:
        if isinstance(value, (Rational, str)):
            fraction = Fraction(value)
        else:
            fraction = Fraction(float(value)).limit_denominator(4096)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(expected) from error
    if fraction <= 0:
        raise ValueError(expected)
    return fraction


def default_cell_ratio(budget: Ratio) -> float:
    """The paper's cell ratio (Appendix A.3): 1/2 for budgets below 1, otherwise 1."""
    return 0.5 if as_fraction('budget', budget) < 1 else 1.0


def partition_kernels(
    kernel_shapes: Mapping[str, Shape],
    budget: Ratio = 1,
    cell_ratio: CellRatio = None,
    spatial_partition: bool = True,
    allocation: str = 'one_to_one',
) -> WarehousePartition:
    r"""Cut kernels into cells of one shape and size the warehouse that they share.

    The cell's channels are the greatest common divisors of the kernels' channels times
    ``cell_ratio``; its spatial size is 1 (or the whole kernel's without ``spatial_partition``).
    The warehouse holds :math:`n = b\,m_t` cells (Section 3.3).

    Each mixture starts from at most one cell, none of them twice (one-to-one, Appendix A.2):

    * :math:`b \ge 1`: mixture ``k`` starts from cell ``first_cell + floor(k * b)``;
    * :math:`b = 1/q`: mixture ``k`` takes the next unused cell if ``k % q == (k // q) % q`` and
      the zero cell otherwise, as in the released models: along the input groups every q-th
      mixture, shifted by one from row to row;
    * other :math:`b < 1`, or kernels whose mixtures ``q`` does not divide: the cells are spread
      evenly over all mixtures of the warehouse. The release leaves these budgets undefined.

    That is the allocation of the paper's models. The others of :data:`ALLOCATIONS` are its
    ablations (Tables 9 and 13); the text does not say which two mixtures share a cell, here they
    are consecutive ones.

    Args:
        kernel_shapes: by name, ``(out_channels, in_channels / groups, *kernel_size)`` of the
            kernels that share the warehouse, in network order.
        budget: ``b``, cells per mixture. Defaults to 1.
        cell_ratio: the cell's channels relative to the greatest common divisors; one number or
            one each for output and input channels. Defaults to ``None``,
            :func:`default_cell_ratio`.
        spatial_partition: whether to cut the kernels along their spatial dimensions. Without it
            all kernels need the same size. Defaults to True.
        allocation: which cells mixtures start from, one of :data:`ALLOCATIONS`. Defaults to
            ``'one_to_one'``.

    Raises:
        ValueError: if the allocation is unknown or does not suit the budget, if the budget or ratio
            is no positive number or leaves no whole cells, if the budget is above 64, if the cell
            does not divide a kernel, or if the kernels cannot share a cell shape.
    """
    if not kernel_shapes:
        raise ValueError('a warehouse needs at least one kernel, but got none')
    budget = as_fraction('budget', budget)
    if budget > MAX_BUDGET:
        raise ValueError(
            f'budget must be at most {MAX_BUDGET}, but got {budget}: every linear mixture has an '
            f'attention for every cell, so that parameters grow with the budget without limit'
        )
    if cell_ratio is None:
        cell_ratio = default_cell_ratio(budget)
    _check_allocation(allocation, budget)
    cell_shape = _cell_shape(kernel_shapes, cell_ratio, spatial_partition)
    grids = {name: _grid(shape, cell_shape) for name, shape in kernel_shapes.items()}
    sizes = {name: math.prod(grid) for name, grid in grids.items()}
    num_cells = budget * sum(sizes.values())
    if num_cells.denominator != 1:
        raise ValueError(
            f'budget {budget} leaves no whole number of cells: {budget} x {sum(sizes.values())} '
            f'linear mixtures is {num_cells}, for kernels {_describe(kernel_shapes)}; choose a '
            f'multiple of 1/{sum(sizes.values())} as budget, or a smaller cell_ratio'
        )

    kernels = {}
    mixture = cell = 0
    for name, size in sizes.items():
        mixtures = range(mixture, mixture + size)
        next_cell = math.floor(budget * mixtures.stop)
        kernels[name] = KernelPartition(
            kernel_shape=tuple(kernel_shapes[name]),
            grid=grids[name],
            num_cells=int(num_cells),
            first_cell=cell,
            num_own_cells=next_cell - cell,
            initial_cells=_initial_cells(mixtures, cell, budget, sizes.values()),
            allocation=allocation,
        )
        mixture, cell = mixtures.stop, next_cell
    return WarehousePartition(cell_shape, int(num_cells), kernels)


def _check_allocation(allocation: str, budget: Fraction) -> None:
    if allocation not in ALLOCATIONS:
        raise ValueError(
            f'allocation must be one of {", ".join(ALLOCATIONS)}, but got {allocation!r}'
        )
    if allocation == 'several_to_one' and (budget.denominator != 1 or budget < 2):
        raise ValueError(
            f"allocation='several_to_one' needs a whole budget of at least 2, but got {budget}"
        )
    if allocation == 'one_to_two' and budget != Fraction(1, 2):
        raise ValueError(f"allocation='one_to_two' needs a budget of 1/2, but got {budget}")


def _initial_cells(
    mixtures: range, first_cell: int, budget: Fraction, sizes: Collection[int]
) -> tuple[int | None, ...]:
    """The one-to-one allocation of one kernel, whose mixtures are numbered over the warehouse."""
    if budget >= 1:
        return tuple(math.floor(budget * k) for k in mixtures)
    q = budget.denominator
    if budget.numerator == 1 and all(size % q == 0 for size in sizes):
        takes_cell = [k % q == (k // q) % q for k in range(len(mixtures))]
    else:
        takes_cell = [math.floor(budget * (k + 1)) > math.floor(budget * k) for k in mixtures]
    unused = itertools.count(first_cell)
    return tuple(next(unused) if takes else None for takes in takes_cell)


def _cell_shape(kernel_shapes: Mapping[str, Shape], cell_ratio, spatial_partition: bool) -> Shape:
    ratios = cell_ratio if isinstance(cell_ratio, (tuple, list)) else (cell_ratio, cell_ratio)
    if len(ratios) != 2:
        raise ValueError(
            f'cell_ratio must be one number or two (output, input channels), but got {cell_ratio!r}'
        )
    out_ratio, in_ratio = (as_fraction('cell_ratio', ratio) for ratio in ratios)
    dims = {len(shape) - 2 for shape in kernel_shapes.values()}
    if len(dims) > 1:
        raise ValueError(
            f'kernels of {sorted(dims)} spatial dimensions cannot share a warehouse: '
            f'{_describe(kernel_shapes)}; give each kind a warehouse of its own'
        )
    spatial = (1,) * dims.pop()
    if not spatial_partition:
        kernel_sizes = {tuple(shape[2:]) for shape in kernel_shapes.values()}
        if len(kernel_sizes) > 1:
            raise ValueError(
                f'kernels of unequal size cannot share a warehouse without spatial partition: '
                f'{_describe(kernel_shapes)}; set spatial_partition=True or give each kernel '
                f'size a warehouse of its own'
            )
        spatial = kernel_sizes.pop()
    return (
        _cell_channels('output', [shape[0] for shape in kernel_shapes.values()], out_ratio),
        _cell_channels('input', [shape[1] for shape in kernel_shapes.values()], in_ratio),
        *spatial,
    )


def _cell_channels(which: str, channels: Sequence[int], ratio: Fraction) -> int:
    divisor = math.gcd(*channels)
    size = math.floor(divisor * ratio)
    if size == 0:
        # A single channel (depthwise) cannot be cut further; more of them would have to be.
        if divisor == 1:
            return 1
        raise ValueError(
            f'cell_ratio {ratio} leaves no whole cell of the {divisor} common {which} channels; '
            f'choose at least 1/{divisor}'
        )
    if divisor % size:
        raise ValueError(
            f'a cell of {size} {which} channels ({ratio} of {divisor}) does not divide kernels of '
            f'{sorted(set(channels))} {which} channels; choose a cell_ratio of 1 / (a divisor '
            f'of {divisor})'
        )
    return size


def _grid(shape: Shape, cell_shape: Shape) -> tuple[int, int, int]:
    out_groups, in_groups, *positions = (size // cell for size, cell in zip(shape, cell_shape))
    return math.prod(positions), out_groups, in_groups


def _describe(kernel_shapes: Mapping[str, Shape]) -> str:
    return ', '.join(f'{name} {tuple(shape)}' for name, shape in kernel_shapes.items())
