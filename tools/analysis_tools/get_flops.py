"""Count the parameters and multiply-adds of a config's model, stage by stage.

python tools/analysis_tools/get_flops.py configs/imagenet/kw-resnet18-1x_8xb512-300e_in1k.py

One image passes through the model, with random weights. What mixing the kernels (assembling) and
their attentions take stands beside the convolutions. As in the papers, one multiply-add counts
once. A detector's heads see as many proposals as random weights give.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import argument_parser, clear_errors, load_config  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

from mmkw.analysis.complexity import cost_by_stage, images_for  # noqa: E402
from mmkw.analysis.configs import without_checkpoints  # noqa: E402


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        '--shape', nargs='+', type=int, metavar='PIXELS',
        help='height and width of the image, or one number for both. Default: 224, for detectors '
        '800 1280',
    )  # fmt: skip
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    args = parser.parse_args(argv)
    if args.shape is not None and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape takes one or two positive numbers, not {args.shape}')
    return args


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        scope = config.get('default_scope', 'mmengine')
        init_default_scope(scope)
        # Its table of the plan would stand among the numbers.
        MMLogger.get_current_instance().setLevel(logging.WARNING)
        model = MODELS.build(ConfigDict(without_checkpoints(config.model.to_dict())))
        shape = args.shape or ([800, 1280] if scope == 'mmdet' else [224])
        model, image = images_for(model, shape[0], shape[-1])
        costs = [cost.as_row() for cost in cost_by_stage(model, (image,))]
        total = {key: sum(row[key] for row in costs) for key in costs[0] if key != 'stage'}
        if args.json:
            shown = dict(input_shape=[*image.shape[1:]], **total, stages=costs)
            print(json.dumps(shown, indent=1))
        else:
            print(as_table([*costs, dict(stage='all', **total)]))


def as_table(rows):
    """Rows of parameters and of multiply-adds, all in millions."""
    columns = [*rows[0]]
    lines = [['' if column == 'stage' else column for column in columns]]
    for row in rows:
        name = row['stage'] or 'the rest'
        lines.append([name, *(f'{row[column] / 1e6:,.3f}' for column in columns[1:])])
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    text = '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in lines
    )
    return f'millions of parameters, and of multiply-adds for one image\n\n{text}'


if __name__ == '__main__':
    main()
