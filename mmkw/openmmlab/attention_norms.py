"""Norms of attentions in configs: a ``norm_cfg`` is turned into what builds the norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcv.cnn.bricks import build_norm_layer
from torch import nn

from ..methods.base import DynamicLayer
from ..methods.kernel_warehouse import layers
from ..methods.kernel_warehouse.attention import AttentionOptions
from ..methods.kernel_warehouse.partition import CellRatio, Ratio

# Norms of maps, and what computes the same for vectors.
_NORMS_OF_VECTORS = {'BN': 'BN1d', 'BN2d': 'BN1d', 'BN3d': 'BN1d', 'LN2d': 'LN'}


@dataclass(frozen=True)
class NormFromConfig:
    """Builds the norm of a ``norm_cfg`` for vectors of a width, by MMCV's registry.

    Raises:
        ValueError: when called, if the type is not registered or an argument is missing, unknown
            or wrong.
    """

    norm_cfg: Mapping[str, Any]

    def __call__(self, width: int) -> nn.Module:
        kind = self.norm_cfg['type']
        name = kind.rpartition('.')[2] if isinstance(kind, str) else kind
        norm_cfg = {**self.norm_cfg, 'type': _NORMS_OF_VECTORS.get(name, kind)}
        try:
            _, norm = build_norm_layer(norm_cfg, width)
        except KeyError as error:
            raise ValueError(f'no norm {kind!r} is registered') from error
        except AssertionError as error:
            raise ValueError(str(error) or 'num_groups is missing') from error
        return norm

    def __repr__(self) -> str:
        return repr(dict(self.norm_cfg))


def attention_from_config(attention: AttentionOptions) -> AttentionOptions:
    """The options of attentions, with :class:`NormFromConfig` in the place of a ``norm_cfg``."""
    if not isinstance(attention, Mapping):
        return attention
    norm = attention.get('norm_layer')
    if not isinstance(norm, Mapping) or 'type' not in norm:
        return attention
    return {**attention, 'norm_layer': NormFromConfig(norm)}


def options_from_config(options: dict[str, Any]) -> dict[str, Any]:
    """The options of layers or warehouses, with their ``attention`` by the function above."""
    if not isinstance(options, Mapping) or 'attention' not in options:
        return options
    return {**options, 'attention': attention_from_config(options['attention'])}


class _FromConfig(layers.KWLayer):
    """KW layers for ``conv_cfg``, whose norm may be a ``norm_cfg``."""

    def set_up_warehouse(
        self,
        budget: Ratio,
        cell_ratio: CellRatio = None,
        spatial_partition: bool = True,
        attention: AttentionOptions = None,
        *args,
    ) -> None:
        attention = attention_from_config(attention)
        super().set_up_warehouse(budget, cell_ratio, spatial_partition, attention, *args)


class KWConv1d(_FromConfig, layers.KWConv1d):
    __doc__ = layers.KWConv1d.__doc__


class KWConv2d(_FromConfig, layers.KWConv2d):
    __doc__ = layers.KWConv2d.__doc__


class KWConv3d(_FromConfig, layers.KWConv3d):
    __doc__ = layers.KWConv3d.__doc__


class KWLinear(_FromConfig, layers.KWLinear):
    __doc__ = layers.KWLinear.__doc__


_FOR_CONFIGS: dict[type[DynamicLayer], type[DynamicLayer]] = {
    layers.KWConv1d: KWConv1d,
    layers.KWConv2d: KWConv2d,
    layers.KWConv3d: KWConv3d,
    layers.KWLinear: KWLinear,
}


def layer_for_configs(layer: type[DynamicLayer]) -> type[DynamicLayer]:
    """What ``conv_cfg`` builds: for a KW layer its class above, for any other the layer itself."""
    return _FOR_CONFIGS.get(layer, layer)
