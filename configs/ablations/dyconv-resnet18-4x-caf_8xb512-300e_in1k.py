_base_ = '../imagenet/dyconv-resnet18-4x_8xb512-300e_in1k.py'

# Table 10: KernelWarehouse's attention function over the kernels, annealed as there.
model = dict(backbone=dict(layer=dict(function='caf')))
custom_hooks = [dict(type='KWTemperatureHook', epochs=20)]
