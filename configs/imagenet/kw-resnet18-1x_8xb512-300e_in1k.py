_base_ = './_base_/resnet18_8xb512-300e.py'

model = dict(backbone=dict(budget=1))
