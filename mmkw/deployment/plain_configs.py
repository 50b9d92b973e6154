"""Configs of networks with dynamic layers as those of the plain networks."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ConvNeXt, MobileNetV2, ResNet, VisionTransformer
from mmpretrain.models.heads import LinearClsHead

from ..analysis.configs import type_name, without_checkpoints
from ..methods import DynamicConvNd, DynamicLinear
from ..openmmlab.backbones import KWConvNeXt, KWMobileNetV2, KWResNet, KWVisionTransformer
from ..openmmlab.backbones.any_backbone import in_own_scope
from ..openmmlab.backbones.resnet import as_mmpretrain_arguments
from ..openmmlab.heads import DynamicLinearClsHead, KWLinearClsHead

# The plain class of each, from which it is derived.
_PLAIN: dict[type, type] = {
    KWResNet: ResNet,
    KWMobileNetV2: MobileNetV2,
    KWConvNeXt: ConvNeXt,
    KWVisionTransformer: VisionTransformer,
    KWLinearClsHead: LinearClsHead,
    DynamicLinearClsHead: LinearClsHead,
}
# Those with the plain backbone's config as an argument.
_WRAPPERS = ('KWBackbone', 'DynamicBackbone')
_HOOKS_OF_ATTENTIONS = (
    'KWAttentionHook',
    'KWDisableAttentionInitHook',
    'KWTemperatureHook',
)


def plain_config(config: Config) -> Config:
    """A config with the plain network in the place of one with dynamic layers.

    The plain network has the same names and shapes, and starts from no checkpoint. Hooks that need
    attentions are left out. Everything else stays.

    Args:
        config: of a classifier, detector or other model of OpenMMLab.
    """
    config = copy.deepcopy(config)
    config.model = plain_model_config(without_checkpoints(config.model.to_dict()))
    hooks = config.get('custom_hooks') or []
    config.custom_hooks = [hook for hook in hooks if type_name(hook) not in _HOOKS_OF_ATTENTIONS]
    config.load_from, config.resume = None, False
    return config


def plain_model_config(config: Any) -> Any:
    """The config of a model, or of a part of it, with plain layers.

    Plain classes take the places of mmkw's backbones and heads, the wrapped backbone that of
    ``KWBackbone`` and ``DynamicBackbone``, and plain layers those of dynamic ones, such as in
    ``conv_cfg``.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(map(plain_model_config, config))
    if not isinstance(config, dict):
        return config
    name = type_name(config, '')
    if name in _WRAPPERS:
        return plain_model_config(in_own_scope(config['backbone']))
    kind = MODELS.module_dict.get(name)
    if kind in _PLAIN:
        config = _as_plain(config, kind)
    elif inspect.isclass(kind) and issubclass(kind, DynamicConvNd):
        return dict(type=kind.plain_type.__name__)
    elif inspect.isclass(kind) and issubclass(kind, DynamicLinear):
        return dict(type='Linear')
    return {key: plain_model_config(value) for key, value in config.items()}


def _as_plain(config: dict, kind: type) -> dict:
    """Without the options that the plain class does not have, and with the defaults of ``kind``."""
    plain = _PLAIN[kind]
    if kind is KWResNet:
        config, *dilations = as_mmpretrain_arguments(config)
        if any(dilations):
            raise ValueError(
                "the plain ResNet is MMPretrain's, which has no contract_dilation and no "
                'multi_grid; build the network without them'
            )
    config = {**config, 'type': f'mmpretrain.{plain.__name__}'}
    known = inspect.signature(plain).parameters
    for name, option in inspect.signature(kind).parameters.items():
        if name not in known:
            config.pop(name, None)
        elif option.default is not option.empty:
            config.setdefault(name, option.default)
    return config
