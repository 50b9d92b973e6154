"""Classification head whose linear layer mixes its weight from a warehouse."""

from __future__ import annotations

from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead

from ...arguments import checks_arguments
from ...methods.kernel_warehouse.attention import AttentionOptions
from ...methods.kernel_warehouse.layers import KWLinear
from ...methods.kernel_warehouse.partition import CellRatio, Ratio
from ..attention_norms import attention_from_config


@MODELS.register_module()
class KWLinearClsHead(LinearClsHead):
    """Linear classifier with a KernelWarehouse layer, ``fc``, and a warehouse of its own.

    The paper's MobileNetV2 1/2x has it with ``budget=1/2, cell_ratio=(1, 1/40),
    attention=dict(reduction=1/32)``:
    40 cells of 1000 x 32 for 1280 channels at budget 1, 20 of them at 1/2 (Appendix A.3).

    Args:
        num_classes (int): number of classes.
        in_channels (int): channels of the input.
        budget (float | str): ``b``, parameters relative to the plain layer. Defaults to 1.
        cell_ratio (float | tuple | None): cell channels relative to the layer's, one number or
            (output, input). Defaults to ``None``: 1 if the budget is at least 1, otherwise 1/2.
        attention (dict | None): options of the attention, see
            :class:`~mmkw.methods.kernel_warehouse.AttentionConfig`. Defaults to ``None``, as there.
        **kwargs: arguments of :class:`mmpretrain.models.LinearClsHead`.

    Raises:
        ValueError: if channels, budget and cell ratio do not fit.
    """

    @checks_arguments()
    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        budget: Ratio = 1,
        cell_ratio: CellRatio = None,
        attention: AttentionOptions = None,
        **kwargs,
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.fc = KWLinear(
            in_channels,
            num_classes,
            budget=budget,
            cell_ratio=cell_ratio,
            attention=attention_from_config(attention),
        )
