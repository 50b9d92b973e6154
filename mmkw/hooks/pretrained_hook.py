"""Hook that looks for the checkpoint of a backbone before training begins."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint

from ..checkpoints.loading import CheckpointError


@HOOKS.register_module()
class KWPretrainedHook(Hook):
    """Sees to the checkpoints of ``init_cfg=dict(type='Pretrained', checkpoint=...)``.

    If one is missing, training does not begin, and the error names the option and what can be done.
    A run with ``load_from``, or one that is resumed, gets all weights from there; it does without
    the missing file, and the log says so. URLs and names of models are left to MMEngine.

    Raises:
        CheckpointError: if a checkpoint to start from is missing.
    """

    def before_run(self, runner: Runner) -> None:
        """Look for the checkpoints, in training."""
        # Testing initialises nothing. Its training loop, if any, is still a config.
        if runner._train_loop is None or isinstance(runner._train_loop, dict):
            return
        loaded = runner._load_from
        if loaded is None and runner._resume:
            loaded = find_latest_checkpoint(runner.work_dir)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, module, init_cfg in _missing(model):
            option = f'{name}.init_cfg' if name else 'init_cfg'
            if loaded is None:
                raise CheckpointError(_what_to_do(f'model.{option}', init_cfg['checkpoint']))
            others = [cfg for cfg in _configs(module) if cfg is not init_cfg]
            module.init_cfg = others or None
            runner.logger.info(
                f'model.{option}.checkpoint={init_cfg["checkpoint"]} does not exist; it is not '
                f'needed, as all weights come from {loaded}.'
            )


def _configs(module: BaseModule) -> list[dict]:
    init_cfg = module.init_cfg
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])


def _missing(model) -> Iterator[tuple[str, BaseModule, dict]]:
    for name, module in model.named_modules():
        for init_cfg in _configs(module) if isinstance(module, BaseModule) else ():
            path = init_cfg.get('checkpoint') or ''
            is_pretrained = init_cfg.get('type') in ('Pretrained', PretrainedInit)
            if is_pretrained and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
                yield name, module, init_cfg


def _what_to_do(option: str, checkpoint: str) -> str:
    checkpoint = os.path.normpath(checkpoint)
    trained = os.path.basename(os.path.dirname(checkpoint))
    return (
        f'{option}.checkpoint={checkpoint} does not exist, from which training would start. '
        f'Do one of these:\n'
        f'  - train the classifier {trained}, whose config is in configs/imagenet, with '
        f'tools/train.py and --work-dir {os.path.dirname(checkpoint)}\n'
        f'  - name another checkpoint with --cfg-options {option}.checkpoint=PATH, such as a '
        f'released model, converted by tools/model_converters/kernelwarehouse_to_mmkw.py\n'
        f'  - start the whole model from a checkpoint, with --cfg-options load_from=PATH'
    )
