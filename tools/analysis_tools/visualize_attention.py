"""Draw the attentions of a trained model: a heat map for each warehouse, mixtures by cells.

python tools/analysis_tools/visualize_attention.py CONFIG CHECKPOINT --out-dir outputs/attention

The maps show means over the config's test data. They come with attention.npz, all means and
standard deviations over the images, and statistics.json. With --images two photographs stand side
by side instead, with their difference. See docs/attention.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import load_checkpoint
from mmengine.utils import ProgressBar
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import (  # noqa: E402
    argument_parser,
    build_runner,
    check_data,
    check_file,
    clear_errors,
    load_config,
    naming_misfits,
)

from mmkw.analysis.attention import (  # noqa: E402
    STATISTICS,
    AttentionRecorder,
    group_attentions,
    save_attentions,
)
from mmkw.analysis.attention_maps import draw_comparison, draw_map  # noqa: E402
from mmkw.analysis.configs import innermost_dataset, type_name  # noqa: E402
from mmkw.analysis.figures import save_figure  # noqa: E402
from mmkw.files import write_whole  # noqa: E402


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument(
        '--images', nargs=2, metavar=('A', 'B'), help='two image files to compare instead'
    )
    parser.add_argument(
        '--max-batches', type=int, metavar='N', help='look at the first N batches alone'
    )
    parser.add_argument(
        '--out-dir', default='outputs/attention', help='folder to write to (default: %(default)s)'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug), naming_misfits(args):
        config = load_config(args)
        check_file(args.checkpoint, 'checkpoint')
        for image in args.images or ():
            check_file(image, 'image')
        if args.images is None:
            check_data(config, 'test')
        runner = build_runner(config)
        # The runner's own method has hooks take part, and EMAHook needs a run for that.
        load_checkpoint(runner.model, args.checkpoint, map_location='cpu', strict=True)
        out = Path(args.out_dir)
        out.mkdir(parents=True, exist_ok=True)
        if args.images is not None:
            compare(runner.model, config, args.images, out)
        else:
            loader = runner.build_dataloader(config.test_dataloader)
            with AttentionRecorder(runner.model).recording() as recorder:
                run_on_loader(runner.model, loader, args.max_batches)
            write_all(recorder.results(), out)


@torch.no_grad()
def run_on_loader(model: nn.Module, loader: DataLoader, max_batches: int | None = None) -> None:
    """Let a model predict a loader's batches in evaluation mode, with MMEngine's progress bar.

    Args:
        model: of OpenMMLab, with a ``test_step``.
        loader: gives batches.
        max_batches: stop after so many. Defaults to ``None``, all.

    Raises:
        ValueError: if ``max_batches`` is not positive.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f'the number of batches must be at least 1, but got {max_batches}')
    model.eval()
    total = len(loader) if max_batches is None else min(max_batches, len(loader))
    bar = ProgressBar(total, file=sys.stderr)
    for _, data in zip(range(total), loader):
        model.test_step(data)
        bar.update()
    bar.file.write('\n')


@torch.no_grad()
def run_on_image(model: nn.Module, config: Config, image: str) -> Any:
    """Let a model predict one image file, prepared by the config's test pipeline."""
    dataset = innermost_dataset(config.test_dataloader)
    pipeline = Compose(_without_annotations(dataset.pipeline))
    model.eval()
    return model.test_step(pseudo_collate([pipeline(dict(img_path=image, img_id=0))]))


def _without_annotations(pipeline: Sequence[dict]) -> list[dict]:
    """The transforms that an image without annotations can pass."""
    return [step for step in pipeline if not type_name(step).startswith('Load') or _loads(step)]


def _loads(step: dict) -> bool:
    return type_name(step).startswith('LoadImage')


def write_all(attentions, out):
    save_attentions(attentions, out / 'attention.npz')
    for group, layers in group_attentions(attentions).items():
        count = layers[0].count
        save(draw_map(f'{group}, mean over {count} samples', layers), out, group)
    numbers = {attention.layer: attention.statistics() for attention in attentions}
    write_whole(json.dumps(numbers, indent=1), out / 'statistics.json')
    width = max(map(len, numbers))
    print(' ' * width, *(f'{name:>9}' for name in STATISTICS))
    for layer, values in numbers.items():
        cells = (f'{values[name]:9.3f}' if name in values else f'{"-":>9}' for name in STATISTICS)
        print(f'{layer:<{width}}', *cells)
    print(f'wrote attention.npz and statistics.json to {out}')


def compare(model, config, images, out):
    seen = []
    for image in images:
        with AttentionRecorder(model).recording() as recorder:
            run_on_image(model, config, image)
        seen.append(group_attentions(recorder.results()))
    names = tuple(Path(image).name for image in images)
    for group in seen[0]:
        figure = draw_comparison(group, seen[0][group], seen[1][group], names)
        save(figure, out, f'{group}_compared')


def save(figure, out, name):
    path = out / f'{re.sub(r"[^A-Za-z0-9.]+", "_", name)}.png'
    save_figure(figure, path)
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
