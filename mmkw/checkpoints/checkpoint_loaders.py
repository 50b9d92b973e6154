"""A loader for each kind of address that MMEngine knows, all of them ending in the safe reader.

MMEngine's own loaders trust the file. Those of model names, such as ``torchvision://resnet50``,
end in a URL. ``installation.py`` puts these in their place.
"""

from __future__ import annotations

import difflib
import http.client
import io
import os
import sys
import tempfile
from contextlib import suppress
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from .loading import CheckpointError, UnsafeCheckpointError, load_checkpoint, read_checkpoint


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a local file with :func:`load_checkpoint`."""
    return load_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Download a URL unless torch's hub folder has a file of its name, and read that.

    As in MMEngine, the first process of a distributed run does so before the others.

    Raises:
        CheckpointError: if the download fails, or gives no readable checkpoint; it is not kept.
        UnsafeCheckpointError: as :func:`load_checkpoint` does.
    """
    is_first = get_rank() == 0
    if not is_first:
        barrier()
    try:
        return _load_url(filename, map_location)
    finally:
        # The others must not wait for a download that failed.
        if is_first:
            barrier()


def _load_url(url: str, map_location: Any) -> Any:
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{url} names no file; expected the address of a checkpoint')
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, name)
    is_new = not os.path.exists(path)
    if is_new:
        print_log(f'Downloading {url} to {path}', logger='current')
        try:
            os.makedirs(folder, exist_ok=True)
            torch.hub.download_url_to_file(url, path, progress=sys.stderr.isatty())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CheckpointError(
                f'{url} cannot be downloaded to {path} ({type(error).__name__}: {error}); check '
                'the address, the network and the space left'
            ) from error
    try:
        return load_checkpoint(path, map_location)
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        if is_new:
            # Other processes have found it damaged, too.
            with suppress(FileNotFoundError):
                os.remove(path)
            fix = 'the download was not kept; try again or check the address'
        else:
            fix = f'that file was there before; delete it to download {url} again'
        raise CheckpointError(f'{error} ({fix})') from error


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Read what torchvision offers under a name."""
    return load_from_http(_find_model(filename, get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Read what OpenMMLab, or a file ``open_mmlab.json`` in MMEngine's home, lists by name."""
    scheme, name = filename.split('://', 1)
    current = get_deprecated_model_names().get(name, name)
    if current != name:
        print_log(f'{filename} is deprecated in favor of {scheme}://{current}', logger='current')
    target = _find_model(f'{scheme}://{current}', get_external_models())
    if target.startswith(('http://', 'https://')):
        return load_from_http(target, map_location)
    return load_checkpoint(os.path.join(_get_mmengine_home(), target), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Read the backbone of a classifier that MMClassification lists by name."""
    checkpoint = load_from_http(_find_model(filename, get_mmcls_models()), map_location)
    start = 'backbone.'
    state_dict = {
        name[len(start) :]: value
        for name, value in checkpoint.get('state_dict', checkpoint).items()
        if name.startswith(start)
    }
    return dict(state_dict=state_dict)


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Read from an object store, through MMEngine's file backend for it."""
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    with io.BytesIO(backend.get(filename)) as file:
        return read_checkpoint(file, filename, map_location)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Read from Pavi's model cloud, which needs the ``pavi`` package."""
    from pavi import modelcloud

    model = modelcloud.get(filename.split('://', 1)[1])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, model.name)
        model.download(path)
        return load_checkpoint(path, map_location)


def _find_model(filename: str, urls: dict[str, str]) -> str:
    name = filename.split('://', 1)[1]
    if name not in urls:
        similar = difflib.get_close_matches(name, urls) or sorted(urls)[:3]
        raise CheckpointError(
            f'{filename}: no model of this name is known; names are, for example, '
            f'{", ".join(similar)}'
        )
    return urls[name]


# By MMEngine's prefixes, which are regular expressions.
LOADERS = {
    '': load_from_local,
    'http://': load_from_http,
    'https://': load_from_http,
    'modelzoo://': load_from_torchvision,
    'torchvision://': load_from_torchvision,
    'open-mmlab://': load_from_openmmlab,
    'openmmlab://': load_from_openmmlab,
    'mmcls://': load_from_mmcls,
    r'(\S+\:)?s3://': load_from_ceph,
    r'(\S+\:)?petrel://': load_from_ceph,
    'pavi://': load_from_pavi,
}
