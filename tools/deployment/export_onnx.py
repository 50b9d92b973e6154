"""Export a trained model to ONNX: for any batch size, height and width, or for one of each.

python tools/deployment/export_onnx.py CONFIG CHECKPOINT model.onnx

The file takes normalised images. It returns a classifier's scores before the softmax, or the
feature maps of a detector's backbone and neck. It is written after ONNX's checker accepted it and
ONNX Runtime gave PyTorch's results with it. Needs pip install "mmkw[deploy]". See docs/deploy.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from cli_common import (  # noqa: E402
    add_shape_option,
    argument_parser,
    check_file,
    check_output,
    clear_errors,
    load_config,
    naming_misfits,
)

from mmkw import fold_attentions  # noqa: E402
from mmkw.deployment import compare_onnx, exported_part, load_model, to_onnx  # noqa: E402
from mmkw.files import write_whole  # noqa: E402

_TOLERANCE = 1e-4


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument('out', help='the ONNX file to write')
    add_shape_option(parser, 'example', '224, for detectors 320')
    parser.add_argument(
        '--fixed-size', action='store_true',
        help='keep height and width as they are in the example, for networks with position '
        'embeddings; the batch size stays free',
    )  # fmt: skip
    parser.add_argument(
        '--batch-size', type=int,
        help='fix batch size, height and width, and take the faster form of each layer, which pays '
        'off for small networks. Default: any',
    )  # fmt: skip
    parser.add_argument(
        '--fold', nargs='?', type=float, const=4.0, metavar='CELLS',
        help='fold the attentions of KW layers that have at least so many cells for each tensor '
        'to mix instead (see mmkw.fold_attentions). Without a number 4',
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug), naming_misfits(args):
        if args.batch_size is not None and args.batch_size < 1:
            raise ValueError(f'--batch-size must be at least 1, but got {args.batch_size}')
        config = load_config(args)
        check_file(args.checkpoint, 'checkpoint')
        check_output(args.out, args.config, args.checkpoint)
        model = load_model(config, args.checkpoint)
        if args.fold is not None:
            fold_attentions(model, args.fold)
        part = exported_part(model)
        is_detector = config.get('default_scope') == 'mmdet'
        height, width = args.shape or ((320, 320) if is_detector else (224, 224))
        content = to_onnx(part, torch.randn(2, 3, height, width), not args.fixed_size)
        sizes = [(height, width)]
        if args.batch_size is None and not args.fixed_size:
            sizes.append((height + 32, width + 64))
        batch_sizes = (1, 5) if args.batch_size is None else (args.batch_size,)
        shapes = [(n, 3, *size) for n in batch_sizes for size in sizes]
        comparisons = compare_onnx(content, part, shapes)
        if args.batch_size is not None:
            content = to_onnx(part, torch.randn(shapes[0]), dynamic_batch=False)
            (any_batch,), comparisons = comparisons, compare_onnx(content, part, shapes)
            gain = any_batch.onnx_seconds / comparisons[0].onnx_seconds
            print(f'{gain:.2f} times as fast as a file for any batch size')
        for comparison in comparisons:
            print(as_line(comparison))
        worst = max(comparison.error for comparison in comparisons)
        if not worst <= _TOLERANCE:
            raise ValueError(
                f'ONNX Runtime differs from PyTorch by {worst:.1e}, more than {_TOLERANCE:g}, so '
                f'{args.out} is not written'
            )
        write_whole(content, args.out, sync=True)
        print(f'wrote {args.out}, {len(content) / 1e6:.1f} MB')


def as_line(comparison):
    batch, _, height, width = comparison.shape
    return (
        f'batch {batch}, {height} x {width}: relative error {comparison.error:.1e}, '
        f'{comparison.onnx_seconds * 1e3:.1f} ms in ONNX Runtime, '
        f'{comparison.torch_seconds * 1e3:.1f} ms in PyTorch'
    )


if __name__ == '__main__':
    main()
