"""Interrupted runs go on as if they had not been, or say why they cannot."""

import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
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
        self.seen = []

    def forward(self, inputs, mode):
        self.seen.append(inputs.sum().item())
        loss = nn.functional.dropout(self.fc(inputs.float())).square().mean()
        return dict(loss=loss) if mode == 'loss' else [loss]


@LOOPS.register_module(force=True)
class OwnLoop(BaseLoop):
    max_epochs = max_iters = 1
    iter = epoch = 0

    def run(self):
        self.runner.call_hook('before_train')


def by_epochs(epochs):
    return dict(train_cfg=dict(by_epoch=True, max_epochs=epochs))


def by_iterations(iterations):
    saving = dict(type='CheckpointHook', by_epoch=False, interval=4)
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        default_hooks=dict(checkpoint=saving),
    )


def make_runner(work_dir, hooks=(), workers=0, **options):
    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=dict(
            dataset=Noisy(), batch_size=1, num_workers=workers, sampler=dict(type='DefaultSampler')
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type=name) for name in hooks],
        randomness=dict(seed=3),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}{random.random()}',
        **options,
    )


def train(work_dir, workers, **options):
    random.seed()  # where another process starts is not known
    torch.seed()
    runner = make_runner(work_dir, ['SeedHook'], workers, **options)
    runner.train()
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        # Ends its workers. Where the garbage collector ends them, it waits five seconds for each.
        runner.train_loop.dataloader_iterator = None
    return runner.model


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('part', 'whole', 'saved'),
    [
        (by_epochs(1), by_epochs(2), 'epoch_1.pth'),
        (by_iterations(5), by_iterations(8), 'iter_4.pth'),
    ],
    ids=['epochs', 'iterations'],
)
def test_resumed_run_sees_the_same_random_numbers(tmp_path, workers, part, whole, saved):
    expected = train(tmp_path / 'whole', workers, **whole)
    train(tmp_path / 'parts', workers, **part)
    checkpoint = str(tmp_path / 'parts' / saved)
    found = train(tmp_path / 'parts', workers, resume=True, load_from=checkpoint, **whole)
    assert found.seen == expected.seen[-len(found.seen) :]
    torch.testing.assert_close(found.fc.weight, expected.fc.weight, rtol=0, atol=0)


def test_every_iteration_has_numbers_of_its_own(tmp_path):
    seen = train(tmp_path, 0, **by_iterations(8)).seen
    assert len(set(seen)) == 8


def test_other_loops_are_refused(tmp_path):
    runner = make_runner(tmp_path, ['SeedHook'], train_cfg=dict(type='OwnLoop'))
    with pytest.raises(ValueError, match='SeedHook needs .* but got OwnLoop; remove the hook'):
        runner.train()


@pytest.mark.parametrize('interval', [4, LENGTH])
def test_resuming_within_an_epoch_is_refused(tmp_path, interval):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=interval, save_last=False)
    make_runner(tmp_path, default_hooks=dict(checkpoint=checkpoint), **by_epochs(1)).train()
    path = str(tmp_path / f'iter_{interval}.pth')
    runner = make_runner(tmp_path, ['WholeEpochHook'], resume=True, load_from=path, **by_epochs(2))
    with pytest.raises(ValueError, match=f'from iteration {interval}, within epoch 1 of 10 iter'):
        runner.train()


def test_resuming_after_an_epoch_is_fine(tmp_path):
    make_runner(tmp_path, ['WholeEpochHook'], **by_epochs(1)).train()
    path = str(tmp_path / 'epoch_1.pth')
    runner = make_runner(tmp_path, ['WholeEpochHook'], resume=True, load_from=path, **by_epochs(2))
    runner.train()
    assert runner.iter == 2 * LENGTH
