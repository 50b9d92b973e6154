"""Released Mask R-CNNs, files of MMDetection 2: converted by the tool, they detect the same."""

import pytest
import torch
from edits import drop, put
from golden import (
    CLASSIFIER,
    assert_stages_match,
    load_golden,
    make_input,
    make_tensor,
    released_names,
    released_shape,
    stage_outputs,
)
from mmdet.datasets import CocoDataset
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_runs import ROOT, load_tool

import mmkw
from mmkw.checkpoints import convert_released, load_checkpoint

# Config, and the golden file with its names.
DETECTORS = {
    'mobilenet-v2-1x': 'kw_mobilenetv2_050_1x',
    'mobilenet-v2-4x': 'kw_mobilenetv2_050_4x',
    'resnet50-1x': 'kw_resnet50_1x',
    'resnet50-4x': 'kw_resnet50_1x',
    'convnext-tiny-1x': 'kw_convnext_tiny_1x',
    'convnext-tiny-1x-released': 'kw_convnext_tiny_1x',
    'convnext-tiny-3d4x': 'kw_convnext_tiny_1x',
}
# Those whose golden file has the shapes and outputs, too.
WITH_OUTPUTS = ('resnet50-1x', 'convnext-tiny-1x-released')
DEFAULT = 'mobilenet-v2-1x'


def config_path(name):
    return f'configs/coco/mask-rcnn_kw-{name}_fpn_ms-1x_coco.py'


def build_detector(name):
    """The model of a config, which keeps even boxes that it thinks nothing of."""
    config = Config.fromfile(ROOT / config_path(name))
    config.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    config.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model).eval()


def release(detector, golden_name):
    """Weights for a detector, in the names and shapes of the release and in its own."""
    state_dict = detector.state_dict()
    start = 'backbone.'
    backbone = [name[len(start) :] for name in state_dict if name.startswith(start)]
    own_names = {
        f'{start}{released_name}': f'{start}{name}'
        for name, released_name in released_names(golden_name, backbone, False).items()
    }
    own_names.update({name: name for name in state_dict if not name.startswith(start)})
    weights, own = {}, {}
    for released_name, name in own_names.items():
        shape = tuple(state_dict[name].shape)
        if name.startswith(start):
            # Seeded by the name that the tensor has in the golden file.
            weights[released_name] = make_tensor(
                released_name[len(start) :], released_shape(name[len(start) :], shape)
            )
        else:
            weights[released_name] = make_tensor(name, shape)
        own[name] = weights[released_name].view(shape)
    for name, shape in load_golden(golden_name)['state_dict']:
        if name.startswith(CLASSIFIER):
            weights[f'{start}{name}'] = make_tensor(name, shape)
    return weights, own


def save_as_mmdetection_2(state_dict, path):
    """A checkpoint of a run over several GPUs."""
    torch.save(
        dict(
            meta=dict(
                env_info='sys.platform: linux',
                config='model = dict()',
                seed=None,
                mmdet_version='2.28.1+',
                CLASSES=CocoDataset.METAINFO['classes'],
                epoch=12,
                iter=87960,
                hook_msgs={},
            ),
            state_dict={f'module.{name}': value for name, value in state_dict.items()},
            optimizer=dict(state={}, param_groups=[dict(lr=1e-6)]),
        ),
        path,
    )


def detect(detector):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 48, 80), generator=generator, dtype=torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=(48, 80),
            ori_shape=(48, 80),
            scale_factor=(1.0, 1.0),
        )
    )
    with torch.no_grad():
        (result,) = detector.test_step(dict(inputs=[image], data_samples=[sample]))
    return result.pred_instances


