r"""Dynamic networks as plain ones: every kernel fixed to its mean over calibration images.

.. math:: \bar{\mathbf{W}} = \frac{1}{N} \sum_{n=1}^N \mathbf{W}(x_n)

Where a kernel is linear in its attention, as in KernelWarehouse, this is the kernel of the mean
attention. It is the kernel of every sample where attentions do not depend on the input, as in
KernelWarehouse at temperature 1. Elsewhere the maps change, and batch norms are matched to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.plain_state import plain_state_dict
from ..methods import DynamicLayer

Predict = Callable[[nn.Module, Any], Any]

# Variances below this share of the squared mean are rounding: the channel is constant.
_CONSTANT = 1e-10


def call(model: nn.Module, batch: Any) -> Any:
    return model(batch)


@torch.no_grad()
def mean_kernels(model: nn.Module, batches: Iterable, predict: Predict = call) -> dict[str, Tensor]:
    """Average the kernels of all samples that each dynamic layer sees.

    The kernels of a batch are all in memory at once, one layer after the other.

    Args:
        model: has dynamic layers; in evaluation mode afterwards.
        batches: calibration images.
        predict: runs the model that it is given on a batch. Defaults to calling it.

    Returns:
        Weights of plain layers by the names of the dynamic layers, shape ``(out_channels,
        in_channels / groups, *kernel_size)`` or ``(out_features, in_features)``, in float64.

    Raises:
        ValueError: if the model has no dynamic layers, one without kernels of its samples (DCD), or
            one that saw no sample.
    """
    named = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in named if isinstance(module, DynamicLayer)}
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no dynamic layers, so it is as static as it can be; give '
            f"the config of a network that has some, such as one with type='KWResNet'"
        )
    for name, layer in layers.items():
        if not layer.has_kernels:
            raise ValueError(
                f'layer {name!r} is a {type(layer).__name__}, which does more than convolve each '
                f'sample with a kernel, so no plain layer can take its place; networks with other '
                f'dynamic layers can be made static'
            )
    sums: dict[DynamicLayer, Tensor] = {}
    counts = dict.fromkeys(layers.values(), 0)

    def add(layer: Any, inputs: tuple) -> None:
        kernels = layer.kernels(inputs[0])
        sums[layer] = sums.get(layer, 0) + kernels.sum(0, dtype=torch.float64)
        counts[layer] += len(kernels)

    model.eval()
    # Before the forward pass: layers that follow the routing of another one find it there.
    with _before_forward(dict.fromkeys(counts, add)):
        for batch in batches:
            predict(model, batch)
    for name, layer in layers.items():
        if not counts[layer]:
            raise ValueError(
                f'layer {name!r} saw no calibration image, so its kernels have no mean; run the '
                f'model on at least one image, and build it without layers that it does not use'
            )
    return {name: sums[layer] / counts[layer] for name, layer in layers.items()}


def load_static(plain: nn.Module, model: nn.Module, kernels: Mapping[str, Tensor]) -> None:
    """Give a plain model static kernels, and all other tensors of the dynamic model.

    Args:
        plain: ``model`` with plain layers, see :func:`~mmkw.deployment.plain_config`.
        model: has the dynamic layers.
        kernels: of :func:`mean_kernels`.

    Raises:
        ValueError: if the models differ in other ways.
    """
    expected = plain.state_dict()
    tensors = plain_state_dict(model, kernels)
    for name in kernels:
        # Heads with a bias, whose dynamic layer was asked to have none.
        if f'{name}.bias' in expected and f'{name}.bias' not in tensors:
            tensors[f'{name}.bias'] = torch.zeros_like(expected[f'{name}.bias'])
    for name in tensors.keys() & expected.keys():
        # The layer scale of KWConvNeXt has shape (1, C, 1, 1), that of the plain network (C,).
        if tensors[name].squeeze().shape == expected[name].squeeze().shape:
            tensors[name] = tensors[name].reshape(expected[name].shape)
    try:
        plain.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f'the plain {type(plain).__name__} is not the dynamic one with plain layers: {error}'
        ) from error


@torch.no_grad()
def match_norms(
    plain: nn.Module, model: nn.Module, batches: Iterable, predict: Predict = call
) -> int:
    r"""Give batch norms the running statistics with which their outputs are as in another model.

    The outputs then have the mean and variance over the calibration images that they have in the
    dynamic model, channel by channel. With the mean :math:`m` and variance :math:`v` of a norm's
    inputs, and its running mean :math:`r` and variance :math:`s` (:math:`\epsilon` included),

    .. math::
        s' = s \, \frac{v_{static}}{v_{dynamic}}, \qquad
        r' = m_{static} - \sqrt{s' / s} \, (m_{dynamic} - r)

    Where running statistics are those of the images, as after training with them, these are the
    statistics of the static network, estimated anew. But norms that were frozen when the network
    was fine-tuned, with statistics of other images, also stay what the later layers know.

    Args:
        plain: after :func:`load_static`; in evaluation mode afterwards.
        model: the dynamic model; in evaluation mode afterwards.
        batches: calibration images. Both models see a batch before the next one. The plain one runs
            with the statistics of all images so far, so that the size of batches does not matter.
        predict: runs the model that it is given on a batch. Defaults to calling it.

    Returns:
        The number of norms with new statistics. Norms that no image reaches keep theirs.
    """
    dynamic = dict(model.named_modules())
    norms = {
        name: module
        for name, module in plain.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    wanted = {dynamic[name]: _Moments() for name in norms}
    matches = {norm: _Match(norm, wanted[dynamic[name]]) for name, norm in norms.items()}
    hooks: dict[nn.Module, Callable] = {
        **{norm: moments.add for norm, moments in wanted.items()},
        **{norm: match.update for norm, match in matches.items()},
    }
    model.eval()
    plain.eval()
    with _before_forward(hooks):
        for batch in batches if norms else ():
            predict(model, batch)
            predict(plain, batch)
    return sum(match.moments.count > 0 for match in matches.values())


@dataclass
class _Moments:
    """Mean and variance over all positions of all samples, for each channel."""

    count: int = 0
    mean: Any = 0.0
    deviations: Any = 0.0  # their squares, summed

    def add(self, norm: nn.Module, inputs: tuple) -> None:
        x = inputs[0]
        if not x.numel():
            return
        count = x.numel() // x.shape[1]
        dims = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = (part.double() for part in torch.var_mean(x, dims, correction=0))
        step, weight = mean - self.mean, count / (self.count + count)
        self.mean = self.mean + weight * step
        self.deviations = self.deviations + count * variance + weight * self.count * step.square()
        self.count += count

    @property
    def variance(self) -> Tensor:
        """0 where it is not above rounding."""
        variance = self.deviations / self.count
        return variance.where(variance > _CONSTANT * self.mean.square(), 0.0)


class _Match:
    """The running statistics of a norm of the plain model, matched to those of the dynamic one."""

    def __init__(self, norm: Any, wanted: _Moments) -> None:
        self.moments, self.wanted = _Moments(), wanted
        self.mean = norm.running_mean.double().clone()
        self.variance = norm.running_var.double() + norm.eps

    def update(self, norm: Any, inputs: tuple) -> None:
        self.moments.add(norm, inputs)
        if not self.moments.count or not self.wanted.count:
            return
        now, before = self.moments.variance, self.wanted.variance
        # A channel that is constant in one of the models only moves.
        ratio = (now / before).where((now > 0) & (before > 0), 1.0)
        variance = (self.variance * ratio).clamp_min(norm.eps)
        scale = (variance / self.variance).sqrt()
        norm.running_var.copy_(variance - norm.eps)
        norm.running_mean.copy_(self.moments.mean - scale * (self.wanted.mean - self.mean))


@contextmanager
def _before_forward(hooks: Mapping[Any, Callable]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
