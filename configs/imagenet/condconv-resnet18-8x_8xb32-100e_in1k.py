_base_ = './_base_/compared-resnet18_8xb32-100e.py'

# Both convolutions of the last three blocks share the routing of their block; the classifier has
# its own. The placement is that by which the parameters are those of the paper.
model = dict(
    backbone=dict(
        layer=dict(type='CondConv2d', num_kernels=8),
        layers=['layer3.1.conv?', 'layer4.*.conv?'],
        share_routing_in=['layer3.1', 'layer4.0', 'layer4.1'],
    ),
    head=dict(
        type='DynamicLinearClsHead', layer=dict(type='CondLinear', num_kernels=8, bias=False)
    ),
)
