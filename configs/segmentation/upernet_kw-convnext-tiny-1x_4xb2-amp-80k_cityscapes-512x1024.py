# MMSegmentation has no ConvNeXt for Cityscapes: data and length are those of its UPerNet there, the
# rest is its recipe of ConvNeXt for ADE20K.
_base_ = [
    'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py',
    './_base_/kw-convnext-tiny.py',
]
custom_imports = dict(imports=['mmkw'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.dynamic_backbone),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, begin=1500, end=80000, eta_min=0.0, by_epoch=False),
]
