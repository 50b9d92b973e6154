"""Plot loss and temperature of finished or running trainings, one panel for each.

python tools/analysis_tools/plot_logs.py work_dirs/pretrain work_dirs/finetune --out log.png
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import add_debug_option, clear_errors  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mmkw.analysis.figures import save_figure  # noqa: E402

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
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)
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


def main(argv=None):
    parser = argparse.ArgumentParser(description='Plot loss and temperature of trainings.')
    parser.add_argument('work_dirs', nargs='+', help='work dirs of tools/train.py')
    parser.add_argument('--out', default='training.png', help='default: %(default)s')
    add_debug_option(parser)
    args = parser.parse_args(argv)
    with clear_errors(args.debug):
        plot_logs({Path(path).name: {'loss': path} for path in args.work_dirs}, args.out)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
