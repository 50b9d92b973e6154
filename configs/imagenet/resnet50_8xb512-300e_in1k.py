_base_ = './_base_/resnet50_8xb512-300e.py'

# budget=None is the plain ResNet, with the recipe's constant drop path, which mmpretrain.ResNet
# cannot express (its drop path grows with depth).
model = dict(backbone=dict(budget=None))
custom_hooks = []
