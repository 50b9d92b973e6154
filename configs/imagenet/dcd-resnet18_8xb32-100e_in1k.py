_base_ = './_base_/compared-resnet18_8xb32-100e.py'

# Both convolutions of every block, and the classifier.
model = dict(
    backbone=dict(layer=dict(type='DCDConv2d'), layers=['layer*.conv?']),
    head=dict(type='DynamicLinearClsHead', layer=dict(type='DCDLinear')),
)
