_base_ = './_base_/mobilenet-v2_8xb32-150e.py'

# budget=None is the plain MobileNetV2.
model = dict(backbone=dict(widen_factor=0.5, budget=None))
custom_hooks = []
