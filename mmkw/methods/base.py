"""The public base of layers that convolve each sample with its own kernel.

:meth:`DynamicConvNd.forward` and :meth:`DynamicLinear.forward` are the only forward passes of all
methods. They check the input, pool and pad it, and leave one hook to the method::

    class MyConv2d(DynamicConvNd):
        plain_type = nn.Conv2d

        def mix(self, pooled):  # where each kernel is mixed from a bank of tensors
            return Mixture(self.attention(pooled), self.weight, layout)

        def convolve(self, x, pooled, **geometry):  # or else: any computation around a convolution
            ...
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Union

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ..ops.mixing import HALF, Mixture, Shape, assemble_kernels, scale_channels
from ..ops.routes import dynamic_conv

IntOrTuple = Union[int, tuple[int, ...]]
PadInput = Callable[['DynamicConvNd', Tensor], Tensor]

# From PyTorch 2.4 on; not found out by trying, which torch.compile cannot follow.
_ASKS_BY_DEVICE = hasattr(torch, 'get_autocast_dtype')


class DynamicLayer(nn.Module):
    """A convolution or linear layer with another kernel for every sample.

    A method derives from :class:`DynamicConvNd` or :class:`DynamicLinear` and implements
    :meth:`mix`, or :meth:`convolve` where kernels are not mixed from a bank. An attention that
    sees more of the input than its mean over positions has a :meth:`pool` of its own.

    Args:
        in_channels: channels of the input, over all groups.
        kernel_shape: ``(out_channels, in_channels / groups, *kernel_size)``.
        bias: whether to add a static bias, initially 0.
        device, dtype: of the bias.

    Attributes:
        has_kernels: class attribute, whether ``kernels(x)`` gives the kernels by which the layer
            computes all that it computes. Defaults to ``True``.
        attention: the module that computes the coefficients from the pooled input; ``None`` if
            there is none (yet).
        layer_name: the layer's name in its network, for error messages; ``None`` if unknown.
    """

    has_kernels = True
    attention: nn.Module | None
    groups = 1

    def __init__(
        self, in_channels: int, kernel_shape: Shape, bias: bool, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.attention_channels = in_channels
        self.kernel_shape = kernel_shape
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(kernel_shape[0], device=device, dtype=dtype))
        self.attention = None
        self.layer_name: str | None = None

    @classmethod
    def replacing(cls, layer: nn.Module, **options) -> DynamicLayer:
        """A layer of the size and geometry of a plain one.

        Args:
            layer: the plain convolution or linear layer.
            options: further arguments of the class.
        """
        raise NotImplementedError

    @property
    def awaits_plan(self) -> bool:
        """Whether the layer cannot compute before a plan completes it."""
        return False

    def pool(self, x: Tensor) -> Any:
        """What the attention sees of ``(N, in_channels, *size)``, before padding.

        By default the mean over the positions, ``(N, in_channels)``, in at least float32: an
        attention has few numbers, and a small error in them changes whole kernels.
        """
        return x.flatten(2).mean(-1, dtype=torch.float32 if x.dtype in HALF else None)

    def mix(self, pooled: Any) -> Mixture:
        """What the kernels are mixed from.

        Args:
            pooled: from :meth:`pool`.
        """
        raise NotImplementedError

    @property
    def mixes(self) -> bool:
        """Whether kernels are mixed by weights, which :meth:`mixing_weights` gives."""
        return type(self).mix is not DynamicLayer.mix

    def mixing_weights(self, pooled: Any) -> Tensor:
        """The weights of what the kernels are mixed from, ``(N, mixtures, n)``."""
        return self.mix(pooled).coefficients

    def convolve(self, x: Tensor, pooled: Any, **geometry) -> Tensor:
        """Convolve with the kernels for the pooled input, and add the bias.

        Args:
            x: shape ``(N, in_channels, *size)``, already padded where the layer pads by itself.
            pooled: from :meth:`pool`.
            geometry: stride, padding, dilation and groups.
        """
        return dynamic_conv(x, self.mix(pooled), self.bias, **geometry)

    def sample_kernels(self, pooled: Any) -> Tensor:
        """The kernels for the pooled input, ``(N, *kernel_shape)``, with all factors."""
        mixture = self.mix(pooled)
        return scale_channels(assemble_kernels(mixture), mixture, self.groups)

    @property
    def mixing_operations(self) -> int:
        """Multiply-adds that mixing one sample's kernel takes."""
        raise NotImplementedError

    def check_batch_norm(self, norm: nn.Module, values: int) -> None:
        """Raise ValueError if ``norm`` has to train on a single value for each channel."""
        if norm.training and values == 1:
            raise ValueError(
                f'the batch norms of {self.title()} cannot train on a single value per channel; '
                f'use at least 2 samples per device, or norm_eval=True'
            )

    def title(self) -> str:
        """The layer in error messages."""
        return type(self).__name__ if self.layer_name is None else f'layer {self.layer_name!r}'

    def method_repr(self) -> str:
        """What the method adds to the plain layer's representation."""
        return ''

    def join_repr(self, plain: str) -> str:
        method = self.method_repr()
        return f'{plain}, {method}' if method else plain


