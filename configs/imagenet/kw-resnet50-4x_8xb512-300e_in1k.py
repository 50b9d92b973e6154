_base_ = './_base_/resnet50_8xb512-300e.py'

model = dict(backbone=dict(budget=4))
