_base_ = './_base_/odconv-resnet18_8xb32-100e.py'

model = dict(backbone=dict(layer=dict(num_kernels=4)))
