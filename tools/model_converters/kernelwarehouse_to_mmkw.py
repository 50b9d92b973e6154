"""Convert a checkpoint of the KernelWarehouse release to mmkw."""

import argparse
import pickle
import sys

from mmkw.checkpoints import convert_released


def parse_args():
    parser = argparse.ArgumentParser(
        description='Convert a released KernelWarehouse classifier (ResNet, MobileNetV2 or '
        'ConvNeXt) to mmkw. The file is read without running code from it, and the result is '
        'verified by loading it strictly.'
    )
    parser.add_argument('src', help='released checkpoint (.pth or .pth.tar)')
    parser.add_argument('dst', help='where to write the mmkw checkpoint')
    parser.add_argument(
        '--weights',
        default='auto',
        choices=['auto', 'model', 'model_ema'],
        help='which of the weights in the file to take: those of the last iteration (model), '
        'their average over iterations (model_ema), or the average if the file has one (auto, '
        'the default)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        checkpoint = convert_released(args.src, args.dst, args.weights)
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        sys.exit(f'error: {error}')
    meta = checkpoint['meta']
    backbone = dict(meta['backbone'])
    kind = backbone.pop('type')
    arguments = ', '.join(f'{name}={value}' for name, value in backbone.items())
    print(
        f'{args.src}: {kind}({arguments}), {len(checkpoint["state_dict"])} tensors from '
        f'{meta["weights"] or "the state dict"} -> {args.dst}'
    )


if __name__ == '__main__':
    main()
