"""Turns and statistics of timing; no test depends on how fast anything is."""

import pytest
import torch

from mmkw.analysis import Spread, measure_rates, time_alternately


def test_runs_take_turns_after_a_warm_up_of_all():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in 'ABC'}
    seconds = time_alternately(runs, rounds=3, min_seconds=0)
    assert calls == list('AABBCC') + list('ABC') * 3
    assert {name: len(values) for name, values in seconds.items()} == {'A': 3, 'B': 3, 'C': 3}
    assert all(value > 0 for values in seconds.values() for value in values)


def test_short_runs_repeat_to_fill_their_turn():
    calls = []
    time_alternately({'A': lambda: calls.append('A')}, rounds=2, min_seconds=1e-3)
    assert len(calls) > 2 + 2


def test_no_rounds_are_an_error():
    with pytest.raises(ValueError, match='rounds must be at least 1, but got 0'):
        time_alternately({'A': list}, rounds=0)


def test_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7]) == Spread(7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    'dtype',
    [
        torch.float32,
        torch.float64,
        # CPUs without bfloat16 emulate it, and take half a minute.
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_rates_are_plausible(dtype):
    rates = measure_rates(dtype=dtype, rounds=1)
    # From a very slow core to a large accelerator.
    assert 1e7 < rates.matmul < 1e16
    assert 1e7 < rates.convolution < 1e16
    assert 1e7 < rates.bandwidth < 1e14
