"""Training hooks."""

from .pretrained_hook import KWPretrainedHook
from .temperature_hook import KWDisableAttentionInitHook, KWTemperatureHook

__all__ = ['KWDisableAttentionInitHook', 'KWPretrainedHook', 'KWTemperatureHook']
