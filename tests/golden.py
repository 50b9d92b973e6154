"""Reference outputs of the released models, on weights that follow from the tensors' names.

Every file under ``data/golden`` lists the names and shapes of a released checkpoint and, in
float64, what the released model made of them at temperatures 0, 0.5 and 1: in ``eval`` mode and
in ``train`` mode (fresh running statistics, batch statistics, no drop path), the first 8 logits
and the norm of all of them, and norm and first 4 values of each stage's output.
"""

import json
import math
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / 'data' / 'golden'


def load_golden(name):
    return json.loads((FOLDER / f'{name}.json').read_text())


def make_tensor(name, shape):
    """The value of the released tensor ``name``: frozen NumPy streams seeded by the name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith(('running_mean', 'bias')):
        value = 0.1 * rng.standard_normal(size=shape)
    elif name.endswith('gamma'):
        value = rng.uniform(0.1, 0.3, size=shape)
    elif len(shape) == 1:
        value = rng.uniform(0.5, 1.5, size=shape)
    else:
        value = math.sqrt(2 / math.prod(shape[1:])) * rng.standard_normal(size=shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def make_released_checkpoint(golden):
    """A file of the release's layout: the state dict beside an ``argparse.Namespace`` and more."""
    return dict(
        model={name: make_tensor(name, shape) for name, shape in golden['state_dict']},
        optimizer=dict(state={}, param_groups=[dict(lr=0.1)]),
        epoch=299,
        scaler=dict(scale=65536.0),
        args=Namespace(model=golden['name'], lr=0.004),
    )


def make_input(golden):
    rng = np.random.RandomState(2024)
    values = rng.standard_normal(size=golden['input_shape']).astype(np.float32)
    return torch.from_numpy(values)
