"""Training hooks."""

from .attention_hook import KWAttentionHook
from .class_names_hook import ClassNamesHook
from .finite_loss_hook import FiniteLossHook
from .resume_hooks import SeedHook, WholeEpochHook
from .temperature_hook import KWDisableAttentionInitHook, KWTemperatureHook

__all__ = [
    'ClassNamesHook',
    'FiniteLossHook',
    'KWAttentionHook',
    'KWDisableAttentionInitHook',
    'KWTemperatureHook',
    'SeedHook',
    'WholeEpochHook',
]
