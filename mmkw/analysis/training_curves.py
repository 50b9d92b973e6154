"""Loss and temperature over a training, from what MMEngine logs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .figures import plt, save_figure

LOSS_COLOURS = ('#1f5fa8', '#7f7f7f', '#3a923a', '#8e5ea2')
TEMPERATURE_COLOUR = '#d8730f'


def read_scalars(work_dir: str | os.PathLike) -> list[dict]:
    """Return what the newest training in ``work_dir`` logged, one dict for each logged step.

    Raises:
        FileNotFoundError: If there is no log of a training in ``work_dir``.
        ValueError: If the log holds no loss.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{work_dir} holds no */vis_data/scalars.json, which training writes; '
            'name a work dir of tools/train.py'
        )
    records = [json.loads(line) for line in logs[-1].read_text().splitlines() if line]
    records = [record for record in records if 'loss' in record]
    if not records:
        raise ValueError(f'{logs[-1]} holds no loss yet; train for at least one logging interval')
    return records


def plot_logs(panels: dict[str, dict[str, str | os.PathLike]], out: str | os.PathLike) -> None:
    """Plot losses (left axis) and temperature (right axis) over iterations.

    Args:
        panels: For each panel's title its curves: label -> work dir. A temperature is drawn where
            the log holds one, once a panel.
        out: The picture to write; its suffix names the format.

    Raises:
        FileNotFoundError: If a work dir holds no log of a training.
        ValueError: If a log holds no loss.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout='constrained'
    )
    for axis, (title, curves) in zip(axes[0], panels.items()):
        temperature = None
        for colour, (label, work_dir) in zip(LOSS_COLOURS, curves.items()):
            records = read_scalars(work_dir)
            steps = [record['step'] for record in records]
            axis.plot(steps, [record['loss'] for record in records], color=colour, label=label)
            if temperature is None and 'temperature' in records[0]:
                temperature = steps, [record['temperature'] for record in records]
        axis.set(title=title, xlabel='iteration', ylabel='loss', ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.25)
        if temperature is not None:
            right = axis.twinx()
            # Above the frame, which would hide it at 0.
            style = dict(color=TEMPERATURE_COLOUR, linestyle='--', clip_on=False, zorder=3)
            right.plot(*temperature, **style)
            right.set_ylim(0, 1.05)
            right.set_ylabel('temperature', color=TEMPERATURE_COLOUR)
            right.tick_params(axis='y', colors=TEMPERATURE_COLOUR)
            axis.plot([], [], color=TEMPERATURE_COLOUR, linestyle='--', label='temperature')
        axis.legend(loc='upper right', frameon=False)
    save_figure(figure, out)
