"""Any backbone of OpenMMLab as a KernelWarehouse backbone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS, Registry
from torch import nn

from ...arguments import check_names, checks_arguments_of
from ...networks import NetworkPlan, make_plan, plan_network
from ...networks.plan import WarehouseConfig
from ...networks.plan import freeze_idle_warehouses as freeze_idle
from ..attention_norms import options_from_config
from .base import apply_backbone_plan
from .conv_types import naming_conv_types
from .initial_weights import initialised_copy
from .layer_depth import WarehouseDepths
from .start_record import record_starts

_AUTOMATIC_OPTIONS = tuple(inspect.signature(plan_network).parameters)[2:-1]  # not `initial`
_DEFAULTS = tuple(field.name for field in fields(WarehouseConfig) if field.name != 'layers')


@MODELS.register_module(name='KWBackbone')
@checks_arguments_of('KWBackbone')
def build_kw_backbone(
    backbone: dict,
    warehouse: dict | None = None,
    plan: Mapping[str, dict] | None = None,
    input_shape: Sequence[int] = (3, 224, 224),
    freeze_idle_warehouses: bool = True,
) -> nn.Module:
    """Build any backbone and turn it into a KernelWarehouse backbone.

    Returns the backbone itself: class, module names, outputs, ``init_weights``, frozen stages and
    ``norm_eval`` are those of the wrapped backbone. Cells are in ``warehouses.<name>.cells``. A
    frozen stage freezes its attentions. With layer-wise learning rates
    (MMPretrain's ``LearningRateDecayOptimWrapperConstructor``) a warehouse has the depth of the
    first layer that uses it.
    What was planned, and which layers stay plain for what reason, is logged; before any training
    ``tools/analysis_tools/show_plan.py`` shows it.

    To let it plan by itself::

        backbone=dict(
            type='KWBackbone',
            backbone=dict(type='mmpretrain.RegNet', arch='regnetx_800mf'),
            warehouse=dict(budget=1, exclude=['layer1.*']))

    To say which layers share which warehouse, at what budget; all others stay plain::

        backbone=dict(
            type='KWBackbone',
            backbone=dict(type='mmpretrain.RegNet', arch='regnetx_800mf'),
            warehouse=dict(attention=dict(reduction=1 / 32)),
            plan=dict(
                three=dict(layers=['layer3.*.conv[13]'], budget=2),
                four=dict(layers=['layer4.*.conv[13]'])))

    Args:
        backbone: config of the plain backbone, of MMPretrain, MMDetection or any other registry
            (``'mmpretrain.RegNet'``; without a scope the config's default scope).
        warehouse: without a ``plan`` options of
            :func:`~mmkw.networks.plan_network`: budget, layers, exclude,
            cell_ratio, spatial_partition, attention, max_attention. With a ``plan`` defaults for
            its warehouses: budget, cell_ratio, spatial_partition, attention. Defaults to ``None``,
            all as there.
        plan: for each warehouse, by name, the arguments of
            :class:`~mmkw.networks.plan.WarehouseConfig`, of which ``layers`` is needed.
            Defaults to ``None``: it plans by itself.
        input_shape: channels, height and width of the image on which the plain backbone is run
            once, to see in which order and at which resolution its layers work. Defaults to
            (3, 224, 224).
        freeze_idle_warehouses: whether a warehouse is frozen where all the layers that use it are.
            ``False`` trains its cells under frozen attentions, as the released detectors do.
            Defaults to True.

    Raises:
        ValueError: if ``warehouse`` has an unknown option, the backbone cannot run on
            ``input_shape``, a pattern matches nothing or a layer is matched twice, no layer can
            have a warehouse, or the plan names one whose weight is used outside its forward.
    """
    network = build_plain(backbone)
    network_plan = backbone_plan(network, warehouse, plan, input_shape)
    print_log(str(network_plan), logger='current')
    apply_backbone_plan(network, network_plan, freeze_idle_warehouses)
    record_starts(network)
    if hasattr(type(network), 'get_layer_depth'):
        network.get_layer_depth = WarehouseDepths(network)
    # Some backbones freeze their stages only here.
    network.train(network.training)
    if freeze_idle_warehouses:
        freeze_idle(network)
    return network


def build_plain(backbone: dict) -> nn.Module:
    """Build a plain backbone, the parts of which are looked up in its own scope first."""
    with naming_conv_types(backbone):
        return MODELS.build(in_own_scope(backbone))


def in_own_scope(backbone: dict) -> dict:
    """The config of a backbone whose parts are looked up in the scope of its type first."""
    backbone = dict(backbone)
    if isinstance(backbone.get('type'), str):
        scope, _ = Registry.split_scope_key(backbone['type'])
        if scope is not None:
            backbone.setdefault('_scope_', scope)
    return backbone


def backbone_plan(
    network: nn.Module,
    warehouse: dict | None = None,
    plan: Mapping[str, dict] | None = None,
    input_shape: Sequence[int] = (3, 224, 224),
) -> NetworkPlan:
    """The plan of a KWBackbone with these arguments for a plain backbone; changes nothing."""
    options = options_from_config(warehouse or {})
    if plan is not None:
        plan = {name: options_from_config(config) for name, config in plan.items()}
    known = _AUTOMATIC_OPTIONS if plan is None else _DEFAULTS
    owner = f'warehouse of KWBackbone {"without" if plan is None else "with"} a plan'
    check_names(owner, options, known, 'option')
    parameter = next(network.parameters())
    images = torch.zeros(2, *input_shape, dtype=parameter.dtype, device=parameter.device)
    return make_plan(network, images, plan, initial=initialised_copy(network), **options)
