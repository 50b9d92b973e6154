"""Convert a checkpoint of the KernelWarehouse release to mmkw."""

import argparse
import pickle
import sys

from mmkw.checkpoints import convert_released


def parse_args():
    parser = argparse.ArgumentParser(
        description='Convert a released KernelWarehouse ResNet classifier to mmkw. The file is '
        'read without running code from it, and the result is verified by loading it strictly.'
    )
    parser.add_argument('src', help='released checkpoint (.pth or .pth.tar)')
    parser.add_argument('dst', help='where to write the mmkw checkpoint')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        checkpoint = convert_released(args.src, args.dst)
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        sys.exit(f'error: {error}')
    meta = checkpoint['meta']
    print(
        f'{args.src}: ResNet{meta["depth"]}, budget {meta["budget"]:g}, '
        f'{len(checkpoint["state_dict"])} tensors -> {args.dst}'
    )


if __name__ == '__main__':
    main()
