"""Measure networks side by side: time, memory and operations, relative to the plain network.

python tools/analysis_tools/benchmark.py resnet18-1x resnet50-4x --out work_dirs/benchmark
python tools/analysis_tools/benchmark.py configs/coco/mask-rcnn_kw-resnet50-1x_fpn_ms-1x_coco.py
python tools/analysis_tools/benchmark.py --protocol paper --dtype bfloat16 --channels-last
python tools/analysis_tools/benchmark.py --sweep

Networks have random weights and see random images. Each is compared with its plain twin, the same
config without warehouses, in alternating rounds of one process.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import logging
import os
import platform
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

# Read when torch loads. Threads that spin while they wait slow each other down wherever there are
# more of them than free cores; the profiler says on the CPU that it finds no GPU.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('GOMP_SPINCOUNT', '0')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from analysis_tools.benchmark_report import make_tables, write_report  # noqa: E402
from cli_common import add_debug_option, clear_errors, read_config, type_name  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.registry import MODELS, DefaultScope, Registry  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mmkw import KWConv2d, fold_attentions  # noqa: E402
from mmkw.analysis import (  # noqa: E402
    Rates,
    Spread,
    count_operations,
    kept_memory,
    measure_rates,
    peak_memory,
    tensor_bytes,
    time_alternately,
)
from mmkw.kernel_warehouse.layers import KWLayer  # noqa: E402
from mmkw.sample_conv import forced_route  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'imagenet'
MODES = ('inference', 'train', 'memory')
DTYPES = ('float32', 'tf32', 'bfloat16', 'float16')
DEFAULT_MODELS = ('resnet18-1x', 'resnet50-1x', 'resnet50-4x', 'mobilenet-v2-w100-4x')

# A backward pass does each product twice, for the gradients of both factors.
TRAINING_FACTOR = {'inference': 1, 'train': 3}

PAPER_MODELS = tuple(
    f'{network}-{budget}'
    for network in ('resnet50', 'mobilenet-v2-w100')
    for budget in ('1d2x', '1x', '4x')
)
_KW_OPTIONS = (
    'budget', 'cell_ratio', 'reduction', 'basis_ratio', 'norm_layer', 'blocks_per_warehouse',
)  # fmt: skip


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
    parser.add_argument('--mode', nargs='+', choices=MODES, default=MODES, help='default: all')
    parser.add_argument(
        '--batch-sizes', nargs='+', type=positive, default=[1, 8, 32],
        help='of inference; its memory is that of the largest. Default: 1 8 32',
    )  # fmt: skip
    parser.add_argument(
        '--train-batch-size', type=positive,
        help='default: 16; in the protocol of the paper 128, or 32 for MobileNetV2',
    )  # fmt: skip
    parser.add_argument('--resolution', type=positive, default=224, help='default: 224')
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
        help='measure each KW network a second time, by the reference route: all kernels of a '
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


@dataclass
class Setting:
    """Where and how all networks of a run compute."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    resolution: int
    rounds: int
    keeps_memory: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> Setting:
        """Also sets the process up: threads, memory, TF32 and cuDNN's choice of algorithms.

        Raises:
            ValueError: If the device is not there or does not have the type.
        """
        if not re.fullmatch(r'cpu|cuda(:\d+)?', args.device):
            raise ValueError(f'--device must be cpu, cuda or cuda:N, but got {args.device}')
        device = torch.device(args.device)
        if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f'--device {args.device} needs a GPU that PyTorch can use, but it finds '
                f'{torch.cuda.device_count()}; use --device cpu'
            )
        if args.dtype == 'tf32' and device.type == 'cpu':
            raise ValueError('--dtype tf32 is a type of GPUs; use float32 or bfloat16 on the CPU')
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        if device.type == 'cuda':
            torch.backends.cuda.matmul.allow_tf32 = args.dtype == 'tf32'
            torch.backends.cudnn.allow_tf32 = args.dtype == 'tf32'
            torch.backends.cudnn.benchmark = True
        return cls(
            device=device,
            dtype=getattr(torch, 'float32' if args.dtype == 'tf32' else args.dtype),
            memory_format=torch.channels_last if args.channels_last else torch.contiguous_format,
            resolution=args.resolution,
            rounds=args.rounds,
            keeps_memory=device.type == 'cpu' and args.keep_memory and keep_freed_memory(),
        )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Bring a model to the device and into the memory format."""
        return model.to(device=self.device, memory_format=self.memory_format)

    def autocast(self):
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)


def keep_freed_memory() -> bool:
    """Let the C library keep all freed memory, and say whether it does: glibc's can."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    # malloc.h: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1; they return 1 if they took effect.
    return mallopt is not None and mallopt(-4, 0) == 1 and mallopt(-1, 2**31 - 1) == 1


