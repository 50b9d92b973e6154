"""Linear classification head with dropout."""

from __future__ import annotations

from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from ...arguments import checks_arguments


@MODELS.register_module()
class DropoutLinearClsHead(LinearClsHead):
    """MMPretrain's linear classifier with dropout before the layer, as in larger MobileNetV2s.

    The names in its state dict are those of :class:`mmpretrain.models.LinearClsHead`.

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels of the input.
        dropout (float): the rate. Defaults to 0.2.
        **kwargs: arguments of :class:`mmpretrain.models.LinearClsHead`.

    Raises:
        ValueError: if the rate is not between 0 and 1.
    """

    @checks_arguments()
    def __init__(self, num_classes: int, in_channels: int, dropout: float = 0.2, **kwargs) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.dropout = nn.Dropout(dropout)

    def pre_logits(self, feats: tuple[Tensor]) -> Tensor:
        """The pooled features, dropped out in training."""
        return self.dropout(super().pre_logits(feats))
