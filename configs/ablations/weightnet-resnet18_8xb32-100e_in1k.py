_base_ = '../imagenet/_base_/compared-resnet18_8xb32-100e.py'

# Both convolutions of every block.
model = dict(backbone=dict(layer=dict(type='WeightNetConv2d'), layers=['layer*.conv?']))
