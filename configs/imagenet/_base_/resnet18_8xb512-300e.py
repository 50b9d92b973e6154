_base_ = ['mmpretrain::_base_/models/resnet18.py', './advanced_8xb512-300e.py']

model = dict(
    backbone=dict(type='KWResNet', drop_path_rate=0.1, constant_drop_path=True),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
