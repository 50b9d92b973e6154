# The traditional recipe of the paper's A.1: SGD 0.1 at batch 256, a tenth of it every 30 of 100
# epochs, random resized crop and flip. It is mmpretrain's own for ResNet18 to the last value.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(backbone=dict(type='KWResNet'))

custom_hooks = [dict(type='KWTemperatureHook', epochs=10)]
