"""Counting the operations that a GPU launches kernels for."""

from __future__ import annotations

from typing import Any, Callable

from torch.utils._python_dispatch import TorchDispatchMode

# They compute nothing. Views are known by PyTorch itself.
_WITHOUT_KERNEL = {
    'empty', 'empty_like', 'empty_permuted', 'empty_strided', 'new_empty', 'new_empty_strided',
    '_unsafe_view',
}  # fmt: skip


def count_launches(run: Callable[[], object]) -> int:
    """Count the operations of PyTorch that a GPU launches kernels for.

    Views and allocations are left out. Some operations launch more than one kernel, and libraries
    choose them by shape and device, so that the number is a measure of the work of the host, not
    the exact number of kernels. It is the same on every machine that takes the same route, and
    needs no GPU.

    Args:
        run: what to count, such as a training step; a backward pass in it counts, too.
    """
    with _Counter() as counter:
        run()
    return counter.launches


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types, args=(), kwargs=None) -> Any:
        if not func.is_view and func.overloadpacket.__name__ not in _WITHOUT_KERNEL:
            self.launches += 1
        return func(*args, **(kwargs or {}))
