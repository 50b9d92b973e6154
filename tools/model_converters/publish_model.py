"""Reduce a checkpoint of a training run to what others need, with a hash in its name."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import add_debug_option, clear_errors  # noqa: E402

from mmkw.checkpoints import publish_checkpoint  # noqa: E402


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Publish a checkpoint: its weights and metadata only, with the first 8 digits '
        "of the file's SHA-256 in its name. The file is read without running code from it."
    )
    parser.add_argument('src', help='checkpoint of a run')
    parser.add_argument('dst', help='name of the result, without the hash, such as model.pth')
    parser.add_argument(
        '--no-ema',
        action='store_true',
        help='publish the weights that the optimizer moved instead of their averages',
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        path = publish_checkpoint(args.src, args.dst, use_ema=not args.no_ema)
    print(f'{args.src} -> {path} ({os.path.getsize(path) / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