def describe_machine(args: argparse.Namespace, setting: Setting) -> dict:
    """What a reader needs to know to compare times; nothing that tells whose machine it is."""
    facts = {
        'processor': _processor(),
        'logical cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'OMP_WAIT_POLICY': os.environ['OMP_WAIT_POLICY'],
        'freed memory': 'kept by the process' if setting.keeps_memory else 'as the C library does',
        'torch': torch.__version__,
        'python': platform.python_version(),
        'system': f'{platform.system()} {platform.machine()}',
        'device': 'CPU',
        'type': args.dtype,
        'memory format': 'channels last' if args.channels_last else 'contiguous',
    }
    if setting.device.type == 'cuda':
        facts['device'] = torch.cuda.get_device_name(setting.device)
        facts['cuda'] = torch.version.cuda
        facts['cudnn'] = torch.backends.cudnn.version()
    return facts


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text(encoding='utf-8') if cpuinfo.is_file() else ''
    model = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return model.group(1) if model else platform.processor() or platform.machine()


@dataclass
class Candidate:
    """A network to measure, as its config describes it."""

    name: str
    stem: str
    scope: str
    model: dict


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
    """Read the config of a model.

    Raises:
        ValueError: If there is none, or it is no classifier or detector with a backbone.
    """
    path = find_config(name)
    config = read_config(path)
    scope = config.get('default_scope')
    if scope not in ('mmpretrain', 'mmdet') or 'backbone' not in (config.get('model') or {}):
        raise ValueError(
            f'{name} is no config of MMPretrain or MMDetection with a model.backbone: its '
            f'default_scope is {scope!r}'
        )
    model = _without_checkpoints(config.model.to_dict())
    return Candidate(path.stem if name.endswith('.py') else name, path.stem, scope, model)


def _without_checkpoints(config):
    """Leave out weights to start from, which need not be there."""
    if isinstance(config, dict):
        return {
            key: _without_checkpoints(value)
            for key, value in config.items()
            if not (key == 'init_cfg' and isinstance(value, dict) and 'checkpoint' in value)
        }
    return [_without_checkpoints(value) for value in config] if type(config) is list else config


def plain_twin(candidate: Candidate) -> Candidate:
    """The same network without warehouses; a plain network is its own twin."""
    model = copy.deepcopy(candidate.model)
    backbone, head = model['backbone'], model.get('head') or {}
    if type_name(backbone) == 'KWBackbone':
        model['backbone'] = plain = backbone['backbone']
        scope, _ = Registry.split_scope_key(plain['type'])
        if scope is not None:
            plain.setdefault('_scope_', scope)
    elif type_name(backbone).startswith('KW'):
        kept = {key: value for key, value in backbone.items() if key not in _KW_OPTIONS}
        model['backbone'] = dict(kept, budget=None)
    if type_name(head, 'None') == 'KWLinearClsHead':
        kept = {key: value for key, value in head.items() if key not in _KW_OPTIONS}
        model['head'] = dict(kept, type='LinearClsHead')
    name = re.sub(
        r'(^|_)(?:kw-)?((?:resnet|mobilenet|convnext|deit)[^_]*?)-(?:\d+d)?\d+x(?:-released)?'
        r'(?=_|$)',
        r'\1\2',
        candidate.name,
    )
    if name == candidate.name:
        name = f'{name} (plain)'
    return Candidate(name, candidate.stem, candidate.scope, model)


