# ODConv's own recipe for MobileNetV2: SGD 0.05 at batch 256 without Nesterov momentum, weight decay
# 4e-5 on all parameters, 150 epochs, and a cosine that falls after each epoch. All convolutions but
# the stem are ODConv's, depthwise ones and the last 1 x 1 convolution included. In the two larger
# widths, dropout of 0.2 precedes the classifier.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.MobileNetV2', widen_factor=1.0),
        layer=dict(type='ODConv2d', num_kernels=4),
        layers=['layer*', 'conv2.conv'],
    ),
    head=dict(type='DropoutLinearClsHead', dropout=0.2),
)

optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', by_epoch=True, begin=0, end=150)
train_cfg = dict(max_epochs=150)

custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
