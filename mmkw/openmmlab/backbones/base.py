"""What the backbones with warehouses have in common."""

from __future__ import annotations

from mmpretrain.models.backbones.base_backbone import BaseBackbone

from ...networks.plan import freeze_idle_warehouses
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