def group_by_twin(candidates: list[Candidate]) -> list[list[Candidate]]:
    """Group networks that have the same plain twin, which stands first in each group.

    Raises:
        ValueError: If a network is named twice.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        twin = plain_twin(candidate)
        key = json.dumps(twin.model, sort_keys=True, default=repr)
        group = groups.setdefault(key, [twin])
        if any(candidate.name == other.name for other in group[1:]):
            raise ValueError(f'{candidate.name} is named twice; name each model once')
        if candidate.model == twin.model:
            group[0] = candidate
        else:
            group.append(candidate)
    return list(groups.values())


@contextmanager
def _quiet_mmengine():
    """MMEngine logs the initialisation of every single parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class Network:
    """A built network with what it takes to run it.

    Args:
        candidate: its config.
        setting: where and how it computes.
    """

    def __init__(self, candidate: Candidate, setting: Setting) -> None:
        self.name = candidate.name
        self.config = candidate.stem
        self.is_detector = candidate.scope == 'mmdet'
        self.is_reference = False
        self.folded_bytes = 0
        self.setting = setting
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(candidate.scope), _quiet_mmengine():
            self.model = MODELS.build(ConfigDict(copy.deepcopy(candidate.model)))
            self.model.init_weights()
        setting.prepare(self.model)
        self._settle_norms(*self.make_batch(8))

    @property
    def has_warehouses(self) -> bool:
        return any(isinstance(module, KWLayer) for module in self.model.modules())

    def by_reference_route(self) -> Network:
        """The same network, assembling all kernels."""
        network = copy.copy(self)
        network.name = f'{self.name} (reference)'
        network.is_reference = True
        return network

    def with_folded_attentions(self, min_saving: float) -> Network:
        """A copy for inference only, with attentions folded into the cells."""
        network = copy.copy(self)
        network.name = f'{self.name} (folded)'
        network.model = copy.deepcopy(self.model).eval()
        network.folded_bytes = sum(fold_attentions(network.model, min_saving).values())
        return network

    def make_batch(self, size: int) -> tuple[Tensor, list]:
        """Random images with a class, or with 8 boxes and masks, each."""
        resolution, device = self.setting.resolution, self.setting.device
        torch.manual_seed(0)
        if self.is_detector:
            from mmdet.testing import demo_mm_inputs

            packed = demo_mm_inputs(
                size, (3, resolution, resolution), [8] * size, num_classes=2, with_mask=True
            )
            batch = self.model.data_preprocessor(packed, training=True)
            images, samples = batch['inputs'], batch['data_samples']
        else:
            from mmpretrain.structures import DataSample

            images = torch.randn(size, 3, resolution, resolution, device=device)
            samples = [DataSample().set_gt_label(i % 2).to(device) for i in range(size)]
        return images.contiguous(memory_format=self.setting.memory_format), samples

    def _route(self):
        return forced_route('reference') if self.is_reference else nullcontext()

    @torch.no_grad()
    def infer(self, images: Tensor, samples: list):
        """Compute the output; the model is in evaluation mode already."""
        with self._route(), self.setting.autocast():
            return self.model(images, samples, mode='tensor')

    def loss(self, images: Tensor, samples: list) -> Tensor:
        """Compute the sum of the losses; the model is in training mode already."""
        with self._route(), self.setting.autocast():
            losses = self.model(images, samples, mode='loss')
            return self.model.parse_losses(losses)[0]

    def training_step(self, images: Tensor, samples: list):
        """A training step to call: forward, loss, backward, SGD with momentum.

        The learning rate is 0, which costs the same and keeps the network as it is.
        """
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self._route():
                self.loss(images, samples).backward()
            optimizer.step()

        step.optimizer = optimizer
        return step

    @torch.no_grad()
    def _settle_norms(self, images: Tensor, samples: list) -> None:
        """Give batch norms the statistics of a batch.

        With those of a new network activations would shrink from layer to layer, in deep ones to
        numbers so small that CPUs are slow with them.
        """
        self.model.train()
        norms = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self.model(images, samples, mode='tensor')
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def build_group(
    group: list[Candidate], setting: Setting, reference: bool, fold: float | None
) -> list[Network]:
    """Build networks of the same plain twin, which stands first.

    Raises:
        ValueError: If the twin still has KW layers.
    """
    networks = [Network(candidate, setting) for candidate in group]
    if networks[0].has_warehouses:
        raise ValueError(
            f'cannot tell what {group[-1].name} is without its KW layers: they do not come from '
            f'a KW backbone or KWLinearClsHead (but from a conv_cfg, say)'
        )
    own = networks[1:]
    if reference:
        networks += [network.by_reference_route() for network in own]
    if fold is not None:
        folded = (network.with_folded_attentions(fold) for network in own)
        networks += [network for network in folded if network.folded_bytes]
    return networks


