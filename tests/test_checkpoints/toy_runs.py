"""Training of a tiny network by MMEngine's runner, for what it leaves in checkpoints."""

import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layers(inputs).square().mean())


def toy_runner(work_dir, epochs, **kwargs):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=row) for row in data],
            sampler=dict(type=DefaultSampler, shuffle=True),
            batch_size=4,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=2),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='CosineAnnealingLR', begin=1, T_max=4),
        ],
        custom_hooks=[dict(type='EMAHook')],
        experiment_name=f'{work_dir.name}_{epochs}',
        **{'randomness': dict(seed=0), **kwargs},
    )
