"""Warm start: the weights of a plain network as those of its KernelWarehouse form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from torch import nn

from ..methods.base import DynamicLinear
from ..methods.kernel_warehouse.layers import KWLayer, Warehouse
from ..openmmlab.backbones.vision_transformer import SplitQKV
from .loading import load_checkpoint
from .plain_matching import match_plain
from .plain_state import plain_state_dict
from .saving import save_checkpoint

_Path = Union[str, os.PathLike]


@dataclass(frozen=True)
class WarmStart:
    """What :func:`warm_start` did.

    Attributes:
        source_format: of the names in the plain state dict, see :data:`plain_tensor_names.FORMATS`.
        mapping: where each tensor that was used went: its name in the plain state dict -> the
            tensor of the network, or which cells.
        fresh: layers outside the backbone that keep the values which the network had, because the
            plain network lacks them or has them for another number of classes.
        dropped: names of the plain state dict that the network has no use for.
    """

    source_format: str
    mapping: dict[str, str]
    fresh: list[str]
    dropped: list[str]


def warm_start(network: nn.Module, state_dict: Mapping[str, Any]) -> WarmStart:
    r"""Give a KW network the weights of the plain network, in place.

    Every kernel is cut into its :math:`m` blocks, and the cell that mixture :math:`i` starts from
    becomes block :math:`i` (one-to-one, Eq. 4 with :math:`\tau = 1`). All other layers, static
    biases and running statistics are copied, and the temperature is set to 1: the network then
    computes exactly what the plain one did, and annealing the temperature goes on from there.

    Attentions start at the same allocation (:meth:`KernelAttention.start_one_to_one`), so that the
    kernels stay as they are while the temperature falls, except where attentions learn otherwise.
    Mask R-CNNs on the demo's scenes had a box AP of 0.44, the mean of three seeds. Annealed over 60
    iterations of 120 they ended at 0.56, and at 0.47 from random attentions; the plain ones,
    trained on in the same way, at 0.55.

    For budgets above 1, the cells that no mixture starts from keep their values: random as when
    training from scratch. The gradient of an attention is the product of its cell with that of the
    mixture, so copies of the blocks would get equal ones, and zeros none, and attentions could not
    tell such cells apart at first.

    Budgets below 1 are refused: at temperature 1 only a share ``b`` of a kernel's blocks has a
    cell, and the others are zero. A ResNet18 that was right on 88.9 % of the demo's digits falls to
    10.0 %, which is chance, at 1/2 and at 1/4. Estimating its running statistics anew on training
    images brings back 81.1 and 34.5 %, but takes these images, and batch norm.

    Heads and necks may differ. A layer outside ``network.backbone`` that the plain network lacks,
    or has for another number of classes, keeps its values, as when MMEngine loads a checkpoint
    into a model with other classes. In a network without an attribute ``backbone`` all layers have
    to be there.

    Args:
        network: has KW layers with budgets of at least 1. A classifier or detector of OpenMMLab, a
            bare backbone, or any network after :func:`apply_plan`.
        state_dict: of the plain network, with the names that torchvision, timm, MMPretrain,
            MMDetection or the authors of ConvNeXt and DeiT give ResNet, MobileNetV2, ConvNeXt and
            vision transformers; or those of ``network`` with plain layers. Stems of three
            convolutions match by shape and order. Also a checkpoint that
            holds it as ``state_dict`` or ``model``, or averaged, which is preferred, as
            ``state_dict_ema`` or ``model_ema``. Names do not tell MMDetection's ``style='caffe'``
            from ``'pytorch'``; the network has to have that of the plain one.

    Returns:
        Which tensor went where.

    Raises:
        ValueError: if the network has no KW layers, or one with a budget below 1; if the names are
            of no known format or of a KW network; if tensors are missing, left over, of other
            shapes or not finite. The network is then as it was.
    """
    layers = _kw_layers(network)
    # A network without a backbone is one.
    is_backbone = not isinstance(getattr(network, 'backbone', None), nn.Module)
    # Only the kernels' shapes count, so all of their elements may be one in memory.
    kernels = {
        name: layer.warehouse.cells.new_zeros(()).expand(_plain_shape(layer))
        for name, layer in layers.items()
    }
    plain = plain_state_dict(network, kernels)
    match = match_plain(state_dict, plain, is_backbone)
    values = {
        target: match.source[name].reshape(plain[target].shape)
        for name, target in match.targets.items()
    }
    with warnings.catch_warnings():
        # That says to anneal the temperature, as does this function.
        warnings.filterwarnings('ignore', 'The checkpoint holds plain kernels')
        network.load_state_dict(values, strict=False)
    for layer in layers.values():
        layer.warehouse.set_temperature(layer.warehouse.temperature_range.plain)
    warehouses = {
        module: name for name, module in network.named_modules() if isinstance(module, Warehouse)
    }
    return WarmStart(
        match.source_format,
        mapping={
            name: _destination(target, network, warehouses)
            for name, target in match.targets.items()
        },
        fresh=match.fresh,
        dropped=[name for name in match.source if name not in match.targets],
    )


def convert_plain(
    network: nn.Module, src: _Path, dst: _Path | None = None
) -> tuple[dict, WarmStart]:
    """Turn a checkpoint of a plain network into one of its KernelWarehouse form.

    The result loads strictly into ``network``. It suits ``load_from``, and in a backbone
    ``init_cfg=dict(type='Pretrained', checkpoint=dst, prefix='backbone.')``.

    Args:
        network: the KW network, initialised; see :func:`warm_start`, which it goes through.
        src: the plain checkpoint. Read without running code from it.
        dst: where to write the result, in one step. Defaults to ``None``, nowhere.

    Returns:
        The checkpoint, with ``state_dict`` and ``meta`` (``source`` and ``source_format``), and
        which tensor went where.

    Raises:
        ValueError: see :func:`warm_start`.
        UnsafeCheckpointError: if the pickle asks for classes that checkpoints do not need.
        FileNotFoundError: if ``src`` or the folder of ``dst`` is missing.
    """
    plain = load_checkpoint(src)
    try:
        result = warm_start(network, plain)
    except ValueError as error:
        raise ValueError(f'{src} cannot start the network: {error}') from error
    meta = dict(source=os.path.basename(src), source_format=result.source_format)
    checkpoint = dict(state_dict=dict(network.state_dict()), meta=meta)
    if dst is not None:
        save_checkpoint(checkpoint, dst)
    return checkpoint, result


def _kw_layers(network: nn.Module) -> dict[str, KWLayer]:
    """The layers to start, those of shared modules under all of their names."""
    layers = {
        name: module
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, KWLayer) and module.partition is not None
    }
    if not layers:
        raise ValueError(
            f'{type(network).__name__} has no KernelWarehouse layers to start; give the config of '
            f"a KW model, such as one with backbone=dict(type='KWResNet', ...)"
        )
    for name, layer in layers.items():
        layer.check_plain_kernel(f'{name}.weight')
    return layers


def _plain_shape(layer: KWLayer) -> tuple[int, ...]:
    shape = tuple(layer.kernel_shape)
    return shape[:2] if isinstance(layer, DynamicLinear) else shape


def _destination(name: str, network: nn.Module, warehouses: Mapping[nn.Module, str]) -> str:
    """Where the tensor ``name`` of the plain network is in the network, in words."""
    layer, _, kind = name.rpartition('.')
    module = network.get_submodule(layer)
    if isinstance(module, SplitQKV):
        parts = (f'{layer}.{part}.{kind}' for part in ('query_key', 'value'))
        return ' and '.join(_destination(part, network, warehouses) for part in parts)
    if isinstance(module, KWLayer) and kind == 'weight':
        initial = module.partition.initial_cells
        cells = f'{warehouses[module.warehouse]}.cells'
        return f'{cells}: {len(initial)} cells, {initial[0]} to {initial[-1]}'
    return name
