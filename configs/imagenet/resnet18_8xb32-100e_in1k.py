_base_ = './_base_/resnet18_8xb32-100e.py'

# budget=None is the plain ResNet: every baseline is of the class that it is compared with. Its
# classifier starts from N(0, 0.01).
model = dict(
    backbone=dict(budget=None),
    head=dict(init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01)),
)
custom_hooks = []