def measure_time(
    networks: list[Network], mode: str, batch_size: int, rates: Rates, setting: Setting
) -> list[dict]:
    """Time networks in alternating rounds; the first is the plain one.

    Returns:
        For each network a record: ``seconds`` and ``ratio`` to the plain network of the same
        round, as :class:`Spread`; ``operations``; and two bounds in seconds. ``bound_seconds``
        has all operations at the machine's rates, ``plain_and_assembling_seconds`` has the plain
        network's measured time instead of its operations.
    """
    runs, operations = {}, {}
    for network in networks:
        network.model.train(mode == 'train')
        images, samples = network.make_batch(batch_size)
        if mode == 'train':
            runs[network.name] = network.training_step(images, samples)
        else:
            runs[network.name] = _Call(network.infer, images, samples)
        operations[network.name] = count_operations(network.model, runs[network.name])
    seconds = time_alternately(runs, setting.rounds, device=setting.device)
    plain = seconds[networks[0].name]
    records = []
    for network in networks:
        own = seconds[network.name]
        count, factor = operations[network.name], TRAINING_FACTOR[mode]
        mixing = factor * (count.assembling + count.attention) / rates.matmul
        records.append(
            dict(
                batch_size=batch_size,
                seconds=Spread.of(own)._asdict(),
                images_per_second=batch_size / Spread.of(own).median,
                ratio=ratio_of_rounds(own, plain)._asdict(),
                operations=asdict(count),
                bound_seconds=factor * count.convolution / rates.convolution + mixing,
                plain_and_assembling_seconds=Spread.of(plain).median + mixing,
            )
        )
    return records


