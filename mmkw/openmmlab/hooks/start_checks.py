"""Whether what a training run starts from and how it trains go together."""

from __future__ import annotations

from collections.abc import Sequence

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


def check_start(
    runner: Runner, modules: Sequence[AnnealedModule], annealed: Sequence[bool]
) -> None:
    """Compare where the weights came from with what becomes of the temperature.

    ================  ===========  ===========================================================
    weights           temperature  verdict
    ================  ===========  ===========================================================
    plain             held (0)     error: that is for learned attentions, but there are none
    plain             annealed     right; frozen layers stay those of the plain network
    new               held (0)     warning: training from scratch anneals
    new               any          layers that are frozen stay random: error if a checkpoint was
                                   given, which then does not fit, else a warning
    with attentions   annealed     warning: what they learned is lost
    with attentions   held (0)     right
    ================  ===========  ===========================================================

    Args:
        runner: for the model and the log.
        modules: those of the model that have a temperature.
        annealed: whether the temperature of each is annealed.

    Raises:
        ValueError: see the table.
    """
    names = {module: name for name, module in runner.model.named_modules()}
    plain = [module for module in modules if starts_from_plain(module)]
    new = [m for m in modules if m not in plain and m.loaded_temperature is None]
    is_annealed = dict(zip(modules, annealed))

    def some(found: Sequence[AnnealedModule]) -> str:
        return some_of([names[module] or type(module).__name__ for module in found], limit=3)

    held = [module for module in plain if not is_annealed[module]]
    if held:
        raise ValueError(
            f'{some(held)} start from plain weights (temperature 1), so that their attentions '
            f'have learned nothing yet, but the temperature would be held at '
            f'{held[0].temperature_range.learned:g}, which is for attentions that have. Anneal it: '
            f"replace KWDisableAttentionInitHook in custom_hooks by dict(type='KWStartHook', "
            f'epochs=...)'
        )
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
    held = [module for module in new if not is_annealed[module]]
    if held:
        runner.logger.warning(
            f'mmkw: {some(held)} are new, with random attentions, but the temperature is held at '
            f'{held[0].temperature_range.learned:g}. When trained from scratch it should be '
            f"annealed: dict(type='KWStartHook', epochs=...) in custom_hooks"
        )
    lost = [
        module
        for module in modules
        if is_annealed[module] and module.loaded_temperature == module.temperature_range.learned
    ]
    if lost:
        runner.logger.warning(
            f'mmkw: {some(lost)} start from learned attentions (temperature '
            f'{lost[0].temperature_range.learned:g}), which annealing disrupts. For fine-tuning '
            f"take dict(type='KWStartHook', epochs=...) or "
            f"dict(type='KWDisableAttentionInitHook') in custom_hooks"
        )
    _check_batches(runner)


def _frozen_layers(model: nn.Module, modules: Sequence[AnnealedModule]) -> list[str]:
    """Layers with frozen attentions that draw on one of these warehouses."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, KWLayer)
        and layer.warehouse in modules
        and not any(parameter.requires_grad for parameter in layer.attention.parameters())
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
