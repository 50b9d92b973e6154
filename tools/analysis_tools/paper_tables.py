"""Print the tables of the paper, with the parameters of the models built here.

python tools/analysis_tools/paper_tables.py
python tools/analysis_tools/paper_tables.py --tables 1 8
python tools/analysis_tools/paper_tables.py --markdown docs/tables.md

All accuracies, speeds and memory are the paper's. Parameters, kernel cells and linear mixtures are
counted in the models of the configs, which are built without memory for their parameters. Table 1
needs timm.
"""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

from cli_common import add_debug_option, check_output, clear_errors  # noqa: E402

INTRODUCTION = """# The paper's tables

**Accuracies, speeds and memory are the paper's**, not results of this code. The parameters
are counted in the models of the configs, 1000 classes or the whole detector included. Where
the column of differences is empty, the paper prints the same count, rounded. The cells and mixtures
of Tables 14 and 15 are those of the same models; `tools/analysis_tools/show_plan.py` shows them for
any config.

<!-- Written by tools/analysis_tools/paper_tables.py --markdown docs/tables.md -->

"""


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tables', type=int, nargs='+', help='their numbers. Default: all')
    parser.add_argument('--markdown', metavar='FILE', help='write a page of the docs instead')
    add_debug_option(parser)
    args = parser.parse_args(argv)
    with clear_errors(args.debug):
        import mmdet.models  # noqa: F401  (registers what the configs name)
        import mmpretrain.models  # noqa: F401
        from mmengine.logging import MMLogger
        from paper import BuiltModels

        import mmkw  # noqa: F401
        from mmkw.files import write_whole

        if args.markdown is not None:
            check_output(args.markdown)
        # What is replaced and planned in each model is logged.
        MMLogger.get_current_instance().setLevel(logging.WARNING)
        text = page(BuiltModels(ROOT / 'configs'), args.tables)
        if args.markdown is None:
            print(text)
        else:
            write_whole(text, Path(args.markdown))


def page(models, numbers=None):
    """The text of the page, with all tables or those of some numbers."""
    from paper import TABLES, render

    known = {table.number: table for table in TABLES}
    for number in numbers or ():
        if number not in known:
            raise ValueError(
                f'there is no table {number} here; there are {", ".join(map(str, known))}'
            )
    return INTRODUCTION + render(models, [known[number] for number in numbers or known])


if __name__ == '__main__':
    main()
