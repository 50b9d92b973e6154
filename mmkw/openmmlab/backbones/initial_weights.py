"""A network as its ``init_weights`` leaves it, beside the network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import nn


def initialised_copy(network: nn.Module) -> nn.Module:
    """A copy of a network after its ``init_weights``, without checkpoints.

    The network, the log and the state of the random number generator stay as they are. Networks on
    the meta device have no values to initialise and are returned themselves.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return network
    initial = copy.deepcopy(network)
    if not isinstance(initial, BaseModule):
        return initial
    for module in initial.modules():
        if isinstance(module, BaseModule):
            module.is_init = False
            configs = module.init_cfg or []
            configs = [configs] if isinstance(configs, dict) else configs
            kept = [config for config in configs if 'Pretrained' not in str(config['type'])]
            if len(kept) < len(configs):
                module.init_cfg = kept or None
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices), _quiet_log():
        initial.init_weights()
    return initial


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep MMEngine's list of initialised parameters out of the log."""
    logger = MMLogger.get_current_instance()
    handlers, logger.handlers = logger.handlers, []
    try:
        yield
    finally:
        logger.handlers = handlers
