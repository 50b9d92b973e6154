"""Training that would start from a missing checkpoint says what to do, or does without it."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmkw.backbones import KWResNet
from mmkw.checkpoints import CheckpointError

LOADER = dict(
    dataset=[dict(images=torch.ones(3, 32, 32))] * 2,
    batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)


class Network(BaseModel):
    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = KWResNet(
            18,
            stem_channels=8,
            base_channels=8,
            norm_eval=True,
            init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.'),
        )

    def forward(self, images, mode='tensor'):
        loss = self.backbone(images)[-1].square().mean()
        return dict(loss=loss) if mode == 'loss' else [loss]


def make_runner(folder, checkpoint, **options):
    folder.mkdir(exist_ok=True)
    return Runner(
        model=Network(checkpoint),
        work_dir=str(folder),
        train_dataloader=LOADER,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(logger=None, pretrained=dict(type='KWPretrainedHook')),
        **dict(dict(experiment_name=folder.name), **options),
    )


@pytest.fixture
def missing(tmp_path):
    return tmp_path / 'work_dirs' / 'kw-resnet18-1x' / 'epoch_300.pth'


def test_missing_checkpoint_names_the_option_and_the_fixes(tmp_path, missing):
    runner = make_runner(tmp_path / 'run', missing)
    with pytest.raises(CheckpointError) as error:
        runner.train()
    text = str(error.value)
    assert text.startswith(f'model.backbone.init_cfg.checkpoint={missing} does not exist')
    for fix in (
        'train the classifier kw-resnet18-1x',
        '--cfg-options model.backbone.init_cfg.checkpoint=PATH',
        '--cfg-options load_from=PATH',
    ):
        assert fix in text


@pytest.mark.parametrize('how', ['load_from', 'resume', 'latest'])
def test_missing_checkpoint_is_not_needed_where_all_is_loaded(how, tmp_path, missing):
    missing.parent.mkdir(parents=True)
    torch.save(dict(state_dict=Network('').state_dict()), missing)
    first = make_runner(tmp_path / 'first', missing)
    first.train()
    missing.unlink()
    last = str(tmp_path / 'first' / 'epoch_1.pth')
    options = {
        'load_from': dict(load_from=last),
        'resume': dict(load_from=last, resume=True),
        'latest': dict(resume=True),
    }[how]
    folder = tmp_path / ('first' if how == 'latest' else 'second')
    options['experiment_name'] = how
    runner = make_runner(folder, missing, **options)
    runner.train()
    expected = dict(first.model.named_parameters())
    for name, value in runner.model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_resuming_without_a_checkpoint_is_no_excuse(tmp_path, missing):
    with pytest.raises(CheckpointError, match='does not exist'):
        make_runner(tmp_path / 'run', missing, resume=True).train()


def test_testing_needs_none(tmp_path, missing):
    options = dict(test_dataloader=LOADER, test_cfg=dict(), test_evaluator=[])
    runner = make_runner(tmp_path / 'run', missing, **options)
    runner.test()
