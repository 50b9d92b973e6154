# The advanced recipe of the paper's A.1, which follows ConvNeXt: 300 epochs of AdamW. mmpretrain's
# Swin data is that recipe's: bicubic crop, flip, RandAugment m9-mstd0.5-inc1, random erasing 0.25
# with noise of the images' own mean and deviation; evaluation on the bicubic 224 of 256 pixels.
# Mixup, cutmix and label smoothing belong to the model, hence to the files that inherit this one.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

train_dataloader = dict(batch_size=512)

# No weight decay on normalisation, biases and other vectors, as in ConvNeXt.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.004, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
# The cosine ends at 1e-6, as for the released models; the paper says zero.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# 8 GPUs x 512 images
auto_scale_lr = dict(base_batch_size=4096)

custom_hooks = [dict(type='KWTemperatureHook', epochs=20)]
# All 300 checkpoints of a 4x model, optimizer state included, would fill a disk.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'),
    finite_loss=dict(type='FiniteLossHook'),
)
