# ODConv's own recipe for ResNets: SGD 0.1 at batch 256, a tenth of it every 30 of 100 epochs,
# weight decay on all parameters. It is MMPretrain's for ResNet18 but for the first values: all
# norms start at 1, and the classifier as PyTorch initialises linear layers. Both convolutions of a
# block (all three from ResNet50 on) are ODConv's; the stem and all downsampling stay plain.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='DynamicBackbone',
        backbone=dict(type='mmpretrain.ResNet', depth=18, zero_init_residual=False),
        layer=dict(type='ODConv2d', num_kernels=4),
        layers=['layer*.conv?'],
    ),
    head=dict(init_cfg=None),
)

custom_hooks = [dict(type='KWTemperatureHook', begin=30, end=1, epochs=10)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
