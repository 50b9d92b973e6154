_base_ = './_base_/odconv-resnet18_8xb32-100e.py'

model = dict(backbone=dict(backbone=dict(depth=34), layer=dict(num_kernels=1)))
