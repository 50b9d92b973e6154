"""tools/analysis_tools/get_flops.py on configs of both packages."""

import json

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_runs import load_tool, refused, write_tiny


@pytest.fixture
def count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_tiny(tmp_path))

    def count(*args):
        load_tool('analysis_tools/get_flops').main(list(args))
        return capsys.readouterr().out

    return count


def test_classifier(count):
    shown = json.loads(count('tiny.py', '--shape', '32', '--json'))
    assert shown['input_shape'] == [3, 32, 32]
    model = MODELS.build(Config.fromfile('tiny.py').model)
    assert shown['parameters'] == sum(p.numel() for p in model.parameters())
    (head,) = [stage for stage in shown['stages'] if stage['stage'] == 'head']
    assert head['convolution'] == head['total'] == 128 * 2
    for key in ('parameters', 'assembling', 'attention', 'total'):
        assert shown[key] == sum(stage[key] for stage in shown['stages']) > 0

    # Kernels are the same for all sizes, so their mixing is; the convolutions are not.
    wide = json.loads(count('tiny.py', '--shape', '32', '64', '--json'))
    assert wide['input_shape'] == [3, 32, 64]
    for key in ('assembling', 'attention'):
        assert wide[key] == shown[key]
    backbones = (result['convolution'] - head['convolution'] for result in (wide, shown))
    assert next(backbones) == 2 * next(backbones)

    table = count('tiny.py', '--shape', '32')
    last = table.splitlines()[-1].split()
    assert last[0] == 'all' and last[-1] == f'{shown["total"] / 1e6:,.3f}'


def test_detector(count):
    shown = json.loads(count('detector.py', '--shape', '64', '--json'))
    stages = {stage['stage']: stage for stage in shown['stages']}
    assert {'backbone.layer4', 'neck', 'rpn_head', 'roi_head'} < set(stages)
    assert all(stages[name]['convolution'] for name in ('neck', 'rpn_head', 'roi_head'))


def test_bad_shape(count, capsys):
    with pytest.raises(SystemExit):
        count('tiny.py', '--shape', '1', '2', '3')
    assert '--shape takes one or two positive numbers' in capsys.readouterr().err
    assert 'no.py does not exist' in refused(load_tool('analysis_tools/get_flops'), 'no.py')
