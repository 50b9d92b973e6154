"""Measure networks side by side: time, memory and operations, relative to the plain network.

python tools/analysis_tools/benchmark.py resnet18-1x resnet50-4x --out work_dirs/benchmark
python tools/analysis_tools/benchmark.py configs/coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py
python tools/analysis_tools/benchmark.py --protocol paper --dtype bfloat16 --channels-last
python tools/analysis_tools/benchmark.py --sweep
python tools/analysis_tools/benchmark.py resnet18-1x resnet50-1x --mode host

Networks have random weights and see random images. Each is compared with its plain twin, the same
config without dynamic layers, in alternating rounds of one process.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Read when torch loads. Threads that spin while they wait slow each other down wherever there are
# more of them than free cores; the profiler says on the CPU that it finds no GPU.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '0')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from benchmarking import (  # noqa: E402
    DTYPES,
    MODES,
    Candidate,
    Setting,
    build_group,
    describe_machine,
    group_by_twin,
    measure_group,
    measure_host,
    measure_layer,
    measure_sweep,
)
from benchmarking.report import write_report  # noqa: E402
from benchmarking.tables import (  # noqa: E402
    PAPER_MODELS,
    make_tables,
    paper_train_batch_size,
)
from cli_common import add_debug_option, clear_errors, read_config  # noqa: E402

from mmkw.analysis import measure_rates  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'imagenet'
DEFAULT_MODELS = ('resnet18-1x', 'resnet50-1x', 'resnet50-4x', 'mobilenet-v2-w100-4x')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        # Options that take lists would swallow models that follow them.
        usage='%(prog)s [MODEL ...] [options]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help='a config of MMPretrain or MMDetection, or the first part of the name of one in '
        'configs/imagenet, such as resnet50-4x, mobilenet-v2-w100-1d2x or resnet18 (plain); of '
        f'several recipes the first by name. Default: {" ".join(DEFAULT_MODELS)}',
    )
    parser.add_argument(
        '--mode', nargs='+', choices=(*MODES, 'host'), default=MODES,
        help='host: what the host launches in a training step of 2 images, and how long it takes, '
        'also by the operations of the release, with a layer by itself. Default: all others',
    )  # fmt: skip
    parser.add_argument(
        '--batch-sizes', nargs='+', type=positive, default=[1, 8, 32],
        help='of inference; its memory is that of the largest. Default: 1 8 32',
    )  # fmt: skip
    parser.add_argument(
        '--train-batch-size', type=positive,
        help='default: 16; in the protocol of the paper 128, or 32 for MobileNetV2',
    )  # fmt: skip
    parser.add_argument(
        '--resolution', type=positive, default=224, help='default: 224; of host alone 64'
    )
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda or cuda:N. Default: a GPU if there is one',
    )  # fmt: skip
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32',
        help='bfloat16 and float16 by autocast (float16 without loss scaling). Default: float32',
    )  # fmt: skip
    parser.add_argument('--channels-last', action='store_true', help='memory format of images')
    parser.add_argument('--threads', type=positive, help="on the CPU; default: torch's")
    parser.add_argument('--rounds', type=positive, default=10, help='default: 10')
    parser.add_argument(
        '--reference',
        action='store_true',
        help='measure each dynamic network a second time, by the reference route: all kernels of a '
        'batch assembled, then one grouped convolution, as in the release',
    )
    parser.add_argument(
        '--fold', nargs='?', type=float, const=4.0, metavar='CELLS',
        help='measure the inference of each KW network a second time, with the attentions of all '
        'layers folded that have at least so many cells for each tensor to mix instead (see '
        'mmkw.fold_attentions), if there are any. Without a number 4',
    )  # fmt: skip
    parser.add_argument(
        '--keep-memory', action=argparse.BooleanOptionalAction, default=True,
        help='on the CPU, let the C library (glibc) keep freed memory for the next tensors, as '
        "PyTorch does on GPUs; by default it returns large tensors' to the system, which takes "
        'long to hand it out again. Default: yes',
    )  # fmt: skip
    parser.add_argument(
        '--protocol',
        choices=['paper'],
        help="the models and batch sizes of the paper's Tables 12 and 16, beside its numbers; "
        'other options still count',
    )
    parser.add_argument(
        '--sweep',
        action='store_true',
        help='measure one KW layer over batch, resolution and number of cells instead, or too '
        'where models are named. Each list varies alone, the others at their middle value',
    )
    parser.add_argument('--sweep-channels', type=positive, default=256, help='default: 256')
    parser.add_argument('--sweep-kernel-size', type=positive, default=3, help='default: 3')
    parser.add_argument(
        '--sweep-batch-sizes', nargs='+', type=positive, default=[1, 2, 4, 8, 16, 32, 64]
    )
    parser.add_argument('--sweep-resolutions', nargs='+', type=positive, default=[4, 7, 14, 28, 56])
    parser.add_argument(
        '--sweep-cells', nargs='+', type=positive, default=[9, 18, 36, 72, 144, 288, 576]
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmark'),
        help='folder for benchmark.json, benchmark.md and plots. Default: %(default)s',
    )  # fmt: skip
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.mode == ['host']:
        parser.set_defaults(resolution=64)
        args = parser.parse_args(argv)
    if args.protocol == 'paper':
        parser.set_defaults(batch_sizes=[100])
        args = parser.parse_args(argv)
        args.models = args.models or PAPER_MODELS
    if not args.models and not args.sweep:
        args.models = DEFAULT_MODELS
    return args


def positive(text: str) -> int:
    """An argument that is a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return number


