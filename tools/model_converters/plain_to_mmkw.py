"""Start a KernelWarehouse network from the checkpoint of a plain one."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from cli_common import add_debug_option, check_output, clear_errors, read_config  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

from mmkw.checkpoints.warm_starting import convert_plain  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Turn the checkpoint of a plain ResNet, MobileNetV2, ConvNeXt or vision '
        'transformer into one for the KernelWarehouse model of a config, with budgets of at least '
        '1: at temperature 1 it computes what the plain network did, and KWTemperatureHook anneals '
        'from there. The result is for load_from. The source is read without running code from '
        'it.'
    )
    parser.add_argument('config', help='config of the KernelWarehouse classifier or detector')
    parser.add_argument(
        'src',
        help='plain checkpoint of torchvision, timm, MMPretrain, MMDetection or the authors of '
        'ConvNeXt or DeiT, as torch.save wrote it',
    )
    parser.add_argument(
        'dst',
        nargs='?',
        help='where to write the result (.pth or .safetensors), in the place of an earlier file; '
        'not needed with --dry-run',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='show what goes where, and write nothing'
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the tensors that start fresh, such as attentions (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings to change in the config, such as model.backbone.budget=4',
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.dst is None and not args.dry_run:
        parser.error('name the file to write, or give --dry-run')
    return args


def build_model(args):
    """The config's model, initialised."""
    config = read_config(args.config, args.cfg_options)
    drop_pretrained(config.model)
    init_default_scope(config.get('default_scope', 'mmengine'))
    # Initialising logs a few lines for every tensor.
    MMLogger.get_instance('plain_to_mmkw', log_level='ERROR')
    torch.manual_seed(args.seed)
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def drop_pretrained(config):
    """Remove every ``init_cfg`` that loads a checkpoint; this one takes its place."""
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, (dict, list, tuple)):
            drop_pretrained(value)
    if isinstance(config, dict):
        init_cfg = config.get('init_cfg')
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            del config['init_cfg']


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        dst = None if args.dry_run else args.dst
        if dst is not None:
            check_output(dst, args.config, args.src)
        checkpoint, result = convert_plain(build_model(args), args.src, dst)
    if args.dry_run:
        for name, target in result.mapping.items():
            print(f'{name} -> {target}')
    for title, names in (('starts fresh', result.fresh), ('not used', result.dropped)):
        if names:
            print(f'{title}: {", ".join(names)}')
    written = 'nothing written (dry run)' if args.dry_run else f'written to {args.dst}'
    print(
        f'{args.src} (names: {result.source_format}): {len(result.mapping)} tensors -> '
        f'{len(checkpoint["state_dict"])} tensors, temperature 1; {written}'
    )


if __name__ == '__main__':
    main()
