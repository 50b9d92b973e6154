# Mask R-CNN as FDConv's authors train it, in half precision. Their number of GPUs is not known;
# four make the batch of 16 that the other configs have.
_base_ = ['./_base_/mask-rcnn_fpn_ms-1x.py', './_base_/fdconv-resnet50.py']

model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(_delete_=True, backbone=_base_.plain_backbone, **_base_.fdconv),
)

train_dataloader = dict(batch_size=4, num_workers=4)
# The layer norms of gates are the only parameters with such a name.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    paramwise_cfg=dict(_delete_=True, custom_keys={'norm': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[10, 11], gamma=0.1),
]
custom_hooks = []