class DynamicConvNd(DynamicLayer):
    """Convolution of each sample with its own kernel.

    Stride, padding (also ``'same'``), dilation, groups, bias and padding mode are those of the
    plain convolution, and so are the shapes. A batch dimension is required. The bias is static.

    Args:
        in_channels, ..., dtype: all arguments as in the plain convolution.

    Attributes:
        plain_type: class attribute, the plain convolution of PyTorch.
        conv_padding: the padding of the convolution itself, after :meth:`pad`.
        pad_input: pads the input in a way of its own before the convolution; see
            :class:`~mmkw.networks.replacing.PlainLayer`. Defaults to ``None``.
    """

    plain_type: type[nn.modules.conv._ConvNd]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrTuple,
        stride: IntOrTuple = 1,
        padding: IntOrTuple | str = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        device=None,
        dtype=None,
    ) -> None:
        # The plain layer checks the arguments and brings them into one form.
        plain = self.plain_type(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device='meta',
        )  # fmt: skip
        super().__init__(in_channels, tuple(plain.weight.shape), bias, device, dtype)
        for name in plain.__constants__:
            setattr(self, name, getattr(plain, name))
        self.transposed = False
        self.pad_input: PadInput | None = None
        # Padding other than zeros, or an uneven one, is applied before the convolution.
        self._pads_first = padding_mode != 'zeros' or padding == 'same'
        self._pad_widths = tuple(plain._reversed_padding_repeated_twice)
        self.conv_padding = self.padding
        if self._pads_first or padding == 'valid':
            self.conv_padding = (0,) * len(self.kernel_size)

    @classmethod
    def replacing(cls, layer: nn.Module, **options) -> DynamicConvNd:
        return cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode, **options,
        )  # fmt: skip

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels for ``x``, ``(N, out_channels, in_channels / groups, *kernel_size)``."""
        self.check_input(x)
        return self.sample_kernels(self.pool(x))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, in_channels, *size)`` to ``(N, out_channels, *out_size)``."""
        if isinstance(x, Proxy):
            return record_call(self, x)
        self.check_input(x)
        padded = self.pad(x)
        return self.convolve(
            padded, self.pool(x), stride=self.stride, padding=self.conv_padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip

    def pad(self, x: Tensor) -> Tensor:
        """Apply the padding that the convolution itself does not.

        Raises:
            RuntimeError: as by the plain layer, if the kernel has no place in the padded input.
        """
        padded = x
        if self.pad_input is not None:
            padded = self.pad_input(self, x)
        elif self._pads_first:
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            padded = F.pad(x, self._pad_widths, mode=mode)
        if torch.jit.is_tracing():
            return padded  # Sizes are recorded there and must not be compared.
        for given, size, pad, kernel, step in zip(
            x.shape[2:], padded.shape[2:], self.conv_padding, self.kernel_size, self.dilation
        ):
            if given == 0 or size + 2 * pad < step * (kernel - 1) + 1:
                raise RuntimeError(
                    f'{self.title()} cannot convolve an input of size {tuple(x.shape[2:])}: its '
                    f'kernel of size {self.kernel_size} (padding {self.padding}, dilation '
                    f'{self.dilation}) has no place in it; give larger images'
                )
        return padded

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if the shape of ``x`` is not what the layer takes."""
        if x.dim() != 2 + len(self.kernel_size) or x.shape[1] != self.in_channels:
            sizes = ', '.join(['N', str(self.in_channels), *'DHW'[-len(self.kernel_size) :]])
            raise ValueError(
                f'{type(self).__name__} expects input of shape ({sizes}), but got {tuple(x.shape)}'
            )

    def extra_repr(self) -> str:
        return self.join_repr(self.plain_type.extra_repr(self))


class DynamicLinear(DynamicLayer):
    """Linear layer that multiplies each sample's tokens by its own weight.

    The 1-d case of the convolutions over the flattened token axes; the attention sees the mean
    over a sample's tokens. The first axis is always the batch: an input of shape
    ``(N, in_features)`` is ``N`` samples of one token each, not one sample of ``N`` tokens.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__(in_features, (out_features, in_features, 1), bias, device, dtype)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def replacing(cls, layer: nn.Module, **options) -> DynamicLinear:
        return cls(layer.in_features, layer.out_features, layer.bias is not None, **options)

    def kernels(self, x: Tensor) -> Tensor:
        """The weights for ``x``, shape ``(N, out_features, in_features)``."""
        return self.sample_kernels(self.pool(self.tokens(x).transpose(1, 2))).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *, in_features)`` to ``(N, *, out_features)``."""
        if isinstance(x, Proxy):
            return record_call(self, x)
        tokens = self.tokens(x)
        if x.numel() == 0:
            # Samples without tokens have no mean, and all are as empty as no samples.
            tokens = tokens.reshape(0, 1, self.in_features)
        maps = tokens.transpose(1, 2)
        y = self.convolve(
            maps, self.pool(maps), stride=(1,), padding=(0,), dilation=(1,), groups=1
        ).transpose(1, 2)
        return y.reshape(*x.shape[:-1], self.out_features)

    def tokens(self, x: Tensor) -> Tensor:
        """The input as ``(N, tokens, in_features)``."""
        if x.dim() < 2 or x.shape[-1] != self.in_features:
            raise ValueError(
                f'{type(self).__name__} expects input of shape (N, ..., {self.in_features}), but '
                f'got {tuple(x.shape)}'
            )
        # Not with -1, which an empty batch leaves undefined.
        return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), self.in_features)

    def extra_repr(self) -> str:
        return self.join_repr(nn.Linear.extra_repr(self))


class AttentionLinear(nn.Module):
    """A linear layer of an attention: Kaiming normal over fan_out, bias 0.

    Autocast leaves it in the type of its weight, see :meth:`DynamicLayer.pool`. Not an
    ``nn.Linear``, because MMEngine's initialisers pick layers by the name of their class:
    a network's ``init_cfg`` for its own linear layers would overwrite the attentions.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        with autocast_off(x):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f'{in_features}, {out_features}, bias={self.bias is not None}'


