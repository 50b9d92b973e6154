"""The scope ``mmkw``: how MMEngine and MMPretrain find the configs and models of this package.

Importing :mod:`mmkw` makes three things work:

- ``_base_ = 'mmkw::imagenet/...'`` in a config, and ``mmengine.hub.get_config('mmkw::...')``;
- the dicts of such a base, which MMEngine marks with ``_scope_='mmkw'``;
- the classifiers of ``configs/imagenet`` and ``configs/ablations`` by name, in
  ``mmpretrain.get_model``, ``list_models`` and the inferencers.
"""

from pathlib import Path

import mmengine.registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmpretrain.apis import ModelHub

MODEL_INDEX = Path(__file__).parents[1] / '.mim' / 'model-index.yml'
"""The list of all models, beside the folders ``configs`` and ``tools``."""


def register_scope() -> None:
    """Let MMEngine find configs by ``mmkw::`` and modules by the scope ``mmkw``.

    All modules of mmkw are in MMEngine's root registries, so that their bare names work in every
    scope. The child registries that are made here are empty and pass every name on to the root.
    """
    # MMEngine looks for a distribution of the name on the right, and for a module where there is
    # none. Distributions know no folder of an editable installation; the module always does.
    MODULE2PACKAGE['mmkw'] = 'mmkw'
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry) and 'mmkw' not in root.children:
            Registry(root.name, parent=root, scope='mmkw', locations=['mmkw'])


def register_classifiers() -> None:
    """Let MMPretrain find the classifiers by the names of their configs."""
    root = MODEL_INDEX.parent
    for folder in ('imagenet', 'ablations'):
        metafile = root / 'configs' / folder / 'metafile.yml'
        ModelHub.register_model_index(metafile, config_prefix=root)
