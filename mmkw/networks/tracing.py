"""Watching the layers of a network at work: in which order, on what, and whether at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops.mixing import Shape

Inputs = Union[Tensor, Sequence[Any]]


@dataclass(frozen=True)
class LayerTrace:
    """What one run of a network shows of a convolution or linear layer.

    Attributes:
        calls: how often the layer was called.
        input_shape, output_shape: those of its first call; empty if there was none.
        sees_input: whether it was the first layer of all, or was ever given the network's input.
        reads_weight: whether its weight was used while the layer itself was not running.
    """

    calls: int = 0
    input_shape: Shape = ()
    output_shape: Shape = ()
    sees_input: bool = False
    reads_weight: bool = False


class _WeightReads(TorchFunctionMode):
    """Notes the layers whose weights torch functions get from elsewhere than a layer of theirs."""

    def __init__(self, names: Mapping[int, list[str]]) -> None:
        super().__init__()
        self.names = names
        self.running: list[str] = []
        self.found: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                names = self.names.get(id(item), [])
                if not any(name in self.running for name in names):
                    self.found.update(names)
        return function(*args, **kwargs)


def trace_layers(network: nn.Module, inputs: Inputs) -> dict[str, LayerTrace]:
    """Run a plain network once and watch its convolutions and linear layers.

    The run is in ``eval`` mode and without gradients. Modes and the state of the random number
    generators are afterwards what they were before, also if the network raises.

    Args:
        network: the plain network.
        inputs: its input, a tensor of shape ``(N, ...)`` on the network's device, or the sequence
            of its positional arguments.

    Returns:
        By name, in the order of their first calls; those without a call come last.

    Raises:
        ValueError: if the network cannot run on these inputs.
    """
    layers = {name: module for name, module in network.named_modules() if is_weighted(module)}
    tensors = list(tensors_in(inputs))
    storages = {_storage(tensor) for tensor in tensors}
    weights: dict[int, list[str]] = {}
    for name, module in layers.items():
        if module._parameters.get('weight') is not None:
            weights.setdefault(id(module._parameters['weight']), []).append(name)
    reads = _WeightReads(weights)
    traces: dict[str, LayerTrace] = {}

    def start(name: str):
        return lambda module, inputs: reads.running.append(name)

    def finish(name: str):
        def hook(module, args, kwargs, output):
            reads.running.pop()
            x = next(tensors_in((*args, *kwargs.values())))
            trace = traces.get(name, LayerTrace(0, tuple(x.shape), tuple(output.shape)))
            sees_input = trace.sees_input or not traces or _storage(x) in storages
            traces[name] = replace(trace, calls=trace.calls + 1, sees_input=sees_input)

        return hook

    modes = {module: module.training for module in network.modules()}
    hooks = [module.register_forward_pre_hook(start(name)) for name, module in layers.items()]
    hooks += [
        module.register_forward_hook(finish(name), with_kwargs=True)
        for name, module in layers.items()
    ]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    try:
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices), reads:
            network(*([inputs] if isinstance(inputs, Tensor) else inputs))
    except Exception as error:
        shapes = ', '.join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f'{type(network).__name__} cannot run on inputs of shape {shapes} '
            f'({type(error).__name__}: {error}); plan it on images that it is made for, '
            f'with input_shape=(channels, height, width)'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for name in layers:
        trace = traces.setdefault(name, LayerTrace())
        if name in reads.found:
            traces[name] = replace(trace, reads_weight=True)
    return traces


def is_weighted(module: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer, of whatever kind."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def _storage(x: Tensor) -> int:
    # The address of the data would be 0 for all tensors on the meta device.
    return x.untyped_storage()._cdata
