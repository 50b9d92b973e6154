"""What a training run starts from: what it means for the temperature, and what cannot be right."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...methods.kernel_warehouse.layers import KWLayer
from ...methods.temperature import AnnealedModule
from ...networks.replacing import some_of

UNFREEZE = (
    'train all of it: --cfg-options model.backbone.frozen_stages=-1 model.backbone.norm_eval=False'
)


def starts_from_plain(module: AnnealedModule) -> bool:
    """Whether its weights were loaded at the temperature at which the network is a plain one."""
    plain = module.temperature_range.plain
    return module.awaits_annealing or (plain is not None and module.loaded_temperature == plain)


def describe_start(module: AnnealedModule) -> str:
    """Where the weights of a module come from, for the log."""
    if starts_from_plain(module):
        return 'plain kernels cut into cells'
    if module.loaded_temperature is None:
        return 'new weights'
    if module.loaded_temperature == module.temperature_range.learned:
        return 'learned attentions'
    return 'attentions amid annealing'


def averaged_copies(*models: nn.Module) -> set[AnnealedModule]:
    """The modules inside the averages that a model has of its parts, such as MoCo's encoder."""
    averages = (
        module
        for model in models
        for module in model.modules()
        if isinstance(module, BaseAveragedModel)
    )
    return {m for average in averages for m in average.modules() if isinstance(m, AnnealedModule)}


def names_of(runner: Runner, modules: Sequence[AnnealedModule]) -> str:
    """The first names of these modules in the model of the runner."""
    names = {module: name for name, module in runner.model.named_modules()}
    return some_of([names[module] or type(module).__name__ for module in modules], limit=3)


def check_start(
    runner: Runner, modules: Sequence[AnnealedModule], held: Sequence[AnnealedModule]
) -> None:
    """Compare where the weights came from with what becomes of them.

    ================  ==========================  =============================================
    weights           temperature held at 0       layers that are frozen
    ================  ==========================  =============================================
    new               warning: training from      would stay random: error if a checkpoint was
                      scratch anneals             given, which then does not fit, else a warning
    plain             error: that is for learned  right: they stay those of the plain network
                      attentions, there are none
    with attentions   right                       right
    ================  ==========================  =============================================

    Parameters of a backbone that its checkpoint had no value for are an error where they are
    frozen, and a warning where they train.

    Args:
        runner: for the model and the log.
        modules: those of the model that have a temperature.
        held: those of which the temperature is held.

    Raises:
        ValueError: see above.
    """
    plain = [module for module in held if starts_from_plain(module)]
    if plain:
        raise ValueError(
            f'{names_of(runner, plain)} start from plain weights (temperature 1), so that their '
            f'attentions have learned nothing yet, but the temperature would be held at '
            f'{plain[0].temperature_range.learned:g}, which is for attentions that have. Anneal '
            f'it: replace KWDisableAttentionInitHook in custom_hooks by '
            f"dict(type='KWTemperatureHook', epochs=...)"
        )
    new = [m for m in modules if m.loaded_temperature is None and not starts_from_plain(m)]
    frozen = _frozen_layers(runner.model, new)
    if frozen and runner._load_from:
        raise ValueError(
            f'load_from={str(runner._load_from)!r} has no weights for {some_of(frozen, limit=3)}, '
            f'which are frozen and would stay random. If it is a plain network, or its backbone '
            f'alone, turn it into a checkpoint for this config with '
            f'tools/model_converters/plain_to_mmkw.py; else take one that fits, or {UNFREEZE}'
        )
    if frozen:
        runner.logger.warning(
            f'mmkw: {some_of(frozen, limit=3)} are frozen with random weights, as no checkpoint '
            f'was loaded into them; {UNFREEZE}, or start from a checkpoint (load_from)'
        )
    held_new = [module for module in new if module in held]
    if held_new:
        runner.logger.warning(
            f'mmkw: {names_of(runner, held_new)} are new, with random attentions, but the '
            f'temperature is held at {held_new[0].temperature_range.learned:g}. When trained from '
            f"scratch it should be annealed: dict(type='KWTemperatureHook', epochs=...) in "
            f'custom_hooks'
        )
    _check_left(runner)
    _check_batches(runner)


def _check_left(runner: Runner) -> None:
    """Name the parameters of backbones that were started, but not all of them."""
    model = _unwrapped(runner.model)
    averaged = {
        part
        for average in model.modules()
        if isinstance(average, BaseAveragedModel)
        for part in average.modules()
    }
    trained: list[str] = []
    frozen: list[str] = []
    students: set[str] = set()
    for prefix, backbone in model.named_modules():
        if backbone in averaged or not hasattr(backbone, 'start_record'):
            continue
        for name, parameter in backbone.named_parameters(prefix):
            if parameter.requires_grad:
                students.add(name.partition('.')[2])
            if name[len(prefix) :].lstrip('.') in (backbone.start_record.left or ()):
                (trained if parameter.requires_grad else frozen).append(name)
    # Those of a teacher follow the student's, as in `_frozen_layers`.
    frozen = [name for name in frozen if name.partition('.')[2] not in students]
    if frozen:
        raise ValueError(
            f'the checkpoint that the backbone starts from has no values of the right shape for '
            f'{some_of(frozen, limit=10)}, which are frozen and would stay random; take one that '
            f'fits, or {UNFREEZE}'
        )
    if trained:
        runner.logger.warning(
            f'mmkw: the checkpoint that the backbone starts from has no values of the right shape '
            f'for {some_of(trained, limit=10)}, which start as when training from scratch'
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _frozen_layers(model: nn.Module, modules: Sequence[AnnealedModule]) -> list[str]:
    """Layers that stay as they are, with frozen attentions for one of these warehouses.

    Not those of a teacher, which its student changes, though only the algorithm knows how: a part
    of the model in which the layer has the same name as a trained one in another part.
    """
    model = _unwrapped(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, KWLayer)}
    trained = {
        name
        for name, layer in layers.items()
        if any(parameter.requires_grad for parameter in layer.attention.parameters())
    }
    students = {name.partition('.')[2] for name in trained}
    return [
        name
        for name, layer in layers.items()
        if layer.warehouse in modules
        and name not in trained
        and name.partition('.')[2] not in students
    ]


def _check_batches(runner: Runner) -> None:
    """Say so if attentions with batch norm would never see more than one image at a time."""
    if getattr(runner.train_dataloader, 'batch_size', None) != 1:
        return
    names = [
        name
        for name, layer in runner.model.named_modules()
        if isinstance(layer, KWLayer)
        and isinstance(layer.attention.norm, nn.BatchNorm1d)
        and layer.attention.norm.training
    ]
    if names:
        runner.logger.warning(
            f'mmkw: train_dataloader.batch_size=1, so that batch norm in the attentions of '
            f'{some_of(names, limit=3)} has no statistics to learn; take at least 2, or '
            f"attention=dict(norm_layer='LayerNorm') in the backbone or conv_cfg"
        )
