_base_ = './_base_/compared-resnet50_8xb512-300e.py'

# Every convolution but the stem.
model = dict(
    backbone=dict(
        layer=dict(type='DYConv2d', num_kernels=4),
        layers=['layer*'],
    )
)
custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
