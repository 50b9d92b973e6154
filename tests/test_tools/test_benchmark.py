"""tools/analysis_tools/benchmark.py: real runs on tiny networks; no test looks at how long."""

import json
import platform
import re

import cv2
import pytest
from mmengine.config import Config
from tiny_runs import ROOT, load_tool, refused

benchmark = load_tool('analysis_tools/benchmark')
find_config, main, parse_args = benchmark.find_config, benchmark.main, benchmark.parse_args

SMALL = ['--resolution', '32', '--rounds', '2', '--device', 'cpu', '--batch-sizes', '1', '2']
SMALL += ['--train-batch-size', '2', '--no-keep-memory']


@pytest.fixture
def tiny(tmp_path):
    """A folder with configs of KWResNet18 of a quarter of the width."""
    base = ROOT / 'configs/imagenet/kw-resnet18-1x_8xb32-100e_in1k.py'
    for budget in (1, 4):
        Config(
            dict(
                _base_=str(base),
                model=dict(
                    backbone=dict(budget=budget, base_channels=16, stem_channels=16),
                    head=dict(in_channels=128, num_classes=10),
                ),
            )
        ).dump(tmp_path / f'tiny-{budget}x.py')
    return tmp_path


def test_report_of_two_budgets_beside_their_plain_network(tiny):
    out = tiny / 'out'
    main(
        [
            str(tiny / 'tiny-1x.py'),
            str(tiny / 'tiny-4x.py'),
            *SMALL,
            '--reference',
            '--fold',
            '1',
            '--out',
            str(out),
        ]
    )
    text = (out / 'benchmark.json').read_text()
    results = json.loads(text)
    names = ['tiny-1x (plain)', 'tiny-1x', 'tiny-4x', 'tiny-1x (reference)', 'tiny-4x (reference)']
    folded = ['tiny-1x (folded)', 'tiny-4x (folded)']
    models = {model['name']: model for model in results['models']}
    assert list(models) == names + folded
    assert {model['plain'] for model in models.values()} == {names[0]}
    plain = models[names[0]]
    exactly_1 = {'median': 1, 'low': 1, 'high': 1}
    assert all(times['ratio'] == exactly_1 for times in [*plain['inference'], *plain['train']])
    assert plain['memory']['ratio'] == dict.fromkeys(plain['memory']['ratio'], 1)

    rates = results['rates']
    for unfolded, name in zip(names[1:3], folded):
        model, unfolded = models.pop(name), models[unfolded]
        assert model.keys() == {*unfolded} - {'train', 'memory'}
        assert model['folded_bytes'] > 0 == unfolded['folded_bytes']
        assert [times['batch_size'] for times in model['inference']] == [1, 2]
        count, before = model['operations_per_image'], unfolded['operations_per_image']
        assert count['convolution'] == before['convolution']
        assert count['assembling'] <= before['assembling']
    # Folded at 4x, a layer mixes as much as at 1x: tensors by its hidden channels, not its cells.
    assert 0 < count['assembling'] < before['assembling'] / 2

    for model in models.values():
        assert [times['batch_size'] for times in model['inference']] == [1, 2]
        for factor, index, times, of_plain in [
            (1, 0, model['inference'][0], plain['inference'][0]),
            (1, 1, model['inference'][1], plain['inference'][1]),
            (3, 1, model['train'][0], plain['train'][0]),
        ]:
            count = model['operations_per_image']
            assert times['operations'] == {key: (index + 1) * count[key] for key in count}
            seconds = times['seconds']
            assert 0 < seconds['low'] <= seconds['median'] <= seconds['high']
            assert times['images_per_second'] == pytest.approx((index + 1) / seconds['median'])
            mixing = times['operations']['assembling'] + times['operations']['attention']
            mixing *= factor / rates['matmul']
            convolution = factor * times['operations']['convolution'] / rates['convolution']
            assert times['bound_seconds'] == pytest.approx(convolution + mixing)
            expected = of_plain['seconds']['median'] + mixing
            assert times['plain_and_assembling_seconds'] == pytest.approx(expected)
        memory = model['memory']
        for key, ratio in memory['ratio'].items():
            assert ratio == pytest.approx(memory[key] / plain['memory'][key])
        # Weights, gradients, momentum and all that is kept are there at the same time.
        parameters = 4 * model['parameters']
        assert memory['train_peak_bytes'] > 3 * parameters
        assert parameters < memory['inference_peak_bytes'] < memory['train_peak_bytes']
    kept = {name: model['memory']['kept_bytes'] for name, model in models.items()}
    assert kept['tiny-1x (reference)'] > kept['tiny-1x (plain)']

    # Cells are four times as many; so is the work of mixing, within the classifier's rounding.
    counts = [models[name]['operations_per_image'] for name in ('tiny-1x', 'tiny-4x')]
    assert counts[0]['convolution'] == counts[1]['convolution']
    assert counts[1]['assembling'] == pytest.approx(4 * counts[0]['assembling'], rel=0.05)

    tables = (out / 'benchmark.md').read_text()
    assert all(tables.count(f'| {name} |') == 1 + 3 + 1 for name in names)
    assert all(tables.count(f'| {name} |') == 1 + 2 for name in folded)
    assert cv2.imread(str(out / 'benchmark.png')).shape[1] > 1000
    assert sorted(path.name for path in out.iterdir()) == [
        'benchmark.json',
        'benchmark.md',
        'benchmark.png',
    ]
    for private in (str(tiny), str(ROOT), platform.node()):
        assert private not in text + tables


