"""What the tools have in common: arguments, config, runner, and how they end after an error."""

import argparse
import datetime
import logging
import os
import pickle
import re
import sys
import textwrap
import traceback
import warnings
from contextlib import contextmanager

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

try:
    # Registers the package's modules, and the loader that can read MMEngine's checkpoints.
    import mmkw  # noqa: F401
    from mmkw.openmmlab.backbones.conv_types import naming_conv_types
except ModuleNotFoundError as error:
    if error.name != 'mmkw':
        raise
    raise SystemExit(
        "mmkw is not installed in this Python environment; run 'pip install -e .' in the folder "
        'that holds tools/'
    ) from None


# Errors whose messages are sentences for users; those of checkpoints are UnpicklingErrors.
_FOR_USERS = (ValueError, OSError, ImportError, pickle.UnpicklingError)


def argument_parser(description):
    """A parser with the arguments of all tools that take a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of the config file')
    add_debug_option(parser)
    parser.add_argument(
        '--work-dir',
        help="folder for logs and results; by default the config's work_dir, else "
        './work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings to change in the config, such as optim_wrapper.optimizer.lr=0.01; lists '
        'as key="[a,b]" or key=a,b, without spaces',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torch.distributed.launch passes this; torchrun sets the environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


class _ImageSize(argparse.Action):
    """Height and width, from one or two positive numbers."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2 or min(values) < 1:
            parser.error(f'{option_string} takes one or two positive numbers, not {values}')
        setattr(namespace, self.dest, (values[0], values[-1]))


def add_shape_option(parser, image, default):
    """Add ``--shape``, which is ``(height, width)`` afterwards; ``None`` if it is not given."""
    parser.add_argument(
        '--shape', nargs='+', type=int, action=_ImageSize, metavar='PIXELS',
        help=f'height and width of the {image}, or one number for both. Default: {default}',
    )  # fmt: skip


def add_debug_option(parser):
    parser.add_argument('--debug', action='store_true', help='show the whole traceback of an error')


@contextmanager
def clear_errors(debug):
    """End a tool after an error: the last line says what is wrong, without a traceback.

    The traceback goes to the log file of the run if there is one already, and is shown with
    ``--debug``. Where the message alone may not help, a line before it says where to find it.

    Args:
        debug: Whether to show the traceback.

    Raises:
        SystemExit: Instead of any error, with the status 1 and the last line.
    """
    try:
        yield
    except Exception as error:
        log = _write_to_log(traceback.format_exc())
        if debug:
            traceback.print_exc()
        elif not isinstance(error, _FOR_USERS):
            where = f'is in {log}' if log else 'is shown with --debug'
            print(f'the traceback {where}', file=sys.stderr)
        raise SystemExit(f'error: {describe_error(error)}') from None


@contextmanager
def naming_misfits(args):
    """Name checkpoint and config where the one does not fit the model of the other.

    Raises:
        ValueError: Instead of PyTorch's error of a strict load.
    """
    try:
        yield
    except RuntimeError as error:
        if 'do not match exactly' not in str(error):
            raise
        raise ValueError(
            f'{args.checkpoint} does not fit the model of {args.config}: {error}'
        ) from error


def describe_error(error):
    """An error's message in one line of at most 1000 characters.

    The name of the error is left out where the message is a sentence for the user. Of an error in a
    worker of a data loader, whose message is a traceback, it is the end, which says what is wrong.
    """
    # str() of a KeyError is the repr of its message.
    is_key = isinstance(error, KeyError) and len(error.args) == 1
    message = str(error.args[0] if is_key else error).strip()
    _, is_trace, frames = message.rpartition('Traceback (most recent call last):\n')
    if is_trace:
        return textwrap.shorten(re.sub(r'^(?:[ \t].*\n)+', '', frames), 1000)
    if not isinstance(error, _FOR_USERS) or not message:
        message = f'{type(error).__name__}: {message}'
    return textwrap.shorten(message, 1000)


def _write_to_log(text):
    """Write to the log files of the current run; return the name of one, ``None`` without any."""
    files = [
        handler
        for handler in MMLogger.get_current_instance().handlers
        if isinstance(handler, logging.FileHandler)
    ]
    for handler in files:
        handler.stream.write(text)
        handler.flush()
    return os.path.relpath(files[0].baseFilename) if files else None


def read_config(path, options=None):
    """Read a config file and apply ``--cfg-options``.

    Raises:
        SystemExit: If there is no such file.
        ValueError: If the config cannot be read or has no model; names the file and says why.
    """
    check_file(str(path), 'config')
    try:
        config = Config.fromfile(path)
    except Exception as error:
        raise ValueError(f'config file {path} cannot be read: {describe_error(error)}') from error
    if options is not None:
        config.merge_from_dict(options)
    if 'model' not in config:
        raise ValueError(
            f'config file {path} has no model; give the config of a classifier or detector, not a '
            f'base of one'
        )
    return config


