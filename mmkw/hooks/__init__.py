"""Training hooks."""

from .temperature_hook import KWDisableAttentionInitHook, KWTemperatureHook

__all__ = ['KWDisableAttentionInitHook', 'KWTemperatureHook']
