# The traditional recipe of the paper's A.1: SGD 0.1 at batch 256, a tenth of it every 30 of 100
# epochs, random resized crop and flip. It is mmpretrain's own for ResNet18 with two changes, by
# which it is the release's: norms, biases and other vectors do not decay; and all norms start at 1
# and the classifier as PyTorch initialises linear layers.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='KWResNet', zero_init_residual=False),
    head=dict(init_cfg=None),
)

optim_wrapper = dict(
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
)

custom_hooks = [dict(type='KWTemperatureHook', epochs=10)]
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'),
    finite_loss=dict(type='FiniteLossHook'),
)
