"""Parameters and multiply-adds of a model by stage, on MMEngine's analysis."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from torch import Tensor, nn

from ..methods import DynamicLayer
from ..ops import forced_route
from .operations import Operations, operations_of_layers


@dataclass(frozen=True)
class Cost:
    """What a stage costs for one run.

    Attributes:
        stage: the module's name in the model.
        parameters: of the stage; a warehouse is a stage of its own, as layers share it.
        operations: multiply-adds of convolutions and linear layers, of mixing their kernels and
            of the attentions.
        other: operations as MMEngine counts them of all else: norms, pooling, products of
            activations with each other.
    """

    stage: str
    parameters: int
    operations: Operations
    other: int

    @property
    def total(self) -> int:
        return self.operations.total + self.other

    def as_row(self) -> dict[str, Any]:
        """Names and numbers, for tables and JSON."""
        return dict(
            stage=self.stage,
            parameters=self.parameters,
            convolution=self.operations.convolution,
            assembling=self.operations.assembling,
            attention=self.operations.attention,
            other=self.other,
            total=self.total,
        )


@torch.no_grad()
def cost_by_stage(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Cost]:
    """Count parameters and multiply-adds of each stage of a model.

    MMEngine's analysis traces the model and counts by module. Where kernels are mixed, the
    formulas of the paper take the place of its numbers, whatever route the layers take.

    Args:
        model: called with ``inputs``; is brought into evaluation mode.
        inputs: of one run.

    Returns:
        The stages in the model's order: the children of a backbone (of lists of modules their
        items), and every other part of the model as a whole. At the end what no stage has.
    """
    model.eval()
    layers = operations_of_layers(model, partial(model, *inputs))
    with forced_route('reference'), warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        analysis = FlopAnalyzer(model, inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle('aten::scaled_dot_product_attention', _self_attention)
        traced = analysis.by_module()
    parameters = parameter_count(model)

    dynamic = [name for name, m in model.named_modules() if isinstance(m, DynamicLayer)]
    counted = {name: traced[name] for name in dynamic}
    for name, operations in layers.items():
        # Attentions lie within dynamic layers.
        if not any(_is_within(name, other) for other in dynamic):
            counted[name] = operations.total

    def cost(stage: str, outside: Sequence[str] = ()) -> Cost:
        """The cost of a stage without the stages ``outside``, which lie within it."""

        def own(numbers: dict[str, Any], zero: Any = 0) -> Any:
            names = (name for name in numbers if _is_within(name, stage))
            inside = (n for n in names if not any(_is_within(n, other) for other in outside))
            return sum((numbers[name] for name in inside), zero)

        without = sum(traced[other] for other in outside)
        return Cost(
            stage=stage,
            parameters=parameters[stage] - sum(parameters[other] for other in outside),
            operations=own(layers, Operations()),
            other=traced[stage] - without - own(counted),
        )

    stages = [name for name in _stages(model) if parameters[name] or traced[name]]
    rest = cost('', stages)
    costs = [cost(stage) for stage in stages]
    return [*costs, rest] if rest.parameters or rest.total else costs


def _stages(model: nn.Module) -> list[str]:
    names: list[str] = []
    for name, child in model.named_children():
        names += _items(child, f'{name}.') if name == 'backbone' else [name]
    return names


def _items(module: nn.Module, prefix: str) -> list[str]:
    """Names of children; of containers, which are not called themselves, those of their items."""
    names = []
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            names += _items(child, f'{prefix}{name}.')
        else:
            names.append(f'{prefix}{name}')
    return names


def _is_within(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f'{module}.')


def _self_attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Two products: of queries with keys, and of their result with values."""
    query, key, value = (part.type().sizes() for part in inputs[:3])
    products = torch.Size(query[:-1]).numel() * key[-2]
    return Counter(scaled_dot_product_attention=products * (query[-1] + value[-1]))


def images_for(model: nn.Module, height: int, width: int) -> tuple[nn.Module, Tensor]:
    """A model that takes images alone, and one image of a size, of random numbers.

    Args:
        model: a classifier of MMPretrain or a detector of MMDetection. A detector also sees 8
            boxes; its own proposals, of random weights, decide how much its heads compute.
        height, width: of the image.
    """
    from mmdet.models import BaseDetector

    torch.manual_seed(0)
    if not isinstance(model, BaseDetector):
        return _OnImages(model, None), torch.randn(1, 3, height, width)
    from mmdet.testing import demo_mm_inputs

    packed = demo_mm_inputs(1, (3, height, width), [8], num_classes=2, with_mask=True)
    batch = model.data_preprocessor(packed, training=False)
    return _OnImages(model, batch['data_samples']), batch['inputs']


class _OnImages(nn.Module):
    """A model under its own names of modules, called with images alone."""

    def __init__(self, model: nn.Module, samples: list | None) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self._run = lambda images: model(images, samples, mode='tensor')

    def forward(self, images: Tensor) -> Any:
        return self._run(images)
