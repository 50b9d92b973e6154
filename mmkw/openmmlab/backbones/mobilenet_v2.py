"""MobileNetV2 whose convolutions mix their kernels from the warehouses of their stages."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from mmengine.registry import MODELS
from mmpretrain.models.backbones import MobileNetV2
from torch import nn

from ...arguments import checks_arguments
from ...methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions
from ...methods.kernel_warehouse.partition import Ratio, as_fraction
from ...networks.plan import Plan, WarehouseConfig
from ..attention_norms import attention_from_config
from .base import WarehouseBackbone, apply_backbone_plan

# The stage of each group of blocks, layer1 to layer7; the last convolution belongs to the last.
_STAGES = (1, 2, 3, 4, 5, 6, 6)


@MODELS.register_module()
class KWMobileNetV2(WarehouseBackbone, MobileNetV2):
    """MobileNetV2 with KernelWarehouse convolutions, for classification and detection.

    A drop-in for ``mmpretrain.MobileNetV2``: the same arguments, shapes and module names. Cells
    are in ``warehouses.stage<number>_<kind>.cells`` and ``warehouses.stem.cells``; see
    :func:`mobilenet_v2_plan` for which layers share.

    With the defaults the networks are the paper's. Its 1/2x models also have a KernelWarehouse
    classifier: :class:`mmkw.openmmlab.heads.KWLinearClsHead`.

    Args:
        widen_factor (float): width multiplier; the paper's are 1.0 and 0.5. Defaults to 1.0.
        budget (float | str | None): ``b``, convolutional parameters relative to the plain
            network. ``None`` builds the plain network. Defaults to 1.
        attention (dict | None): options of the attentions that differ from ``dict(reduction=1/16,
            norm_layer='BatchNorm1d')``, with ``reduction=1/32`` at budgets below 1, see
            :class:`~mmkw.methods.kernel_warehouse.AttentionConfig`. Defaults to ``None``, none.
        freeze_idle_warehouses (bool): whether a warehouse is frozen where all the layers that use
            it are. ``False`` trains its cells under frozen attentions, as the released detectors
            do. Defaults to True.
        **kwargs: arguments of :class:`mmpretrain.models.MobileNetV2`.

    Raises:
        ValueError: on a budget that is no positive number or leaves no whole number of cells.
    """

    @checks_arguments()
    def __init__(
        self,
        widen_factor: float = 1.0,
        budget: Ratio | None = 1,
        attention: AttentionOptions = None,
        freeze_idle_warehouses: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(widen_factor, **kwargs)
        self.freeze_idle_warehouses = freeze_idle_warehouses
        # MMPretrain freezes in train() only, which is after distributed training has looked at
        # what there is to train.
        self._freeze_stages()
        if budget is not None:
            plan = mobilenet_v2_plan(self, budget, attention)
            apply_backbone_plan(self, plan, freeze_idle_warehouses)


def mobilenet_v2_plan(
    network: MobileNetV2,
    budget: Ratio = 1,
    attention: AttentionOptions = None,
) -> Plan:
    """The paper's sharing of warehouses in a MobileNetV2 (Appendix A.3, Table 14).

    The seven groups of blocks make six stages, the last two being one; the first block of each
    stage but the first belongs to the stage before, and the last convolution to the last stage.
    The stem has a warehouse of its own. In each stage,

    * budget 1: the depthwise convolutions share one and all pointwise convolutions another;
    * budgets above 1: three, as pointwise convolutions that expand and those that reduce the
      channels (the last convolution counts with these) are kept apart;
    * budgets below 1: the budget, with cells of half the greatest common divisors, is that of the
      last stage's pointwise convolutions, expanding and reducing ones apart. Other pointwise
      convolutions are plain, and all depthwise ones and the stem have a budget of 1.

    Args:
        network: a plain MobileNetV2 of MMPretrain.
        budget, attention: see :class:`KWMobileNetV2`.
    """
    cells_per_mixture = as_fraction('budget', budget)
    attention = AttentionConfig.of(
        attention_from_config(attention), reduction=1 / 16 if cells_per_mixture >= 1 else 1 / 32
    )
    layers: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        stage = _stage(name)
        if stage is None:
            warehouse = 'stem'
        elif module.groups > 1:
            warehouse = f'stage{stage}_depthwise'
        elif cells_per_mixture == 1:
            warehouse = f'stage{stage}_pointwise'
        elif cells_per_mixture < 1 and stage != _STAGES[-1]:
            continue
        elif module.out_channels > module.in_channels and name != 'conv2.conv':
            warehouse = f'stage{stage}_expand'
        else:
            warehouse = f'stage{stage}_reduce'
        layers.setdefault(warehouse, []).append(name)

    def config(warehouse: str, names: list[str]) -> WarehouseConfig:
        is_pointwise = warehouse.endswith(('_pointwise', '_expand', '_reduce'))
        return WarehouseConfig(
            names,
            budget=cells_per_mixture if is_pointwise else max(cells_per_mixture, Fraction(1)),
            # ODConv leaves the stem plain; its heads are not added to the stem's attention either.
            attention=replace(attention, od_heads=attention.od_heads and warehouse != 'stem'),
        )

    return {warehouse: config(warehouse, names) for warehouse, names in layers.items()}


def _stage(name: str) -> int | None:
    """The stage that a convolution belongs to; ``None`` for the stem."""
    module, block, *_ = name.split('.')
    if module == 'conv1':
        return None
    if module == 'conv2':
        return _STAGES[-1]
    group = int(module[len('layer') :])
    is_first_block = block == '0' and group > 1
    return _STAGES[group - 2] if is_first_block else _STAGES[group - 1]
