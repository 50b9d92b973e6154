"""The registry of methods: one declaration a method, which everything else reads.

A method registers itself in its own file::

    @register_method
    @dataclass(frozen=True)
    class DYConv(Method):
        layers = {2: DYConv2d}
        temperature_range = SOFTMAX_TEMPERATURE

        num_kernels: int = 4
        reduction: float = 1 / 4
        function: str = 'softmax'

Types for ``conv_cfg``, ``DynamicBackbone``, ``mmkw.convert``, the dynamic classifier head and the
tests that all methods share follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Callable, ClassVar, TypeVar

from .base import DynamicLayer
from .temperature import TemperatureRange


class Method:
    """A dynamic convolution and its options, which are those of its layers.

    Subclasses are frozen dataclasses whose fields are the options, with the defaults that the
    layers have. Options of a whole network, which layers do not take, are among the fields, too.

    Attributes:
        layers: class attribute, the layers by the number of their spatial dimensions; 0 for
            linear layers. Each method has one with two dimensions.
        temperature_range: class attribute, the temperatures that layers with the default options
            have; ``None`` if the method has none. Defaults to ``None``.
        of_network: class attribute, names of the options that layers do not take. Defaults to
            none.
        shares: class attribute, what the layers of a network can share: ``'cells'`` of a
            warehouse, or the ``'routing'`` weights of a block. Defaults to ``None``, nothing.
    """

    layers: ClassVar[Mapping[int, type[DynamicLayer]]]
    temperature_range: ClassVar[TemperatureRange | None] = None
    of_network: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[str | None] = None

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of all options."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]

    def layer_options(self) -> dict[str, Any]:
        """The arguments that the layers take, by name."""
        return {
            name: getattr(self, name) for name in self.option_names() if name not in self.of_network
        }


METHODS: dict[str, type[Method]] = {}
"""All methods, by name, in the order in which they were registered."""

_MethodClass = TypeVar('_MethodClass', bound=type[Method])
_callbacks: list[Callable[[type[Method]], Any]] = []


def register_method(method: _MethodClass) -> _MethodClass:
    """Make a method known under the name of its class.

    Args:
        method: a subclass of :class:`Method`, as a dataclass.

    Returns:
        ``method``, so that this can be a decorator.

    Raises:
        TypeError: if it is not a dataclass, or its layers are not dynamic layers.
        ValueError: if it has no convolution, or its name or that of a layer is taken.
    """
    name = method.__name__
    if not is_dataclass(method):
        raise TypeError(f'method {name} must be a dataclass; put @dataclass(frozen=True) above it')
    layers = getattr(method, 'layers', None)
    if not layers or 2 not in layers:
        raise ValueError(f'method {name} has no convolution; give it layers={{2: ...}}')
    for layer in layers.values():
        if not (isinstance(layer, type) and issubclass(layer, DynamicLayer)):
            raise TypeError(f'layers of method {name} must be dynamic layers, but one is {layer!r}')
        if any(layer.__name__ == known.__name__ for known in all_layers()):
            raise ValueError(f'there is a layer {layer.__name__} already; rename that of {name}')
    if name in METHODS:
        raise ValueError(f'there is a method {name} already; choose another name')
    METHODS[name] = method
    for callback in _callbacks:
        callback(method)
    return method


def for_each_method(callback: Callable[[type[Method]], Any]) -> None:
    """Call a function with every method: those that are registered, and each one that will be."""
    _callbacks.append(callback)
    for method in METHODS.values():
        callback(method)


def all_layers() -> list[type[DynamicLayer]]:
    """The layers of all methods."""
    return [layer for method in METHODS.values() for layer in method.layers.values()]


def method_of_layer(name: str) -> type[Method] | None:
    """The method that has a layer with this class name, such as ``'ODConv2d'``."""
    for method in METHODS.values():
        if any(layer.__name__ == name for layer in method.layers.values()):
            return method
    return None