@pytest.mark.parametrize(
    'name',
    [
        DEFAULT,
        *(pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS if name != DEFAULT),
    ],
)
def test_converted_detector_detects_the_same(name, tmp_path, capsys):
    golden_name = DETECTORS[name]
    detector = build_detector(name)
    weights, own = release(detector, golden_name)
    detector.load_state_dict(own)
    expected = detect(detector)
    assert len(expected) == 5
    assert expected.scores.isfinite().all() and expected.masks.any()

    save_as_mmdetection_2(weights, tmp_path / 'released.pth')
    tool = load_tool('model_converters/released_to_mmkw')
    tool.main([str(tmp_path / 'released.pth'), str(tmp_path / 'mmkw.pth')])
    out = capsys.readouterr().out
    assert f'config: {config_path(name)}\n' in out
    unused = [
        f'module.backbone.{name}'
        for name, _ in load_golden(golden_name)['state_dict']
        if name.startswith(CLASSIFIER)
    ]
    assert f'not used: {", ".join(unused)}\n' in out

    checkpoint = load_checkpoint(tmp_path / 'mmkw.pth')
    assert checkpoint['meta']['model'] == 'MaskRCNN'
    assert checkpoint['meta']['weights'] == 'state_dict'
    assert checkpoint['meta']['dataset_meta']['classes'][79] == 'toothbrush'
    for tensor_name, value in own.items():
        assert torch.equal(checkpoint['state_dict'][tensor_name], value), tensor_name
    converted = build_detector(name)
    converted.load_state_dict(checkpoint['state_dict'], strict=True)
    assert mmkw.get_temperature(converted) == 0
    actual = detect(converted)
    for key in ('bboxes', 'scores', 'labels', 'masks'):
        assert torch.equal(actual[key], expected[key])

    if name in WITH_OUTPUTS:
        golden = load_golden(golden_name)
        outputs = golden['outputs']['eval']['0.0']
        with torch.no_grad(), stage_outputs(converted.backbone, outputs) as stages:
            converted.backbone(make_input(golden))
        assert_stages_match(stages, outputs, 1e-4)


@pytest.fixture(scope='module')
def weights():
    return release(build_detector(DEFAULT), DETECTORS[DEFAULT])[0]


def as_in_mmdetection_1(state_dict):
    for name in [name for name in state_dict if name.startswith('roi_head.')]:
        state_dict[name[len('roi_head.') :]] = state_dict.pop(name)


DAMAGES = {
    'no heads': (drop('roi_head.mask_head.'), r'roi_head\.mask_head\.convs\.0\.conv\.weight'),
    'heads of MMDetection 1': (
        as_in_mmdetection_1,
        r'the model has no bbox_head\.fc_cls\.weight',
    ),
    'other classes': (
        put(roi_head__bbox_head__fc_cls__bias=(21,)),
        r'looks like MaskRCNN with .*roi_head\.bbox_head\.fc_cls\.bias.*\[21\].*\[81\]',
    ),
    'no backbone': (drop('backbone.features.'), r'found those of none'),
    'another neck': (
        put(neck__lateral_convs__0__conv__weight=(256, 16, 1, 1)),
        r'neck\.lateral_convs\.0\.conv\.weight',
    ),
    'a warehouse less': (
        drop('backbone.warehouse_manager.weights.12'),
        r"nearest is .*'budget': 1}, but \S+weights\.12 is missing",
    ),
    'one tensor with and without the prefix of distributed training': (
        put(module__rpn_head__rpn_cls__bias=3),
        r'module\.rpn_head\.rpn_cls\.bias is there twice',
    ),
    'not a number': (
        put(neck__fpn_convs__0__conv__bias=(256,)),
        r'neck\.fpn_convs\.0\.conv\.bias has values that are infinite, not a number',
    ),
}


@pytest.mark.parametrize(('edit', 'message'), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(weights, edit, message, tmp_path):
    edited = dict(weights)
    edit(edited)
    if 'not a number' in message:
        edited['neck.fpn_convs.0.conv.bias'][7] = float('nan')
    torch.save(dict(state_dict=edited), tmp_path / 'edited.pth')
    with pytest.raises(ValueError, match=message):
        convert_released(tmp_path / 'edited.pth', tmp_path / 'mmkw.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['edited.pth']


def test_other_classes_of_the_same_number_are_refused(weights, tmp_path):
    classes = list(CocoDataset.METAINFO['classes'])
    classes[:2] = classes[1::-1]
    torch.save(dict(meta=dict(CLASSES=classes), state_dict=weights), tmp_path / 'other.pth')
    with pytest.raises(
        ValueError, match=r"CLASSES.*found 80, beginning with \['bicycle', 'person', 'car'"
    ):
        convert_released(tmp_path / 'other.pth')
    torch.save(dict(meta=dict(CLASSES=80), state_dict=weights), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other.pth cannot be converted: .*CLASSES.*: found 80$'):
        convert_released(tmp_path / 'other.pth')
