"""Cell shapes, m, n and the one-to-one allocation, against the paper and Appendix A.2."""

from fractions import Fraction

import pytest

from mmkw.methods.kernel_warehouse import partition_kernels
from mmkw.methods.kernel_warehouse.partition import as_fraction


def initial_cells(shapes, **options):
    partition = partition_kernels(shapes, **options)
    return [kernel.initial_cells for kernel in partition.kernels.values()]


def test_figure_4_three_layers_with_budget_1():
    # Kernels of 2c x f, c x 3k and c x f channels: 2, 3 and 1 mixtures of one cell shape.
    shapes = {'a': (8, 8, 1), 'b': (24, 4, 1), 'c': (8, 4, 1)}
    partition = partition_kernels(shapes)
    assert partition.cell_shape == (8, 4, 1)
    assert partition.num_cells == partition.num_mixtures == 6
    assert [k.initial_cells for k in partition.kernels.values()] == [(0, 1), (2, 3, 4), (5,)]
    assert [k.first_cell for k in partition.kernels.values()] == [0, 2, 5]
    assert [k.num_own_cells for k in partition.kernels.values()] == [2, 3, 1]


def test_figure_5_budget_2_takes_every_other_cell():
    # As released (mixture k gets cell start + k * b); the figure's caption has e1 and e2.
    assert initial_cells({'a': (8, 8, 1), 'b': (8, 8, 1)}, budget=2, cell_ratio=(1, 0.5)) == [
        (0, 2),
        (4, 6),
    ]


def test_figure_6_budget_half_alternates_from_row_to_row():
    # One position, 2 x 2 blocks of the kernel: like a convolution with two groups.
    assert initial_cells({'a': (8, 8, 1)}, budget=0.5, cell_ratio=0.5) == [(0, None, None, 1)]


def test_budget_quarter_shifts_by_one_every_four_mixtures():
    (cells,) = initial_cells({'a': (8, 8, 1, 1)}, budget='1/4', cell_ratio=0.25)
    taken = [k for k, cell in enumerate(cells) if cell is not None]
    assert taken == [0, 5, 10, 15]
    assert [cells[k] for k in taken] == [0, 1, 2, 3]


@pytest.mark.parametrize('budget', [3 / 4, '5/8', 3 / 2, 7, 2 / 3])
def test_other_budgets_spread_evenly(budget):
    shapes = {'a': (8, 8, 3, 3), 'b': (8, 16, 1, 1), 'c': (8, 24, 3, 3), 'd': (40, 8, 1, 1)}
    shapes['e'] = (8, 8, 1, 1)  # 9 + 2 + 27 + 5 + 1 mixtures, 4 times that with halved cells
    b = Fraction(budget).limit_denominator(100)
    if (44 * b).denominator > 1:
        shapes['e'] = (8, 40, 1, 1)  # 48
    partition = partition_kernels(shapes, budget)
    cells = [cell for kernel in partition.kernels.values() for cell in kernel.initial_cells]
    assert partition.num_cells == b * len(cells)
    used = [cell for cell in cells if cell is not None]
    assert used == sorted(set(used)), 'cells are taken once each, in order'
    if b < 1:
        assert used == list(range(partition.num_cells))
    else:
        assert len(used) == len(cells)
    # Evenly: no run of mixtures deviates from its share by a whole cell or more.
    for stop in range(1, len(cells)):
        taken = sum(cell is not None for cell in cells[:stop])
        assert abs(taken - min(b, 1) * stop) < 1
    owned = [(k.first_cell, k.first_cell + k.num_own_cells) for k in partition.kernels.values()]
    assert owned[0][0] == 0 and owned[-1][1] == partition.num_cells
    assert all(left[1] == right[0] for left, right in zip(owned, owned[1:]))