def autocast_off(x: Tensor) -> AbstractContextManager:
    """A context in which nothing is cast for tensors on the device of ``x``."""
    device_type = x.device.type
    if device_type == 'meta':
        return nullcontext()
    if _ASKS_BY_DEVICE:
        is_on = torch.is_autocast_enabled(device_type)
    else:
        is_on = (
            torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()
        )
    return torch.autocast(device_type, enabled=False) if is_on else nullcontext()


def normalise_hidden(norm: nn.Module, hidden: Tensor) -> Tensor:
    """The hidden vectors of an attention, normalised; also where the batch is a single sample.

    A plain network goes on at a last batch of 1 image, as its norms average over positions, too.
    The hidden vector of an attention has none, so that batch norm would have nothing to average.
    For such a batch it uses its running statistics, as in evaluation, and leaves them as they are.
    SyncBatchNorm in several processes has the samples of all to average.

    Args:
        norm: batch norm or any other norm.
        hidden: shape ``(N, h)``.
    """
    if norm.training and len(hidden) == 1 and _sees_one_process(norm):
        return F.batch_norm(
            hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(hidden)


def _sees_one_process(norm: nn.Module) -> bool:
    """Whether it is a batch norm over the samples of this process alone."""
    is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    is_alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
    return is_batch_norm and (is_alone or not isinstance(norm, nn.SyncBatchNorm))


def record_call(layer: DynamicLayer, x: Proxy) -> Proxy:
    """Record a call of the layer in a graph of ``torch.fx``, in which it is one node.

    What it computes depends on the shape of its input, which a graph does not know.
    """
    return x.tracer.create_proxy('call_module', x.tracer.path_of_module(layer), (x,), {})
