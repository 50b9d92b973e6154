"""Algorithms that average a network while it trains: MoCo, BYOL and MMDetection's SoftTeacher."""

from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmpretrain.models.backbones import ResNet
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

import mmkw
from mmkw.methods.kernel_warehouse import KWLayer, Warehouse
from mmkw.openmmlab.backbones import KWResNet

NARROW = dict(depth=18, base_channels=8, stem_channels=8, zero_init_residual=False)
BACKBONE = dict(type='KWResNet', **NARROW)


def projection(layers=2, **options):
    widths = dict(in_channels=64, hid_channels=16, out_channels=8)
    return dict(type='NonLinearNeck', num_layers=layers, **{**widths, **options})


PREDICTION = dict(
    type='LatentPredictHead',
    loss=dict(type='CosineSimilarityLoss'),
    predictor=projection(in_channels=8, with_avg_pool=False),
)
CROSS_CORRELATION = dict(
    type='LatentCrossCorrelationHead', in_channels=8, loss=dict(type='CrossCorrelationLoss')
)
ALGORITHMS = {
    'MoCo': dict(
        queue_len=8,
        feat_dim=8,
        neck=dict(type='MoCoV2Neck', in_channels=64, hid_channels=16, out_channels=8),
        head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss')),
    ),
    'BYOL': dict(neck=projection(), head=PREDICTION),
    'SimSiam': dict(neck=projection(3), head=PREDICTION),
    'BarlowTwins': dict(neck=projection(3), head=CROSS_CORRELATION),
}


class Views(Dataset):
    """Two views of each image."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        views = list(torch.randn(2, 3, 32, 32, generator=generator))
        return dict(inputs=views, data_samples=DataSample())


class Branches(Dataset):
    """A labelled and an unlabelled image in turn, in the branches that SoftTeacher has for them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        sample = DetDataSample(
            gt_instances=InstanceData(
                bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([0])
            ),
            metainfo=dict(
                img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0),
                homography_matrix=np.eye(3, dtype=np.float32),
            ),
        )  # fmt: skip
        is_in = dict(sup=index % 2 == 0, unsup_teacher=index % 2, unsup_student=index % 2)
        return dict(
            inputs={name: image if here else None for name, here in is_in.items()},
            data_samples={name: sample.clone() if here else None for name, here in is_in.items()},
        )


