"""The networks that are compared: one ResNet18, with the convolutions of each method."""

from __future__ import annotations

from dataclasses import dataclass, field

ANNEALED = 'annealed'
LEARNED = 'learned'

# Both convolutions of every block: what ODConv and DY-Conv replace in a ResNet18.
_BLOCKS = ['layer*.conv?']
# CondConv's rule: the last three residual blocks, and the classifier.
_LAST_BLOCKS = ['layer3.1', 'layer4.0', 'layer4.1']


@dataclass(frozen=True)
class Method:
    """A network of the comparison.

    Attributes:
        backbone: ``type`` and what the method adds to the arguments of a ResNet18.
        layer: the layer that ``DynamicBackbone`` puts into it, with the names of the layers to
            replace; empty for networks that need none.
        classifier: the layer of the classifier, if it is not plain.
        temperature: ``'annealed'`` from nearly static kernels to learned attentions,
            ``'learned'`` attentions from the first iteration, or ``None``: there is none.
        begin, end: the temperatures between which it is annealed.
    """

    backbone: dict = field(default_factory=lambda: dict(type='mmpretrain.ResNet'))
    layer: dict = field(default_factory=dict)
    classifier: dict | None = None
    temperature: str | None = None
    begin: float = 1.0
    end: float = 0.0

    def model(self, base_channels: int, num_classes: int) -> dict:
        """The config of the classifier.

        Args:
            base_channels: of the first stage; 64 in the full ResNet18.
            num_classes: outputs of the classifier.
        """
        backbone = dict(
            self.backbone,
            depth=18,
            in_channels=1,
            base_channels=base_channels,
            stem_channels=base_channels,
            zero_init_residual=True,
        )
        if self.layer:
            backbone = dict(type='DynamicBackbone', backbone=backbone, **self.layer)
        head = dict(
            type='LinearClsHead',
            num_classes=num_classes,
            in_channels=8 * base_channels,
            topk=(1,),
            loss=dict(type='CrossEntropyLoss'),
        )
        if self.classifier is not None:
            head.update(type='DynamicLinearClsHead', layer=self.classifier)
        return dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=head,
        )

    def hooks(self, annealing_iters: int) -> list[dict]:
        """The hooks that set the temperature during training."""
        if self.temperature == ANNEALED:
            ends = dict(begin=self.begin, end=self.end)
            return [dict(type='KWTemperatureHook', iters=annealing_iters, **ends)]
        if self.temperature == LEARNED:
            return [dict(type='KWDisableAttentionInitHook')]
        return []


def _kw(budget: int, temperature: str, **options) -> Method:
    return Method(dict(type='KWResNet', budget=budget, **options), temperature=temperature)


def _softmax_temperature(layer: dict) -> Method:
    return Method(layer=layer, temperature=ANNEALED, begin=30, end=1)


METHODS: dict[str, Method] = {
    'plain': Method(),
    'KW 1x': _kw(1, ANNEALED),
    'KW 1x, no annealing': _kw(1, LEARNED),
    'KW 1x, softmax': _kw(1, ANNEALED, attention=dict(function='softmax')),
    'KW 4x': _kw(4, ANNEALED),
    'KW 4x, no annealing': _kw(4, LEARNED),
    'DY-Conv 4x': _softmax_temperature(dict(layer=dict(type='DYConv2d'), layers=_BLOCKS)),
    'ODConv 4x': _softmax_temperature(
        dict(layer=dict(type='ODConv2d', num_kernels=4), layers=_BLOCKS)
    ),
    'CondConv 8x': Method(
        layer=dict(
            layer=dict(type='CondConv2d'),
            layers=[f'{block}.conv?' for block in _LAST_BLOCKS],
            share_routing_in=_LAST_BLOCKS,
        ),
        classifier=dict(type='CondLinear', bias=False),
    ),
}
