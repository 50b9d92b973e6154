"""Classification head with the linear layer of a dynamic convolution."""

from __future__ import annotations

from typing import Callable

from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead
from torch import nn

from ...arguments import checks_arguments
from ...methods.registry import METHODS


@MODELS.register_module()
class DynamicLinearClsHead(LinearClsHead):
    """Linear classifier whose layer, ``fc``, is that of a dynamic convolution.

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels of the input.
        layer (dict): ``type``, the linear layer of a method, such as ``'CondLinear'``, and
            arguments of that class.
        **kwargs: arguments of :class:`mmpretrain.models.LinearClsHead`.

    Raises:
        ValueError: if ``layer`` has another type or an unknown argument.
    """

    @checks_arguments()
    def __init__(self, num_classes: int, in_channels: int, layer: dict, **kwargs) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        options = dict(layer)
        kind = options.pop('type', None)
        kinds: dict[str, Callable[..., nn.Module]] = {
            method.layers[0].__name__: method.layers[0]
            for method in METHODS.values()
            if 0 in method.layers
        }
        if kind not in kinds:
            raise ValueError(
                f'layer of DynamicLinearClsHead must have a type, one of {", ".join(kinds)}, but '
                f'got {kind!r}'
            )
        try:
            self.fc = kinds[kind](in_channels, num_classes, **options)
        except TypeError as error:
            raise ValueError(f'layer of DynamicLinearClsHead: {error}') from error
