"""Train plain, KW, DY-Conv, ODConv and CondConv ResNet18s on the same data, and compare them.

python tools/analysis_tools/compare_methods.py --work-dir work_dirs/compare_methods

Every method has the same recipe, iterations and seeds. The data are scikit-learn's scans of digits,
few, noisy and partly hidden, so that accuracies are not all near 100 %. Interrupted, the same
command goes on after the last finished run. Gives comparison.md and comparison.png in the work
dir.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import add_debug_option, clear_errors  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--work-dir', default='work_dirs/compare_methods', help='%(default)s')
    parser.add_argument('--seeds', type=int, help='runs of each method. Default: 3')
    parser.add_argument('--iters', type=int, help='iterations of each run. Default: 240')
    parser.add_argument('--methods', nargs='+', help='names as in the table. Default: all')
    parser.add_argument(
        '--quick', action='store_true', help='a few iterations, to see that everything runs'
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    with clear_errors(args.debug):
        from mmkw.analysis.comparison import METHODS, QUICK, Recipe, compare, write_report

        recipe = QUICK if args.quick else Recipe()
        if args.iters is not None:
            recipe = dataclasses.replace(recipe, iters=args.iters)
        seeds = args.seeds if args.seeds is not None else 2 if args.quick else 3
        results = compare(args.work_dir, args.methods or METHODS, seeds, recipe, show)
        print(write_report(results, args.work_dir))
        print(f'wrote comparison.md and comparison.png to {args.work_dir}')


def show(line):
    print(line, flush=True)


if __name__ == '__main__':
    main()
