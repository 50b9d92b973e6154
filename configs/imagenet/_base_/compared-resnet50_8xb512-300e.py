_base_ = './compared-resnet18_8xb512-300e.py'

model = dict(backbone=dict(backbone=dict(depth=50)), head=dict(in_channels=2048))
