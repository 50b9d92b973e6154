# DY-Conv in every convolution of MobileNetV2 but the stem, by the recipe of the KW networks.
_base_ = './mobilenet-v2_8xb32-150e.py'

# budget=None is the plain MobileNetV2, whose layers are replaced.
model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(type='KWMobileNetV2', widen_factor=1.0, budget=None),
        layer=dict(type='DYConv2d', num_kernels=4),
        layers=['layer*', 'conv2.conv'],
    )
)
custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
