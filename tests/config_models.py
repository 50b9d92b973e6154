"""The shipped configs, what their names promise, and the models that they describe."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import mmdet.datasets.transforms  # noqa: F401  (registers the transforms that the configs name)
import mmpretrain.datasets.transforms  # noqa: F401
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

CONFIGS = Path(__file__).parents[1] / 'configs'
# Those for own data need settings first; test_check_dataset.py has some.
RUNNABLE = sorted(
    path for path in CONFIGS.rglob('*.py') if not {'_base_', 'own_data'} & set(path.parts)
)
# They need MMSegmentation; test_segmentation.py has them.
SEGMENTATION = [path for path in RUNNABLE if path.parent.name == 'segmentation']
RUNNABLE = [path for path in RUNNABLE if path not in SEGMENTATION]
IMAGENET = [path for path in RUNNABLE if path.parent.name == 'imagenet']
COCO = [path for path in RUNNABLE if path.parent.name == 'coco']
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
BUDGETS = {
    '1d4x': 0.25, '1d2x': 0.5, '3d4x': 0.75, '1x': 1, '2x': 2, '4x': 4, '8x': 8, None: None,
}  # fmt: skip
DETECTORS = ('mask-rcnn_', 'faster-rcnn_')
# Methods whose temperature falls from 30 to 1.
SOFTMAX_METHODS = ('odconv', 'dyconv')


def named(path: Path) -> str:
    return path.stem


def model_name(stem: str) -> str:
    """Network and budget, as ImageNet configs spell them."""
    name = stem.split('_')[stem.startswith(DETECTORS)]
    return re.sub('mobilenet-v2(?!-w)', 'mobilenet-v2-w100', name)


def readme_rows(folder: str) -> dict[str, list[str]]:
    """The rows of a README's tables that begin with a link to a config, by its stem."""
    text = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8')
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        link = re.fullmatch(r'\[(.+)\]\((.+)\.py\)', cells[0])
        if link:
            assert link[1] == link[2], f'{folder}/README.md: {cells[0]} links to another config'
            assert link[1] not in rows, f'{folder}/README.md lists {link[1]} twice'
            rows[link[1]] = cells[1:]
    return rows


class Promise(NamedTuple):
    """What the name of a config promises.

    Attributes:
        method: ``'kw'``, ``'odconv'``, ``'dyconv'``, ``'condconv'``, ``'dcd'``, ``'fdconv'``;
            ``None`` if plain.
        network: such as ``'resnet18'``.
        budget: parameters relative to the plain layers, or the number of kernels; ``None`` for
            plain networks, DCD and FDConv.
        own_recipe: whether it is the recipe of the method's authors, with decay everywhere.
    """

    method: str | None
    network: str
    budget: float | None
    own_recipe: bool


def promise(stem: str) -> Promise:
    pattern = r'(?:(kw|odconv|dyconv|condconv|dcd|fdconv)-)?(.+?)(?:-(\w+x))?(?:-released)?'
    method, network, budget = re.fullmatch(pattern, model_name(stem)).groups()
    assert (budget is None) == (method in (None, 'dcd', 'fdconv'))
    own_recipe = 'fpn_1x' in stem or (
        method == 'odconv' and re.search('-1[05]0e', stem) is not None
    )
    return Promise(method, network, BUDGETS[budget], own_recipe)


def replaced_backbone(cfg: Config) -> dict:
    """The config of the backbone, without what replaces its layers."""
    backbone = cfg.model.backbone
    return backbone.backbone if backbone.type == 'DynamicBackbone' else backbone


# What is read once must not change; `build` copies.
load = cache(Config.fromfile)


def classifier_before(path: Path) -> Path:
    """The ImageNet config from whose last checkpoint a config starts, wherever it is started."""
    start = replaced_backbone(load(path)).init_cfg
    trained = Path(start.checkpoint)
    classifier = CONFIGS / 'imagenet' / f'{trained.parent.name}.py'
    assert (start.type, start.prefix) == ('Pretrained', 'backbone.')
    assert trained.is_absolute()
    assert trained.parents[1].resolve() == CONFIGS.parent / 'work_dirs'
    assert trained.name == f'epoch_{load(classifier).train_cfg.max_epochs}.pth'
    return classifier


def build(cfg: Config) -> nn.Module:
    """The model as a Runner of this config would build it."""
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model)


def build_optimizer(cfg: Config, model: nn.Module) -> OptimWrapper:
    """In single precision, as half precision needs a GPU."""
    optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
    if optim_wrapper.get('type') == 'AmpOptimWrapper':
        optim_wrapper.type = 'OptimWrapper'
        del optim_wrapper.loss_scale
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(model, optim_wrapper)


class Setting(NamedTuple):
    """How the optimizer treats a parameter."""

    lr: float
    weight_decay: float


class Built(NamedTuple):
    """What the tests ask of a built model, which is itself too large to keep.

    Attributes:
        parameters: how many.
        shapes: of the state dict.
        drop_paths: the rate of each residual block.
        settings: of each parameter that trains.
        norms: each norm's class and whether it uses the batch, in training.
        norm_scales: the values from which the scales of the norms start. Like the next one only
            of classifiers, as detectors start from checkpoints.
        classifier: weight and bias from which a linear classifier starts, if it is plain.
    """

    parameters: int
    shapes: dict[str, torch.Size]
    drop_paths: list[float]
    settings: dict[str, Setting]
    norms: dict[str, tuple[str, bool]]
    norm_scales: set[float]
    classifier: tuple[torch.Tensor, torch.Tensor] | None


@contextmanager
def kernels_without_values() -> Iterator[None]:
    """Leave out the random values of convolutions, half the time that building takes."""
    with ExitStack() as stack:
        for name in ('kaiming_normal_', 'kaiming_uniform_'):
            fill = getattr(nn.init, name)

            def fill_matrices(tensor, *args, fill=fill, **kwargs):
                if tensor.dim() <= 2:
                    return fill(tensor, *args, **kwargs)
                # A layer whose weight is constant would count as one that starts so on purpose.
                tensor.detach().view(-1)[:2] = torch.arange(min(tensor.numel(), 2)).to(tensor)
                return tensor

            stack.enter_context(patch.object(nn.init, name, fill_matrices))
        yield


@cache
def built(path: Path) -> Built:
    """The model and optimizer of a config, as a run begins."""
    cfg = load(path)
    torch.manual_seed(0)
    with kernels_without_values():
        model = build(cfg)
        if path in IMAGENET:
            model.init_weights()
    model.train()
    groups = {
        parameter: group
        for group in build_optimizer(cfg, model).optimizer.param_groups
        for parameter in group['params']
    }
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    blocks = [module.drop_path for module in model.modules() if hasattr(module, 'drop_path')]
    # Vision transformers have several to a block, under other names.
    blocks = blocks or [module for module in model.modules() if isinstance(module, DropPath)]
    linear = getattr(getattr(model, 'head', None), 'fc', None)
    return Built(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes={name: value.shape for name, value in model.state_dict().items()},
        drop_paths=[getattr(block, 'drop_prob', 0.0) for block in blocks],
        settings={
            name: Setting(groups[parameter]['lr'], groups[parameter]['weight_decay'])
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        },
        norms={name: (type(norm).__name__, norm.training) for name, norm in norms.items()},
        norm_scales={value for norm in norms.values() for value in norm.weight.unique().tolist()},
        classifier=(linear.weight.data, linear.bias.data) if type(linear) is nn.Linear else None,
    )
