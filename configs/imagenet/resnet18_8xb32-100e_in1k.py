_base_ = './_base_/resnet18_8xb32-100e.py'

# budget=None is the plain ResNet: every baseline is of the class that it is compared with, so that
# the budget is all that differs.
model = dict(backbone=dict(budget=None))
custom_hooks = []
