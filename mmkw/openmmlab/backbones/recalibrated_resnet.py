r"""ResNets that scale the features of each block by attentions: SE, CBAM and ECA.

In each block the features :math:`x` of the last norm are multiplied by attentions in (0, 1) before
the identity is added. These networks have static kernels; the paper's Table 1 compares with them.
SE is MMPretrain's module, CBAM and ECA are timm's.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.utils import SELayer
from mmpretrain.utils import require
from torch import nn

from ...arguments import check_names, checks_arguments


@require('timm>=0.9', "pip install 'timm>=0.9,<2'")
def cbam(channels: int, ratio: int = 16, kernel_size: int = 7) -> nn.Module:
    """timm's CBAM (Woo et al., ECCV 2018): attentions of channels, then of positions.

    Its linear layers have biases, as in the method's own code. By timm's default they have none,
    and a ResNet18 has 2,040 parameters fewer.

    Args:
        channels: of the features.
        ratio: of them to the channels between the linear layers. Defaults to 16.
        kernel_size: of the convolution that gives the attentions of positions; odd. Defaults to 7.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if the kernel size is even.
    """
    from timm.layers import create_attn

    _check_odd('CBAM', kernel_size)
    return create_attn(
        'cbam', channels, rd_ratio=1 / ratio, spatial_kernel_size=kernel_size, mlp_bias=True
    )


@require('timm>=0.9', "pip install 'timm>=0.9,<2'")
def eca(channels: int, kernel_size: int = 3) -> nn.Module:
    """timm's ECA (Wang et al., CVPR 2020): attentions by a convolution along the channels.

    Args:
        channels: of the features. timm is not told their number, by which it would make the
            kernels larger from 128 channels on, 12 parameters in a ResNet18.
        kernel_size: of the convolution; odd. Defaults to 3, as in the method's ResNet18.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if the kernel size is even.
    """
    from timm.layers import EcaModule

    _check_odd('ECA', kernel_size)
    return EcaModule(kernel_size=kernel_size)


def _check_odd(kind: str, kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f'kernel_size of {kind} must be odd, but got {kernel_size}')


# Without the divisor, MMPretrain rounds the hidden channels up to a multiple of 8.
RECALIBRATIONS: dict[str, Callable[..., nn.Module]] = {
    'SE': partial(SELayer, divisor=1),
    'CBAM': cbam,
    'ECA': eca,
}


@MODELS.register_module()
class RecalibratedResNet(ResNet):
    """ResNet with SE, CBAM or ECA at the end of each block, before the identity is added.

    All other module names are those of the plain network; the attentions of a block are in
    ``layer<stage>.<block>.drop_path.recalibration``.

    Args:
        recalibration (dict): ``type``, one of ``'SE'`` (MMPretrain's ``SELayer``), ``'CBAM'``
            (:func:`cbam`) and ``'ECA'`` (:func:`eca`), and further arguments of that one.
        **kwargs: arguments of :class:`mmpretrain.models.ResNet`.

    Raises:
        ImportError: if CBAM or ECA is asked for and timm is not installed.
        ValueError: if the type or an option is unknown, or a kernel size is even.
    """

    @checks_arguments()
    def __init__(self, recalibration: dict, **kwargs) -> None:
        options = dict(recalibration)
        kind = options.pop('type', None)
        if kind not in RECALIBRATIONS:
            raise ValueError(
                f'recalibration must have a type, one of {", ".join(RECALIBRATIONS)}, but got '
                f'{kind!r}'
            )
        module = RECALIBRATIONS[kind]
        known = list(inspect.signature(module).parameters)[1:]
        check_names('recalibration of RecalibratedResNet', options, known, 'option')
        super().__init__(**kwargs)
        for stage in self.res_layers:
            for block in getattr(self, stage):
                recalibrated = module(block.out_channels, **options)
                # Blocks drop their path after the last norm, just before the identity is added.
                steps = dict(recalibration=recalibrated, drop=block.drop_path)
                block.drop_path = nn.Sequential(OrderedDict(steps))
        self._freeze_stages()
