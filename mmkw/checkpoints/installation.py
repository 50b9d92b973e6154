"""What MMEngine does with mmkw's help: reading checkpoints safely, and writing them whole.

Importing mmkw calls :func:`install`, so that configs need nothing but
``custom_imports=dict(imports=['mmkw'])``; :func:`uninstall` takes it back.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine.runner
import mmengine.runner.checkpoint
import mmengine.runner.runner
from mmengine.runner.checkpoint import CheckpointLoader

from .checkpoint_loaders import LOADERS
from .saving import save_checkpoint

# Where MMEngine looks its function up, which it has in no registry.
_SAVERS = (mmengine.runner, mmengine.runner.checkpoint, mmengine.runner.runner)
_mmengine_save = mmengine.runner.checkpoint.save_checkpoint
# What MMEngine, or somebody else, had for the prefixes before; empty while not installed.
_replaced: dict[str, Callable] = {}


def install() -> None:
    """Have MMEngine read checkpoints without running code from them, and write them whole.

    Nothing but checkpoints is touched:

    - The loaders of MMEngine's :class:`CheckpointLoader` for local files, URLs, model names and
      object stores end in :func:`load_checkpoint`. So do ``load_from``, ``--resume`` and
      ``init_cfg=dict(type='Pretrained', ...)``. Loaders that others registered for other prefixes
      stay. On torch 2.6 and newer, MMEngine needs this to resume.
    - These loaders return a config's text where MMEngine does not look for it: ``cfg`` and
      ``config`` in ``meta`` as ``cfg_text`` and ``config_text``, and not in the message hub.
      MMEngine would execute the text as Python, in ``Runner.resume`` and in inferencers that get
      weights without a config (``DetInferencer(weights=...)``). For the checkpoint of a run, the
      latter now raise a ValueError that says to give them the config, too; for a file with the
      text in ``meta`` alone they say themselves that they find none.
    - MMEngine's ``save_checkpoint``, which its runner and ``CheckpointHook`` use, writes local
      files by :func:`mmkw.checkpoints.save_checkpoint`.

    Code that calls ``torch.load`` itself, or reads checkpoints in a process that did not import
    mmkw, trusts the file as before. Calling this twice is the same as once.
    """
    if _replaced:
        return
    for prefix, loader in _INSTALLED.items():
        _replaced[prefix] = CheckpointLoader._schemes[prefix]
        CheckpointLoader.register_scheme(prefix, loader, force=True)
    for module in _SAVERS:
        if module.save_checkpoint is _mmengine_save:
            module.save_checkpoint = _save_local_file_whole


def uninstall() -> None:
    """Undo :func:`install`; what others put in place since then stays.

    Calling this twice is the same as once.
    """
    for prefix, loader in _replaced.items():
        if CheckpointLoader._schemes[prefix] is _INSTALLED[prefix]:
            CheckpointLoader.register_scheme(prefix, loader, force=True)
    _replaced.clear()
    for module in _SAVERS:
        if module.save_checkpoint is _save_local_file_whole:
            module.save_checkpoint = _mmengine_save


class _InfoWithoutConfig(OrderedDict):
    """What a run noted, without its config: an inferencer that asks for that is told why."""

    def __missing__(self, key):
        if key == 'cfg':
            raise ValueError(
                'the config in the checkpoint is a program, which mmkw does not run; give the '
                'config file beside the weights, as in DetInferencer(CONFIG, WEIGHTS)'
            )
        raise KeyError(key)

    def __reduce__(self):
        # Files name no class of mmkw.
        return OrderedDict, (), None, None, iter(self.items())


def _without_programs(loader: Callable) -> Callable:
    """The loader, with config texts where MMEngine does not look for them."""

    @functools.wraps(loader)
    def load(filename: str, map_location: Any = None) -> Any:
        checkpoint = loader(filename, map_location)
        meta, hub = (
            checkpoint.get(name) if isinstance(checkpoint, dict) else None
            for name in ('meta', 'message_hub')
        )
        info = hub.get('runtime_info') if isinstance(hub, dict) else None
        if isinstance(info, dict) and 'cfg' in info:
            del info['cfg']
            hub['runtime_info'] = _InfoWithoutConfig(info)
        if isinstance(meta, dict):
            for name in ('cfg', 'config'):
                if name in meta:
                    meta[f'{name}_text'] = meta.pop(name)
        return checkpoint

    return load


_INSTALLED = {prefix: _without_programs(loader) for prefix, loader in LOADERS.items()}


@functools.wraps(_mmengine_save)
def _save_local_file_whole(
    checkpoint: dict,
    filename: str,
    file_client_args: dict | None = None,
    backend_args: dict | None = None,
) -> None:
    is_local = '://' not in filename and not file_client_args
    if not is_local or (backend_args or {}) not in ({}, {'backend': 'local'}):
        _mmengine_save(checkpoint, filename, file_client_args, backend_args)
        return
    Path(filename).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint, filename)
