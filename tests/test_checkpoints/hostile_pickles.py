"""Checkpoints whose pickles do more than hold values."""

import argparse
import functools
import os
import pickle
from collections import OrderedDict

import torch
from mmengine.logging import HistoryBuffer


def stream_of(body):
    """A checkpoint in torch's stream format whose object is the given pickle."""
    head = (
        torch.serialization.MAGIC_NUMBER,
        torch.serialization.PROTOCOL_VERSION,
        dict(protocol_version=1001, little_endian=True, type_sizes={}),
    )
    return b''.join(pickle.dumps(value, 2) for value in head) + body + pickle.dumps([], 2)


class Call:
    """Pickles as a call; may itself stand for the function of another call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self):
        raise AssertionError('only its pickle is of use')


def creates(marker):
    """An object whose unpickling creates the file ``marker``."""
    return Call(os.system, f'touch {marker}')


def payloads(marker):
    """Objects whose unpickling creates the file ``marker``, with the name they need for it."""
    command = f'touch {marker}'
    shell = creates(marker)

    inner = marker.parent / 'inner.pth'
    torch.save(shell, inner)

    # A walk from an admitted class to builtins.open by getattr alone.
    namespace = Call(getattr, Call(getattr, HistoryBuffer, 'update'), '__globals__')
    builtin_names = Call(Call(getattr, namespace, 'get'), '__builtins__')
    opener = Call(Call(getattr, builtin_names, 'get'), 'open')

    return {
        'shell': (shell, 'posix.system'),
        'eval': (Call(eval, f'open({str(marker)!r}, "w").close()'), 'builtins.eval'),
        'getattr': (Call(opener, str(marker), 'w'), 'builtins.getattr'),
        'nested_load': (
            Call(torch.storage._load_from_bytes, inner.read_bytes()),
            'torch.storage._load_from_bytes',
        ),
        'partial': (Call(Call(functools.partial, os.system), command), 'functools.partial'),
        'namespace': (argparse.Namespace(model=dict(w=[shell])), 'posix.system'),
        'ordered_dict': (OrderedDict(w=1.0, x=shell), 'posix.system'),
    }
