"""Does KernelWarehouse gain? Train plain and dynamic networks to the end, and compare them.

python tools/analysis_tools/compare_methods.py --work-dir work_dirs/compare_methods

Every network has the same data and recipe; its learning rate is the best of three on validation
images. The data are images of two digits, rendered anew without end from scikit-learn's scans.
Interrupted, the same command goes on where it was. Gives comparison.md and comparison.png in the
work dir.
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
    parser.add_argument('--networks', nargs='+', help='names as in the table. Default: all')
    parser.add_argument('--seeds', type=int, help='runs of each network. Default: 3')
    parser.add_argument(
        '--processes', type=int, default=2, help='runs at once, of one thread each. Default: 2'
    )
    parser.add_argument('--quick', action='store_true', help='to see that everything runs')
    parser.add_argument(
        '--criterion', action='store_true',
        help='train the plain network and one of double width instead, which says whether the '
        'problem is hard enough',
    )  # fmt: skip
    parser.add_argument(
        '--report', action='store_true', help='only report the runs that have finished'
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    with clear_errors(args.debug):
        from comparison.networks import CRITERION, NETWORKS
        from comparison.report import write_report
        from comparison.runs import compare, finished, named_networks
        from comparison.training import QUICK, Recipe

        recipe = QUICK if args.quick else Recipe()
        if args.criterion:
            # One rate, that of the middle.
            recipe = dataclasses.replace(recipe, rates=recipe.rates[len(recipe.rates) // 2 :][:1])
        if args.seeds is not None:
            recipe = dataclasses.replace(recipe, seeds=args.seeds)
        if args.networks and args.criterion:
            raise ValueError('give either --networks or --criterion; they name what to train')
        names = args.networks or (CRITERION if args.criterion else NETWORKS)
        if args.report:
            results = finished(Path(args.work_dir), named_networks(names), recipe)
        else:
            results = compare(args.work_dir, names, recipe, args.processes, show)
        print(write_report(results, recipe, args.work_dir))


def show(line):
    print(line, flush=True)


if __name__ == '__main__':
    main()
