"""One verb for all methods: converting any network, and the dry run that shows what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch

from torch import nn

from ..meta_device import on_meta_device
from ..methods.base import DynamicLayer
from ..methods.cond_conv import CondConv, share_routing
from ..methods.kernel_warehouse.attention import count_parameters
from ..methods.kernel_warehouse.method import KernelWarehouse
from ..methods.registry import Method
from .automatic import complete_plan, plan_network
from .candidates import batch_size, constant_layers, leave_constant_plain, unusable_layers
from .plan_table import NetworkPlan, align, group_by_reason
from .replacing import (
    PLAIN_LAYERS,
    kernel_shape_of,
    match_layers,
    replace_layers,
    special_layers,
)
from .tracing import Inputs, trace_layers


def convert(
    network: nn.Module,
    method: Method,
    inputs: Inputs | None = None,
    layers: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> nn.Module:
    """Put dynamic layers in the places of plain ones, in any network of PyTorch.

    Args:
        network: changed in place.
        method: the method with its options, such as ``mmkw.ODConv(num_kernels=4)``.
        inputs, layers, exclude: see :func:`plan`.

    Returns:
        ``network``.

    Raises:
        TypeError, ValueError: see :func:`plan`.
    """
    return plan(network, method, inputs, layers, exclude).apply(network)


def plan(
    network: nn.Module,
    method: Method,
    inputs: Inputs | None = None,
    layers: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    initial: nn.Module | None = None,
) -> NetworkPlan | LayerPlan:
    """What :func:`convert` would do; printing it shows a table. The network is not changed.

    With ``inputs`` the network is run once. Layers for which a kernel of each sample is of no use
    then stay plain, and so does the stem: :func:`~mmkw.networks.plan_network` lists them all.
    Without ``inputs`` all layers that match are replaced, but for those that start at a constant.

    ``KernelWarehouse`` has three ways. With ``inputs`` it plans by itself which layers share a
    warehouse, see :func:`~mmkw.networks.plan_network`. With ``plan=...`` among its options it takes
    that plan, and ``inputs``, if given, only check it. With neither, each layer gets a warehouse of
    its own.

    Args:
        network: the plain network.
        method: the method with its options, such as ``mmkw.ODConv(num_kernels=4)``.
        inputs: for one run of the network: a batch of two samples or more, or the sequence of its
            positional arguments. Defaults to ``None``: the network is not run.
        layers: names of layers, or patterns of such names, see
            :func:`~mmkw.networks.match_layers`. Defaults to ``None``: all for which the method has
            a layer, the classifier included where it has a linear one.
        exclude: names or patterns of layers that stay plain. Defaults to none.
        initial: see :func:`~mmkw.networks.plan_network`.

    Raises:
        TypeError: if ``method`` is no method with its options.
        ValueError: if no layer is left to replace, a pattern matches nothing or a layer is matched
            twice, the method has no layer for a matched one, its options do not fit it, or the
            network cannot run on the inputs.
    """
    return _plan(method, network, inputs, layers, exclude, initial)


class LayerPlan(Mapping[str, type[DynamicLayer]]):
    """Which layers of a network a method replaces; each new layer stands for itself.

    A mapping of the new layers' classes by name. Printing it shows a table.

    Args:
        network: the plain network.
        method: the method with its options.
        names: of the layers to replace.
        plain: why other layers stay plain, by name.

    Attributes:
        added: by how many parameters each layer grows, by name.
        plain_parameters: parameters of the plain network.
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method,
        names: Sequence[str],
        plain: Mapping[str, str] | None = None,
    ) -> None:
        self._network = type(network).__name__
        self._method = method
        self.plain = dict(plain or {})
        self.plain_parameters = count_parameters(network)
        self._blocks = _blocks_that_share(network, method, names)
        new = {name: self._on_meta(name, network.get_submodule(name)) for name in names}
        self._share(new)
        self._kinds = {name: type(layer) for name, layer in new.items()}
        self.added = {
            name: count_parameters(layer) - count_parameters(network.get_submodule(name))
            for name, layer in new.items()
        }

    def _on_meta(self, name: str, plain: nn.Module) -> DynamicLayer:
        kernel_shape_of(name, plain)
        if isinstance(plain, DynamicLayer):
            raise ValueError(f'layer {name!r} is a {type(plain).__name__} already; leave it out')
        kinds, dimensions = self._method.layers, PLAIN_LAYERS[type(plain)].dimensions
        if dimensions not in kinds:
            has = ', '.join(sorted(kind.__name__ for kind in kinds.values()))
            raise ValueError(
                f'layer {name!r} is a {type(plain).__name__}, but the method has only {has}; leave '
                f'the layer out'
            )
        try:
            with on_meta_device():
                return kinds[dimensions].replacing(plain, **self._method.layer_options())
        except ValueError as error:
            raise ValueError(f'layer {name!r}: {error}') from error

    def _share(self, layers: Mapping[str, DynamicLayer]) -> None:
        for names in self._blocks:
            share_routing([layers[name] for name in names])  # type: ignore[misc]

    def apply(self, network: nn.Module) -> nn.Module:
        """Change the network that was planned."""
        options = self._method.layer_options()
        self._share(replace_layers(network, self, self._method.layers, **options))
        return network

    def __getitem__(self, name: str) -> type[DynamicLayer]:
        return self._kinds[name]

    def __iter__(self):
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    @property
    def parameters(self) -> int:
        """Parameters of the network with its new layers."""
        return self.plain_parameters + sum(self.added.values())

    def __str__(self) -> str:
        rows = [('layer', 'becomes', 'parameters')]
        rows += [(name, kind.__name__, f'{self.added[name]:+,}') for name, kind in self.items()]
        lines = [
            f'{type(self._method).__name__} in {len(self)} layers of {self._network}',
            *align(rows, left=(0, 1)),
        ]
        if self.plain:
            lines += ['Plain layers:', *group_by_reason(self.plain)]
        lines.append(f'Parameters: {self.plain_parameters:,} plain, {self.parameters:,} converted')
        return '\n'.join(lines)


