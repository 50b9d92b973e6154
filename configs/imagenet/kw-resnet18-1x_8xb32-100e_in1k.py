_base_ = './_base_/resnet18_8xb32-100e.py'

model = dict(backbone=dict(budget=1))