def test_short_names():
    for name, stem in [
        ('resnet18-1x', 'kw-resnet18-1x_8xb32-100e_in1k'),
        ('kw-resnet18-1x', 'kw-resnet18-1x_8xb32-100e_in1k'),
        ('resnet18', 'resnet18_8xb32-100e_in1k'),
        ('convnext-tiny-1x-released', 'kw-convnext-tiny-1x-released_8xb512-300e_in1k'),
    ]:
        assert find_config(name).stem == stem
    assert find_config(str(find_config('resnet18'))) == find_config('resnet18')


def test_protocol_of_the_paper():
    args = parse_args(['--protocol', 'paper'])
    assert args.batch_sizes == [100]
    assert args.models == (
        'dyconv-resnet50-4x', 'odconv-resnet50-4x', 'resnet50-1d2x', 'resnet50-1x', 'resnet50-4x',
        'dyconv-mobilenet-v2-w100-4x', 'odconv-mobilenet-v2-w100-4x', 'mobilenet-v2-w100-1d2x',
        'mobilenet-v2-w100-1x', 'mobilenet-v2-w100-4x',
    )  # fmt: skip
    args = parse_args(['resnet50-1x', '--protocol', 'paper', '--batch-sizes', '5'])
    assert (args.models, args.batch_sizes) == (['resnet50-1x'], [5])


def test_table_beside_the_numbers_of_the_paper(tmp_path):
    options = ['--protocol', 'paper', '--mode', 'inference', '--batch-sizes', '2', '--rounds', '1']
    options += ['--resolution', '32', '--device', 'cpu', '--out', str(tmp_path)]
    main(['mobilenet-v2-w100-1x', *options])
    table = (tmp_path / 'benchmark.md').read_text().partition("Beside the paper's numbers")[2]
    plain, kw = table.splitlines()[-2:]
    # Memory was not measured.
    ends = [line.split('|')[3:] for line in (plain, kw)]
    assert ends[0] == [' 1,410.8 (1.00) ', '  ', ' 2,486.0 (1.00) ', '  ', ' 1,083.0 (1.00) ', '']
    assert ends[1] == [' 798.7 (0.57) ', '  ', ' 2,823.0 (1.14) ', '  ', ' 1,096.0 (1.01) ', '']
    first, second = json.loads((tmp_path / 'benchmark.json').read_text())['models']
    speeds = [model['inference'][0]['images_per_second'] for model in (first, second)]
    assert f'| {speeds[1]:,.1f} ({speeds[1] / speeds[0]:.2f}) |' in kw


def test_sweep_of_one_layer(tmp_path):
    main(
        ['--sweep', '--rounds', '1', '--device', 'cpu', '--out', str(tmp_path)]
        + ['--sweep-channels', '4', '--sweep-batch-sizes', '1', '2', '--sweep-resolutions', '6']
        + ['--sweep-cells', '9', '45']
    )
    results = json.loads((tmp_path / 'benchmark.json').read_text())
    sweep, rates = results['sweep'], results['rates']
    assert results['models'] == []
    assert sweep['middle'] == {'batch_size': 2, 'resolution': 6, 'cells': 45}
    points = sweep['axes']['cells']
    assert [(point['cells'], point['mode']) for point in points] == [
        (cells, mode) for cells in (9, 45) for mode in ('inference', 'train')
    ]
    assert [point['batch_size'] for point in sweep['axes']['batch_size']] == [1, 1, 2, 2]

    point = points[2]
    m, n, hidden = 9, 45, 16
    cells, feature_map = n * 4 * 4, 2 * 4 * 6 * 6
    attention = 4 * hidden + 2 * hidden + (hidden + 1) * m * (n + 1)
    assert point['operations']['assembling'] == 2 * m * cells
    assert point['operations']['convolution'] == feature_map * 4 * 9
    expected = 4 * (cells + attention + 2 * feature_map) / rates['bandwidth']
    assert point['bytes_seconds'] == pytest.approx(expected)
    mixing = point['operations']['assembling'] + point['operations']['attention']
    expected = point['plain_seconds']['median'] + mixing / rates['matmul']
    assert point['operations_seconds'] == pytest.approx(expected)
    assert (tmp_path / 'benchmark.md').read_text().count('| train |') == 2 + 1 + 2
    assert cv2.imread(str(tmp_path / 'sweep.png')).shape[1] > 1000


