"""Training hooks."""

from .attention_hook import KWAttentionHook
from .temperature_hook import KWDisableAttentionInitHook, KWTemperatureHook

__all__ = ['KWAttentionHook', 'KWDisableAttentionInitHook', 'KWTemperatureHook']