def load_config(args):
    """Read the config of ``args`` and apply the arguments that train.py and test.py share.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = read_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        config.work_dir = os.path.join('.', 'work_dirs', name)
    if config.get('default_scope') == 'mmpretrain':
        _complete_mmpretrain_loaders(config)
    return config


def _complete_mmpretrain_loaders(config):
    """Set what mmpretrain's own tools set and its configs therefore leave out."""
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader')
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', get_device() != 'cpu')
            # Without workers there is nothing to keep, and torch refuses the option.
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def check_file(path, what):
    """Exit with one line unless the file is there; URLs and the like are left to MMEngine."""
    if _is_missing(path):
        fail(f'{what} file {path} does not exist')


def check_output(path, *inputs):
    """Exit with one line, before any work is done, if a file cannot be written as it should.

    An earlier file of the name is replaced, in one step.

    Args:
        path: The file that the user names for the result.
        inputs: Files that the tool reads; the result must not take the place of one of them.
    """
    folder = os.path.dirname(path) or '.'
    if not os.path.isdir(folder):
        fail(f'cannot write {path}: the folder {folder} does not exist; create it first')
    if os.path.isdir(path):
        fail(f'cannot write {path}: it is a folder; name a file in it')
    for file in inputs:
        if os.path.exists(path) and os.path.exists(file) and os.path.samefile(path, file):
            fail(f'cannot write {path}: the tool reads this file; name another one to write')


def check_data(config, *splits):
    """Exit with one line unless the folders that the splits' data lie in are there."""
    for split in splits:
        dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        option = f'{split}_dataloader.dataset'
        while 'dataset' in dataset:
            dataset = dataset['dataset']
            option += '.dataset'
        folder = dataset.get('data_root')
        if folder and '://' not in folder and not os.path.isdir(os.path.expanduser(folder)):
            fail(
                f'data folder {folder} does not exist; put the data or a link to them there, or '
                f'name another folder with --cfg-options {option}.data_root=FOLDER (the data of '
                f'configs/demo are made by: python tools/dataset_converters/digits.py)'
            )


def check_start(config):
    """Exit with one line unless the checkpoints that training starts from are there.

    With ``load_from``, an ``init_cfg`` whose file is missing is left out, as ``load_from``
    replaces what it would load.
    """
    start = config.get('load_from')
    if start and _is_missing(start):
        fail(
            f'load_from names the checkpoint {start}, which does not exist; name another one with '
            f'--cfg-options load_from=FILE, or train without it: --cfg-options load_from=None'
        )
    missing = list(_missing_init_cfgs(config.model, 'model'))
    if missing and not start:
        option, parent, key = missing[0]
        file = parent[key]['checkpoint']
        fail(
            f'{option} starts from the checkpoint {file}, which does not exist; put it there, name '
            f'another one with --cfg-options {option}.checkpoint=FILE, start the whole model from '
            f'one with --cfg-options load_from=FILE, or train from random weights: '
            f'--cfg-options {option}=None'
        )
    # From the last one, as lists get shorter.
    for option, parent, key in reversed(missing):
        file = parent[key]['checkpoint']
        warnings.warn(
            f'{option}.checkpoint: {file} does not exist, and is not needed with load_from',
            stacklevel=2,
        )
        if isinstance(parent, list):
            del parent[key]
        else:
            parent[key] = None


def _missing_init_cfgs(config, option):
    """Where a model's config has an ``init_cfg`` with a missing file: option, container, key."""
    items = enumerate(config) if isinstance(config, (list, tuple)) else config.items()
    for key, value in list(items):
        name = f'{option}.{key}'
        is_start = key == 'init_cfg' or option.endswith('.init_cfg')
        if is_start and isinstance(value, dict) and _is_missing(value.get('checkpoint')):
            yield name, config, key
        elif isinstance(value, (dict, list, tuple)):
            yield from _missing_init_cfgs(value, name)


def _is_missing(path):
    """Whether this is the name of a local file that does not exist."""
    is_local = isinstance(path, str) and '://' not in path
    return is_local and not os.path.isfile(os.path.expanduser(path))


def fail(message):
    """Exit with a message on stderr and the status 1."""
    raise SystemExit(f'error: {message}')


def build_runner(config):
    """Build the runner that the config asks for.

    MMEngine takes GPUs for granted in distributed runs. Where ``--launcher pytorch`` finds no
    accelerator, the processes compute on the CPU and communicate through gloo.
    """
    on_cpu = config.launcher == 'pytorch' and get_device() == 'cpu'
    if on_cpu:
        _init_gloo(config)
    build = RUNNERS.build if 'runner_type' in config else Runner.from_cfg
    with naming_conv_types(config.get('model', {})):
        runner = build(config)
    if on_cpu:
        runner.logger.info(
            'No GPU is available: distributed training and testing run on the CPU, over gloo.'
        )
    return runner


def _init_gloo(config):
    if 'RANK' not in os.environ:
        fail(
            '--launcher pytorch needs the environment variables of torchrun; start with '
            'tools/dist_train.sh or tools/dist_test.sh'
        )
    # How long a process waits for another one that does not answer, in seconds.
    timeout = config.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))
    wrapper = config.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    # MMEngine would name a GPU, the one of the local rank.
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)
