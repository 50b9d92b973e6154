"""The hook that chooses the temperature by what a run starts from."""

from __future__ import annotations

from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...methods.temperature import AnnealedModule
from .start_checks import starts_from_plain
from .temperature_hook import KWTemperatureHook


@HOOKS.register_module()
class KWStartHook(KWTemperatureHook):
    """Sets the temperature that suits the start, for each warehouse.

    ====================================  =======================================================
    a warehouse that                      its temperature
    ====================================  =======================================================
    has learned attentions (temperature   held at 0, as by :class:`KWDisableAttentionInitHook`
    0 in the checkpoint, or none)
    starts from plain kernels, is new,    annealed from 1 to 0, as by :class:`KWTemperatureHook`
    or comes from amid its annealing
    ====================================  =======================================================

    So the same config serves a detector from a KW checkpoint, from plain weights and from nothing,
    and one whose neck alone has warehouses. A resumed run goes on as it began. The log says once
    which warehouses do what.

    Args:
        epochs, iters, begin, end: as in :class:`KWTemperatureHook`; without effect where nothing
            is annealed.

    Raises:
        ValueError: see :class:`KWTemperatureHook`.
    """

    def anneals(self, module: AnnealedModule) -> bool:
        return starts_from_plain(module) or module.loaded_temperature != self._range.learned

    def _prepare(self, runner: Runner) -> None:
        super()._prepare(runner)
        names = {module: name for name, module in runner.model.named_modules()}
        starts: dict[str, list[str]] = {}
        for module in [*self._held, *self._annealed]:
            if module in names:
                starts.setdefault(self._describe(module), []).append(names[module])
        for start, modules in starts.items():
            runner.logger.info(f'mmkw: {start}: {", ".join(modules)}.')

    def _describe(self, module: AnnealedModule) -> str:
        if not self.anneals(module):
            return f'learned attentions, temperature held at {self._range.learned:g}'
        annealed = f'temperature annealed over {self._last_iter:g} iterations'
        if starts_from_plain(module):
            return f'plain kernels cut into cells, {annealed}'
        kind = 'new weights' if module.loaded_temperature is None else 'attentions amid annealing'
        return f'{kind}, {annealed}'