def _blocks_that_share(network: nn.Module, method: Method, names: Sequence[str]) -> list[list[str]]:
    """The layers of each block that share a routing."""
    blocks = []
    for block in method.share_routing_in if isinstance(method, CondConv) else ():
        try:
            modules = set(network.get_submodule(block).modules())
        except AttributeError as error:
            raise ValueError(
                f'share_routing_in names {block!r}, but {type(network).__name__} has no such module'
            ) from error
        blocks.append([name for name in names if network.get_submodule(name) in modules])
        if not blocks[-1]:
            raise ValueError(
                f'share_routing_in names {block!r}, in which no layer becomes one of CondConv'
            )
    return blocks


# By the class of the method, as each has a way of its own to be put into a network.
@singledispatch
def _plan(
    method: object,
    network: nn.Module,
    inputs: Inputs | None,
    layers: Iterable[str] | None,
    exclude: Iterable[str],
    initial: nn.Module | None,
) -> NetworkPlan | LayerPlan:
    raise TypeError(
        f'method must be one with its options, such as mmkw.ODConv(num_kernels=4), but got '
        f'{method!r}'
    )


@_plan.register(Method)
def _plan_layers(method: Method, network, inputs, layers, exclude, initial) -> LayerPlan:
    excluded = match_layers(network, exclude)
    if layers is None:
        every = match_layers(network, ['*'])
        matches = {name: every[name] for name in every if _has_layer(method, network, name)}
    else:
        matches = match_layers(network, layers)
    matches = {name: pattern for name, pattern in matches.items() if name not in excluded}
    constant = constant_layers(network, *([] if initial is None else [initial]))
    plain = {}
    if inputs is None:
        names = leave_constant_plain(matches, constant)
        plain = special_layers(network)
        plain |= {
            name: 'starts at a constant, as its network initialises it'
            for name in matches
            if name not in names
        }
    else:
        traces = trace_layers(network, inputs)
        plain = unusable_layers(network, traces, batch_size(inputs), matches, (), constant)
        names = [name for name in matches if name not in plain]
    if not names:
        reasons = '; '.join(line.strip() for line in group_by_reason(plain))
        raise ValueError(
            f'{type(method).__name__} replaces no layer of {type(network).__name__}: '
            f'layers={layers!r} and exclude={exclude!r} leave none'
            f'{f" but plain ones ({reasons})" if reasons else ""}; name one at least'
        )
    return LayerPlan(network, method, names, plain)


@_plan.register(KernelWarehouse)
def _plan_warehouses(method: KernelWarehouse, network, inputs, layers, exclude, initial):
    options = method.layer_options()
    if method.plan is not None:
        if layers is not None or exclude:
            raise ValueError(
                'a plan names its layers by itself; drop layers and exclude, or the plan'
            )
        return complete_plan(network, inputs, method.plan, initial, **options)
    if inputs is None:
        return _plan_layers(method, network, inputs, layers, exclude, initial)
    return plan_network(
        network,
        inputs,
        layers=['*'] if layers is None else layers,
        exclude=exclude,
        max_attention=method.max_attention,
        initial=initial,
        **options,
    )


def _has_layer(method: Method, network: nn.Module, name: str) -> bool:
    kind = PLAIN_LAYERS.get(type(network.get_submodule(name)))
    return kind is not None and kind.dimensions in method.layers
