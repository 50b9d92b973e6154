_base_ = './_base_/convnext-tiny_8xb512-300e.py'

# budget=None is the plain ConvNeXt.
model = dict(backbone=dict(budget=None, drop_path_rate=0.1))
custom_hooks = [_base_.ema_hook]
