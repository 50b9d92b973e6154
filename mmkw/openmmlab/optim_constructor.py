"""Weight decay and learning rates by kind of parameter, for dynamic layers, too."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..methods.base import DynamicConvNd, DynamicLayer
from ..methods.kernel_warehouse.attention import KernelAttention
from ..methods.kernel_warehouse.layers import KWLayer
from .backbones.layer_depth import name_by_depth


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class KWOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, whose rules hold for the parameters of dynamic layers, too.

    ============================================  =============================================
    option of ``paramwise_cfg``                   also for
    ============================================  =============================================
    ``bias_lr_mult``, ``bias_decay_mult``         ``basis_bias`` of attentions with a basis
    ``dwconv_decay_mult``                         cells that only depthwise layers use, and the
                                                  kernels of other depthwise dynamic layers
    ============================================  =============================================

    As in MMEngine, ``custom_keys`` come before all other rules::

        optim_wrapper = dict(
            constructor='KWOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(bias_decay_mult=0.0, dwconv_decay_mult=0.0))

    Args:
        optim_wrapper_cfg, paramwise_cfg: as in MMEngine.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add the parameters of ``module`` to the groups ``params``, see MMEngine."""
        super().add_params(params, module, prefix, is_dcn_module)
        # MMEngine calls it for every module; warehouses need the whole model.
        if not prefix:
            self._complete(params, module)

    def _complete(self, params: list[dict], model: nn.Module) -> None:
        options = self.paramwise_cfg
        groups = {group['params'][0]: group for group in params}
        biases = _basis_biases(model)
        depthwise = _depthwise_kernels(model)
        for name, parameter in model.named_parameters():
            is_custom = any(key in name for key in options.get('custom_keys', {}))
            if parameter not in groups or is_custom:
                continue
            kind = 'bias' if parameter in biases else 'dwconv' if parameter in depthwise else None
            if options.get(f'{kind}_decay_mult') is not None:
                groups[parameter]['weight_decay'] = self.base_wd * options[f'{kind}_decay_mult']
            if kind == 'bias' and options.get('bias_lr_mult') is not None:
                groups[parameter]['lr'] = self.base_lr * options['bias_lr_mult']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class KWLearningRateDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """MMDetection's layer-wise learning rates for ConvNeXt, with those of the cells.

    MMDetection's ``LearningRateDecayOptimizerConstructor`` goes by the names of parameters. Cells
    are in no layer by their names, so it gives them the full rate, while the attentions that use
    them have that of their layer. Here the cells of a warehouse have the rate of the first layer
    that uses them, as by MMPretrain's constructor::

        optim_wrapper = dict(
            constructor='KWLearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.95, num_layers=6))

    Args:
        optim_wrapper_cfg, paramwise_cfg: as in MMDetection's.

    Raises:
        NotImplementedError: as in MMDetection's, if the backbone is no ConvNeXt.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Add the parameters of the detector ``module`` to the groups ``params``."""
        from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor

        by_depth = _NamedByDepth(module)
        LearningRateDecayOptimizerConstructor.add_params(self, params, by_depth, **kwargs)


class _NamedByDepth:
    """What MMDetection's constructor looks at, with the names of layers in those of cells."""

    def __init__(self, detector: nn.Module) -> None:
        self.detector, self.backbone = detector, detector.backbone

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.detector.named_parameters():
            yield name_by_depth(self.backbone, name, 'backbone.'), parameter


def _basis_biases(model: nn.Module) -> set[nn.Parameter]:
    attentions = (module for module in model.modules() if isinstance(module, KernelAttention))
    return {attention.basis_bias for attention in attentions if attention.fc3 is not None}


def _depthwise_kernels(model: nn.Module) -> set[nn.Parameter]:
    """Kernels and cells that depthwise layers alone use."""
    kernels: dict[bool, set[nn.Parameter]] = {True: set(), False: set()}
    for layer in model.modules():
        if not isinstance(layer, DynamicLayer) or layer.awaits_plan:
            continue
        is_depthwise = isinstance(layer, DynamicConvNd) and layer.groups == layer.in_channels
        if isinstance(layer, KWLayer):
            own = {layer.warehouse.cells}
        else:
            own = {value for name, value in layer.named_parameters(recurse=False) if name != 'bias'}
        kernels[is_depthwise] |= own
    return kernels[True] - kernels[False]
