"""Converting checkpoints of the authors' release."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Union

import torch
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from ..backbones.resnet import KWResNet, resnet_plan
from ..kernel_warehouse.layers import default_cell_ratio
from ..kernel_warehouse.plan import partition_network
from .loading import load_checkpoint
from .saving import save_checkpoint

# The budgets of the released ResNets.
_BUDGETS = (1 / 4, 1 / 2, 1, 2, 4)
_BLOCK = re.compile(r'backbone\.layer\d+\.\d+')
_WAREHOUSE = re.compile(r'warehouse_manager\.weights\.(\d+)')
_Path = Union[str, os.PathLike]


def convert_released(src: _Path, dst: _Path | None = None) -> dict:
    """Turn a released KernelWarehouse ResNet classifier into an mmkw checkpoint.

    The depth and the budget are found from names and shapes, and the result is verified by
    loading it strictly into that network. It suits ``load_from`` and strict loading in the
    classifier of the matching config, and ``init_cfg=dict(type='Pretrained', checkpoint=dst,
    prefix='backbone.')`` in a detector's backbone.

    Args:
        src: a released file: a pickled dict with the state dict under ``model``. Read without
            running code from it.
        dst: where to write the result, in one step. Defaults to ``None``, nowhere.

    Returns:
        The mmkw checkpoint: ``state_dict`` and ``meta`` with ``depth``, ``budget``, ``source``.

    Raises:
        ValueError: if ``src`` holds no released ResNet; it says which names or shapes are off.
        UnsafeCheckpointError: if its pickle asks for classes that checkpoints do not need.
        FileNotFoundError: if ``src`` or the folder of ``dst`` is missing.
    """
    state_dict = {_rename(name): value for name, value in _released_state_dict(src).items()}
    depth = _find_depth(state_dict, src)
    budget = _find_budget(state_dict, depth, src)
    network = nn.ModuleDict({'backbone': KWResNet(depth, budget)})
    num_classes = len(state_dict.get('head.fc.bias', range(1000)))
    fc = nn.Linear(network['backbone'].feat_dim, num_classes)
    network['head'] = nn.ModuleDict({'fc': fc})
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        mismatch = ' '.join(str(error).split())
        raise ValueError(
            f'{src} looks like a released ResNet{depth} with budget {budget:g}, but {mismatch}'
        ) from error
    # The release stores no temperature; its models are trained, so it is 0.
    for name in network['backbone'].warehouses:
        state_dict[f'backbone.warehouses.{name}.temperature'] = torch.zeros(())
    meta = dict(depth=depth, budget=budget, source=os.path.basename(src))
    checkpoint = dict(state_dict=state_dict, meta=meta)
    if dst is not None:
        save_checkpoint(checkpoint, dst)
    return checkpoint


def _released_state_dict(src: _Path) -> dict[str, Tensor]:
    checkpoint = load_checkpoint(src)
    state_dict = checkpoint.get('model', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state_dict, Mapping) or not any(map(_WAREHOUSE.match, state_dict)):
        found = list(state_dict)[:3] if isinstance(state_dict, Mapping) else type(checkpoint)
        raise ValueError(
            f'{src} is not a released KernelWarehouse checkpoint: expected a dict whose `model` '
            f'holds tensors named warehouse_manager.weights.*, but found {found}'
        )
    # Saved from DistributedDataParallel.
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def _rename(name: str) -> str:
    name = _WAREHOUSE.sub(lambda match: f'warehouses.layer{int(match[1]) + 1}.cells', name)
    name = name.replace('.attention.norm1.', '.attention.norm.')
    return name.replace('fc.', 'head.fc.', 1) if name.startswith('fc.') else f'backbone.{name}'


def _find_depth(state_dict: Mapping[str, Tensor], src: _Path) -> int:
    blocks = {match[0] for match in map(_BLOCK.match, state_dict) if match}
    counts = Counter(block.split('.')[1] for block in blocks)
    found = tuple(counts[stage] for stage in sorted(counts))
    has_bottleneck = any('.conv3.' in name for name in state_dict)
    for depth, (block, stage_blocks) in KWResNet.arch_settings.items():
        if found == stage_blocks and has_bottleneck == (block is Bottleneck):
            return depth
    raise ValueError(
        f'{src} is not a released ResNet: no depth of {sorted(KWResNet.arch_settings)} has '
        f'{found} {"bottleneck" if has_bottleneck else "basic"} blocks'
    )


def _find_budget(state_dict: Mapping[str, Tensor], depth: int, src: _Path) -> float:
    network = KWResNet(depth, budget=None)
    found = {
        name: tuple(value.shape) for name, value in state_dict.items() if '.warehouses.' in name
    }
    for budget in _BUDGETS:
        plan = resnet_plan(network, budget=budget, cell_ratio=default_cell_ratio(budget))
        expected = {
            f'backbone.warehouses.{name}.cells': (partition.num_cells, *partition.cell_shape)
            for name, partition in partition_network(network, plan).items()
        }
        if found == expected:
            return budget
    raise ValueError(
        f'{src}: no budget of {_BUDGETS} gives a ResNet{depth} the warehouses {found} (cells, '
        f'output channels, input channels, ...); it is damaged or not of the release'
    )
