"""Interrupted runs go on as if they had not been, or say why they cannot."""

import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import mmkw  # noqa: F401

LENGTH = 10


class Noisy(torch.utils.data.Dataset):
    """Random augmentation by all generators."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return torch.full((2,), random.random() + np.random.rand()) + torch.rand(2)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs, mode):
        loss = nn.functional.dropout(self.fc(inputs.float())).square().mean()
        return dict(loss=loss) if mode == 'loss' else [loss]


def make_runner(work_dir, hooks=(), workers=0, epochs=2, **options):
    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=dict(
            dataset=Noisy(), batch_size=1, num_workers=workers, sampler=dict(type='DefaultSampler')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type=name) for name in hooks],
        randomness=dict(seed=3),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}{random.random()}',
        **options,
    )


@pytest.mark.parametrize('workers', [0, 1])
def test_resumed_run_sees_the_same_random_numbers(tmp_path, workers):
    weights = []
    for name, part in (('whole', 2), ('parts', 1)):
        for epochs in range(part, 3):
            random.seed()  # where another process starts is not known
            torch.seed()
            runner = make_runner(
                tmp_path / name,
                ['EpochSeedHook'],
                workers,
                epochs,
                resume=epochs > part,
                load_from=str(tmp_path / name / 'epoch_1.pth') if epochs > part else None,
            )
            runner.train()
        weights.append(runner.model.fc.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize('interval', [4, LENGTH])
def test_resuming_within_an_epoch_is_refused(tmp_path, interval):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=interval, save_last=False)
    make_runner(tmp_path, epochs=1, default_hooks=dict(checkpoint=checkpoint)).train()
    path = str(tmp_path / f'iter_{interval}.pth')
    runner = make_runner(tmp_path, ['WholeEpochHook'], resume=True, load_from=path)
    with pytest.raises(ValueError, match=f'from iteration {interval}, within epoch 1 of 10 iter'):
        runner.train()


def test_resuming_after_an_epoch_is_fine(tmp_path):
    make_runner(tmp_path, ['WholeEpochHook'], epochs=1).train()
    path = str(tmp_path / 'epoch_1.pth')
    runner = make_runner(tmp_path, ['WholeEpochHook'], resume=True, load_from=path)
    runner.train()
    assert runner.iter == 2 * LENGTH
