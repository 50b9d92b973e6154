"""``import mmkw`` registers types and installs the checkpoint reader, and changes nothing else.

Neither does drawing.
"""

import subprocess
import sys

from tiny_runs import environment

# What mmkw imports comes before the first look: its effects are not those of mmkw.
CODE = """
import logging, os, random, signal, sys, warnings
import matplotlib, mmcv.cnn, mmengine.registry, mmengine.runner, mmpretrain.apis
import mmpretrain.models, numpy, torch
import torch.distributed.fsdp.wrap
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.runner import checkpoint
from mmpretrain.apis import ModelHub

ROOTS = {
    name: value for name, value in vars(mmengine.registry).items() if isinstance(value, Registry)
}


def registries():
    found = {}
    for name, root in ROOTS.items():
        for scope, registry in {'': root, **root.children}.items():
            entries = registry.module_dict.items()
            found.update({(name, scope, entry): module for entry, module in entries})
    return found


def children():
    return {(name, scope): child for name, root in ROOTS.items()
            for scope, child in root.children.items()}


def process():
    return dict(
        backend=dict.__getitem__(matplotlib.rcParams, 'backend'),
        style={k: v for k, v in dict.items(matplotlib.rcParams)},
        warnings=list(warnings.filters),
        dtype=torch.get_default_dtype(),
        threads=(torch.get_num_threads(), torch.get_num_interop_threads()),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        gradients=torch.is_grad_enabled(),
        backends=(
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled,
        ),
        torch_functions=(torch.load, torch.save, torch.nn.Module.load_state_dict),
        safe_globals=list(torch.serialization.get_safe_globals()),
        random=(random.getstate(), torch.get_rng_state().tolist(),
                numpy.random.get_state()[1].tolist()),
        printing=(numpy.get_printoptions(), torch._tensor_str.PRINT_OPTS),
        numpy_errors=numpy.geterr(),
        environment=dict(os.environ),
        path=list(sys.path),
        hooks=(sys.excepthook, sys.displayhook, sys.getrecursionlimit()),
        signals={s: signal.getsignal(s) for s in signal.valid_signals()},
        logging=(logging.root.level, list(logging.root.handlers)),
    )


def checkpoints():
    return dict(
        loaders=dict(checkpoint.CheckpointLoader._schemes),
        save=(mmengine.runner.save_checkpoint, checkpoint.save_checkpoint),
    )


before = process(), checkpoints(), registries(), children(), dict(MODULE2PACKAGE)
models = dict(ModelHub._models_dict)
import mmkw
import mmkw.analysis.attention_maps  # drawing, too
after = process(), checkpoints(), registries(), children(), dict(MODULE2PACKAGE)

for name, value in before[0].items():
    assert after[0][name] == value, name
for name, value in before[2].items():
    assert after[2][name] is value, name
new = {key: module for key, module in after[2].items() if key not in before[2]}
assert new and all(module.__module__.startswith('mmkw.') for module in new.values()), new
assert all(scope == '' for _, scope, _ in new), new
assert all(after[3][key] is child for key, child in before[3].items())
assert {scope for _, scope in after[3].keys() - before[3].keys()} == {'mmkw'}
assert after[4] == {**before[4], 'mmkw': 'mmkw'}
assert all(ModelHub._models_dict[name] is model for name, model in models.items())
assert after[1] != before[1]
mmkw.checkpoints.uninstall()
assert checkpoints() == before[1]

from mmkw.analysis.attention import AttentionRecorder
from mmkw.analysis.attention_maps import as_image, draw_map

network = torch.nn.Sequential(mmkw.KWConv2d(4, 4, 3))
recorder = AttentionRecorder(network)
with recorder.recording():
    network(torch.zeros(2, 4, 8, 8))
assert as_image(draw_map('map', recorder.results())).ndim == 3
for name in ('backend', 'style'):
    assert process()[name] == before[0][name], name
"""


def test_import_changes_nothing_but_what_the_docs_say(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', CODE],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
