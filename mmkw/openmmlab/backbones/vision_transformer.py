"""Vision transformer whose values and MLPs mix their weights from warehouses shared by blocks."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from ...arguments import checks_arguments, is_whole_number
from ...methods.kernel_warehouse.attention import AttentionConfig, AttentionOptions
from ...methods.kernel_warehouse.partition import CellRatio, Ratio, as_fraction
from ...methods.loaded import tensor_of
from ...networks.plan import Plan, WarehouseConfig
from ..attention_norms import attention_from_config
from .base import WarehouseBackbone, apply_backbone_plan


@MODELS.register_module()
class KWVisionTransformer(WarehouseBackbone, VisionTransformer):
    """Vision transformer with KernelWarehouse values and MLPs.

    A drop-in for ``mmpretrain.VisionTransformer``: the same arguments and shapes. The value part
    of each block's fused ``attn.qkv`` and the matrices of its MLP are KernelWarehouse layers;
    query, key, projection and patch embedding stay plain (Section 4.3). Module names are those of
    the plain network, but for ``attn.qkv``, which becomes ``attn.qkv.query_key`` and
    ``attn.qkv.value``, see :class:`SplitQKV`. Cells are in ``warehouses.value<number>.cells`` and
    ``warehouses.mlp<number>.cells``; see :func:`vision_transformer_plan` for which layers share.

    The paper says no more than that about its models, and none is released. The defaults are the
    plan that gives their sizes (Table 11, with a classifier of 1000 classes):

    ===========  ======  ==========  =======
    arch         budget  parameters  paper
    ===========  ======  ==========  =======
    deit-tiny    1        6,393,052   6.39M
    deit-tiny    4       18,796,852  20.44M
    deit-small   3/4     19,242,844  19.23M
    deit-small   1       24,335,548  24.36M
    ===========  ======  ==========  =======

    No plan of this kind that gives the 4x model's size is known. Layer norm in the attentions is
    our choice, that of the released ConvNeXt; batch norm would save 1 to 2 thousand parameters.

    Args:
        arch (str | dict): as in MMPretrain; the paper's are ``'deit-tiny'``, the default, and
            ``'deit-small'``.
        budget (float | str | None): ``b``, parameters of the values and MLPs relative to the
            plain network. 3/4 means the paper's plan of that name. ``None`` builds the plain
            network. Defaults to 1.
        blocks_per_warehouse (int | None): how many successive blocks share their warehouses;
            ``None`` for all blocks. Defaults to 6.
        cell_ratio (float | tuple | None): cell features relative to the greatest common divisors
            of a warehouse's layers; one number or (output, input). Defaults to ``None``: 1 where
            the budget is at least 1, otherwise 1/2.
        attention (dict | None): options of the attentions that differ from ``dict(reduction=1/16,
            norm_layer='LayerNorm')``, see :class:`~mmkw.methods.kernel_warehouse.AttentionConfig`.
            Defaults to ``None``, none.
        freeze_idle_warehouses (bool): whether a warehouse is frozen where all the layers that use
            it are. ``False`` trains its cells under frozen attentions, as the released detectors
            do. Defaults to True.
        **kwargs: arguments of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: on a budget or cell ratio that is no positive number or leaves no whole cells,
            or if ``blocks_per_warehouse`` is no positive integer.
    """

    @checks_arguments()
    def __init__(
        self,
        arch: str | dict = 'deit-tiny',
        budget: Ratio | None = 1,
        blocks_per_warehouse: int | None = 6,
        cell_ratio: CellRatio = None,
        attention: AttentionOptions = None,
        freeze_idle_warehouses: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(arch, **kwargs)
        self.freeze_idle_warehouses = freeze_idle_warehouses
        if budget is not None:
            split_qkv(self)
            plan = vision_transformer_plan(
                self, budget, blocks_per_warehouse, cell_ratio, attention
            )
            apply_backbone_plan(self, plan, freeze_idle_warehouses)

    def train(self, mode: bool = True) -> KWVisionTransformer:
        """Set the mode, keeping frozen layers in evaluation mode."""
        super().train(mode)
        # MMPretrain freezes only when it builds the network, and then lets frozen layers train.
        if self.frozen_stages > 0:
            self._freeze_stages()
        return self


class SplitQKV(nn.Module):
    """In the place of an attention's fused ``qkv``: the same, with the value in a layer apart.

    Args:
        qkv: maps features to queries, keys and values, one after the other. Its weights are
            copied; device, type, mode and whether they train stay.

    Attributes:
        query_key: linear layer for queries and keys, ``in_features -> 2 * embed_dims``.
        value: linear layer for values, ``in_features -> embed_dims``.
    """

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        embed_dims = qkv.out_features // 3
        self.query_key = _some_rows(qkv, slice(None, 2 * embed_dims))
        self.value = _some_rows(qkv, slice(2 * embed_dims, None))
        self.training = qkv.training

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A plain network has the rows of queries, keys and values in one tensor.
        for kind in ('weight', 'bias'):
            whole = tensor_of(state_dict, prefix + kind)
            if whole is not None:
                del state_dict[prefix + kind]
                rows = self.query_key.out_features
                state_dict[f'{prefix}query_key.{kind}'] = whole[:rows]
                state_dict[f'{prefix}value.{kind}'] = whole[rows:]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, L, in_features)`` to ``(N, L, 3 * embed_dims)``."""
        return torch.cat([self.query_key(x), self.value(x)], dim=-1)


