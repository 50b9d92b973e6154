_base_ = './_base_/odconv-mobilenet-v2_8xb32-150e.py'

model = dict(backbone=dict(backbone=dict(widen_factor=0.75), layer=dict(num_kernels=1)))
