"""Plot loss and temperature of finished or running trainings, one panel for each.

python tools/analysis_tools/plot_logs.py work_dirs/pretrain work_dirs/finetune --out log.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import add_debug_option, clear_errors  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(description='Plot loss and temperature of trainings.')
    parser.add_argument('work_dirs', nargs='+', help='work dirs of tools/train.py')
    parser.add_argument('--out', default='training.png', help='default: %(default)s')
    add_debug_option(parser)
    args = parser.parse_args(argv)
    with clear_errors(args.debug):
        from mmkw.analysis.training_curves import plot_logs

        plot_logs({Path(path).name: {'loss': path} for path in args.work_dirs}, args.out)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
