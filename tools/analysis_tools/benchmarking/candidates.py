"""Networks to measure, and the plain network that each is compared with."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from mmkw.analysis.configs import type_name, without_checkpoints

_KW_OPTIONS = (
    'budget', 'cell_ratio', 'attention', 'blocks_per_warehouse', 'sharing', 'allocation',
    'spatial_partition',
)  # fmt: skip
# MMPretrain's LinearClsHead with a dynamic layer, or with dropout, which costs next to nothing.
_HEADS = ('KWLinearClsHead', 'DynamicLinearClsHead', 'DropoutLinearClsHead')


@dataclass
class Candidate:
    """A network to measure, as its config describes it.

    Attributes:
        name: what tables and plots call it.
        stem: the name of its config file, without ``.py``.
        scope: ``mmpretrain`` for classifiers, ``mmdet`` for detectors.
        model: the config of the whole model.
    """

    name: str
    stem: str
    scope: str
    model: dict

    @classmethod
    def of(cls, config: Config, name: str, stem: str | None = None) -> Candidate:
        """Take the model of a config, without weights to start from.

        Args:
            config: of MMPretrain or MMDetection.
            name: what tables and plots call it.
            stem: the name of the config's file. Defaults to ``name``.

        Raises:
            ValueError: if it is no classifier or detector with a backbone.
        """
        scope = config.get('default_scope')
        if scope not in ('mmpretrain', 'mmdet') or 'backbone' not in (config.get('model') or {}):
            raise ValueError(
                f'{name} is no config of MMPretrain or MMDetection with a model.backbone: its '
                f'default_scope is {scope!r}'
            )
        return cls(name, stem or name, scope, without_checkpoints(config.model.to_dict()))


def plain_twin(candidate: Candidate) -> Candidate:
    """The same network without dynamic layers; a plain network is its own twin."""
    model = copy.deepcopy(candidate.model)
    backbone, head = model['backbone'], model.get('head') or {}
    if type_name(backbone) in ('KWBackbone', 'DynamicBackbone'):
        model['backbone'] = plain = backbone['backbone']
        scope, _ = Registry.split_scope_key(plain['type'])
        if scope is not None:
            plain.setdefault('_scope_', scope)
    elif type_name(backbone).startswith('KW'):
        kept = {key: value for key, value in backbone.items() if key not in _KW_OPTIONS}
        model['backbone'] = dict(kept, budget=None)
    if type_name(head, 'None') in _HEADS:
        options = (*_KW_OPTIONS, 'layer', 'dropout')
        kept = {key: value for key, value in head.items() if key not in options}
        model['head'] = dict(kept, type='LinearClsHead')
    name = re.sub(
        r'(^|_)(?:(?:kw|odconv|dyconv|condconv)-)?((?:resnet|mobilenet|convnext|deit)[^_]*?)'
        r'-(?:\d+d)?\d+x(?:-released)?(?=_|$)',
        r'\1\2',
        candidate.name,
    )
    name = re.sub(r'(^|_)dcd-', r'\1', name)
    if name == candidate.name:
        name = f'{name} (plain)'
    return Candidate(name, candidate.stem, candidate.scope, model)


# What recipes change from model to model: next to nothing of the cost of a step.
_RECIPE = (
    'drop_path_rate', 'constant_drop_path', 'zero_init_residual', 'init_cfg', 'loss', 'augments',
)  # fmt: skip
# Defaults of ResNet that some configs write out.
_RESNET_DEFAULTS = dict(num_stages=4, out_indices=(3,), style='pytorch')


def _architecture(config: Any) -> Any:
    """What of a plain network's config decides what it costs.

    MMPretrain's ResNet and MobileNetV2, and mmkw's with ``budget=None``, are the same networks.
    """
    if not isinstance(config, dict):
        return [_architecture(value) for value in config] if type(config) is list else config
    kept = {key: _architecture(value) for key, value in config.items() if key not in _RECIPE}
    kind = type_name(config, '').removeprefix('KW')
    if kind in ('ResNet', 'MobileNetV2') and kept.get('budget') is None:
        kept['type'] = kind
        kept.pop('_scope_', None)
    if kind == 'ResNet':
        written_out = _RESNET_DEFAULTS.items()
        kept = {k: v for k, v in kept.items() if (k, v) not in written_out}
    return {key: value for key, value in kept.items() if value not in (None, {})}


def group_by_twin(candidates: list[Candidate]) -> list[list[Candidate]]:
    """Group networks that have the same plain twin, which stands first in each group.

    Twins are the same if they differ in initialisation, loss, dropped paths and mixed images alone.

    Raises:
        ValueError: if a network is named twice.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        twin = plain_twin(candidate)
        architecture = _architecture(twin.model)
        key = json.dumps(architecture, sort_keys=True, default=repr)
        group = groups.setdefault(key, [twin])
        if any(candidate.name == other.name for other in group[1:]):
            raise ValueError(f'{candidate.name} is named twice; name each model once')
        if _architecture(candidate.model) == architecture:
            group[0] = candidate
        else:
            group.append(candidate)
    return list(groups.values())
