# MobileNetV2 in 150 epochs of SGD at batch 256, as the released models were trained. The paper's
# A.1 has another learning rate (0.1), length of temperature annealing (10 epochs) and end of the
# cosine (0), and mentions neither Nesterov momentum nor label smoothing, which some of the models
# have (see their configs). No weight decay on norms, biases and other vectors.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(backbone=dict(type='KWMobileNetV2'))

optim_wrapper = dict(
    optimizer=dict(lr=0.05, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=1e-6,
    begin=0,
    end=150,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=150)

custom_hooks = [dict(type='KWTemperatureHook', epochs=15)]
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'),
    finite_loss=dict(type='FiniteLossHook'),
)
