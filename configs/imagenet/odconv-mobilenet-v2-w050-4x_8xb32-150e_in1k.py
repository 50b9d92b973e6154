_base_ = './_base_/odconv-mobilenet-v2_8xb32-150e.py'

model = dict(
    backbone=dict(backbone=dict(widen_factor=0.5), layer=dict(num_kernels=4)),
    head=dict(dropout=0.0),
)
