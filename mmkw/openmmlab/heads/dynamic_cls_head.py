"""Classification head with the linear layer of a dynamic convolution."""

from __future__ import annotations

from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead

from ...arguments import checks_arguments
from ...methods import CondLinear, DCDLinear

LAYERS = {'CondLinear': CondLinear, 'DCDLinear': DCDLinear}


@MODELS.register_module()
class DynamicLinearClsHead(LinearClsHead):
    """Linear classifier whose layer, ``fc``, is that of CondConv or DCD.

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels of the input.
        layer (dict): ``type``, ``'CondLinear'`` or ``'DCDLinear'``, and arguments of that class.
        **kwargs: arguments of :class:`mmpretrain.models.LinearClsHead`.

    Raises:
        ValueError: if ``layer`` has another type or an unknown argument.
    """

    @checks_arguments()
    def __init__(self, num_classes: int, in_channels: int, layer: dict, **kwargs) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        options = dict(layer)
        kind = options.pop('type', None)
        if kind not in LAYERS:
            raise ValueError(
                f'layer of DynamicLinearClsHead must have a type, one of {", ".join(LAYERS)}, but '
                f'got {kind!r}'
            )
        try:
            self.fc = LAYERS[kind](in_channels, num_classes, **options)
        except TypeError as error:
            raise ValueError(f'layer of DynamicLinearClsHead: {error}') from error
