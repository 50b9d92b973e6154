_base_ = './_base_/resnet18_8xb512-300e.py'

# budget=None is the plain ResNet. It has no drop path, and its classifier starts from N(0, 0.01).
model = dict(
    backbone=dict(budget=None, drop_path_rate=0.0),
    head=dict(init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01)),
)
custom_hooks = []
