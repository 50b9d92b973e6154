_base_ = './_base_/compared-resnet18_8xb512-300e.py'

model = dict(
    backbone=dict(
        layer=dict(type='ODConv2d', num_kernels=4),
        layers=['layer*.conv?'],
    )
)
custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
