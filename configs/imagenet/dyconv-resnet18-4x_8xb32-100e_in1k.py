_base_ = './_base_/compared-resnet18_8xb32-100e.py'

# Every convolution but the stem.
model = dict(
    backbone=dict(
        layer=dict(type='DYConv2d', num_kernels=4),
        layers=['layer*'],
    )
)
custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
