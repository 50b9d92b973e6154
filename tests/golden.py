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
from contextlib import contextmanager
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


# The module whose output is a stage's; the ResNets and ConvNeXt call them as MMPretrain does.
STAGES = {
    'features.1': 'layer1',
    'features.3': 'layer2',
    'features.6': 'layer3',
    'features.13': 'layer5',
    'features.18': 'conv2',
}
CLASSIFIER = ('fc.', 'classifier.', 'norm.', 'head.')


@contextmanager
def stage_outputs(backbone, expected):
    """Collects what the stages of a golden output compute, by their released names."""
    stages = {}

    def keep(name):
        return lambda module, args, output: stages.update({name: output})

    hooks = [
        backbone.get_submodule(STAGES.get(name, name)).register_forward_hook(keep(name))
        for name in expected['stages']
    ]
    yield stages
    for hook in hooks:
        hook.remove()


def relative_error(actual, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    # ReLU zeroes some outputs altogether; they have to be zero here, too.
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_stages_match(stages, expected, tolerance):
    for name, golden in expected['stages'].items():
        assert list(stages[name].shape) == golden['shape']
        stage = stages[name].flatten(1)
        assert relative_error(stage.norm(dim=1), golden['norm']) < tolerance
        assert relative_error(stage[:, :4], golden['first4']) < tolerance


def released_names(golden_name, names, is_classifier=True):
    """What the release calls the tensors of a network, by their names here.

    Both list them in the order of the modules, whatever they call them. A detector's backbone, in
    the release as here, has norms of its stages' outputs where a classifier has its last layers.
    """
    released = [
        name
        for name, _ in load_golden(golden_name)['state_dict']
        if not name.startswith('warehouse_manager.')
        and (is_classifier or not name.startswith(CLASSIFIER))
    ]
    cells = [name for name in names if name.endswith('.cells')]
    norms = [
        name
        for name in names
        if not is_classifier and name.startswith(('norm0', 'norm1', 'norm2', 'norm3'))
    ]
    others = [
        name
        for name in names
        if name not in cells and name not in norms and not name.endswith('.temperature')
    ]
    assert len(released) == len(others)
    return {
        **{name: f'warehouse_manager.weights.{number}' for number, name in enumerate(cells)},
        **dict(zip(others, released)),
        **{name: name for name in norms},
    }


def released_shape(name, shape):
    """The release has convolutions where MMPretrain's ConvNeXt has linear layers."""
    if name.endswith('gamma'):
        return (1, *shape, 1, 1)
    if name.endswith('.cells') and not name.startswith('head.'):
        return (*shape[:3], 1, 1)
    return tuple(shape)
