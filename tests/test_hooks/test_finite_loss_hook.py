"""A diverged run ends with an error, whatever it trains."""

import pytest
from temperature_runs import train
from torch import nn

from mmkw.methods.kernel_warehouse import KWConv2d


class DivergesAt(nn.Module):
    """A layer whose weight a step turns to NaN."""

    def __init__(self, call, value):
        super().__init__()
        self.layer, self.calls, self.call, self.value = KWConv2d(4, 4, 1), 0, call, value

    def forward(self, x):
        self.calls += 1
        y = self.layer(x)
        return y + self.value if self.calls >= self.call else y


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('value', 'interval', 'call', 'iteration'),
    [(NAN, 3, 2, 3), (INF, 3, 2, 3), (NAN, 100, 2, 4), (INF, 100, 5, 8), (NAN, 1, 7, 7)],
)
def test_run_stops_at_the_next_look_before_its_checkpoint(
    tmp_path, value, interval, call, iteration
):
    hooks = [
        dict(type='FiniteLossHook', interval=interval),
        dict(type='KWTemperatureHook', iters=1),
    ]
    message = f'no longer a finite number in iteration {iteration} .*loss (nan|inf).*learning rate'
    with pytest.raises(FloatingPointError, match=message):
        train(tmp_path, hooks, layer=DivergesAt(call, value))
    saved = sorted(path.name for path in tmp_path.glob('epoch_*.pth'))
    assert saved == [f'epoch_{epoch}.pth' for epoch in range(1, (iteration - 1) // 4 + 1)]


def test_finite_run_is_left_alone(tmp_path):
    hooks = [dict(type='FiniteLossHook', interval=1), dict(type='KWTemperatureHook', iters=1)]
    _, recorder = train(tmp_path, hooks, epochs=2)
    assert len(recorder.used) == 8
