"""Pictures drawn with matplotlib, which comes with the extra ``demo``."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ..files import whole_file

# For files alone, on machines without a screen too.
matplotlib.use('Agg')

__all__ = ['plt', 'save_figure']


def save_figure(figure: Figure, out: str | os.PathLike) -> None:
    """Write a figure to a file, whose suffix names the format, and close it."""
    with whole_file(out, sync=False) as file:
        figure.savefig(file, format=Path(out).suffix[1:] or 'png', dpi=150)
    plt.close(figure)
