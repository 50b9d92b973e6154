"""What the backbones with warehouses have in common."""

from __future__ import annotations

import warnings

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import nn

from ...networks.plan import Plan, apply_plan, freeze_idle_warehouses
from .conv_types import naming_conv_types
from .layer_depth import name_by_depth
from .start_record import record_starts


class WarehouseBackbone(BaseBackbone):
    """Base before a plain backbone of MMPretrain, whose layers a plan has replaced.

    A frozen stage freezes its attentions, as they stand in it. A warehouse is frozen where all the
    layers that use it are, unless the backbone was built with ``freeze_idle_warehouses=False``.
    """

    freeze_idle_warehouses = True

    def __init__(self, *args, **kwargs) -> None:
        with naming_conv_types(kwargs):
            super().__init__(*args, **kwargs)
        record_starts(self)

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        if self.freeze_idle_warehouses:
            freeze_idle_warehouses(self)

    def train(self, mode: bool = True) -> WarehouseBackbone:
        """Set the mode, keeping frozen stages and, with ``norm_eval``, norms as they are."""
        super().train(mode)
        return self  # which MMPretrain's backbones forget

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer-wise learning rates: a warehouse has the depth of the first layer that uses it.

        Raises:
            NotImplementedError: if the plain backbone does not know the depths of its layers.
        """
        if not hasattr(super(), 'get_layer_depth'):
            raise NotImplementedError(
                f'{type(self).__name__} has no layer-wise learning rates, because its plain '
                f'backbone says nothing about the depth of its layers'
            )
        return super().get_layer_depth(name_by_depth(self, param_name, prefix), prefix)


def apply_backbone_plan(network: nn.Module, plan: Plan, freeze_idle: bool) -> None:
    """Apply a plan to a backbone, see :func:`~mmkw.networks.plan.apply_plan`.

    Warns where cells would train, but no output depends on them: those of stages that are frozen
    and come after the last output, with ``freeze_idle=False``.
    """
    apply_plan(network, plan, freeze_idle)
    frozen, outputs = (getattr(network, name, None) for name in ('frozen_stages', 'out_indices'))
    if freeze_idle or not isinstance(frozen, int) or not isinstance(outputs, (list, tuple)):
        return
    # Stages are counted from 1 to be frozen, and from 0 to be outputs.
    if frozen > max(outputs) + 1:
        warnings.warn(
            f'{type(network).__name__} has frozen_stages={frozen} and out_indices={outputs!r}: '
            f'with freeze_idle_warehouses=False the cells of the stages after the last output are '
            f'trained, but get no gradient. Distributed training then stops, unless the config has '
            f'find_unused_parameters=True. Set freeze_idle_warehouses=True, or build no stages '
            f'after the last output (num_stages={max(outputs) + 1} in a ResNet)',
            stacklevel=3,
        )
