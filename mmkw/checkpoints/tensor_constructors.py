"""Tensors as a checkpoint describes them, within the bounds of their storages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.storage import TypedStorage

from .errors import UnsafeCheckpointError
from .pickle_bounds import check_attributes, describe, expect, is_count, is_shape

# Elements that a tensor may have beyond those of its storage, by repeating them (stride 0).
_MAX_REPEATED = 2**26
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}


def layout(name: Any) -> torch.layout:
    """The layout of this name."""
    expect(type(name) is str and name in _LAYOUTS, '_get_layout', name)
    return _LAYOUTS[name]


def tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor within the bounds of its storage."""
    is_tensor = (
        isinstance(storage, TypedStorage)
        and is_count(offset)
        and is_shape(size)
        and is_shape(stride)
        and len(size) == len(stride)
    )
    expect(is_tensor, '_rebuild_tensor', (offset, size, stride))
    dtype = storage.dtype if dtype is None else dtype
    untyped = storage._untyped_storage
    capacity = untyped.nbytes() // dtype.itemsize
    count = math.prod(size)
    end = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1
    if (count and end > capacity) or count > max(capacity, _MAX_REPEATED):
        raise UnsafeCheckpointError(
            f'it has a tensor of shape {describe(size)} and stride {describe(stride)} in a storage '
            f'of {capacity} elements'
        )
    return torch.empty(0, dtype=dtype, device=untyped.device).set_(untyped, offset, size, stride)


def tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    """A tensor that may need gradients."""
    return _finish(tensor(storage, offset, size, stride), requires_grad, hooks, metadata)


def tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
    """The same, of another type than its storage."""
    expect(isinstance(dtype, torch.dtype), '_rebuild_tensor_v3', dtype)
    return _finish(tensor(storage, offset, size, stride, dtype), requires_grad, hooks, metadata)


def _finish(tensor: Tensor, requires_grad: Any, hooks: Any, metadata: Any) -> Tensor:
    expect(not hooks and type(requires_grad) is bool, '_rebuild_tensor', (requires_grad, hooks))
    if metadata:
        expect(type(metadata) is dict and set(metadata) <= {'conj', 'neg'}, 'tensor', metadata)
        if metadata.get('conj'):
            tensor = tensor.conj()
        if metadata.get('neg'):
            tensor = torch._neg_view(tensor)
    return tensor.requires_grad_() if requires_grad else tensor


def parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> nn.Parameter:
    """A parameter, which may have attributes of its own."""
    is_parameter = isinstance(data, Tensor) and type(requires_grad) is bool and not hooks
    expect(is_parameter, '_rebuild_parameter', (data, requires_grad, hooks))
    parameter = nn.Parameter(data, requires_grad)
    if state is not None:
        expect(type(state) is dict, '_rebuild_parameter_with_state', state)
        check_attributes(nn.Parameter, state)
        vars(parameter).update(state)
    return parameter


def sparse_tensor(layout: Any, data: Any) -> Tensor:
    """A sparse tensor, whose indices may have no values before all of the file is read."""
    expect(type(data) in (tuple, list) and len(data) <= 4, '_rebuild_sparse_tensor', data)
    if layout == torch.sparse_coo:
        indices, values, size, *is_coalesced = data
        _expect_tensors((indices, values), size)
        return torch.sparse_coo_tensor(
            indices,
            values,
            size,
            check_invariants=False,
            is_coalesced=is_coalesced[0] if is_coalesced else None,
        )
    compressed, plain, values, size = data
    _expect_tensors((compressed, plain, values), size)
    return torch.sparse_compressed_tensor(
        compressed, plain, values, size, layout=layout, check_invariants=False
    )


def _expect_tensors(parts: tuple, size: Any) -> None:
    are_tensors = all(isinstance(part, Tensor) for part in parts)
    expect(are_tensors and is_shape(size), '_rebuild_sparse_tensor', (*parts, size))


def check_sparse(tensor: Tensor) -> None:
    """Raise an error unless the indices of a sparse tensor are within its shape."""
    if tensor.layout == torch.sparse_coo:
        torch.sparse_coo_tensor(
            tensor._indices(), tensor._values(), tensor.shape, check_invariants=True
        )
        return
    by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    torch.sparse_compressed_tensor(
        tensor.crow_indices() if by_row else tensor.ccol_indices(),
        tensor.col_indices() if by_row else tensor.row_indices(),
        tensor.values(),
        tensor.shape,
        layout=tensor.layout,
        check_invariants=True,
    )
