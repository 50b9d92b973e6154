# The MobileNetV2 recipe of the paper's A.1: SGD at batch 256, weight decay 4e-5, 150 epochs, cosine
# to zero, random resized crop and flip. Two values are the released models' instead: a learning
# rate of 0.05 (the paper says 0.1) and 15 epochs of temperature annealing (the paper says 10).
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(backbone=dict(type='KWMobileNetV2'))

optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=0.0,
    begin=0,
    end=150,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=150)

custom_hooks = [dict(type='KWTemperatureHook', epochs=15)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
