_base_ = './fdconv-resnet18_8xb512-300e_in1k.py'

model = dict(backbone=dict(backbone=dict(depth=50)), head=dict(in_channels=2048))
