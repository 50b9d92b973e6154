"""tools/analysis_tools/compare_methods.py: real runs of a few iterations."""

import json
import types
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import load_tool, refused

pytest.importorskip('sklearn')

from mmkw.analysis.comparison import METHODS, QUICK, compare
from mmkw.analysis.comparison.report import summarise
from mmkw.analysis.comparison.runs import Result
from mmkw.analysis.comparison.scans import NoisyDigits


def test_quick(tmp_path, capsys):
    tool = load_tool('analysis_tools/compare_methods')
    tool.main(['--quick', '--seeds', '1', '--work-dir', str(tmp_path)])
    out = capsys.readouterr().out
    table = (tmp_path / 'comparison.md').read_text()
    assert table in out
    rows = [line.split(' | ')[0].strip('| ') for line in table.splitlines()[2:]]
    assert rows == list(METHODS)
    assert (tmp_path / 'comparison.png').stat().st_size > 10_000
    for number in range(1, len(METHODS) + 1):
        assert f'run {number} of {len(METHODS)}' in out
    assert ' left' in out
    for path in tmp_path.glob('*.json'):
        result = json.loads(path.read_text())['result']
        assert len(result['losses']) == QUICK.iters
        assert [iteration for iteration, _ in result['accuracies']] == [2, 4]


@pytest.mark.usefixtures('default_scope')
def test_goes_on_after_an_interruption(tmp_path):
    lines = []

    def stop(line):
        lines.append(line)
        if 'seed 1, iteration 3' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, ['plain'], 2, QUICK, stop)
    (finished,) = tmp_path.glob('*.json')
    before = finished.read_bytes()
    lines.clear()
    results = compare(tmp_path, ['plain'], 2, QUICK, lines.append)
    assert finished.read_bytes() == before
    assert len(lines) == QUICK.iters and all('seed 1' in line for line in lines)
    # As if it had never been interrupted, and the seeds differ.
    (whole,) = compare(tmp_path / 'whole', ['plain'], 1, QUICK, lines.append)
    assert results[0].losses == whole.losses
    assert results[1].losses != whole.losses
    assert compare(tmp_path, ['plain'], 2, QUICK, lines.append) == results

    with pytest.raises(ValueError, match='is a run with lr=0.002, but .* lr=0.1; name another'):
        compare(tmp_path, ['plain'], 2, replace(QUICK, lr=0.1))


def test_bad_arguments(tmp_path):
    tool = load_tool('analysis_tools/compare_methods')
    work_dir = ('--work-dir', tmp_path)
    assert "no method 'KW 3x'; there are: plain; KW" in refused(
        tool, '--methods', 'KW 3x', *work_dir
    )
    assert 'seeds must be positive, but got 0' in refused(tool, '--seeds', '0', *work_dir)
    assert 'iters must be a positive' in refused(tool, '--iters', '0', *work_dir)
    with pytest.raises(ValueError, match='1797 scans, but 1000 .* and 800'):
        replace(QUICK, train_scans=1000, val_scans=800)


def test_summary_by_hand():
    accuracies = {'plain': (50, 52, 54), 'KW 1x': (60, 61, 65), 'ODConv 4x': (49, 58, 55)}
    results = [
        Result(method, seed, 7, 1.0, [1.0], [(1, 0.0), (2, float(value))])
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    plain, kw, od = summarise(results)
    assert (plain.mean, plain.deviation, plain.difference) == (52, 2, None)
    # Gains of 10, 9 and 11: deviation 1, and Student's t of two degrees of freedom is 4.303.
    assert kw.difference == pytest.approx(10)
    assert kw.margin == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    # Gains of -1, 6 and 1.
    assert od.difference == pytest.approx(2)
    assert od.margin == pytest.approx(4.303 * 13**0.5 / 3**0.5, rel=1e-3)
    assert [row.verdict for row in (plain, kw, od)] == ['', 'better', 'not shown']
    (alone,) = summarise(results[3:4])
    assert alone.difference is None and np.isnan(alone.deviation)


def test_data(monkeypatch):
    """Validation has scans of its own, the same for all seeds."""
    fake = types.SimpleNamespace(images=np.ones((1797, 8, 8)), target=np.arange(1797))
    monkeypatch.setattr('sklearn.datasets.load_digits', lambda: fake)
    options = dict(num_scans=50, num_val_scans=1700, renderings=2, noise=0.1, hidden=0.25)

    def make(split, seed):
        return NoisyDigits(split, seed, **options)

    first, second, val = make('train', 0), make('train', 1), make('val', 0)
    everything = NoisyDigits('val', 0, **{**options, 'num_scans': 1700})
    assert set(val.labels) < set(everything.labels)
    assert not set(everything.labels) & (set(first.labels) | set(second.labels))
    assert set(first.labels) != set(second.labels)
    assert len(first) == 100 and len(set(first.labels)) == 50
    again = make('train', 0)
    assert np.array_equal(again.images, first.images)
    assert not np.array_equal(first.images[0], first.images[1])
    assert first[3]['inputs'].shape == (1, 32, 32)
    assert int(first[3]['data_samples'].gt_label) == first.labels[3]
