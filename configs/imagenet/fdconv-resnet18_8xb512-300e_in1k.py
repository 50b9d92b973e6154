_base_ = './_base_/compared-resnet18_8xb512-300e.py'

model = dict(backbone=dict(layer=dict(type='FDConv2d'), layers=['layer*.conv?']))
