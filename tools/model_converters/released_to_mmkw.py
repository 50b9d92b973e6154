"""Convert a checkpoint of the KernelWarehouse or ODConv release to mmkw."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import add_debug_option, check_output, clear_errors  # noqa: E402

from mmkw.checkpoints import save_checkpoint  # noqa: E402
from mmkw.checkpoints.released_conversion import read_released  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Convert a released classifier of KernelWarehouse (ResNet, MobileNetV2 or '
        'ConvNeXt) or ODConv (ResNet or MobileNetV2), or a Mask R-CNN with such a backbone, to '
        'mmkw. Which of them it is, the tool finds out. The file is read without running code from '
        'it, and the result is verified by loading it strictly.'
    )
    parser.add_argument('src', help='released checkpoint (.pth or .pth.tar)')
    parser.add_argument(
        'dst',
        nargs='?',
        help='where to write the mmkw checkpoint, in the place of an earlier file; in the '
        'safetensors format if it ends in .safetensors. Not needed with --dry-run',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='show what goes where, and write nothing'
    )
    parser.add_argument(
        '--weights',
        default='auto',
        choices=['auto', 'model', 'model_ema', 'state_dict'],
        help='which of the weights in the file to take: those of the last iteration (model, or '
        "state_dict in MMDetection's files), their average over iterations (model_ema), or the "
        'average if the file has one (auto, the default)',
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.dst is None and not args.dry_run:
        parser.error('name the file to write, or give --dry-run')
    return args


def print_mapping(released):
    state_dict = released.checkpoint['state_dict']
    for name, target in released.mapping.items():
        print(f'{name} -> {target} {tuple(state_dict[target].shape)}')


def describe(meta):
    """The model, such as ``MaskRCNN with KWResNet(depth=50, budget=1)``."""
    return f'{meta["model"]} with {call_of(meta["backbone"])}'


def call_of(config):
    """The type of a config, or dict, with its arguments in brackets."""
    config = dict(config)
    kind = config.pop('type', 'dict')
    arguments = (
        f'{name}={call_of(value) if isinstance(value, dict) else value}'
        for name, value in config.items()
    )
    return f'{kind}({", ".join(arguments)})'


def config_line(meta):
    """Which config has the model."""
    if meta['config'] is None:
        return 'config: none in configs/ has this model'
    return f'config: {meta["config"]}'


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        if not args.dry_run:
            check_output(args.dst, args.src)
        released = read_released(args.src, args.weights)
        if not args.dry_run:
            save_checkpoint(released.checkpoint, args.dst)
    meta = released.checkpoint['meta']
    if args.dry_run:
        print_mapping(released)
    if released.unused:
        print(f'not used: {", ".join(released.unused)}')
    others = [dtype for dtype in meta['dtypes'] if dtype != 'torch.float32']
    if others:
        print(f'cast to torch.float32: {", ".join(others)}')
    print(config_line(meta))
    print(
        f'{args.src}: {describe(meta)}, {len(released.mapping)} tensors from '
        f'{meta["weights"] or "the state dict"} -> '
        f'{"nothing written (dry run)" if args.dry_run else args.dst}'
    )


if __name__ == '__main__':
    main()
