"""A hook that shows the attentions while a model trains."""

from __future__ import annotations

from contextlib import ExitStack

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...analysis.attention import AttentionRecorder, group_attentions, group_statistics
from ...arguments import checks_arguments, is_whole_number


@HOOKS.register_module()
class KWAttentionHook(Hook):
    """Logs statistics and heat maps of the attentions through MMEngine's visualizer.

    They then show wherever its backends write, such as TensorBoard or W&B: scalars
    ``attention/<statistic>/<warehouse>``, with the statistics of
    :class:`~mmkw.analysis.attention.LayerAttention` averaged over the warehouse's layers, and
    images ``attention/<warehouse>``. They are of the samples that the first process sees in one
    iteration, and of attentions in evaluation mode. For all dynamic layers that mix kernels::

        custom_hooks = [dict(type='KWAttentionHook', interval=500)]

    Args:
        interval (int): iterations from one logging to the next. Defaults to 500.
        map_interval (int, optional): iterations from one drawing of the maps to the next.
            Defaults to ``None``, ten times ``interval``. 0 draws none.

    Raises:
        ValueError: if ``interval`` is not a positive integer, ``map_interval`` not 0 or a positive
            multiple of it, or, before training, the model has no layers that mix kernels.
    """

    priority = 'LOW'

    @checks_arguments()
    def __init__(self, interval: int = 500, map_interval: int | None = None) -> None:
        if not is_whole_number(interval):
            raise ValueError(
                f'interval of KWAttentionHook must be a positive whole number of iterations, but '
                f'got {interval!r}'
            )
        if map_interval is None:
            map_interval = 10 * interval
        if not is_whole_number(map_interval, 0) or map_interval % interval:
            raise ValueError(
                f'map_interval of KWAttentionHook must be 0 (no maps) or a multiple of its '
                f'interval, {interval}, but got {map_interval!r}'
            )
        self.interval = interval
        self.map_interval = map_interval
        self._is_idle = False
        self._recorder: AttentionRecorder | None = None
        self._recording = ExitStack()

    def before_train(self, runner: Runner) -> None:
        """Refuse models without attentions.

        Tools that only draw a schedule run the hooks of a config with a small model in the place of
        the config's. There the hook warns and does nothing.
        """
        try:
            AttentionRecorder(runner.model)
        except ValueError as error:
            if 'model' in runner.cfg:
                raise
            self._is_idle = True
            runner.logger.warning(f'mmkw: KWAttentionHook does nothing: {error}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Begin to record where this iteration is logged."""
        is_due = is_main_process() and self.every_n_train_iters(runner, self.interval)
        if is_due and not self._is_idle:
            self._recorder = AttentionRecorder(runner.model)
            self._recording.enter_context(self._recorder.recording())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Log what was recorded."""
        if self._recorder is None:
            return
        self._recording.close()
        attentions, self._recorder = self._recorder.results(), None
        step = runner.iter + 1
        scalars = {
            f'attention/{name}/{group}': value
            for group, values in group_statistics(attentions).items()
            for name, value in values.items()
        }
        runner.visualizer.add_scalars(scalars, step=step)
        if self.map_interval and self.every_n_train_iters(runner, self.map_interval):
            # Not needed for scalars, and slow to import.
            from ...analysis.attention_maps import as_image, draw_map

            for group, layers in group_attentions(attentions).items():
                image = as_image(draw_map(f'{group}, iteration {step}', layers))
                runner.visualizer.add_image(f'attention/{group}', image, step=step)
