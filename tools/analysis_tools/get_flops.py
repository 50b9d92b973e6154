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

from cli_common import (  # noqa: E402
    add_shape_option,
    argument_parser,
    clear_errors,
    load_config,
)
from mmengine.logging import MMLogger  # noqa: E402

from mmkw.analysis.complexity import cost_by_stage, images_for  # noqa: E402
from mmkw.analysis.configs import build_without_checkpoints  # noqa: E402


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_shape_option(parser, 'image', '224, for detectors 800 1280')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug):
        config = load_config(args)
        # Its table of the plan would stand among the numbers.
        MMLogger.get_current_instance().setLevel(logging.WARNING)
        is_detector = config.get('default_scope') == 'mmdet'
        height, width = args.shape or ((800, 1280) if is_detector else (224, 224))
        model, image = images_for(build_without_checkpoints(config), height, width)
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
