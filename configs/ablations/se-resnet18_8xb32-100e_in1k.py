_base_ = './_base_/recalibrated-resnet18_8xb32-100e.py'

model = dict(backbone=dict(recalibration=dict(type='SE')))
