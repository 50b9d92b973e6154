_base_ = '../imagenet/_base_/compared-resnet18_8xb32-100e.py'

# Every convolution larger than 1x1, the stem too.
model = dict(backbone=dict(layer=dict(type='CGConv2d'), layers=['conv1', 'layer*.conv?']))
