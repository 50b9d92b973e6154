_base_ = './_base_/mobilenet-v2_8xb32-150e.py'

model = dict(backbone=dict(budget=1))