class _Call:
    """``function(*arguments)``, to be called without arguments."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self):
        return self.function(*self.arguments)


def ratio_of_rounds(seconds: list[float], plain_seconds: list[float]) -> Spread:
    """Spread of the ratios of the same round."""
    return Spread.of([own / plain for own, plain in zip(seconds, plain_seconds)])


def measure_memory(
    network: Network, train_batch_size: int, batch_size: int, setting: Setting
) -> dict:
    """Bytes that a network needs.

    Returns:
        ``kept_bytes``: what the backward pass of a training step needs, without parameters,
        buffers and images. ``train_peak_bytes`` and ``inference_peak_bytes``: the most at once,
        with parameters, buffers, images and, in training, gradients and momentum.
    """
    model = network.model
    resident = [*model.parameters(), *model.buffers()]

    model.train()
    images, samples = network.make_batch(train_batch_size)
    kept = kept_memory(_Call(network.loss, images, samples), [*resident, images])
    step = network.training_step(images, samples)
    step()
    model.zero_grad(set_to_none=True)
    momentum = [
        value
        for state in step.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    train_peak = peak_memory(step, setting.device) + tensor_bytes([*resident, *momentum, images])
    model.zero_grad(set_to_none=True)
    del step, momentum

    model.eval()
    images, samples = network.make_batch(batch_size)
    infer = _Call(network.infer, images, samples)
    infer()
    inference_peak = peak_memory(infer, setting.device) + tensor_bytes([*resident, images])
    return dict(
        train_batch_size=train_batch_size,
        batch_size=batch_size,
        kept_bytes=kept,
        train_peak_bytes=train_peak,
        inference_peak_bytes=inference_peak,
    )


def measure_group(
    group: list[Candidate], args: argparse.Namespace, setting: Setting, rates: Rates
) -> list[dict]:
    """Measure networks of the same plain twin; one record each, the plain one's first."""
    networks = build_group(group, setting, args.reference, args.fold)
    plain = networks[0]
    records = []
    for network in networks:
        network.model.eval()
        count = count_operations(network.model, _Call(network.infer, *network.make_batch(1)))
        records.append(
            dict(
                name=network.name,
                config=network.config,
                plain=plain.name,
                parameters=sum(parameter.numel() for parameter in network.model.parameters()),
                operations_per_image=asdict(count),
                folded_bytes=network.folded_bytes,
            )
        )
    is_mobilenet = 'mobilenet' in plain.config
    in_paper = 32 if is_mobilenet else 128
    train_batch_size = args.train_batch_size or (in_paper if args.protocol else 16)

    for mode, batch_sizes in (('inference', args.batch_sizes), ('train', [train_batch_size])):
        measurable = [
            (network, record)
            for network, record in zip(networks, records)
            if mode == 'inference' or not network.folded_bytes
        ]
        for batch_size in batch_sizes if mode in args.mode else ():
            measured = measure_time([n for n, _ in measurable], mode, batch_size, rates, setting)
            for (_, record), times in zip(measurable, measured):
                record.setdefault(mode, []).append(times)
                print(
                    f'{record["name"]}: {mode}, batch {batch_size}: '
                    f'{1e3 * times["seconds"]["median"]:.1f} ms, '
                    f'{times["ratio"]["median"]:.2f} of {plain.name}',
                    flush=True,
                )
    if 'memory' in args.mode:
        for network, record in zip(networks, records):
            if network.folded_bytes:
                continue
            record['memory'] = measure_memory(
                network, train_batch_size, max(args.batch_sizes), setting
            )
            of_plain = records[0]['memory']
            record['memory']['ratio'] = {
                key: value / of_plain[key]
                for key, value in record['memory'].items()
                if key.endswith('_bytes')
            }
            print(
                f'{network.name}: kept for backward, batch {train_batch_size}: '
                f'{record["memory"]["kept_bytes"] / 1e6:.1f} MB, '
                f'{record["memory"]["ratio"]["kept_bytes"]:.2f} of {plain.name}',
                flush=True,
            )
    return records


