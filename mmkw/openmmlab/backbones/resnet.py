"""ResNet whose convolutions mix their kernels from one warehouse per stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmcv.cnn.bricks import DropPath
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from ...arguments import checks_arguments
from ...methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions
from ...methods.kernel_warehouse.partition import CellRatio, Ratio, as_fraction
from ...networks.plan import Plan, WarehouseConfig
from ...networks.replacing import kernel_shape_of
from ..attention_norms import attention_from_config
from .base import WarehouseBackbone, apply_backbone_plan

# What mmdet.ResNet and mmseg.ResNet take and KWResNet does not, with the fix for those who use it.
_PLAIN_ONLY = {
    'dcn': "take type='KWBackbone' around it, which leaves deformable convolutions plain",
    'plugins': "take type='KWBackbone' around it",
}
# What they take and mmpretrain.ResNet does not.
_OTHERS = ('stage_with_dcn', 'pretrained', 'contract_dilation', 'multi_grid')


SHARING = ('stage', 'equal_shapes', 'layer', 'none')


@MODELS.register_module()
class KWResNet(WarehouseBackbone, ResNet):
    """ResNet with KernelWarehouse convolutions, for classification and detection.

    A drop-in for ``mmpretrain.ResNet`` and ``mmdet.ResNet``: it takes their arguments with the
    same meaning (defaults are mmpretrain's, so detectors set ``out_indices``, ``frozen_stages``
    and ``norm_eval`` as their configs do anyway) and gives the same shapes. All module names are
    those of the plain network; cells are in ``warehouses.layer<stage>.cells``.

    With the defaults the networks are the paper's. Stage s has one warehouse, but the first
    block's conv1 and downsampling convolution belong to the warehouse of the stage before
    (Table 15), as cells would otherwise be as small as theirs. The stem is plain, and so are
    those two layers in stage 1 of the bottleneck networks.

    A frozen stage freezes its attentions. With ``frozen_stages=1`` the warehouse of stage 1 still
    trains, as stage 2 uses it too.

    The released models start with all norms at 1. MMPretrain's default sets the last norm of each
    block to 0; the configs therefore have ``zero_init_residual=False``.

    Args:
        depth (int): 18, 34, 50, 101 or 152.
        budget (float | str | None): ``b``, convolutional parameters relative to the plain
            network. ``None`` builds the plain network. Defaults to 1.
        cell_ratio (float | tuple | None): cell channels relative to the greatest common divisors
            of a stage's; one number or (output, input). Defaults to ``None``: 1 if the budget is
            at least 1, otherwise 1/2.
        sharing (str): which layers share a warehouse: ``'stage'`` (the paper's models, above);
            ``'equal_shapes'``, those of a stage whose kernels have the same shape (Table 7);
            ``'layer'``, none (Table 6); or ``'none'``, where a mixture does not share its cells
            with others of its kernel either (Table 6). Defaults to ``'stage'``.
        spatial_partition (bool): whether a cell covers one spatial position of the kernel or all.
            ``False`` with ``sharing='equal_shapes'`` is the paper's network without kernel
            partition (Table 5). Defaults to True.
        allocation (str): which cells mixtures start from, one of
            :data:`~mmkw.methods.kernel_warehouse.partition.ALLOCATIONS` (Tables 9 and 13).
            Defaults to ``'one_to_one'``.
        attention (dict | None): options of the attentions that differ from ``dict(reduction=1/16,
            norm_layer='BatchNorm1d')``, see
            :class:`~mmkw.methods.kernel_warehouse.AttentionConfig`. Bottleneck networks with a
            budget below 1 also have ``basis_ratio=1/16`` unless it is given (the released
            ResNet50 1/2x). Defaults to ``None``, none.
        constant_drop_path (bool): whether all blocks drop their path with ``drop_path_rate``,
            as the released KW ResNets do, instead of a rate that grows with depth. Defaults to
            False.
        freeze_idle_warehouses (bool): whether a warehouse is frozen where all the layers that use
            it are. ``False`` trains its cells under frozen attentions, as the released detectors
            do. Defaults to True.
        **kwargs: arguments of :class:`mmpretrain.models.ResNet`, and of MMSegmentation's ResNet
            ``contract_dilation`` and ``multi_grid``, see :func:`set_dilations`, and ``pretrained``,
            a checkpoint to start from.

    Raises:
        TypeError: on an unknown argument.
        ValueError: on an unknown depth, a budget or cell ratio that leaves no whole cells, or
            arguments of ``mmdet.ResNet`` that have no meaning here (dcn, plugins).
    """

    @checks_arguments(*_PLAIN_ONLY, *_OTHERS)
    def __init__(
        self,
        depth: int,
        budget: Ratio | None = 1,
        cell_ratio: CellRatio = None,
        sharing: str = 'stage',
        spatial_partition: bool = True,
        allocation: str = 'one_to_one',
        attention: AttentionOptions = None,
        constant_drop_path: bool = False,
        freeze_idle_warehouses: bool = True,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'depth must be one of {sorted(self.arch_settings)}, but got {depth!r}'
            )
        kwargs, contract_dilation, multi_grid = as_mmpretrain_arguments(kwargs)
        super().__init__(depth, **kwargs)
        set_dilations(self, contract_dilation, multi_grid)
        if constant_drop_path:
            for stage in self.res_layers:
                for block in getattr(self, stage):
                    block.drop_path = DropPath(kwargs.get('drop_path_rate', 0.0))
        self.freeze_idle_warehouses = freeze_idle_warehouses
        if budget is None:
            return
        has_basis = self.block is Bottleneck and as_fraction('budget', budget) < 1
        attention = AttentionConfig.of(
            attention_from_config(attention), basis_ratio=1 / 16 if has_basis else None
        )
        if sharing == 'none':
            attention = replace(attention, scope='mixture')
        plan = resnet_plan(
            self,
            'layer' if sharing == 'none' else sharing,
            budget=budget,
            cell_ratio=cell_ratio,
            spatial_partition=spatial_partition,
            allocation=allocation,
            attention=attention,
        )
        apply_backbone_plan(self, plan, freeze_idle_warehouses)


def resnet_plan(network: ResNet, sharing: str = 'stage', **options) -> Plan:
    """The paper's sharing of warehouses in a ResNet (Appendix A.3, Table 15), and its ablations.

    Args:
        network: a plain ResNet of MMPretrain.
        sharing: ``'stage'``, ``'equal_shapes'`` or ``'layer'``, see :class:`KWResNet`. Defaults to
            ``'stage'``.
        options: of every warehouse, see :class:`WarehouseConfig`.

    Returns:
        The warehouses by name: that of the stage, of stage and kernel shape, or of the layer.

    Raises:
        ValueError: if ``sharing`` is unknown.
    """
    if sharing not in SHARING:
        raise ValueError(f'sharing must be one of {", ".join(SHARING)}, but got {sharing!r}')
    layers: dict[str, list[str]] = {stage: [] for stage in network.res_layers}
    previous_stage = None
    for stage in network.res_layers:
        for name, module in getattr(network, stage).named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            block, layer, *_ = name.split('.')
            is_entry = block == '0' and layer in ('conv1', 'downsample')
            if not is_entry or (previous_stage is None and network.block is BasicBlock):
                layers[stage].append(f'{stage}.{name}')
            elif previous_stage is not None:
                layers[previous_stage].append(f'{stage}.{name}')
        previous_stage = stage
    groups: dict[str, list[str]] = {}
    for stage, names in layers.items():
        for name in names:
            groups.setdefault(_group(network, stage, name, sharing), []).append(name)
    return {group: WarehouseConfig(names, **options) for group, names in groups.items()}


def _group(network: ResNet, stage: str, name: str, sharing: str) -> str:
    """The warehouse of a layer. Dots would nest the names of modules."""
    if sharing == 'stage':
        return stage
    if sharing == 'equal_shapes':
        shape = kernel_shape_of(name, network.get_submodule(name))
        return f'{stage}_{"x".join(map(str, shape))}'
    return name.replace('.', '_')


def as_mmpretrain_arguments(kwargs: dict) -> tuple[dict, bool, Sequence[int] | None]:
    """Read the arguments of mmdet.ResNet and mmseg.ResNet where they differ from mmpretrain's.

    Returns:
        The arguments of ``mmpretrain.ResNet``, ``contract_dilation`` and ``multi_grid``.
    """
    kwargs = dict(kwargs)
    for name, fix in _PLAIN_ONLY.items():
        value = kwargs.pop(name, None)
        if value is not None:
            raise ValueError(f'KWResNet cannot take {name}={value!r}: {fix}')
    others = {name: kwargs.pop(name, None) for name in _OTHERS}
    # What None means in mmdet and mmseg.
    if 'init_cfg' in kwargs and kwargs['init_cfg'] is None:
        del kwargs['init_cfg']
    if others['pretrained'] is not None:
        if 'init_cfg' in kwargs:
            raise ValueError(
                f'KWResNet takes either pretrained or init_cfg, but got '
                f'pretrained={others["pretrained"]!r} and init_cfg={kwargs["init_cfg"]!r}'
            )
        kwargs['init_cfg'] = dict(type='Pretrained', checkpoint=others['pretrained'])
    if 'stem_channels' in kwargs and kwargs['stem_channels'] is None:
        kwargs['stem_channels'] = kwargs.get('base_channels', 64)
    return kwargs, bool(others['contract_dilation']), others['multi_grid']


def set_dilations(
    network: ResNet, contract_dilation: bool, multi_grid: Sequence[int] | None
) -> None:
    """Change dilations of a plain ResNet as MMSegmentation's arguments of these names do.

    Args:
        network: changed in place.
        contract_dilation: whether the first block of a stage with a dilation above 1 has half of
            it.
        multi_grid: the dilation of each block of the last stage; ``None`` for those of the stage.

    Raises:
        ValueError: if ``multi_grid`` does not have a number for each block.
    """
    for stage, dilation in zip(network.res_layers, network.dilations):
        blocks = list(getattr(network, stage))
        dilations = [dilation] * len(blocks)
        if stage == network.res_layers[-1] and multi_grid is not None:
            if len(multi_grid) != len(blocks):
                raise ValueError(
                    f'multi_grid needs a dilation for each of the {len(blocks)} blocks of the last '
                    f'stage, but got {multi_grid!r}'
                )
            dilations = list(multi_grid)
        elif contract_dilation and dilation > 1:
            dilations[0] = dilation // 2
        for block, value in zip(blocks, dilations):
            conv = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            conv.dilation = conv.padding = (value, value)
