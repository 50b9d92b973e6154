_base_ = ['mmpretrain::_base_/models/resnet18.py', './advanced_8xb512-300e.py']

# As the released models: drop path of the same rate in every block, all norms start at 1, the
# classifier as PyTorch initialises linear layers.
model = dict(
    backbone=dict(
        type='KWResNet', drop_path_rate=0.1, constant_drop_path=True, zero_init_residual=False
    ),
    head=dict(
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'), init_cfg=None
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
