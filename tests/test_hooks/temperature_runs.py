"""Training of a layer or network by MMEngine's runner, four iterations an epoch."""

from contextlib import contextmanager

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import Dataset

import mmkw
from mmkw.methods.kernel_warehouse import KWConv2d


class Images(Dataset):
    def __init__(self, size=16, shape=(4, 5, 5)):
        self.size, self.shape = size, shape

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(index))


class Network(BaseModel):
    def __init__(self, layer):
        super().__init__()
        self.body = layer

    def forward(self, x, mode='tensor'):
        y = self.body(x)
        return dict(loss=(y - 1).square().mean()) if mode == 'loss' else y

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(data, mode='loss')
        optim_wrapper.update_params(losses['loss'])
        return losses


class Recorder(Hook):
    """What the model computes with, and what the others show, in every iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.used, self.hub = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.used.append(mmkw.get_temperature(runner.model))
        self.hub.append(runner.message_hub.get_scalar('train/temperature').current())


def make_runner(work_dir, hooks, epochs=4, layer=None, images=None, batch_size=4, **config):
    torch.manual_seed(0)
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01), **config.pop('optim_wrapper', {}))
    return Runner(
        model=Network(layer or KWConv2d(4, 4, 3, padding=1, cell_ratio=0.5)),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=images or Images(),
            batch_size=batch_size,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=config.pop('train_cfg', dict(by_epoch=True, max_epochs=epochs)),
        optim_wrapper=optim_wrapper,
        custom_hooks=hooks,
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'{work_dir.name}-{len(list(work_dir.iterdir()))}',
        **config,
    )


def train(work_dir, hooks, **config):
    recorder = Recorder()
    runner = make_runner(work_dir, [*hooks, recorder], **config)
    runner.train()
    return runner, recorder


def expected_schedule(length, total):
    return [max(0, 1 - t / length) for t in range(1, total + 1)]


class BFloat16OptimWrapper(OptimWrapper):
    """AmpOptimWrapper refuses to run without a GPU; its autocast does not."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
