"""Training hooks."""

from .attention_hook import KWAttentionHook
from .finite_loss_hook import FiniteLossHook
from .temperature_hook import KWDisableAttentionInitHook, KWTemperatureHook

__all__ = ['FiniteLossHook', 'KWAttentionHook', 'KWDisableAttentionInitHook', 'KWTemperatureHook']