def find_config(name: str) -> Path:
    """The config that a path or a name in short notation means.

    Raises:
        ValueError: If there is none.
    """
    if name.endswith('.py'):
        if not Path(name).is_file():
            raise ValueError(f'config file {name} does not exist')
        return Path(name)
    paths = sorted(CONFIGS.glob('*.py'))
    notations = {path: path.stem.partition('_')[0] for path in paths}
    for path, notation in notations.items():
        if name in (path.stem, notation, notation.replace('kw-', '', 1)):
            return path
    known = ', '.join(dict.fromkeys(text.replace('kw-', '', 1) for text in notations.values()))
    raise ValueError(f'unknown model {name!r}; name a config file (.py) or one of {known}')


def read_candidate(name: str) -> Candidate:
    """Read the config of a model, see :func:`find_config`."""
    path = find_config(name)
    name = path.stem if name.endswith('.py') else name
    return Candidate.of(read_config(path), name, path.stem)


def run(args: argparse.Namespace) -> dict:
    """Measure everything, writing the report anew after each group of networks."""
    setting = Setting.set_up(
        args.device, args.dtype, args.channels_last, args.resolution, args.rounds, args.threads,
        args.keep_memory,
    )  # fmt: skip
    groups = group_by_twin([read_candidate(name) for name in args.models])
    rates = measure_rates(setting.device, setting.dtype, 5, setting.memory_format)
    settings = {key: getattr(args, key) for key in ('mode', 'resolution', 'rounds', 'protocol')}
    results = dict(
        machine=describe_machine(setting), settings=settings, rates=rates._asdict(), models=[]
    )
    for group in groups:
        usual = paper_train_batch_size(group[0].stem) if args.protocol else 16
        networks = build_group(group, setting, args.reference, args.fold)
        results['models'] += measure_group(
            networks,
            setting,
            rates,
            args.mode,
            args.batch_sizes,
            args.train_batch_size or usual,
            say,
        )
        if 'host' in args.mode:
            results.setdefault('host', measure_layer(setting)).extend(measure_host(networks))
        write_report(results, args.out)
    if args.sweep:
        axes = {
            'batch_size': args.sweep_batch_sizes,
            'resolution': args.sweep_resolutions,
            'cells': args.sweep_cells,
        }
        size = args.sweep_channels, args.sweep_kernel_size
        results['sweep'] = measure_sweep(axes, setting, rates, *size, args.mode, say)
        write_report(results, args.out)
    return results


def say(line: str) -> None:
    print(line, flush=True)


def main(argv=None) -> None:
    args = parse_args(argv)
    with clear_errors(args.debug):
        results = run(args)
        print(make_tables(results))
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
