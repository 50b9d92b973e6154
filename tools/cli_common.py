"""What tools/train.py and tools/test.py have in common: arguments, config and runner."""

import argparse
import datetime
import os
from contextlib import contextmanager

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

try:
    # Registers the package's modules, and the loader that can read MMEngine's checkpoints.
    from mmkw.checkpoints import CheckpointError
except ModuleNotFoundError as error:
    if error.name != 'mmkw':
        raise
    raise SystemExit(
        "mmkw is not installed in this Python environment; run 'pip install -e .' in the folder "
        'that holds tools/'
    ) from None


def argument_parser(description):
    """A parser with the arguments of both tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of the config file')
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


def load_config(args):
    """Read the config of ``args`` and apply the arguments that both tools share.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_file(args.config, 'config')
    config = Config.fromfile(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
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


def type_name(config, default=None):
    """The name in a config's ``type``, without scope; lazy configs hold the class itself."""
    kind = config.get('type', default)
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def check_file(path, what):
    """Exit with one line unless the file is there; URLs and the like are left to MMEngine."""
    if '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        fail(f'{what} file {path} does not exist')


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


def fail(message):
    """Exit with a message on stderr and the status 1."""
    raise SystemExit(f'error: {message}')


@contextmanager
def checkpoint_errors_in_one_line():
    """The message of a checkpoint that cannot be loaded says it all; a traceback would hide it."""
    try:
        yield
    except CheckpointError as error:
        fail(error)


def build_runner(config):
    """Build the runner that the config asks for.

    MMEngine takes GPUs for granted in distributed runs. Where ``--launcher pytorch`` finds no
    accelerator, the processes compute on the CPU and communicate through gloo.
    """
    on_cpu = config.launcher == 'pytorch' and get_device() == 'cpu'
    if on_cpu:
        _init_gloo(config)
    build = RUNNERS.build if 'runner_type' in config else Runner.from_cfg
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
