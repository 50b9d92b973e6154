"""What all methods of the comparison have in common: data, schedule and optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .methods import Method
from .scans import NUM_CLASSES, NUM_SCANS


@dataclass(frozen=True)
class Recipe:
    """Data, schedule and optimizer of every run.

    The scans of scikit-learn's digits are easy: with all of them every method comes to 98 % or
    more. So there are few of them, at 32 pixels, and each image has noise and a hidden part.

    Attributes:
        iters: iterations of training.
        batch_size: images of an iteration.
        lr: peak learning rate of AdamW, after a linear warm-up of a tenth of the iterations; a
            cosine then takes it to 0.
        weight_decay: of AdamW.
        annealing: part of the iterations over which temperatures are annealed.
        base_channels: of the ResNet18's first stage; 64 in the full network.
        train_scans: how many scans are trained on, other ones for each seed.
        val_scans: how many are validated on, the same for all seeds.
        renderings: images of each training scan.
        noise: standard deviation of the noise, relative to the range from black to white.
        hidden: side of the hidden square, relative to the image's.
        evaluations: how often a run is evaluated at most, evenly spaced, the last time at its end.

    Raises:
        ValueError: if a number is out of range, or there are not as many scans.
    """

    iters: int = 240
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    annealing: float = 0.3
    base_channels: int = 8
    train_scans: int = 600
    val_scans: int = 800
    renderings: int = 8
    noise: float = 0.1
    hidden: float = 0.25
    evaluations: int = 6

    def __post_init__(self) -> None:
        for name in ('iters', 'batch_size', 'train_scans', 'val_scans', 'evaluations'):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f'{name} must be a positive integer, but got {value!r}')
        if self.evaluations > self.iters:
            raise ValueError(
                f'{self.iters} iterations cannot hold {self.evaluations} evaluations; train for '
                f'more iterations'
            )
        if self.train_scans + self.val_scans > NUM_SCANS:
            raise ValueError(
                f'there are {NUM_SCANS} scans, but {self.train_scans} for training and '
                f'{self.val_scans} for validation are asked for'
            )

    def config(self, method: Method, seed: int, work_dir: str) -> dict:
        """The config of one run, for MMEngine's Runner."""
        warmup = max(self.iters // 10, 1)
        return dict(
            default_scope='mmpretrain',
            custom_imports=dict(imports=['mmkw', 'mmkw.analysis.comparison.scans']),
            data_preprocessor=dict(
                type='ClsDataPreprocessor',
                num_classes=NUM_CLASSES,
                mean=[127.5],
                std=[64.0],
                to_rgb=False,
            ),
            model=method.model(self.base_channels, NUM_CLASSES),
            train_dataloader=self._loader('train', seed, self.train_scans),
            val_dataloader=self._loader('val', 0, self.val_scans),
            val_evaluator=dict(type='Accuracy', topk=(1,)),
            train_cfg=dict(
                by_epoch=False,
                max_iters=self.iters,
                val_interval=math.ceil(self.iters / self.evaluations),
            ),
            val_cfg=dict(),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=self.lr, weight_decay=self.weight_decay)
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warmup),
                dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=self.iters),
            ],
            custom_hooks=method.hooks(max(round(self.annealing * self.iters), 1)),
            default_hooks=dict(checkpoint=None),
            randomness=dict(seed=seed),
            log_level='WARNING',
            work_dir=work_dir,
        )

    def _loader(self, split: str, seed: int, num_scans: int) -> dict:
        is_train = split == 'train'
        return dict(
            batch_size=self.batch_size if is_train else 200,
            num_workers=0,
            sampler=dict(
                type='InfiniteSampler' if is_train else 'DefaultSampler', shuffle=is_train
            ),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='NoisyDigits',
                split=split,
                seed=seed,
                num_scans=num_scans,
                num_val_scans=self.val_scans,
                renderings=self.renderings if is_train else 1,
                noise=self.noise,
                hidden=self.hidden,
            ),
        )


# For tests, and to see in seconds that everything runs; the accuracies mean nothing.
QUICK = Recipe(
    iters=4,
    batch_size=8,
    train_scans=20,
    val_scans=20,
    renderings=1,
    evaluations=2,
)
