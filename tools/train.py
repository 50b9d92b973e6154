"""Train the model of a config, for classification and detection alike.

However a run was stopped (by SIGTERM, as Slurm and torchrun do, by kill -9, by a power cut), the
same command with --resume goes on from the last checkpoint and repeats what was trained since.
"""

import warnings

from cli_common import (
    argument_parser,
    build_runner,
    check_data,
    check_file,
    check_start,
    clear_errors,
    fail,
    load_config,
)
from mmengine.device import get_device

from mmkw.analysis.configs import type_name
from mmkw.checkpoints import latest_checkpoint, take_seed
from mmkw.files import remove_partial_files


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint, or without a value from the latest in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    return parser.parse_args(argv)


def apply_arguments(config, args):
    """Change the config as the arguments of training ask."""
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        _enable_amp(config)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            fail(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size, the total batch size that '
                f'the learning rate is meant for, but {args.config} does not set it; add '
                f'auto_scale_lr = dict(base_batch_size=...)'
            )
        config.auto_scale_lr.enable = True
    start = config.get('load_from')
    if args.resume is not None:
        config.resume = True
        config.load_from = None
        if args.resume != 'auto':
            check_file(args.resume, 'checkpoint')
            config.load_from = args.resume
    if config.get('resume') and config.get('load_from') is None:
        # MMEngine would take what the file last_checkpoint says, whatever became of that.
        config.load_from = latest_checkpoint(config.work_dir)
        if config.load_from is None:
            print(f'nothing to resume in {config.work_dir}: training begins')
            config.resume, config.load_from = False, start
    if config.get('resume'):
        take_seed(config, config.load_from)
    hook = config.get('default_hooks', {}).get('checkpoint') or {}
    if hook.get('max_keep_ckpts') == 1:
        warnings.warn(
            'default_hooks.checkpoint.max_keep_ckpts=1: MMEngine deletes the only checkpoint '
            'before it writes the next one, so a run that is killed in between cannot be resumed; '
            'keep 2',
            stacklevel=2,
        )


def _enable_amp(config):
    name = type_name(config.optim_wrapper, 'OptimWrapper')
    if name not in ('OptimWrapper', 'AmpOptimWrapper'):
        fail(
            f"--amp replaces optim_wrapper.type='OptimWrapper' by 'AmpOptimWrapper', but the "
            f'config has {name!r}; leave out --amp or choose the precision in the config'
        )
    if get_device() == 'cpu':
        fail(
            "--amp needs a GPU, but none is available: MMEngine's AmpOptimWrapper does not train "
            'on the CPU, in bfloat16 neither; leave out --amp'
        )
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        apply_arguments(config, args)
        check_data(config, 'train', 'val')
        check_start(config)
        remove_partial_files(config.work_dir)
        runner = build_runner(config)
        runner.register_hook(dict(type='WholeEpochHook'))
        runner.train()


if __name__ == '__main__':
    main()
