_base_ = './_base_/odconv-mobilenet-v2_8xb32-150e.py'

model = dict(backbone=dict(layer=dict(num_kernels=4)))