def test_host(tiny):
    out = tiny / 'out'
    options = ['--resolution', '32', '--rounds', '2', '--device', 'cpu', '--out', str(out)]
    main(['--mode', 'host', *options, '--', str(tiny / 'tiny-1x.py')])
    records = json.loads((out / 'benchmark.json').read_text())['host']
    layer, network = records[:6], records[6:]
    assert [record['launches'] for record in layer if record['name'].endswith('plain')] == [1, 5]
    names = ['tiny-1x (plain)', 'tiny-1x', 'tiny-1x (as released)']
    assert [record['name'] for record in network] == names
    assert network[0]['launches'] < min(record['launches'] for record in network[1:])
    assert all(record['microseconds']['low'] > 0 for record in records)
    table = (out / 'benchmark.md').read_text().partition('## Host')[2]
    assert all(f'| {record["name"]} | {record["launches"]} |' in table for record in records)


@pytest.mark.slow
def test_detector(tmp_path):
    """Random images with boxes and masks, through the detector's own losses."""
    base = ROOT / 'configs/coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py'
    small = dict(
        backbone=dict(depth=18, base_channels=16, stem_channels=16),
        neck=dict(in_channels=[16, 32, 64, 128]),
        roi_head=dict(bbox_head=dict(fc_out_channels=32), mask_head=dict(num_convs=1)),
        train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
        test_cfg=dict(rpn=dict(max_per_img=20)),
    )
    Config(dict(_base_=str(base), model=small)).dump(tmp_path / 'detector.py')
    options = ['--mode', 'memory', '--batch-sizes', '1', '--train-batch-size', '2']
    options += ['--resolution', '64', '--device', 'cpu', '--out', str(tmp_path / 'out')]
    main([str(tmp_path / 'detector.py'), *options])
    plain, kw = json.loads((tmp_path / 'out/benchmark.json').read_text())['models']
    assert (plain['name'], kw['name']) == ('detector (plain)', 'detector')
    assert kw['operations_per_image']['assembling'] > 0
    assert kw['memory']['kept_bytes'] > plain['memory']['kept_bytes']


@pytest.mark.parametrize(
    'options, message',
    [
        (['resnet19-1x'], "unknown model 'resnet19-1x'.*resnet18-1x"),
        (['no/such/config.py'], 'config file no/such/config.py does not exist'),
        (['resnet18-1x', 'resnet18-1x'], 'resnet18-1x is named twice'),
        (['resnet18-1x', '--device', 'cuda:99'], '--device cuda:99 needs a GPU'),
        (['resnet18-1x', '--device', 'tpu'], '--device must be cpu, cuda or cuda:N, but got tpu'),
        (['resnet18-1x', '--device', 'cpu', '--dtype', 'tf32'], 'tf32 is a type of GPUs'),
    ],
)
def test_errors_in_one_line(options, message, tmp_path, capsys):
    line = refused(benchmark, *options, '--out', tmp_path / 'out')
    assert re.search(message, line)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'config, message',
    [
        ("model = dict(backbone=dict(type='KWResNet', depth=18))", 'its default_scope is None'),
        (
            "default_scope = 'mmpretrain'\n"
            "model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, "
            "base_channels=8, stem_channels=8, conv_cfg=dict(type='KWConv2d')))",
            'cannot tell what mine is without its dynamic layers',
        ),
    ],
)
def test_configs_that_cannot_be_compared(config, message, tmp_path):
    (tmp_path / 'mine.py').write_text(config)
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        main([str(tmp_path / 'mine.py'), *SMALL, '--out', str(tmp_path / 'out')])


@pytest.mark.parametrize('option', ['--rounds', '--batch-sizes', '--threads'])
def test_counts_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        parse_args(['resnet18-1x', option, '0'])
    assert '0 is not positive' in capsys.readouterr().err