class Watch(Hook):
    """The temperatures in force in every iteration, and the cells that the run started from."""

    priority = 'LOWEST'

    def __init__(self):
        self.used, self.logged, self.cells = [], [], None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.cells is None:
            self.cells = {name: c.clone() for name, c in cells_of(runner.model).items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.used.append(mmkw.get_temperature(runner.model))
        self.logged.append(runner.message_hub.get_scalar('train/temperature').current())


def cells_of(model):
    return {
        name: module.cells.detach()
        for name, module in model.named_modules()
        if isinstance(module, Warehouse)
    }


def train(folder, scope, model, dataset, load_from, hooks=()):
    """Two iterations of four over which the temperature would be annealed."""
    torch.manual_seed(0)
    watch = Watch()
    runner = Runner(
        model=ConfigDict(model),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=dataset,
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=pseudo_collate if scope == 'mmdet' else default_collate,
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        custom_hooks=[dict(type='KWTemperatureHook', iters=4), *hooks, watch],
        load_from=load_from,
        default_scope=scope,
        experiment_name=f'{folder.parent.name}-{folder.name}',
    )
    runner.train()
    (log,) = folder.rglob('*.log')
    return runner.model, watch, log.read_text()


# By init_cfg of the backbone, or by load_from as the backbone of a classifier.
STARTS = ['nothing', 'plain init_cfg', 'plain load_from', 'KW init_cfg', 'KW load_from']


@pytest.fixture
def start(tmp_path, request):
    """The backbone's config, the checkpoint of the run, and the temperatures to be expected."""
    kind, _, way = request.param.partition(' ')
    if kind == 'nothing':
        return BACKBONE, None, [0.75, 0.5]
    torch.manual_seed(1)
    backbone = ResNet(**NARROW) if kind == 'plain' else KWResNet(**NARROW)
    prefix = '' if way == 'init_cfg' else 'backbone.'
    weights = {f'{prefix}{name}': value for name, value in backbone.state_dict().items()}
    file = str(tmp_path / 'start.pth')
    torch.save(dict(state_dict=weights), file)
    temperatures = [0.75, 0.5] if kind == 'plain' else [0, 0]
    if way == 'load_from':
        return BACKBONE, file, temperatures
    return dict(BACKBONE, init_cfg=dict(type='Pretrained', checkpoint=file)), None, temperatures


def check_run(model, watch, log, temperatures, copy=None, original=None):
    """The right temperatures, in the model and the log, and a copy with warehouses of its own."""
    assert watch.used == watch.logged == temperatures
    assert 'WARNING - mmkw' not in log
    if copy is None:
        return
    modules = set(copy.modules())
    layers = [module for module in modules if isinstance(module, KWLayer)]
    assert len(layers) == 19
    assert all(layer.warehouse in modules for layer in layers)
    # It began as the network did, and follows slowly.
    begin = [cells for name, cells in watch.cells.items() if name.startswith(original)]
    now = cells_of(model)
    trained = [cells for name, cells in now.items() if name.startswith(original)]
    averaged = list(cells_of(copy).values())
    assert len(begin) == len(trained) == len(averaged) == 4
    for first, last, average in zip(begin, trained, averaged):
        assert not torch.equal(first, last)
        assert not torch.equal(average, last)
        rounding = 1e-5 * first.norm()
        assert (average - first).norm() < 0.1 * (last - first).norm() + rounding


@pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')
@pytest.mark.parametrize('start', STARTS, indirect=True)
@pytest.mark.parametrize('name', ALGORITHMS)
def test_self_supervised(name, start, tmp_path):
    backbone, load_from, temperatures = start
    config = dict(type=name, backbone=backbone, **ALGORITHMS[name])
    model, *found = train(tmp_path / 'run', 'mmpretrain', config, Views(), load_from)
    copy = getattr(model, 'encoder_k', getattr(model, 'target_net', None))
    assert (copy is not None) == (name in ('MoCo', 'BYOL'))
    check_run(model, *found, temperatures, copy, 'backbone.')


def test_layers_that_stay_random_are_refused(tmp_path):
    """Those of a frozen stage, and not those of the copy of it."""
    torch.save(ResNet(**NARROW).state_dict(), tmp_path / 'backbone.pth')
    config = dict(type='MoCo', backbone=dict(BACKBONE, frozen_stages=1), **ALGORITHMS['MoCo'])
    message = r'has no weights for backbone\.layer1.* and 1 more, which are frozen'
    with pytest.raises(ValueError, match=message):
        train(tmp_path / 'run', 'mmpretrain', config, Views(), str(tmp_path / 'backbone.pth'))


def detector(backbone):
    """MMDetection's Faster R-CNN, small."""
    path = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/faster-rcnn_r50_fpn.py'
    config = Config.fromfile(path).model
    config.backbone = dict(backbone, out_indices=(0, 1, 2, 3), norm_eval=True)
    config.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    config.rpn_head.update(in_channels=16, feat_channels=16)
    config.roi_head.bbox_roi_extractor.out_channels = 16
    config.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16, num_classes=1)
    for part in (config.train_cfg.rpn_proposal, config.test_cfg.rpn):
        part.update(nms_pre=20, max_per_img=10)
    return config


@pytest.mark.filterwarnings('ignore:The checkpoint holds plain kernels')
@pytest.mark.parametrize('start', STARTS, indirect=True)
def test_soft_teacher(start, tmp_path):
    backbone, load_from, temperatures = start
    student = detector(backbone)
    config = dict(
        type='SoftTeacher',
        detector=student,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor', data_preprocessor=student.data_preprocessor
        ),
        semi_train_cfg=dict(
            freeze_teacher=True, pseudo_label_initial_score_thr=0.5, rpn_pseudo_thr=0.9,
            cls_pseudo_thr=0.9, reg_pseudo_thr=0.02, jitter_times=2, jitter_scale=0.06,
            min_pseudo_bbox_wh=(1e-2, 1e-2),
        ),
        semi_test_cfg=dict(predict_on='teacher'),
    )  # fmt: skip
    hooks = [dict(type='MeanTeacherHook')]
    model, *found = train(tmp_path / 'run', 'mmdet', config, Branches(), load_from, hooks)
    check_run(model, *found, temperatures, model.teacher, 'student.')
