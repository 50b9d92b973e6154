_base_ = './kw-mobilenet-v2-w100-1d2x_8xb32-150e_in1k.py'

model = dict(backbone=dict(widen_factor=0.5))
