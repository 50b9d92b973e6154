_base_ = './_base_/convnext-tiny_8xb512-300e.py'

# budget=None is the plain ConvNeXt, with the recipe's constant drop path, which mmpretrain.ConvNeXt
# cannot express (its drop path grows with depth).
model = dict(backbone=dict(budget=None))
custom_hooks = [_base_.ema_hook]
