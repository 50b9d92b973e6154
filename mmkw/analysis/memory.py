"""Memory that training keeps, and the most that a run holds at once."""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def kept_memory(run: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps between forward and backward pass.

    Everything counts that a function of the graph has saved as a tensor, also custom functions
    through ``save_for_backward``; each storage once and as a whole.

    Args:
        run: computes a loss and returns it; the backward pass is not run.
        exclude: tensors that are there anyway, such as parameters, buffers and the input.
    """
    there_anyway = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        # The output of a function that saves it would hold the function, and that the output.
        tensor = tensor.detach()
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    # Parts of the graph that nothing of the loss depends on are gone by now.
    alive = [tensor for tensor in (reference() for reference in saved) if tensor is not None]
    del loss
    return tensor_bytes(
        tensor for tensor in alive if tensor.untyped_storage().data_ptr() not in there_anyway
    )


def peak_memory(run: Callable[[], object], device: str | torch.device = 'cpu') -> int:
    """The most bytes that tensors occupy at once during a run, beyond those before it.

    On a GPU as its allocator says. On the CPU from PyTorch's profiler, which sees each block that
    PyTorch asks for, at its exact size, but not what libraries such as oneDNN allocate themselves.
    The CPU figure is exact if ``run`` frees nothing that was there before it.

    Args:
        run: what to measure; call it once beforehand, so that nothing is made for the first time.
        device: where it runs. Defaults to the CPU.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The profiler warns that it drops earlier cycles; there is one.
        warnings.filterwarnings('ignore', message='.*Profiler clears events', category=UserWarning)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        trace = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding='utf-8'))['traceEvents']
    blocks = sorted(
        (event for event in events if event.get('name') == '[memory]'),
        key=lambda event: event['ts'],
    )
    sizes = [event['args']['Bytes'] for event in blocks]
    return max(itertools.accumulate(sizes), default=0)
