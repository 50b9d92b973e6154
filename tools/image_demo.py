"""Show what a trained classifier or detector sees in an image, or in each image of a folder.

python tools/image_demo.py photo.jpg CONFIG CHECKPOINT
"""

import argparse

from cli_common import (
    add_debug_option,
    check_file,
    clear_errors,
    naming_misfits,
    read_config,
)
from mmengine.config import DictAction

from mmkw.analysis.photographs import images_in, look_at_images


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='an image, or a folder of images')
    parser.add_argument('config', help='config of MMPretrain or MMDetection')
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument(
        '--out-dir', default='outputs', help='folder for the drawings (default: %(default)s)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0; default: a GPU if there is one')
    parser.add_argument(
        '--score-thr', type=float, default=0.3,
        help='least score of the objects that a detector shows (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings to change in the config',
    )  # fmt: skip
    add_debug_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug), naming_misfits(args):
        config = read_config(args.config, args.cfg_options)
        check_file(args.checkpoint, 'checkpoint')
        images = images_in(args.image)
        looks = look_at_images(
            config, args.checkpoint, images, args.out_dir, args.device, args.score_thr
        )
        for image, findings, drawing in looks:
            print(f'{image} -> {drawing}')
            if not findings:
                print(f'  nothing with a score of at least {args.score_thr}')
            for name, score, box in findings:
                edges = '' if box is None else '  at ' + ', '.join(f'{edge:.0f}' for edge in box)
                print(f'  {score:.3f}  {name}{edges}')


if __name__ == '__main__':
    main()
