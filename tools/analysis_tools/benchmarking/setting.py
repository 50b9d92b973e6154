"""Where and how networks are measured: device, type, memory, threads; what machine it is."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

DTYPES = ('float32', 'tf32', 'bfloat16', 'float16')


@dataclass
class Setting:
    """Where and how all networks of a benchmark compute.

    Attributes:
        device, dtype: of the computation; other types than float32 by autocast.
        type_name: the type as it was asked for; TF32 is a way to compute with float32.
        channels_last: the memory format of images and kernels.
        resolution: pixels a side of the square images.
        rounds: turns of each network, see :func:`mmkw.analysis.time_alternately`.
        keeps_memory: whether the C library keeps freed memory for this process.
    """

    device: torch.device
    dtype: torch.dtype
    type_name: str
    channels_last: bool
    resolution: int
    rounds: int
    keeps_memory: bool

    @classmethod
    def set_up(
        cls,
        device: str = 'cpu',
        dtype: str = 'float32',
        channels_last: bool = False,
        resolution: int = 224,
        rounds: int = 10,
        threads: int | None = None,
        keep_memory: bool = False,
    ) -> Setting:
        """Set the process up: threads, memory, TF32 and cuDNN's choice of algorithms.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: one of ``DTYPES``.
            channels_last, resolution, rounds: see the attributes.
            threads: of PyTorch on the CPU. Defaults to its own choice.
            keep_memory: whether the C library shall keep freed memory, on the CPU.

        Raises:
            ValueError: if the device is not there or does not have the type.
        """
        if not re.fullmatch(r'cpu|cuda(:\d+)?', device):
            raise ValueError(f'--device must be cpu, cuda or cuda:N, but got {device}')
        place = torch.device(device)
        if place.type == 'cuda' and (place.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f'--device {device} needs a GPU that PyTorch can use, but it finds '
                f'{torch.cuda.device_count()}; use --device cpu'
            )
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, but got {dtype!r}')
        if dtype == 'tf32' and place.type == 'cpu':
            raise ValueError('--dtype tf32 is a type of GPUs; use float32 or bfloat16 on the CPU')
        if threads is not None:
            torch.set_num_threads(threads)
        if place.type == 'cuda':
            torch.backends.cuda.matmul.allow_tf32 = dtype == 'tf32'
            torch.backends.cudnn.allow_tf32 = dtype == 'tf32'
            torch.backends.cudnn.benchmark = True
        return cls(
            device=place,
            dtype=getattr(torch, 'float32' if dtype == 'tf32' else dtype),
            type_name=dtype,
            channels_last=channels_last,
            resolution=resolution,
            rounds=rounds,
            keeps_memory=place.type == 'cpu' and keep_memory and keep_freed_memory(),
        )

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def prepare(self, model: nn.Module) -> nn.Module:
        """Bring a model to the device and into the memory format."""
        return model.to(device=self.device, memory_format=self.memory_format)

    def autocast(self) -> torch.autocast:
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)


def keep_freed_memory() -> bool:
    """Let the C library keep all freed memory, and say whether it does: glibc's can."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    # malloc.h: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1; they return 1 if they took effect.
    return mallopt is not None and mallopt(-4, 0) == 1 and mallopt(-1, 2**31 - 1) == 1


def describe_machine(setting: Setting) -> dict:
    """What a reader needs to know to compare times; nothing that tells whose machine it is."""
    facts = {
        'processor': _processor(),
        'logical cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'not set'),
        'freed memory': 'kept by the process' if setting.keeps_memory else 'as the C library does',
        'torch': torch.__version__,
        'python': platform.python_version(),
        'system': f'{platform.system()} {platform.machine()}',
        'device': 'CPU',
        'type': setting.type_name,
        'memory format': 'channels last' if setting.channels_last else 'contiguous',
    }
    if setting.device.type == 'cuda':
        facts['device'] = torch.cuda.get_device_name(setting.device)
        facts['cuda'] = torch.version.cuda
        facts['cudnn'] = torch.backends.cudnn.version()
    return facts


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text(encoding='utf-8') if cpuinfo.is_file() else ''
    model = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return model.group(1) if model else platform.processor() or platform.machine()
