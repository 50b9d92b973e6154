"""The files that a benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path

from mmkw.files import write_whole

from .plots import plot_models, plot_sweep
from .tables import MODE_TITLES, make_tables


def write_report(results: dict, out: Path) -> None:
    """Write benchmark.json and .md, and benchmark.png and sweep.png where there is what to plot."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(json.dumps(results, indent=1) + '\n', out / 'benchmark.json')
    write_whole(make_tables(results), out / 'benchmark.md')
    if any(mode in model for model in results['models'] for mode in MODE_TITLES):
        plot_models(results, out / 'benchmark.png')
    if 'sweep' in results:
        plot_sweep(results, out / 'sweep.png')
