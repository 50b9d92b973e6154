"""What checkpoints gave a backbone, and what they left as it was initialised."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.base import DynamicLayer
from .checkpoint_names import match_layer_names, rename_layer

# A classifier has no norm for the outputs of stages that only a detector uses.
OUTPUT_NORM = re.compile(r'norm[0-2]\.(weight|bias)')


class StartRecord:
    """Watches what is loaded into a backbone, and helps with the names of layers.

    Attributes:
        left: names in the backbone of the parameters that no checkpoint had a value for, in order;
            ``None`` as long as none was loaded.
    """

    left: list[str] | None = None
    _prefix = ''

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def before_loading(
        self, backbone: nn.Module, state_dict: dict[str, Any], prefix: str, *_
    ) -> None:
        """Give layers their names in the backbone, see :func:`match_layer_names`."""
        found = {
            name[len(prefix) :]: value
            for name, value in state_dict.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        }
        shapes = {name: value.shape for name, value in found.items()}
        layers = match_layer_names(shapes, _plain_shapes(backbone))
        for name in found:
            if rename_layer(name, layers) != name:
                del state_dict[prefix + name]
        renamed = {rename_layer(name, layers): value for name, value in found.items()}
        state_dict.update((prefix + name, value) for name, value in renamed.items())
        self._prefix = prefix
        self._sizes = {name: value.numel() for name, value in renamed.items()}

    def after_loading(self, backbone: nn.Module, incompatible_keys) -> None:
        """Note the parameters that got no value, or one of another shape, and none before."""
        missing = set(incompatible_keys.missing_keys)
        self.left = [
            name
            for name, parameter in backbone.named_parameters()
            if (self.left is None or name in self.left)
            and not OUTPUT_NORM.fullmatch(name)
            and (
                self._prefix + name in missing
                or self._sizes.get(name, parameter.numel()) != parameter.numel()
            )
        ]


def record_starts(backbone: nn.Module) -> None:
    """Give a backbone a :class:`StartRecord`, its attribute ``start_record``."""
    record = StartRecord()
    backbone.start_record = record
    backbone._register_load_state_dict_pre_hook(record.before_loading, with_module=True)
    backbone.register_load_state_dict_post_hook(record.after_loading)


def _plain_shapes(backbone: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the weights that the backbone would have with plain layers."""
    shapes: dict[str, torch.Size] = {}
    inner: tuple[str, ...] = ()
    for name, module in backbone.named_modules():
        if name.startswith(inner):
            continue
        if isinstance(module, DynamicLayer):
            shapes[f'{name}.weight'] = torch.Size(module.kernel_shape)
            inner = (*inner, f'{name}.')
        elif isinstance(getattr(module, 'weight', None), Tensor):
            shapes[f'{name}.weight'] = module.weight.shape
    return shapes
