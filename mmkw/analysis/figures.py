"""Pictures drawn with matplotlib, which comes with the extra ``demo``.

Figures are made without pyplot, which would choose a backend for the whole process.
"""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from ..files import whole_file


def save_figure(figure: Figure, out: str | os.PathLike) -> None:
    """Write a figure to a file, whose suffix names the format."""
    with whole_file(out, sync=False) as file:
        figure.savefig(file, format=Path(out).suffix[1:] or 'png', dpi=150)
