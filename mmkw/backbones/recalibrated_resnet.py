r"""ResNets that scale the features of each block by attentions: SE, CBAM and ECA.

In each block the features :math:`x` of the last norm are multiplied by attentions in (0, 1) before
the identity is added. These networks have static kernels; the paper's Table 1 compares with them.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.utils import SELayer
from torch import Tensor, nn

from ..arguments import check_names, checks_arguments


class EfficientChannelAttention(nn.Module):
    r"""ECA (Wang et al., CVPR 2020).

    .. math:: y = x \odot \sigma(\mathbf{w} * \bar x)

    with the pooled features :math:`\bar x`, along whose channels one kernel goes.

    Args:
        channels: of the features; any number.
        kernel_size: of the convolution along the channels. Defaults to 3.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape ``(N, channels, H, W)``, and the same after it."""
        attentions = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * attentions.sigmoid()[..., None, None]


class ConvolutionalBlockAttention(nn.Module):
    r"""CBAM (Woo et al., ECCV 2018): attentions of channels, then of positions.

    .. math::
        x' = x \odot \sigma(\mathrm{MLP}(\mathrm{avg}\, x) + \mathrm{MLP}(\mathrm{max}\, x)), \qquad
        y = x' \odot \sigma(\mathrm{BN}(\mathbf{W} * [\mathrm{max}_c x', \mathrm{avg}_c x']))

    Args:
        channels: of the features.
        ratio: of them to the channels within the MLP. Defaults to 16.
        kernel_size: of ``W``. Defaults to 7.
    """

    def __init__(self, channels: int, ratio: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels // ratio),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels),
        )
        self.spatial = ConvModule(
            2,
            1,
            kernel_size,
            padding=kernel_size // 2,
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='Sigmoid'),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape ``(N, channels, H, W)``, and the same after it."""
        attentions = (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()
        x = x * attentions[..., None, None]
        return x * self.spatial(torch.stack([x.amax(1), x.mean(1)], 1))


# Without the divisor, MMPretrain rounds the hidden channels up to a multiple of 8.
RECALIBRATIONS: dict[str, Callable[..., nn.Module]] = {
    'SE': partial(SELayer, divisor=1),
    'CBAM': ConvolutionalBlockAttention,
    'ECA': EfficientChannelAttention,
}


@MODELS.register_module()
class RecalibratedResNet(ResNet):
    """ResNet with SE, CBAM or ECA at the end of each block, before the identity is added.

    All other module names are those of the plain network; the attentions of a block are in
    ``layer<stage>.<block>.drop_path.recalibration``.

    Args:
        recalibration (dict): ``type``, one of ``'SE'`` (MMPretrain's ``SELayer``), ``'CBAM'``
            (:class:`ConvolutionalBlockAttention`) and ``'ECA'``
            (:class:`EfficientChannelAttention`), and further arguments of that module.
        **kwargs: arguments of :class:`mmpretrain.models.ResNet`.

    Raises:
        ValueError: if the type or an option is unknown.
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