def measure_sweep(args: argparse.Namespace, setting: Setting, rates: Rates) -> dict:
    """Measure one KW convolution beside the plain one, over batch, resolution and cells."""
    axes = {
        'batch_size': args.sweep_batch_sizes,
        'resolution': args.sweep_resolutions,
        'cells': args.sweep_cells,
    }
    middle = {axis: values[len(values) // 2] for axis, values in axes.items()}
    sweep = dict(
        channels=args.sweep_channels, kernel_size=args.sweep_kernel_size, middle=middle, axes={}
    )
    for axis, values in axes.items():
        sweep['axes'][axis] = []
        for value in values:
            point = dict(middle, **{axis: value})
            for mode in ('inference', 'train'):
                if mode in args.mode:
                    record = measure_point(point, mode, args, setting, rates)
                    sweep['axes'][axis].append(dict(point, mode=mode, **record))
                    print(
                        f'layer, {mode}, batch {point["batch_size"]}, {point["resolution"]} x '
                        f'{point["resolution"]}, n = {point["cells"]}: '
                        f'{record["ratio"]["median"]:.2f} of plain',
                        flush=True,
                    )
    return sweep


def measure_point(
    point: dict, mode: str, args: argparse.Namespace, setting: Setting, rates: Rates
) -> dict:
    """Time a KW layer and the plain one, and what bounds the KW layer.

    Returns:
        ``seconds``, ``plain_seconds`` and ``ratio`` as :class:`Spread`, ``operations``, and the
        bounds: ``operations_seconds``, the plain layer's time and assembling at the rate of a
        matrix product; ``bytes_seconds``, the layer's cells, attention, input and output, and in
        training their gradients, once each through the memory.
    """
    channels, kernel_size = args.sweep_channels, args.sweep_kernel_size
    geometry = dict(kernel_size=kernel_size, padding=kernel_size // 2, bias=False)
    budget = f'{point["cells"]}/{kernel_size**2}'
    torch.manual_seed(0)
    layers = {
        'kw': KWConv2d(channels, channels, budget=budget, cell_ratio=1, **geometry),
        'plain': nn.Conv2d(channels, channels, **geometry),
    }
    size = (point['batch_size'], channels, point['resolution'], point['resolution'])
    x = torch.randn(size, device=setting.device).contiguous(memory_format=setting.memory_format)

    def run_of(layer: nn.Module):
        setting.prepare(layer).eval()

        def infer() -> Tensor:
            with torch.no_grad(), setting.autocast():
                return layer(x)

        def train() -> None:
            own = x.detach().requires_grad_()
            layer.zero_grad(set_to_none=True)
            with setting.autocast():
                y = layer(own)
            y.backward(torch.ones_like(y))

        return train if mode == 'train' else infer

    runs = {name: run_of(layer) for name, layer in layers.items()}
    operations = count_operations(layers['kw'], runs['kw'])
    with torch.no_grad(), setting.autocast():
        y = layers['plain'](x)
    weights = tensor_bytes(layers['kw'].parameters())
    traffic = weights + x.nbytes + y.nbytes
    if mode == 'train':
        # The backward pass reads weights, input and the output's gradient and writes the other two.
        traffic += 2 * (weights + x.nbytes) + y.nbytes
    seconds = time_alternately(runs, setting.rounds, device=setting.device)
    plain = Spread.of(seconds['plain'])
    mixing = TRAINING_FACTOR[mode] * (operations.assembling + operations.attention)
    return dict(
        seconds=Spread.of(seconds['kw'])._asdict(),
        plain_seconds=plain._asdict(),
        ratio=ratio_of_rounds(seconds['kw'], seconds['plain'])._asdict(),
        operations=asdict(operations),
        operations_seconds=plain.median + mixing / rates.matmul,
        bytes_seconds=traffic / rates.bandwidth,
    )


def run(args: argparse.Namespace) -> dict:
    """Measure everything, writing the report anew after each group of networks.

    Raises:
        ValueError: If a model is unknown or named twice, has no plain twin or cannot run as
            asked, or the device is not there.
    """
    setting = Setting.of(args)
    groups = group_by_twin([read_candidate(name) for name in args.models])
    rates = measure_rates(setting.device, setting.dtype, 5, setting.memory_format)
    results = dict(
        machine=describe_machine(args, setting),
        settings=dict(
            mode=list(args.mode),
            resolution=args.resolution,
            rounds=args.rounds,
            protocol=args.protocol,
        ),
        rates=rates._asdict(),
        models=[],
    )
    for group in groups:
        results['models'] += measure_group(group, args, setting, rates)
        write_report(results, args.out)
    if args.sweep:
        results['sweep'] = measure_sweep(args, setting, rates)
        write_report(results, args.out)
    return results


def main(argv=None) -> None:
    args = parse_args(argv)
    with clear_errors(args.debug):
        results = run(args)
    print(make_tables(results))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
