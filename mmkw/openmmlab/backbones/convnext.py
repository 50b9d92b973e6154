"""ConvNeXt whose convolutions mix their kernels from warehouses shared by a few blocks."""

from __future__ import annotations

from fractions import Fraction

from mmengine.registry import MODELS
from mmpretrain.models.backbones import ConvNeXt
from torch import nn

from ...arguments import checks_arguments, is_whole_number
from ...methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions
from ...methods.kernel_warehouse.partition import Ratio, as_fraction
from ...methods.loaded import tensor_of
from ...networks.plan import Plan, WarehouseConfig
from ..attention_norms import attention_from_config
from .base import WarehouseBackbone, apply_backbone_plan


@MODELS.register_module()
class KWConvNeXt(WarehouseBackbone, ConvNeXt):
    """ConvNeXt with KernelWarehouse convolutions, for classification and detection.

    A drop-in for ``mmpretrain.ConvNeXt``: the same arguments, outputs and module names. All
    convolutions are KernelWarehouse ones, the stem and the downsampling layers included; see
    :func:`convnext_plan` for which of them share.

    As in the release, layer scales have shape ``(1, C, 1, 1)`` instead of ``(C,)``. Recipes that
    leave vectors out of weight decay thus decay them, where they do not in the plain network.

    With the defaults the networks are those of the paper's tables. The released model is
    ``blocks_per_warehouse=None, attention=dict(reduction=1/16)``.

    Args:
        arch (str | dict): as in MMPretrain; the paper's is ``'tiny'``, the default.
        budget (float | str | None): ``b``, convolutional parameters relative to the plain
            network. ``None`` builds the plain network. Defaults to 1.
        blocks_per_warehouse (int | None): how many successive blocks of a stage share their
            warehouses; ``None`` for all blocks of a stage. Defaults to 3, by which the third
            stage of ``'tiny'`` counts as three.
        attention (dict | None): options of the attentions that differ from ``dict(reduction=1/32,
            norm_layer='LayerNorm')``, see :class:`~mmkw.methods.kernel_warehouse.AttentionConfig`.
            Defaults to ``None``, none.
        freeze_idle_warehouses (bool): whether a warehouse is frozen where all the layers that use
            it are. ``False`` trains its cells under frozen attentions, as the released detectors
            do. Defaults to True.
        **kwargs: arguments of :class:`mmpretrain.models.ConvNeXt`.

    Raises:
        ValueError: on a budget that is no positive number or leaves no whole number of cells, or
            if ``blocks_per_warehouse`` is no positive integer.
    """

    @checks_arguments()
    def __init__(
        self,
        arch: str | dict = 'tiny',
        budget: Ratio | None = 1,
        blocks_per_warehouse: int | None = 3,
        attention: AttentionOptions = None,
        freeze_idle_warehouses: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.freeze_idle_warehouses = freeze_idle_warehouses
        if budget is None:
            return
        plan = convnext_plan(self, budget, blocks_per_warehouse, attention)
        apply_backbone_plan(self, plan, freeze_idle_warehouses)
        for stage in self.stages:
            for block in stage:
                if block.gamma is not None:
                    scale = block.gamma
                    block.gamma = nn.Parameter(scale.data.view(1, -1, 1, 1), scale.requires_grad)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # The layer scales of a plain network are vectors.
        for name, parameter in self.named_parameters():
            if name.endswith('.gamma'):
                value = tensor_of(state_dict, prefix + name)
                if value is not None and value.dim() < parameter.dim():
                    state_dict[prefix + name] = value.reshape(1, -1, 1, 1)
        super()._load_from_state_dict(state_dict, prefix, *args)


def convnext_plan(
    network: ConvNeXt,
    budget: Ratio = 1,
    blocks_per_warehouse: int | None = 3,
    attention: AttentionOptions = None,
) -> Plan:
    """The paper's sharing of warehouses in a ConvNeXt (Appendix A.3, Table 14).

    ``blocks_per_warehouse`` successive blocks of a stage share two warehouses, one for their
    depthwise and one for their pointwise convolutions. The stem and each downsampling layer have
    one each. A budget below 1 is that of the pointwise convolutions, whose cells then have half
    the greatest common divisors, and all others keep a budget of 1. A budget of 3/4 means the
    paper's: 1/2 for the pointwise convolutions of the last two groups of blocks, 1 elsewhere.

    Args:
        network: a plain ConvNeXt of MMPretrain.
        budget, blocks_per_warehouse, attention: see :class:`KWConvNeXt`.

    Raises:
        ValueError: if ``budget`` is no positive number or ``blocks_per_warehouse`` no positive
            integer.
    """
    cells_per_mixture = as_fraction('budget', budget)
    if blocks_per_warehouse is not None and not is_whole_number(blocks_per_warehouse):
        raise ValueError(
            f'blocks_per_warehouse must be a positive integer or None, for all blocks of a stage, '
            f'but got {blocks_per_warehouse!r}'
        )

    attention = AttentionConfig.of(
        attention_from_config(attention), reduction=1 / 32, norm_layer='LayerNorm'
    )

    def config(names: list[str], own_budget: Ratio) -> WarehouseConfig:
        return WarehouseConfig(names, budget=own_budget, attention=attention)

    plan = {}
    for index, layers in enumerate(network.downsample_layers):
        (name,) = (name for name, layer in layers.named_modules() if isinstance(layer, nn.Conv2d))
        warehouse = f'downsample{index}' if index else 'stem'
        plan[warehouse] = config(
            [f'downsample_layers.{index}.{name}'], max(cells_per_mixture, Fraction(1))
        )

    groups = {}
    for index, stage in enumerate(network.stages):
        size = blocks_per_warehouse or len(stage)
        for first in range(0, len(stage), size):
            last = min(first + size, len(stage))
            name = f'stage{index + 1}'
            if len(stage) > size:
                name += f'_blocks{first + 1}to{last}'
            groups[name] = [f'stages.{index}.{block}' for block in range(first, last)]
    for number, (group, blocks) in enumerate(groups.items()):
        pointwise_budget: Ratio = cells_per_mixture
        if cells_per_mixture == as_fraction('budget', '3/4'):
            pointwise_budget = '1/2' if number >= len(groups) - 2 else 1
        depthwise = [f'{block}.depthwise_conv' for block in blocks]
        pointwise = [f'{block}.pointwise_conv{i}' for block in blocks for i in (1, 2)]
        plan[f'{group}_depthwise'] = config(depthwise, max(cells_per_mixture, Fraction(1)))
        plan[f'{group}_pointwise'] = config(pointwise, pointwise_budget)
    return plan
