"""tools/analysis_tools/show_plan.py on configs of both packages."""

import re

import pytest
from tiny_runs import ROOT, load_tool, refused

# A backbone of the other package, whose own layers (LN2d, GRN) are in that one's registry only.
DETECTOR = """
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
default_scope = 'mmdet'
model = dict(
    backbone=dict(
        _delete_=True,
        type='KWBackbone',
        backbone=dict(
            type='mmpretrain.ConvNeXt', arch='atto', use_grn=True, layer_scale_init_value=0.0
        ),
        input_shape=(3, 64, 64),
        warehouse=dict(budget='1/2'),
    )
)
"""
CLASSIFIER = """
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='KWBackbone',
        backbone=dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.25),
        input_shape=(3, 64, 64),
        plan=dict(mine=dict(layers=['stage[23].1.blocks.*.conv2.conv'], budget=2)),
    ),
)
"""


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / 'config.py'
        path.write_text(text, encoding='utf-8')
        return str(path)

    return write


@pytest.fixture
def main():
    return load_tool('analysis_tools/show_plan').main


def test_automatic_plan_of_a_backbone_of_another_scope(config, main, capsys):
    main([config(DETECTOR)])
    shown = capsys.readouterr().out
    assert shown.startswith('KernelWarehouse plan of ConvNeXt: ')
    # Stage 2's downsampling layer has 2 x 2 positions, and cells of half the channels both ways.
    row = r'stage2_dense +1 +downsample_layers\.1\.1 +1/2 +8 +40x20x1x1 +16 +6,400 +\d'
    assert re.search(row, shown)
    assert re.search(r'Parameters: 3,387,400 plain, [\d,]+ with warehouses', shown)


def test_plan_of_ones_own_and_options(config, main, capsys):
    path = config(CLASSIFIER)
    main([path])
    shown = capsys.readouterr().out
    # CSPDarknet's stage 2 has three blocks of 32 and stage 3 three of 64 channels: 27 mixtures of
    # 32 x 32 channels, and 4 times as many.
    assert re.search(r'^mine +6 +\S+ \.\. \S+ +2 +270 +32x32x1x1 +135 ', shown, re.M)
    assert 'not in the plan: stem.conv.conv' in shown
    main([path, '--cfg-options', 'model.backbone.plan.mine.budget=4'])
    assert re.search(r'^mine .* 4 +540 +32x32x1x1 +135 ', capsys.readouterr().out, re.M)


def test_plan_of_a_backbone_of_the_paper(main, capsys):
    """Table 14: n and m of ResNet18 1/4x."""
    main([str(ROOT / 'configs/imagenet/kw-resnet18-1d4x_8xb512-300e_in1k.py')])
    rows = re.findall(r'^layer(\d) .* 1/4 +(\d+) +\S+ +(\d+) ', capsys.readouterr().out, re.M)
    assert rows == [
        ('1', '56', '224'),
        ('2', '47', '188'),
        ('3', '47', '188'),
        ('4', '27', '108'),
    ]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.backbone.plan.mine.layers=[stage9.*]'], "'stage9.*' matches no convolution"),
        (['model.backbone.warehouse.budgets=2'], "with a plan has no option 'budgets'"),
        (['model.backbone=None'], 'config.py has no model.backbone, whose plan could be shown'),
    ],
)
def test_errors_take_one_line(options, message, config):
    tool = load_tool('analysis_tools/show_plan')
    assert message in refused(tool, config(CLASSIFIER), '--cfg-options', *options)


def test_plain_backbone_is_refused(config, main):
    text = CLASSIFIER.replace("type='KWBackbone'", "type='mmdet.ResNet', depth=18")
    text = re.sub(r'    backbone=dict\(type=.mmdet.CSP.*|    input_shape.*|    plan=.*', '', text)
    with pytest.raises(SystemExit, match='error: ResNet has no warehouses, so no plan either'):
        main([config(text)])
