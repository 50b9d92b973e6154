"""Hooks that set the temperature of the attentions during training."""

from __future__ import annotations

import math

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...arguments import checks_arguments, is_number, is_whole_number
from ...methods.temperature import AnnealedModule, TemperatureRange, annealed_modules
from .start_checks import (
    averaged_copies,
    check_start,
    describe_start,
    names_of,
    starts_from_plain,
)


class TemperatureHook(Hook):
    """What the hooks have in common that set the temperature."""

    def before_train(self, runner: Runner) -> None:
        """Find the layers with a temperature in the model and of its moving averages.

        Tools that only draw a schedule run the hooks of a config with a small model in the place of
        the config's. There the hook warns and does nothing.

        Raises:
            ValueError: if the model has no layers with a temperature, or those of two methods, or
                if two hooks would set the temperature; see also :func:`check_start`.
        """
        is_annealed = any(isinstance(m, AnnealedModule) for m in runner.model.modules())
        self._is_idle = not is_annealed and 'model' not in runner.cfg
        if self._is_idle:
            runner.logger.warning(
                f'mmkw: {type(self).__name__} does nothing: {type(runner.model).__name__} has no '
                f'layers with a temperature, and was not built from a config.'
            )
        else:
            self._prepare(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Set the temperature of the iteration that begins."""
        if not self._is_idle:
            self._set(runner, self.temperature(runner))

    def temperature(self, runner: Runner) -> float:
        """That of the modules that are annealed, in the iteration that begins."""
        return self._range.learned

    def _prepare(self, runner: Runner) -> None:
        rivals = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, TemperatureHook)]
        if len(rivals) > 1:
            raise ValueError(
                f'only one hook can set the temperature, but custom_hooks has {rivals}; remove '
                f'one of them'
            )
        copies = averaged_copies(
            runner.model, *[hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        )
        found = annealed_modules(runner.model)
        self._range: TemperatureRange = found[0].temperature_range
        modules = [module for module in found if module not in copies]
        self._annealed = [module for module in modules if self.anneals(module)]
        self._held = [module for module in modules if module not in self._annealed]
        # Not after resuming; with resume=True and nothing to resume a run starts anew.
        if runner.iter == 0:
            check_start(runner, modules, self._held)
        self._log_start(runner)
        # Averages follow what they are made of. They were copied before weights were loaded, and a
        # running mean of the temperature would lag behind.
        origins = {module.origin for module in self._annealed}
        for copy in copies:
            (self._annealed if copy.origin in origins else self._held).append(copy)

    def anneals(self, module: AnnealedModule) -> bool:
        """Whether the temperature of the module is annealed; otherwise it is held."""
        raise NotImplementedError

    def _log_start(self, runner: Runner) -> None:
        """Say what becomes of the temperature."""
        raise NotImplementedError

    def _set(self, runner: Runner, value: float) -> None:
        for module in self._annealed:
            module.set_temperature(value)
        for module in self._held:
            module.set_temperature(self._range.learned)
        shown = value if self._annealed else self._range.learned
        runner.message_hub.update_scalar('train/temperature', shown)


@HOOKS.register_module()
class KWTemperatureHook(TemperatureHook):
    r"""Anneals the temperature of attentions that are to be learned, linearly by iteration.

    .. math:: \tau_t = \mathrm{begin} + (\mathrm{end} - \mathrm{begin}) \min(t / T, 1)

    with ``t`` counting iterations from 1 and ``T`` those of ``epochs``. The value follows from
    the iteration alone, so a resumed run goes on exactly. With gradient accumulation all
    iterations of one optimizer step share the value of the last, as in the same run with the
    larger batch. The message hub shows it as ``train/temperature``.

    What a warehouse starts from decides whether it is annealed, and the log says once which do
    what:

    ==========================================  ================================================
    a warehouse that                            its temperature
    ==========================================  ================================================
    is new, starts from plain kernels, or       annealed
    comes from amid its annealing
    has learned attentions (temperature 0 in    held at 0, as annealing would disrupt them
    the checkpoint, or none)
    is in a moving average of the model         that of the warehouse of which it is the average
    ==========================================  ================================================

    So the same config serves a detector from plain weights, from a KW checkpoint and from nothing,
    and one whose neck alone has warehouses.

    KernelWarehouse anneals from 1 to 0, the defaults. ODConv and DY-Conv divide logits by their
    temperature and anneal from 30 to 1, where attentions are learned ones::

        custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]

    Args:
        epochs (float, optional): epochs over which to anneal. KernelWarehouse takes 10 (SGD, 100
            epochs), 15 (MobileNetV2, as released) or 20 (AdamW, 300 epochs); ODConv and DY-Conv
            take 10. About 2 suit a start from plain kernels.
        iters (int, optional): iterations instead of epochs; give one of the two.
        begin (float): temperature before the first iteration. Defaults to 1.
        end (float): temperature from iteration ``T`` on. Defaults to 0.

    Raises:
        ValueError: if not exactly one of ``epochs`` and ``iters`` is given, it is not positive or
            ``iters`` not whole, or a temperature is not a number; before training if the model has
            no layers with a temperature, one of the two is outside the range of its method, or
            ``epochs`` is given to a training loop that does not count epochs.
    """

    @checks_arguments()
    def __init__(
        self,
        epochs: float | None = None,
        iters: int | None = None,
        begin: float = 1.0,
        end: float = 0.0,
    ) -> None:
        is_length = is_number(epochs) and epochs > 0 if iters is None else is_whole_number(iters)
        if not is_length or (epochs is not None and iters is not None):
            raise ValueError(
                f'KWTemperatureHook needs either a positive number of epochs or a positive whole '
                f'number of iters, but got epochs={epochs!r}, iters={iters!r}'
            )
        self.epochs = epochs
        self.iters = iters
        for name, value in (('begin', begin), ('end', end)):
            if not is_number(value):
                raise ValueError(f'{name} must be a finite number, but got {value!r}')
        self.begin = begin
        self.end = end

    def anneals(self, module: AnnealedModule) -> bool:
        return starts_from_plain(module) or module.loaded_temperature != self._range.learned

    def _prepare(self, runner: Runner) -> None:
        if self.epochs is None:
            self._last_iter: float = self.iters
        elif isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._last_iter = self.epochs * len(runner.train_dataloader)
        else:
            raise ValueError(
                f'KWTemperatureHook(epochs={self.epochs}) needs a training loop that counts '
                f'epochs, but got {type(runner.train_loop).__name__}; give iters instead'
            )
        super()._prepare(runner)
        for name in ('begin', 'end'):
            self._range.check(f'{name} of KWTemperatureHook', getattr(self, name))

    def _log_start(self, runner: Runner) -> None:
        annealed = f'temperature annealed over {self._last_iter:g} iterations'
        held = f'temperature held at {self._range.learned:g}'
        for modules, fate in ((self._annealed, annealed), (self._held, held)):
            starts: dict[str, list[AnnealedModule]] = {}
            for module in modules:
                starts.setdefault(describe_start(module), []).append(module)
            for start, same in starts.items():
                runner.logger.info(f'mmkw: {start}, {fate}: {names_of(runner, same)}.')

    def temperature(self, runner: Runner) -> float:
        step = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        iteration = math.ceil((runner.iter + 1) / step) * step
        progress = min(iteration / self._last_iter, 1)
        return self.begin + (self.end - self.begin) * progress


@HOOKS.register_module()
class KWDisableAttentionInitHook(TemperatureHook):
    """Holds the temperature where attentions are what was learned, for fine-tuning.

    That is 0 for KernelWarehouse, whose one-to-one attentions would disrupt what pre-training
    learnt (Appendix A.1.2), and 1 for ODConv and DY-Conv, whatever the checkpoint says. The
    message hub shows it as ``train/temperature``, too.

    Raises:
        ValueError: if the model has no layers with a temperature, or starts from plain weights,
            so that attentions have learned nothing.
    """

    def anneals(self, module: AnnealedModule) -> bool:
        return False

    def _prepare(self, runner: Runner) -> None:
        super()._prepare(runner)
        self._set(runner, self._range.learned)

    def _log_start(self, runner: Runner) -> None:
        runner.logger.info(
            f'mmkw: the temperature is held at {self._range.learned:g} (learned attentions).'
        )
