_base_ = './odconv-resnet18_8xb32-100e.py'

model = dict(backbone=dict(backbone=dict(depth=50)), head=dict(in_channels=2048))