def split_qkv(network: VisionTransformer) -> VisionTransformer:
    """Put a :class:`SplitQKV` in the place of every block's ``attn.qkv``.

    Args:
        network: a plain VisionTransformer of MMPretrain; changed in place, it computes the same.

    Returns:
        ``network``.
    """
    for block in network.layers:
        block.attn.qkv = SplitQKV(block.attn.qkv)
    return network


def vision_transformer_plan(
    network: VisionTransformer,
    budget: Ratio = 1,
    blocks_per_warehouse: int | None = 6,
    cell_ratio: CellRatio = None,
    attention: AttentionOptions = None,
) -> Plan:
    """Sharing of warehouses in a vision transformer, by the sizes in the paper's Table 11.

    ``blocks_per_warehouse`` successive blocks (the last group may have fewer) share two
    warehouses, ``value<number>`` and ``mlp<number>``, numbers from 1. A budget is that of both,
    except that 3/4 means the paper's model of that name: like its ConvNeXt, a budget of 1/2 with
    cells of half the greatest common divisors for the MLPs, and 1 for the values.

    Args:
        network: a VisionTransformer of MMPretrain, plain but for :func:`split_qkv`.
        budget, blocks_per_warehouse, cell_ratio, attention: see
            :class:`KWVisionTransformer`.

    Raises:
        ValueError: if ``budget`` is no positive number or ``blocks_per_warehouse`` no positive
            integer.
    """
    budget = as_fraction('budget', budget)
    blocks = len(network.layers) if blocks_per_warehouse is None else blocks_per_warehouse
    if not is_whole_number(blocks):
        raise ValueError(
            f'blocks_per_warehouse must be a positive integer or None, for all blocks, but got '
            f'{blocks_per_warehouse!r}'
        )
    is_paper_mix = budget == as_fraction('budget', '3/4')
    budgets: dict[str, Ratio] = (
        {'value': 1, 'mlp': '1/2'} if is_paper_mix else {'value': budget, 'mlp': budget}
    )

    layers: dict[str, list[str]] = {}
    for index, block in enumerate(network.layers):
        group = index // blocks + 1
        layers.setdefault(f'value{group}', []).append(f'layers.{index}.attn.qkv.value')
        layers.setdefault(f'mlp{group}', []).extend(
            f'layers.{index}.ffn.{name}'
            for name, module in block.ffn.named_modules()
            if isinstance(module, nn.Linear)
        )

    def config(warehouse: str, names: list[str]) -> WarehouseConfig:
        return WarehouseConfig(
            names,
            budget=budgets[warehouse.rstrip('0123456789')],
            cell_ratio=cell_ratio,
            attention=AttentionConfig.of(attention_from_config(attention), norm_layer='LayerNorm'),
        )

    return {warehouse: config(warehouse, names) for warehouse, names in layers.items()}


def _some_rows(linear: nn.Linear, rows: slice) -> nn.Linear:
    """A linear layer for some of the outputs of another."""
    weights = {name: weight[rows] for name, weight in linear.state_dict().items()}
    part = nn.Linear(linear.in_features, len(weights['weight']), bias=linear.bias is not None)
    part.to(linear.weight).load_state_dict(weights)
    part.training = linear.training
    return part.requires_grad_(linear.weight.requires_grad)
