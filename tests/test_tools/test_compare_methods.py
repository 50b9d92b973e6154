"""tools/analysis_tools/compare_methods.py: real runs of a few iterations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import load_tool, refused

load_digits = pytest.importorskip('sklearn.datasets').load_digits

# Puts the tool's folder on the path.
tool = load_tool('analysis_tools/compare_methods')

from comparison.data import SPLITS, Scans, render, scans_of  # noqa: E402
from comparison.networks import NETWORKS  # noqa: E402
from comparison.report import summarise  # noqa: E402
from comparison.results import Point, Result, Run  # noqa: E402
from comparison.runs import compare  # noqa: E402
from comparison.training import QUICK, Recipe, train  # noqa: E402


def test_quick(tmp_path, capfd):
    """From nothing to the report; then with a second seed, for which two processes train."""
    options = ['--quick', '--work-dir', str(tmp_path)]
    tool.main([*options, '--processes', '1'])
    out = capfd.readouterr().out
    table = (tmp_path / 'comparison.md').read_text()
    assert table in out and 'nan' not in table
    rows = [line.split(' | ')[0].strip('| ') for line in table.splitlines()[2:]]
    assert rows == list(NETWORKS)
    assert (tmp_path / 'comparison.png').stat().st_size > 10_000
    assert f'1 of {len(NETWORKS)} runs finished; about' in out
    files = {path: path.read_bytes() for path in tmp_path.glob('*.json')}
    assert len(files) == len(NETWORKS) and not list(tmp_path.glob('*.pth'))

    tool.main([*options, '--criterion', '--seeds', '2'])
    out = capfd.readouterr().out
    assert '1 of 4' not in out and '2 of 4 runs finished' in out and '4 of 4 runs finished' in out
    assert {path: path.read_bytes() for path in files} == files
    table = (tmp_path / 'comparison.md').read_text()
    assert [line.split(' | ')[0] for line in table.splitlines()[2:]] == [
        '| plain',
        '| plain, double width',
    ]
    assert table.count('±') == 1
    tool.main([*options, '--criterion', '--seeds', '2', '--report'])
    assert capfd.readouterr().out.strip() == table.strip()


@pytest.mark.parametrize('name', ['plain', 'KW 1x'])
def test_goes_on_after_an_interruption(tmp_path, name):
    run, network = Run(name, 1e-3, 1), NETWORKS[name]
    recipe = replace(QUICK, annealing=0.75)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, network, recipe, tmp_path, stop, save_interval=0)
    (state,) = tmp_path.glob('*.pth')
    assert torch.load(state, weights_only=True)['iteration'] == 1
    lines = []
    resumed = train(run, network, recipe, tmp_path, lines.append)
    assert len(lines) == 2 and lines[0].startswith(f'{name}, rate 0.001, seed 1: 50%')
    (tmp_path / 'whole').mkdir()
    whole = train(run, network, recipe, tmp_path / 'whole', lines.append)
    assert resumed.curve == whole.curve and resumed.test_accuracy == whole.test_accuracy
    with pytest.raises(ValueError, match='with iters=4, but .* iters=5; name another'):
        train(run, network, replace(recipe, iters=5), tmp_path)


def test_refuses_results_of_another_recipe(tmp_path):
    compare(tmp_path, ['plain'], QUICK, 1, print)
    with pytest.raises(ValueError, match='with batch_size=4, but .* batch_size=2; name another'):
        compare(tmp_path, ['plain'], replace(QUICK, batch_size=2), 1, print)


def test_bad_arguments(tmp_path):
    options = ('--quick', '--work-dir', tmp_path)
    message = refused(tool, '--networks', 'KW 3x', *options)
    assert "no network 'KW 3x'; there are: plain; plain, wider; plain, longer; KW 1/2x" in message
    assert 'number of seeds must be positive, but got 0' in refused(tool, '--seeds', '0', *options)
    assert 'processes must be positive' in refused(tool, '--processes', '0', *options)
    message = refused(tool, '--networks', 'KW 1x', '--criterion', *options)
    assert 'either --networks or --criterion' in message


def test_report_by_hand():
    """The best rate by validation, the mean of the test, and a common standard deviation."""

    def result(network, rate, seed, val, test):
        curve = [Point(0.5, 2, 30, val - 8), Point(1, 1, 40, val)]
        return Result(Run(network, rate, seed), 7, 10**6, 1.0, 1.0, curve, test)

    results = [result('plain', 1e-3, 0, 50, 60), result('plain', 3e-3, 0, 40, 90)]
    results += [result('plain', 1e-3, 1, 40, 62), result('plain', 1e-3, 2, 60, 64)]
    results += [result('KW 1x', 1e-3, 0, 40, 10), result('KW 1x', 3e-3, 0, 50, 70)]
    results += [result('KW 1x', 3e-3, 1, 50, 74), result('KW 1x', 3e-3, 2, 50, 78)]
    results += [result('KW 4x', 1e-3, 0, 50, 99)]
    recipe = Recipe(rates=(1e-3, 3e-3))
    plain, kw = summarise({item.run: item for item in results}, recipe)
    assert (plain.mean, plain.difference, plain.gain) == (62, None, '')
    assert kw.mean == 74 and kw.difference == 12
    # Variances of 4 and 16, and Student's t of four degrees of freedom is 2.776.
    assert kw.margin == pytest.approx(2.776 * 10**0.5 * (2 / 3) ** 0.5, rel=1e-3)
    assert kw.gain == '+12.00 ± 7.17, better'
    first = {item.run: item for item in results if item.run.seed == 0}
    assert [row.gain for row in summarise(first, recipe)] == ['', '+10.00']


def test_images():
    """Splits have scans of their own, and labels are those of the scans that are drawn."""
    splits = [scans_of(split) for split in SPLITS]
    together = torch.cat([scans.images for scans in splits]).flatten(1)
    digits = load_digits()
    everything = torch.tensor(digits.data, dtype=torch.float32) / 16
    assert len(together) == len(everything)
    order = np.lexsort(together.T.numpy()), np.lexsort(everything.T.numpy())
    assert torch.equal(together[order[0]], everything[order[1]])
    labels = torch.cat([scans.digits for scans in splits])
    assert torch.equal(labels[order[0]], torch.tensor(digits.target)[order[1]])

    first, again, other = (render(splits[0], 8, seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (8, 1, 48, 48) and first.labels.shape == (8,)


def test_label_is_left_then_right():
    """Scans of 3 are empty, so that the ink is where the other digit, a 7, is."""
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    images, labels = render(Scans(images, torch.tensor([3, 7])), 400, 0)
    ink = images[:, 0].mean(1)
    assert set(labels.tolist()) == {33, 37, 73, 77}
    left, right = (ink[labels == label].mean(0) for label in (73, 37))
    assert left[:24].sum() > right[:24].sum() + 3
    assert right[24:].sum() > left[24:].sum() + 3