@pytest.mark.parametrize('budget', [1 / 4, 1 / 2, 1, 2, 4])
def test_released_budgets_follow_the_released_rule(budget):
    shapes = {'a': (16, 16, 3, 3), 'b': (16, 32, 1, 1), 'c': (48, 16, 3, 3)}
    partition = partition_kernels(shapes, budget, cell_ratio=0.5)
    next_cell = 0
    for kernel in partition.kernels.values():
        assert kernel.first_cell == next_cell
        assert kernel.num_own_cells == budget * kernel.num_mixtures
        own = list(range(next_cell, next_cell + kernel.num_own_cells))
        if budget >= 1:
            assert list(kernel.initial_cells) == own[:: int(budget)]
        else:
            q = int(1 / budget)
            taken = [k for k in range(kernel.num_mixtures) if k % q == (k // q) % q]
            expected = [None] * kernel.num_mixtures
            for k, cell in zip(taken, own):
                expected[k] = cell
            assert list(kernel.initial_cells) == expected and len(taken) == len(own)
        next_cell += kernel.num_own_cells
    assert next_cell == partition.num_cells


def test_without_spatial_partition_a_cell_covers_the_kernel():
    partition = partition_kernels({'a': (8, 4, 3, 3), 'b': (16, 4, 3, 3)}, spatial_partition=False)
    assert partition.cell_shape == (8, 4, 3, 3)
    assert partition.num_cells == 3


@pytest.mark.parametrize(
    ('shapes', 'options', 'message'),
    [
        ({'a': (8, 8, 1)}, dict(budget='many'), "budget must be a positive number .* 'many'"),
        ({'a': (8, 8, 1)}, dict(budget=0), 'budget must be a positive number .* got 0'),
        ({'a': (8, 8, 1)}, dict(budget=-1), 'got -1'),
        ({'a': (8, 8, 1)}, dict(budget=float('nan')), 'got nan'),
        ({'a': (8, 8, 1)}, dict(budget=float('inf')), 'got inf'),
        ({'a': (8, 8, 1)}, dict(budget=None), 'got None'),
        ({'a': (8, 8, 1)}, dict(budget=[1, 2]), r'got \[1, 2\]'),
        ({'a': (8, 8, 1)}, dict(budget=0.25, cell_ratio=1), 'budget 1/4 leaves no whole number'),
        ({'a': (8, 8, 3, 3)}, dict(budget=0.75, cell_ratio=1), '3/4 x 9 linear mixtures is 27/4'),
        ({'a': (8, 8, 1)}, dict(cell_ratio=0.01), 'cell_ratio .* leaves no whole cell'),
        ({'a': (8, 8, 1)}, dict(cell_ratio=0), 'cell_ratio must be a positive number'),
        ({'a': (8, 8, 1)}, dict(cell_ratio=(1, 1, 1)), 'cell_ratio must be one number or two'),
        ({'a': (6, 8, 1)}, dict(cell_ratio=0.75), '4 output channels .* does not divide'),
        ({'a': (8, 8, 1)}, dict(cell_ratio=2), '16 output channels .* does not divide'),
        (
            {'a': (8, 8, 3, 3), 'b': (8, 8, 1, 1)},
            dict(spatial_partition=False),
            r'unequal size .* a \(8, 8, 3, 3\), b \(8, 8, 1, 1\); set spatial_partition=True',
        ),
        ({'a': (8, 8, 3), 'b': (8, 8, 3, 3)}, {}, r'kernels of \[1, 2\] spatial dimensions'),
        ({}, {}, 'at least one kernel'),
    ],
)
def test_bad_input_is_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        partition_kernels(shapes, **options)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (Fraction(5000, 10007), Fraction(5000, 10007)),
        ('4097/8191', Fraction(4097, 8191)),
        ('0.00012', Fraction(3, 25000)),
        (10**6 + 1, 10**6 + 1),
        (1 / 3, Fraction(1, 3)),
        (0.1, Fraction(1, 10)),
    ],
    ids=str,
)
def test_ratios_are_exact(value, expected):
    assert as_fraction('budget', value) == expected
