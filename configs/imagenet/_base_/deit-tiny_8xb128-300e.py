# The paper names no recipe for DeiT. This is DeiT's own as mmpretrain has it, to the last value:
# 300 epochs of AdamW 0.001 at batch 1024, gradients clipped to a norm of 5, no drop path, and none
# of the original's repeated augmentation. The temperature falls as in the paper's other 300 epochs.
_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(backbone=dict(type='KWVisionTransformer'))

# 8 GPUs x 128 images
train_dataloader = dict(batch_size=128)

custom_hooks = [dict(type='KWTemperatureHook', epochs=20)]
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'),
    finite_loss=dict(type='FiniteLossHook'),
)
