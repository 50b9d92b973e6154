"""Weight decay and learning rates by kind of parameter, for dynamic layers, too."""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..methods.base import DynamicConvNd, DynamicLayer
from ..methods.kernel_warehouse.attention import KernelAttention
from ..methods.kernel_warehouse.layers import KWLayer


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
