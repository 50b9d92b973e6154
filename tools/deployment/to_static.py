"""Turn a trained network with dynamic layers into a plain one of static kernels.

python tools/deployment/to_static.py CONFIG CHECKPOINT static.pth

Every kernel becomes its mean over calibration images, by default from the training set, and batch
norms are matched to those of the dynamic network. Writes the checkpoint and static.py, the config
of the plain network, and prints the scores of both networks on the test set. See docs/deploy.md.
"""

import argparse
import math
import os
import sys
from itertools import islice
from numbers import Real
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli_common import (  # noqa: E402
    argument_parser,
    build_runner,
    check_data,
    check_file,
    check_output,
    clear_errors,
    fail,
    load_config,
    naming_misfits,
)
from mmengine.runner import load_checkpoint  # noqa: E402
from mmengine.utils import track_iter_progress  # noqa: E402

from mmkw.checkpoints import save_checkpoint  # noqa: E402
from mmkw.deployment import (  # noqa: E402
    calibration_loader,
    load_static,
    match_norms,
    mean_kernels,
    plain_config,
)
from mmkw.deployment.calibration import SPLITS  # noqa: E402
from mmkw.files import write_whole  # noqa: E402


def parse_args(argv=None):
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('checkpoint', help='path of the checkpoint file')
    parser.add_argument(
        'out', type=Path, help='the checkpoint to write, NAME.pth; its config is NAME.py'
    )
    parser.add_argument(
        '--split', choices=SPLITS, default='train',
        help='which data to calibrate on (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--num-images', type=int, default=1024, metavar='N',
        help='how many images to calibrate on, rounded up to batches (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--keep-norms', action='store_true', help='keep the statistics of batch norms as they are'
    )
    parser.add_argument('--no-test', action='store_true', help='write without measuring scores')
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.pth', '.safetensors'):
        parser.error(f'the name of the checkpoint must end in .pth or .safetensors, not {args.out}')
    if args.num_images < 1:
        parser.error(f'--num-images must be at least 1, not {args.num_images}')
    return args


def main(argv=None):
    args = parse_args(argv)
    with clear_errors(args.debug), naming_misfits(args):
        config = load_config(args)
        check_arguments(config, args)
        runner = build_runner(config)
        checkpoint = load_checkpoint(runner.model, args.checkpoint, map_location='cpu', strict=True)
        plain = plain_config(config)
        plain.work_dir = os.path.join(config.work_dir, 'static')
        plain.experiment_name = 'static'  # MMEngine would let both runs share one visualizer.
        plain_runner = build_runner(plain)
        model, static = runner.model, plain_runner.model
        loader, count = calibration_images(runner, config, args)
        print(f'averaging the kernels over {count} batches')
        load_static(static, model, mean_kernels(model, progress(loader, count), predict))
        scores = {}
        measure(scores, args, 'dynamic', runner)
        measure(scores, args, 'static', plain_runner)
        if not args.keep_norms:
            print('matching the batch norms')
            norms = match_norms(static, model, progress(loader, count), predict)
            print(f'{norms} batch norms have new statistics')
            if norms:
                measure(scores, args, 'static, norms matched', plain_runner)
        write(static, plain, checkpoint, args)
    print_scores(scores)


def check_arguments(config, args):
    check_file(args.checkpoint, 'checkpoint')
    for path in (args.out, args.out.with_suffix('.py')):
        check_output(path, args.config, args.checkpoint)
    if args.launcher != 'none':
        fail('calibration runs in one process; start the tool without --launcher')
    check_data(config, args.split, *([] if args.no_test else ['test']))
    config.load_from, config.resume = None, False


def calibration_images(runner, config, args):
    """A dataloader, and how many of its batches to take."""
    loader_config = calibration_loader(config, args.split)
    loader = runner.build_dataloader(loader_config)
    return loader, min(math.ceil(args.num_images / loader_config.batch_size), len(loader))


def progress(loader, count):
    """The first batches of a dataloader, with MMEngine's progress bar."""
    return track_iter_progress((islice(loader, count), count), file=sys.stderr)


def predict(model, data):
    return model.test_step(data)


def measure(scores, args, name, runner):
    if not args.no_test:
        scores[name] = runner.test()


def write(model, plain, checkpoint, args):
    for key in ('work_dir', 'experiment_name', 'launcher'):
        plain.pop(key)
    meta = dict(source=os.path.basename(args.checkpoint))
    dataset_meta = checkpoint.get('meta', {}).get('dataset_meta')
    if dataset_meta is not None:
        meta['dataset_meta'] = dataset_meta
    write_whole(plain.pretty_text, args.out.with_suffix('.py'), sync=True)
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), args.out)
    print(f'wrote {args.out} and {args.out.with_suffix(".py")}')


def print_scores(scores):
    if not scores:
        return
    width = max(map(len, scores))
    for metric in scores['dynamic']:
        print(metric)
        for name, values in scores.items():
            # Detectors that find nothing have no scores.
            value = values.get(metric, '-')
            shown = f'{value:.4g}' if isinstance(value, Real) else value
            print(f'  {name:<{width}}  {shown}')


if __name__ == '__main__':
    main()
