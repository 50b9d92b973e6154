"""A hook that stops training that has diverged."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...arguments import check_positive, checks_arguments


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training when the loss is no longer a finite number.

    Without it a diverged run goes on to its end and exits without an error, with a checkpoint of
    NaN. For classification, detection and any other task; as one of the default hooks it stays
    where a config replaces its custom hooks::

        default_hooks = dict(finite_loss=dict(type='FiniteLossHook'))

    Args:
        interval (int): iterations between two looks at the loss, which wait for the device. It is
            looked at in the last iteration of an epoch, too, before the checkpoint is written.
            Defaults to 50.

    Raises:
        ValueError: if ``interval`` is not a positive integer.
        FloatingPointError: in training, if the loss is NaN or infinite.
    """

    # Before the hooks that log and save.
    priority = 'ABOVE_NORMAL'

    @checks_arguments()
    def __init__(self, interval: int = 50) -> None:
        check_positive('interval of FiniteLossHook', interval, whole=True)
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Look at the loss, at every interval.

        Raises:
            FloatingPointError: if it is not finite.
        """
        is_due = self.every_n_train_iters(runner, self.interval)
        if (
            not is_due
            and not self.is_last_train_iter(runner)
            and not self.end_of_epoch(runner.train_dataloader, batch_idx)
        ):
            return
        loss = (outputs or {}).get('loss')
        if loss is None or torch.isfinite(torch.as_tensor(loss)).all():
            return
        parts = ', '.join(
            f'{name} {torch.as_tensor(value).float().mean().item():g}'
            for name, value in outputs.items()
            if 'loss' in name
        )
        raise FloatingPointError(
            f'the loss is no longer a finite number in iteration {runner.iter + 1} ({parts}), so '
            f'training has diverged; go back to the last good checkpoint, and lower the learning '
            f'rate, lengthen the warm-up, clip gradients (optim_wrapper.clip_grad) or look for '
            f'broken images and labels'
        )
