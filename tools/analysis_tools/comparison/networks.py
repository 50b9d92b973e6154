"""The networks that are compared: one small ResNet, with the convolutions of each method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from .data import NUM_CLASSES

# Both convolutions of every block: what ODConv and DY-Conv replace in a ResNet18.
_BLOCKS = ['layer*.conv?']


class Temperature(NamedTuple):
    """The temperatures before and after annealing."""

    begin: float
    end: float


@dataclass(frozen=True)
class Network:
    """A network of the comparison: the stem and the first two stages of a narrow ResNet18.

    Attributes:
        backbone: ``type`` and what the method adds to the arguments of a ResNet.
        layer: the layer of another method, which ``DynamicBackbone`` puts into all blocks.
        base_channels: of the first stage; the second has twice as many.
        length: of the training, relative to that of the others.
        temperature: of the attentions; ``None``: there is none.
    """

    backbone: dict = field(default_factory=lambda: dict(type='mmpretrain.ResNet'))
    layer: dict | None = None
    base_channels: int = 64
    length: float = 1.0
    temperature: Temperature | None = None

    def build(self) -> ImageClassifier:
        """A new classifier with random weights, on the CPU."""
        backbone = dict(
            self.backbone,
            depth=18,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
            in_channels=1,
            stem_channels=self.base_channels,
            base_channels=self.base_channels,
            zero_init_residual=False,
        )
        if self.layer is not None:
            backbone = dict(
                type='DynamicBackbone', backbone=backbone, layer=self.layer, layers=_BLOCKS
            )
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=backbone,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=NUM_CLASSES,
                    in_channels=2 * self.base_channels,
                ),
            )
        )
        model.init_weights()
        return model


def _kw(temperature: Temperature, **options) -> Network:
    return Network(dict(type='KWResNet', **options), temperature=temperature)


_ANNEALED = Temperature(1, 0)
_SOFTENED = Temperature(30, 1)

NETWORKS: dict[str, Network] = {
    'plain': Network(),
    # As many parameters as KW 1x, and as much time.
    'plain, wider': Network(base_channels=68),
    'plain, longer': Network(length=3.5),
    # With cells of half the channels, the default, the attentions would be larger than the network.
    'KW 1/2x': _kw(_ANNEALED, budget='1/2', cell_ratio=(1, '1/2')),
    'KW 1x': _kw(_ANNEALED, budget=1),
    'KW 4x': _kw(_ANNEALED, budget=4),
    'KW 1x, no annealing': _kw(Temperature(0, 0), budget=1),
    'DY-Conv 4x': Network(layer=dict(type='DYConv2d'), temperature=_SOFTENED),
    'ODConv 4x': Network(layer=dict(type='ODConv2d', num_kernels=4), temperature=_SOFTENED),
}
# The problem is chosen by these two, before anything else is trained.
CRITERION: dict[str, Network] = {
    'plain': NETWORKS['plain'],
    'plain, double width': Network(base_channels=128),
}
